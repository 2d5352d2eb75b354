"""The paper's seven conclusions, tested on the grids' records: an effect, its interval, a computed verdict.

**Points** are percent of the teacher's score, averaged over the scores compared (if not said otherwise TR@1, IR@1,
CIDEr and VQA): 1 point is 1% of what the teacher can do. An effect is a weighted sum of rows, paired: a seed begins all
rows' weights and orders their images alike, and all are evaluated on the same images.

**Intervals** hold the noise of both. Each draw resamples the test images, with their captions and questions, and adds
an error of the mean over seeds from Student's t with one degree of freedom fewer than there are seeds; the interval is
the middle 95% of the draws. Three seeds are few, so it is wide. Where a conclusion makes several claims, each has its
share of the 5% (Bonferroni) and a wider interval, so that all hold at once with 95%.

**Verdicts.** A claim is a range that its effect is said to lie in. It holds where the whole interval does, fails where
none of it does, and is else undecided here. A conclusion holds where all its claims do, and fails where one does.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from dlip.cost.count import paper_count
from dlip.experiments.ablation import matched
from dlip.experiments.grids import FULL, IMAGE, TEACHER_ROW, TEXT, UNLIKE_PAPER, Plan, changed, pair
from dlip.models.config import preset
from dlip.records import HEADLINE_SCORES
from dlip.records.outcomes import ITEM_COUNTS, outcomes

MARGIN = 1.0
"""Points that count as no difference."""
DRAWS, SEED = 4000, 0
HOLDS, FAILS, OPEN = "holds", "fails", "undecided here"


@dataclass(frozen=True)
class Claim:
    """That the sum of rows' scores, in points, lies in a range."""

    comparison: str
    grid: str
    rows: dict[str, float]
    """Row -> its weight in the sum; weights add up to 0."""
    low: float = 0.0
    high: float = math.inf
    scores: tuple[str, ...] = tuple(HEADLINE_SCORES)


@dataclass(frozen=True)
class Conclusion:
    number: int
    statement: str
    claims: tuple[Claim, ...]


def slopes() -> dict[str, float]:
    """Rows of `modules` -> weights of: points lost a halving of the image encoder, less those of the text encoder.

    Least squares over the base 2 logarithm of the encoder's parameters, the other encoder at the teacher's and at the
    student's size, averaged; undistilled as in the paper.
    """
    out: dict[str, float] = {}
    for sizes, side, sign in ((IMAGE, "image", 1.0), (TEXT, "text", -1.0)):
        x = np.log2([paper_count(preset(changed(sizes[size])))[f"{side}_params"] for size in sizes])
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        for other in ("base", "small"):
            for size, weight in zip(sizes, weights, strict=True):
                name = pair(size, other) if side == "image" else pair(other, size)
                out[name] = out.get(name, 0.0) + sign * weight / 2
    return out


def less(more: str, fewer: str) -> dict[str, float]:
    """The first row less the second."""
    return {more: 1.0, fewer: -1.0}


CONCLUSIONS = (
    Conclusion(1, "Image and text encoders matter equally under compression.", (
        Claim("points lost a halving of the image encoder, less those of the text encoder", "modules", slopes(),
              -MARGIN, MARGIN),
    )),
    Conclusion(2, "A large fusion module is unnecessary: half of the layers suffice.", (
        Claim("6 fused layers less 3", "fusion", less("6 of 6 layers fused", "3 of 6 layers fused"), -math.inf, MARGIN),
    )),
    Conclusion(3, "Representations carry more than attention maps.", (
        Claim("VLP+HR less VLP+AT", "objectives", less("VLP+HR", "VLP+AT")),
    )),
    Conclusion(4, "Fused information carries more than either modality's; cross-attention more than self-attention.", (
        Claim("fusion states less image states", "modalities", less("fusion", "image")),
        Claim("fusion states less text states", "modalities", less("fusion", "text")),
        Claim("cross-attention less self-attention", "attention", less("cross-attention", "self-attention")),
    )),
    Conclusion(5, "Decoder tasks want the decoder distilled.", (
        Claim("decoder states less fusion states, on CIDEr and VQA", "modalities", less("decoder", "fusion"),
              scores=("cider", "vqa")),
    )),
    Conclusion(6, "A trained beginning is vital for the image encoder, nearly irrelevant for the text encoder.", (
        Claim("image inherited less from scratch", "init", less("image inherited", "from scratch"), MARGIN),
        Claim("a quarter of what image inherited gains, less what text inherited gains", "init",
              {"image inherited": 0.25, "text inherited": -1.0, "from scratch": 0.75}),
        Claim("a quarter of what image inherited gains, and what text inherited gains", "init",
              {"image inherited": 0.25, "text inherited": 1.0, "from scratch": -1.25}),
    )),
    Conclusion(7, "The terms add up.", (  # AT+HR trains no head here, so that it proves nothing
        Claim("VLP+HR less VLP", "objectives", less("VLP+HR", "VLP")),
        Claim("VLP+AT less VLP", "objectives", less("VLP+AT", "VLP")),
        Claim("VLP+AT+HR less VLP+HR", "objectives", less("VLP+AT+HR", "VLP+HR")),
        Claim("VLP+AT+HR less VLP+AT", "objectives", less("VLP+AT+HR", "VLP+AT")),
    )),
)  # fmt: skip


# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """One score's part of an effect, over the seeds S and images P that all rows share."""

    values: np.ndarray
    """float64 [S, P]: the weighted sum over rows of each image's items."""
    counts: np.ndarray
    """float64 [P]: items of each image."""
    scale: float
    """Points a unit of the score."""


def interval(parts: list[Sums], share: float = 0.05) -> tuple[float, float, float]:
    """Effect, and the interval that leaves out `share` (top of this file); its ends are NaN where there is one seed."""
    by_seed = sum(p.scale * p.values.sum(1) / p.counts.sum() for p in parts)  # [S]
    effect, seeds = float(by_seed.mean()), len(by_seed)
    if seeds < 2:
        return effect, math.nan, math.nan
    draws = errors(seeds - 1) * by_seed.std(ddof=1) / math.sqrt(seeds)
    for part in parts:
        drawn = resamples(len(part.counts))
        draws = draws + part.scale * (drawn @ part.values.mean(0)) / (drawn @ part.counts)
    low, high = np.quantile(draws, (share / 2, 1 - share / 2))
    return effect, float(low), float(high)


@cache
def errors(freedom: int) -> np.ndarray:
    """Student's t, float64 [DRAWS] in random order: every hundredth of many, so that few draws have the right tails."""
    rng = np.random.default_rng(SEED)
    return rng.permutation(np.sort(rng.standard_t(freedom, 100 * DRAWS))[50::100])


@cache
def resamples(images: int) -> np.ndarray:
    """How often each image is in each draw, float64 [DRAWS, P]; the same in every call."""
    even = np.full(images, 1 / images)
    return np.random.default_rng(SEED + 1).multinomial(images, even, DRAWS).astype(float)


def judge(claim: Claim, low: float, high: float) -> str:
    """The verdict on a claim whose effect has this interval (top of this file); NaN ends leave it open."""
    if math.isnan(low):
        return OPEN
    if claim.low < low and high < claim.high:
        return HOLDS
    return FAILS if high < claim.low or low > claim.high else OPEN


# --- over records -----------------------------------------------------------------------------------------------------


def conclusions(found: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """The verdicts on records of the grids, as `dlip.records.read` gives them: one row a claim.

    Columns: number and statement of the conclusion, its verdict; comparison, the claim's: effect, low and high in
    points; range_low and range_high, where it is said to lie; claim, its own verdict; seeds; why, where it is
    undecided; and d_tr1, d_ir1, d_cider and d_vqa, the effect on each score by itself, unscaled.
    """
    rows = []
    for conclusion in CONCLUSIONS:
        judged = [_judged(claim, found, plan, 0.05 / len(conclusion.claims)) for claim in conclusion.claims]
        verdicts = {row["claim"] for row in judged}
        verdict = FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS
        about = dict(number=conclusion.number, statement=conclusion.statement, verdict=verdict)
        rows += [about | row for row in judged]
    return pd.DataFrame(rows)


def _judged(claim: Claim, found: list[dict], plan: Plan, share: float) -> dict:
    row = dict(comparison=claim.comparison, effect=math.nan, low=math.nan, high=math.nan)
    row |= dict(range_low=claim.low, range_high=claim.high, claim=OPEN, seeds=0, why="")
    row |= {f"d_{score}": math.nan for score in HEADLINE_SCORES}
    by_row = matched(claim.grid, found, plan)
    if missing := [name for name in (*claim.rows, TEACHER_ROW.name) if not by_row[name]]:
        return row | {"why": f"no run of {missing[0]!r}; dlip ablate {claim.grid} makes it"}
    teacher = by_row[TEACHER_ROW.name][-1]
    runs = {name: {record["seed"]: record for record in by_row[name]} for name in claim.rows}
    seeds = sorted(set.intersection(*map(set, runs.values())))
    if not seeds:
        return row | {"why": "its rows have no seed in common"}
    parts = []
    for score in HEADLINE_SCORES:
        try:
            whole, counts = per_image(teacher, score)
            values = [
                sum(weight * per_image(runs[name][seed], score)[0] for name, weight in claim.rows.items())
                for seed in seeds
            ]
        except KeyError:
            return row | {"why": f"a run has no {HEADLINE_SCORES[score]}"}
        row[f"d_{score}"] = float(np.mean(values, 0).sum() / counts.sum())
        if score in claim.scores:
            if not whole.sum():
                return row | {"why": f"the teacher's {HEADLINE_SCORES[score]} is 0"}
            scale = 100 * counts.sum() / whole.sum() / len(claim.scores)
            parts.append(Sums(np.array(values), counts, scale))
    effect, low, high = interval(parts, share)
    verdict = judge(claim, low, high)
    why = "" if verdict != OPEN else "one seed has no spread" if len(seeds) < 2 else "the interval reaches both sides"
    return row | dict(effect=effect, low=low, high=high, claim=verdict, seeds=len(seeds), why=why)


def per_image(record: dict, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum of a score's items, in percent, and how many they are, of each image [P]. Raises KeyError without any."""
    found = outcomes(record)
    values = found[score] * (1.0 if score == "cider" else 100.0)
    counts = found[ITEM_COUNTS[score]] if score in ITEM_COUNTS else np.ones(len(values))
    starts = np.concatenate([[0], counts.cumsum()[:-1]]).astype(int)
    return np.add.reduceat(values.astype(float), starts), counts.astype(float)


def text(rows: pd.DataFrame) -> str:
    """`conclusions` to read in a terminal."""
    lines = []
    for (number, statement, verdict), claims in rows.groupby(["number", "statement", "verdict"], sort=False):
        lines.append(f"{number}. {statement} {verdict.upper()}")
        for _, row in claims.iterrows():
            lines.append(f"   {row['comparison']}: {figures(row)}")
    lines.append(
        "Points: % of the teacher's scores, averaged. Intervals: over seeds and test images, 95% for all claims of "
        f"a conclusion together. Said to lie: the range in which the claim is true; {MARGIN:g} point counts as no "
        "difference."
    )
    return "\n".join([*lines, f"{UNLIKE_PAPER}."])


def figures(row: pd.Series) -> str:
    """A claim's effect, interval, range and verdict in words, or why there is none."""
    if math.isnan(row["effect"]):
        return row["why"]
    ends = [f"{'above' if side == 'low' else 'below'} {row[f'range_{side}']:g}" for side in ("low", "high")
            if math.isfinite(row[f"range_{side}"])]  # fmt: skip
    said = f"said to lie {' and '.join(ends)}: {row['claim']}" + f" ({row['why']})" * bool(row["why"])
    if math.isnan(row["low"]):
        return f"{row['effect']:+.2f} points from one seed, {said}"
    return f"{row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] points from {row['seeds']} seeds, {said}"
