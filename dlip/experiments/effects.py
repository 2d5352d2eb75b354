"""Tables of grids for charts: scores by encoder size, and gains over a row with their intervals."""

import math

import numpy as np
import pandas as pd

from dlip.cost.count import paper_count
from dlip.experiments.ablation import matched, table
from dlip.experiments.conclusions import Sums, interval, per_image
from dlip.experiments.grids import FULL, IMAGE, SWEEPS, TEXT, Grid, Plan, changed, grid, pair
from dlip.models.config import preset
from dlip.records import HEADLINE_SCORES

FIXED_SIZES = ("base", "small")
"""Sizes of one encoder while the other is swept."""


def sweeps(found: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """The grid `modules` as `dlip.plots.module_curves` takes it, from records as `dlip.records.read` gives them.

    The teacher, then a row for each point of a curve, NaN where there is no run yet: columns of
    `dlip.experiments.ablation.table`
    and swept ("image" or "text"), size (its name), encoder_m (its parameters in millions, in the paper's count), fixed
    (the other encoder's size). A student stands on each curve that it is a point of.
    """
    rows = table("modules", found, plan).set_index("name", drop=False)
    out = [rows.loc["teacher"].to_dict()]
    for image, text, _ in SWEEPS:
        sizes = paper_count(preset(changed(IMAGE[image], TEXT[text])))
        for swept, size, fixed in (("image", image, text), ("text", text, image)):
            about = dict(swept=swept, size=size, encoder_m=sizes[f"{swept}_params"] / 1e6, fixed=fixed)
            if fixed in FIXED_SIZES:
                out += [rows.loc[pair(image, text, distilled)].to_dict() | about for distilled in (False, True)]
    return pd.DataFrame(out)


def gains(
    some: str | Grid, found: list[dict], score: str = "tr1", base: str | None = None, plan: Plan = FULL
) -> pd.DataFrame:
    """What each row of a grid scores above its row `base` (by default the first), as `dlip.plots.gain_bars` takes it.

    Columns: name, role; gain, low and high (95% interval over seeds and test pictures, as in
    `dlip.experiments.conclusions`; NaN of
    a single seed) in points of the score; paper, the paper's gain; seeds. Rows without a seed in common with the base
    are skipped. Raises KeyError where the grid has no such row or a run no such score.
    """
    some = grid(some) if isinstance(some, str) else some
    by_row, place = matched(some, found, plan), [*HEADLINE_SCORES].index(score)
    rows = {row.name: row for row in some.rows}
    first = rows[base or some.rows[0].name]
    base_runs, out = {record["seed"]: record for record in by_row[first.name]}, []
    for row in some.rows:
        own_runs = {record["seed"]: record for record in by_row[row.name]}
        seeds = sorted(own_runs.keys() & base_runs.keys())
        if row is first or not seeds:
            continue
        pairs = [(per_image(own_runs[seed], score), per_image(base_runs[seed], score)) for seed in seeds]
        values = np.array([own - other for (own, _), (other, _) in pairs])
        gain, low, high = interval([Sums(values, pairs[0][0][1], 1.0)])
        paper = (row.paper[place], first.paper[place])
        paper = math.nan if None in paper else paper[0] - paper[1]
        out.append(dict(name=row.name, role=row.role, gain=gain, low=low, high=high, paper=paper, seeds=len(seeds)))
    return pd.DataFrame(out, columns=["name", "role", "gain", "low", "high", "paper", "seeds"])
