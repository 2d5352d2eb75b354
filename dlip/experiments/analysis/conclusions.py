"""Judge the paper's seven conclusions on the records of grids.

The section "Statistics" of docs/ablations.md states every rule that is applied here, `claims` lists what is claimed,
and `statistics` computes effects and their limits.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from dlip.common.text import plural
from dlip.experiments.ablation import matched
from dlip.experiments.analysis.claims import COMPOSITE, CONCLUSIONS, MARGIN, Claim
from dlip.experiments.analysis.statistics import (
    LEVEL,
    POWER,
    Effect,
    Runs,
    Spread,
    collapsed,
    effect,
    half_width,
    pooled_spread,
    resampled_sums,
)
from dlip.experiments.grids import FULL, GRIDS, TEACHER_ROW, UNLIKE_PAPER, Grid, Plan
from dlip.records import HEADLINE_SCORES, composite, floors, image_sums, score_of_sums
from dlip.training.weights import abilities, weights

HOLDS, FAILS, EQUAL, CANNOT_TELL = "holds", "fails", "equal", "cannot be told"
READING = (
    "Points: share of the range from floor to teacher, in %, mean of IR@1, facts F1 and VQA. Brackets: one-sided\n"
    f"95% limits over seeds and test images. Equal: both are within {MARGIN:g} points. Rules: docs/ablations.md."
)
"""How to read `claim_text`."""


# --- scores of a grid's runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridRuns:
    """The runs of a grid that have every requested score."""

    rows: list[str]
    seeds: list[int]
    pooled: np.ndarray
    """bool [N]: whether a run counts in the pooled deviation. Runs of rows that train no task do not."""
    sums: dict[str, np.ndarray]
    """Score -> sums of each test image, float64 [N, P, K] (`dlip.records.image_sums`)."""
    floor: Mapping[str, float]
    teacher: Mapping[str, float]
    """Score -> what 0 and 100 points are in its own unit."""

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Score -> points, float64 [N]."""
        return {score: self._points(score, sums.sum(1)) for score, sums in self.sums.items()}

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        """Score -> points on resampled test images, float64 [DRAWS, N]."""
        images = max(sums.shape[1] for sums in self.sums.values())
        return {score: self._points(score, resampled_sums(sums, images)) for score, sums in self.sums.items()}

    def _points(self, score: str, sums: np.ndarray) -> np.ndarray:
        return composite({score: score_of_sums(score, sums)}, self.teacher, self.floor, (score,))

    def pooled_runs(self, score: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, seed and weighted scores of each run that counts in the pooled deviation. score: name -> weight."""
        columns = self.rows, self.seeds, _weighted(self.values, score)
        return tuple(np.array(column)[self.pooled] for column in columns)

    def spread(self, score: Mapping[str, float]) -> Spread:
        """Deviation of a weighted sum of scores over seeds, pooled over rows."""
        return pooled_spread(*self.pooled_runs(score))

    def means(self, score: Mapping[str, float]) -> dict[str, float]:
        """Row -> mean over its seeds of the weighted scores."""
        return (
            pd.Series(_weighted(self.values, score), self.rows).groupby(level=0).mean().to_dict() if self.rows else {}
        )

    def effect(self, row_weights: Mapping[str, float], score: Mapping[str, float]) -> Effect:
        """The effect of rows on a weighted sum of scores. Raises ValueError if the rows share no seed."""
        runs = Runs(self.rows, self.seeds, _weighted(self.values, score), _weighted(self.drawn, score))
        return effect(runs, row_weights, self.spread(score))


def _weighted(values: Mapping[str, np.ndarray], score: Mapping[str, float]) -> np.ndarray:
    return sum(weight * values[name] for name, weight in score.items())


def grid_runs(
    grid_: Grid, by_row: Mapping[str, list[dict]], floor: Mapping[str, float], teacher: Mapping[str, float]
) -> GridRuns:
    """The runs of a grid, of a repeated one the last. by_row: `matched` records. The scores are those of `teacher`."""
    by_run = {}
    for row in grid_.rows:
        for record in by_row[row.name]:
            if sums := _sums(record, teacher):
                by_run[row.name, record["seed"]] = row, sums
    pooled = np.array([bool(abilities(weights(row.weights))) for row, _ in by_run.values()], bool)
    sums = {score: np.stack([own[score] for _, own in by_run.values()]) for score in teacher} if by_run else {}
    return GridRuns([row for row, _ in by_run], [seed for _, seed in by_run], pooled, sums, floor, teacher)


def _sums(record: dict, scores: Iterable[str]) -> dict[str, np.ndarray]:
    """Score -> sums of each test image; empty if the record lacks one."""
    try:
        return {score: image_sums(record, score) for score in scores}
    except KeyError:
        return {}


def points(grid_: Grid, by_row: Mapping[str, list[dict]]) -> GridRuns | str:
    """The runs of a grid with the headline scores in points, or why there are no points."""
    if not by_row[TEACHER_ROW.name]:
        return f"there is no run of 'teacher'; run dlip ablate {grid_.name}"
    record = by_row[TEACHER_ROW.name][-1]
    sums, floor = _sums(record, COMPOSITE), floors(record)
    if not sums or not floor.keys() >= COMPOSITE.keys():
        return f"the teacher's record lacks a headline score or its floor; run dlip ablate {grid_.name}"
    teacher = {score: float(score_of_sums(score, own.sum(0))) for score, own in sums.items()}
    if low := [score for score in COMPOSITE if not teacher[score] > floor[score]]:
        return f"the teacher's {HEADLINE_SCORES[low[0]]} is not above its floor"
    return grid_runs(grid_, by_row, floor, teacher)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def conclusions(records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """The verdicts on records of grids, as returned by `dlip.records.read`: one row per claim.

    Columns: number, statement and verdict of the conclusion; comparison and grid; decides, whether the conclusion's
    verdict depends on the claim; effect, low and high, its one-sided 95% limits, in points; range_low and range_high,
    the claimed range; claim, its verdict; seeds and planned, the number of seeds there are and will be; deviation over
    seeds, pooled over the grid, and its dof; detectable, as `detectable_effect` returns it; why, what the records lack;
    d_<score>, the effect on a score in its own unit.
    """
    grids = {}
    for name in {claim.grid for conclusion in CONCLUSIONS for claim in conclusion.claims}:
        by_row = matched(name, records, plan)
        grids[name] = by_row, points(GRIDS[name], by_row)
    rows = []
    for conclusion in CONCLUSIONS:
        parts = sum(claim.decides for claim in conclusion.claims)
        judged = [_judged(claim, *grids[claim.grid], parts if claim.decides else 1) for claim in conclusion.claims]
        about = dict(number=conclusion.number, statement=conclusion.statement)
        about["verdict"] = combine([row["claim"] for row in judged if row["decides"]])
        rows += [about | row | dict(planned=plan.seeds) for row in judged]
    return pd.DataFrame(rows)


def _judged(claim: Claim, by_row: Mapping[str, list[dict]], own: GridRuns | str, parts: int) -> dict:
    row = dict(comparison=claim.comparison, grid=claim.grid, decides=claim.decides)
    row |= dict.fromkeys(("effect", "low", "high"), math.nan) | dict(range_low=claim.low, range_high=claim.high)
    row |= dict(claim=CANNOT_TELL, seeds=0, deviation=math.nan, dof=0, detectable=math.nan, why="")
    row |= {f"d_{score}": math.nan for score in COMPOSITE}
    if missing := [name for name in claim.rows if not by_row[name]]:
        return row | {"why": f"there is no run of {missing[0]!r}; run dlip ablate {claim.grid}"}
    if isinstance(own, str):
        return row | {"why": own}
    if missing := [name for name in claim.rows if name not in own.rows]:
        return row | {"why": f"the runs of {missing[0]!r} lack a headline score; run dlip ablate {claim.grid}"}
    try:
        measured, spread = own.effect(claim.rows, claim.score), own.spread(claim.score)
    except ValueError:
        return row | {"why": "its rows share no seed"}
    row |= dict(effect=measured.value, low=measured.limit(LEVEL), high=measured.limit(1 - LEVEL), seeds=measured.seeds)
    row |= dict(claim=judge(claim, measured, parts), deviation=spread.deviation, dof=spread.dof)
    for score in COMPOSITE:
        unit = (own.teacher[score] - own.floor[score]) / 100
        row[f"d_{score}"] = unit * own.effect(claim.rows, {score: 1.0}).value
    why = "" if spread.dof else "too few runs to know how much seeds differ"
    return row | dict(detectable=detectable_effect(claim, measured), why=why)


def judge(claim: Claim, measured: Effect, parts: int = 1) -> str:
    """The verdict on one of `parts` claims that decide on a conclusion; cannot be told where limits are NaN."""
    low, high = measured.limit(LEVEL), measured.limit(1 - LEVEL)
    if claim.low < low and high < claim.high:
        return HOLDS
    if measured.limit(1 - LEVEL / parts) < claim.low or measured.limit(LEVEL / parts) > claim.high:
        return FAILS
    return EQUAL if -MARGIN < low and high < MARGIN else CANNOT_TELL


def combine(verdicts: Sequence[str]) -> str:
    """The verdict on a conclusion: the first of fails, cannot be told, equal and holds that one of its claims has."""
    return next(verdict for verdict in (FAILS, CANNOT_TELL, EQUAL, HOLDS) if verdict in verdicts)


def detectable_effect(claim: Claim, measured: Effect) -> float:
    """Distance from the claim's bound at which a true effect is found to hold with 80% power, in points.

    Of a range with two bounds: half its width, with which a true effect in its middle is found to hold with 80% power,
    so that each of the two tests may miss 10%.
    """
    two_sided = math.isfinite(claim.low) and math.isfinite(claim.high)
    return measured.detectable((1 + POWER) / 2 if two_sided else POWER)


def spreads(records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """How much seeds differ in the composite score: one row per grid that has runs with headline scores.

    Columns: grid, runs, deviation (pooled over rows, in points), dof; half_width, of the 90% interval of the difference
    of two rows with as many seeds as every row has, without the noise of test images; collapsed, a list of the
    collapsed runs. Rows that train no task are ignored.
    """
    out = []
    for grid_ in GRIDS.values():
        own = points(grid_, matched(grid_, records, plan))
        if isinstance(own, str) or not own.rows:
            continue
        (rows, seeds, values), spread = own.pooled_runs(COMPOSITE), own.spread(COMPOSITE)
        low = [
            f"{row}, seed {seed}: {value:.1f} points"
            for row, seed, value, below in zip(rows, seeds, values, collapsed(rows, values), strict=True)
            if below
        ]
        fewest = min(Counter(rows).values(), default=0)
        about = dict(grid=grid_.name, runs=len(values), deviation=spread.deviation, dof=spread.dof)
        out.append(about | dict(half_width=half_width(spread, fewest), collapsed=low))
    return pd.DataFrame(out, columns=["grid", "runs", "deviation", "dof", "half_width", "collapsed"])


# --- text -------------------------------------------------------------------------------------------------------------


def text(rows: pd.DataFrame, spread: pd.DataFrame) -> str:
    """`conclusions` and `spreads` for a terminal."""
    lines = []
    for (number, statement, verdict), claims in rows.groupby(["number", "statement", "verdict"], sort=False):
        lines.append(f"{number}. {statement} {verdict.upper()}{preliminary(verdict, claims)}")
        for _, row in claims.iterrows():
            lines.append(f"   {row['comparison']}: {claim_text(row)}")
    lines.append(READING)
    for _, row in spread.iterrows():
        deviation = "too few runs to know how much seeds differ"
        if row["dof"]:
            deviation = (
                f"{row['deviation']:.2f} points between seeds ({plural(row['dof'], 'degree')} of freedom), "
                f"a difference of two rows is known to ±{row['half_width']:.2f}"
            )
        lines.append(f"{row['grid']}: {deviation}; {plural(len(row['collapsed']), 'collapsed run')}")
        lines += [f"   {run}" for run in row["collapsed"]]
    return "\n".join([*lines, f"{UNLIKE_PAPER}."])


def preliminary(verdict: str, claims: pd.DataFrame) -> str:
    """What to add to a verdict from fewer seeds than planned. claims: a conclusion's rows of `conclusions`."""
    decided = verdict != CANNOT_TELL and (claims["seeds"] < claims["planned"])[claims["decides"]].any()
    return " so far (preliminary: seeds are missing)" if decided else ""


def claim_text(row: pd.Series) -> str:
    """Describe a claim's effect, limits, range and verdict, or why there is no effect."""
    if math.isnan(row["effect"]):
        return row["why"]
    ends = [
        f"{'above' if side == 'low' else 'below'} {row[f'range_{side}']:g}"
        for side in ("low", "high")
        if math.isfinite(row[f"range_{side}"])
    ]
    effect_ = f"{row['effect']:+.2f} points from {row['seeds']} of {row['planned']} seeds, claimed {' and '.join(ends)}"
    beside = "" if row["decides"] else " (shown beside, decides nothing)"
    if math.isnan(row["low"]):
        return f"{effect_}: {row['claim']} ({row['why']}){beside}"
    verdict = row["claim"]
    if verdict == CANNOT_TELL:
        verdict += f" with this power (an effect {row['detectable']:.2f} points from the bound is seen in 80%)"
    return effect_.replace(" points", f" [{row['low']:+.2f}, {row['high']:+.2f}] points", 1) + f": {verdict}{beside}"
