"""Test the paper's seven conclusions on the records of grids: effects, confidence intervals, verdicts.

**Points** are percent of the teacher's score, averaged over the scores compared (by default TR@1, IR@1, CIDEr and VQA).
An effect is a weighted sum of rows, paired by seed: a seed gives all rows the same initial weights and order of images,
and all rows are evaluated on the same images.

**Intervals** cover the noise of seeds and of test images. Each draw resamples the test images, with their captions and
questions, and adds an error of the mean over seeds from Student's t with (seeds - 1) degrees of freedom; the interval
is the central 95% of the draws. Three seeds are few, so it is wide. The claims of a conclusion share the 5% evenly
(Bonferroni), so that all their intervals hold at once with 95%.

**Verdicts.** A claim is a range for its effect. It holds if the whole interval lies in the range, fails if none of it
does, and is undecided otherwise. A conclusion holds if all its claims do, and fails if one of them does.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from dlip.cost.count import paper_count
from dlip.experiments.ablation import matched
from dlip.experiments.grids import FULL, IMAGE, TEACHER_ROW, TEXT, UNLIKE_PAPER, Plan, module_row, student_size
from dlip.models.config import preset
from dlip.records import HEADLINE_SCORES
from dlip.records.outcomes import ITEM_COUNTS, outcomes

MARGIN = 1.0
"""Effects within +-MARGIN points count as no difference."""
DRAWS, SEED = 4000, 0
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided here"


@dataclass(frozen=True)
class Claim:
    """A range for a weighted sum of rows' scores, in points."""

    comparison: str
    grid: str
    rows: dict[str, float]
    """Row -> weight; weights add up to 0."""
    low: float = 0.0
    high: float = math.inf
    scores: tuple[str, ...] = tuple(HEADLINE_SCORES)


@dataclass(frozen=True)
class Conclusion:
    number: int
    statement: str
    claims: tuple[Claim, ...]


def slopes() -> dict[str, float]:
    """Row of `modules` -> weight: points lost per halving of the image encoder, minus those of the text encoder.

    Least-squares slopes over log2 of the encoder's parameters, averaged over the other encoder at the teacher's and at
    the student's size; undistilled rows, as in the paper.
    """
    row_weights: dict[str, float] = {}
    for sizes, side, sign in ((IMAGE, "image", 1.0), (TEXT, "text", -1.0)):
        x = np.log2([paper_count(preset(student_size(sizes[size])))[f"{side}_params"] for size in sizes])
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        for other in ("base", "small"):
            for size, weight in zip(sizes, weights, strict=True):
                name = module_row(size, other) if side == "image" else module_row(other, size)
                row_weights[name] = row_weights.get(name, 0.0) + sign * weight / 2
    return row_weights


def difference(row: str, other: str) -> dict[str, float]:
    """Weights of the first row minus the second."""
    return {row: 1.0, other: -1.0}


CONCLUSIONS = (
    Conclusion(1, "Image and text encoders matter equally under compression.", (
        Claim("points lost per halving of the image encoder, minus those of the text encoder", "modules", slopes(),
              -MARGIN, MARGIN),
    )),
    Conclusion(2, "A large fusion module is unnecessary: half of the layers suffice.", (
        Claim("6 fused layers minus 3", "fusion", difference("6 of 6 layers fused", "3 of 6 layers fused"),
              -math.inf, MARGIN),
    )),
    Conclusion(3, "Representations carry more than attention maps.", (
        Claim("VLP+HR minus VLP+AT", "objectives", difference("VLP+HR", "VLP+AT")),
    )),
    Conclusion(4, "Fused information carries more than either modality's; cross-attention more than self-attention.", (
        Claim("fusion states minus image states", "modalities", difference("fusion", "image")),
        Claim("fusion states minus text states", "modalities", difference("fusion", "text")),
        Claim("cross-attention minus self-attention", "attention", difference("cross-attention", "self-attention")),
    )),
    Conclusion(5, "Decoder tasks need decoder states to be distilled.", (
        Claim("decoder states minus fusion states, on CIDEr and VQA", "modalities", difference("decoder", "fusion"),
              scores=("cider", "vqa")),
    )),
    Conclusion(6, "Pretrained weights are vital for the image encoder, nearly irrelevant for the text encoder.", (
        Claim("image inherited minus from scratch", "init", difference("image inherited", "from scratch"), MARGIN),
        Claim("a quarter of what image inherited gains, minus what text inherited gains", "init",
              {"image inherited": 0.25, "text inherited": -1.0, "from scratch": 0.75}),
        Claim("a quarter of what image inherited gains, plus what text inherited gains", "init",
              {"image inherited": 0.25, "text inherited": 1.0, "from scratch": -1.25}),
    )),
    Conclusion(7, "The losses complement each other.", (  # AT+HR trains no head here, so it is not compared
        Claim("VLP+HR minus VLP", "objectives", difference("VLP+HR", "VLP")),
        Claim("VLP+AT minus VLP", "objectives", difference("VLP+AT", "VLP")),
        Claim("VLP+AT+HR minus VLP+HR", "objectives", difference("VLP+AT+HR", "VLP+HR")),
        Claim("VLP+AT+HR minus VLP+AT", "objectives", difference("VLP+AT+HR", "VLP+AT")),
    )),
)  # fmt: skip


# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """One score's part of an effect, over the seeds S and images P that all rows have."""

    values: np.ndarray
    """float64 [S, P]: the weighted sum over rows of each image's items."""
    counts: np.ndarray
    """float64 [P]: items of each image."""
    scale: float
    """Points per unit of the score."""


def interval(parts: list[Sums], share: float = 0.05) -> tuple[float, float, float]:
    """Effect, low and high of its interval with error rate `share`; low and high are NaN for a single seed."""
    by_seed = sum(p.scale * p.values.sum(1) / p.counts.sum() for p in parts)  # [S]
    effect, seeds = float(by_seed.mean()), len(by_seed)
    if seeds < 2:
        return effect, math.nan, math.nan
    draws = t_draws(seeds - 1) * by_seed.std(ddof=1) / math.sqrt(seeds)
    for part in parts:
        drawn = resamples(len(part.counts))
        draws = draws + part.scale * (drawn @ part.values.mean(0)) / (drawn @ part.counts)
    low, high = np.quantile(draws, (share / 2, 1 - share / 2))
    return effect, float(low), float(high)


@cache
def t_draws(degrees_of_freedom: int) -> np.ndarray:
    """Evenly spaced quantiles of Student's t in random order, float64 [DRAWS]; unlike few draws, with exact tails."""
    quantiles = stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, degrees_of_freedom)
    return np.random.default_rng(SEED).permutation(quantiles)


@cache
def resamples(images: int) -> np.ndarray:
    """Count of each image in each bootstrap draw, float64 [DRAWS, P]; the same in every call."""
    uniform = np.full(images, 1 / images)
    return np.random.default_rng(SEED + 1).multinomial(images, uniform, DRAWS).astype(float)


def judge(claim: Claim, low: float, high: float) -> str:
    """The verdict on a claim whose effect has this interval; undecided if it is NaN."""
    if math.isnan(low):
        return UNDECIDED
    if claim.low < low and high < claim.high:
        return HOLDS
    return FAILS if high < claim.low or low > claim.high else UNDECIDED


# --- over records -----------------------------------------------------------------------------------------------------


def conclusions(records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """The verdicts on records of grids, as returned by `dlip.records.read`: one row per claim.

    Columns: number, statement and verdict of the conclusion; comparison, effect, low and high (in points), range_low
    and range_high (the claimed range), claim (its verdict), seeds, and why it is undecided; d_tr1, d_ir1, d_cider and
    d_vqa: the effect on each score alone, in its own unit.
    """
    rows = []
    for conclusion in CONCLUSIONS:
        judged = [_judged(claim, records, plan, 0.05 / len(conclusion.claims)) for claim in conclusion.claims]
        verdicts = {row["claim"] for row in judged}
        verdict = FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS
        about = dict(number=conclusion.number, statement=conclusion.statement, verdict=verdict)
        rows += [about | row for row in judged]
    return pd.DataFrame(rows)


def _judged(claim: Claim, records: list[dict], plan: Plan, share: float) -> dict:
    row = dict(comparison=claim.comparison, effect=math.nan, low=math.nan, high=math.nan)
    row |= dict(range_low=claim.low, range_high=claim.high, claim=UNDECIDED, seeds=0, why="")
    row |= {f"d_{score}": math.nan for score in HEADLINE_SCORES}
    by_row = matched(claim.grid, records, plan)
    if missing := [name for name in (*claim.rows, TEACHER_ROW.name) if not by_row[name]]:
        return row | {"why": f"there is no run of {missing[0]!r}; run dlip ablate {claim.grid}"}
    teacher = by_row[TEACHER_ROW.name][-1]
    runs = {name: {record["seed"]: record for record in by_row[name]} for name in claim.rows}
    seeds = sorted(set.intersection(*map(set, runs.values())))
    if not seeds:
        return row | {"why": "its rows share no seed"}
    parts = []
    for score in HEADLINE_SCORES:
        try:
            teacher_sums, counts = per_image(teacher, score)
            values = [
                sum(weight * per_image(runs[name][seed], score)[0] for name, weight in claim.rows.items())
                for seed in seeds
            ]
        except KeyError:
            return row | {"why": f"a run has no {HEADLINE_SCORES[score]}"}
        row[f"d_{score}"] = float(np.mean(values, 0).sum() / counts.sum())
        if score in claim.scores:
            if not teacher_sums.sum():
                return row | {"why": f"the teacher's {HEADLINE_SCORES[score]} is 0"}
            scale = 100 * counts.sum() / teacher_sums.sum() / len(claim.scores)
            parts.append(Sums(np.array(values), counts, scale))
    effect, low, high = interval(parts, share)
    verdict = judge(claim, low, high)
    why = "" if verdict != UNDECIDED else "one seed has no spread" if len(seeds) < 2 else "the interval crosses a bound"
    return row | dict(effect=effect, low=low, high=high, claim=verdict, seeds=len(seeds), why=why)


def per_image(record: dict, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum of a score's items (in percent) and their number, per image [P]. Raises KeyError if the record lacks them."""
    columns = outcomes(record)
    values = columns[score] * (1.0 if score == "cider" else 100.0)
    counts = columns[ITEM_COUNTS[score]] if score in ITEM_COUNTS else np.ones(len(values))
    starts = np.concatenate([[0], counts.cumsum()[:-1]]).astype(int)
    return np.add.reduceat(values.astype(float), starts), counts.astype(float)


def text(rows: pd.DataFrame) -> str:
    """`conclusions` for a terminal."""
    lines = []
    for (number, statement, verdict), claims in rows.groupby(["number", "statement", "verdict"], sort=False):
        lines.append(f"{number}. {statement} {verdict.upper()}")
        for _, row in claims.iterrows():
            lines.append(f"   {row['comparison']}: {figures(row)}")
    lines.append(
        "Points: % of the teacher's scores, averaged. Intervals: over seeds and test images, 95% for all claims of "
        f"a conclusion together. Claimed: the range of the effect; {MARGIN:g} point counts as no difference."
    )
    return "\n".join([*lines, f"{UNLIKE_PAPER}."])


def figures(row: pd.Series) -> str:
    """Describe a claim's effect, interval, range and verdict, or why there is no effect."""
    if math.isnan(row["effect"]):
        return row["why"]
    ends = [f"{'above' if side == 'low' else 'below'} {row[f'range_{side}']:g}" for side in ("low", "high")
            if math.isfinite(row[f"range_{side}"])]  # fmt: skip
    verdict = f"claimed {' and '.join(ends)}: {row['claim']}" + f" ({row['why']})" * bool(row["why"])
    if math.isnan(row["low"]):
        return f"{row['effect']:+.2f} points from one seed, {verdict}"
    return f"{row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] points from {row['seeds']} seeds, {verdict}"
