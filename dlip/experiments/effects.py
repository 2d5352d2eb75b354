"""Tables of grids for charts: scores by encoder size, and gains over a row with confidence intervals."""

import math

import numpy as np
import pandas as pd

from dlip.cost.count import paper_count
from dlip.experiments.ablation import matched, table
from dlip.experiments.conclusions import Sums, interval, per_image
from dlip.experiments.grids import FULL, IMAGE, SWEEPS, TEXT, Grid, Plan, grid, module_row, student_size
from dlip.models.config import preset
from dlip.records import HEADLINE_SCORES

FIXED_SIZES = ("base", "small")
"""Sizes of the encoder that is not swept."""


def sweeps(records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """The grid `modules` for `dlip.plots.module_curves`.

    The teacher, then one row per point of a curve; a student on two curves has two rows. Columns: those of
    `dlip.experiments.ablation.table`, swept ("image" or "text"), size (name of the swept encoder's size), encoder_m
    (its parameters in millions, in the paper's count), fixed (name of the other encoder's size).
    """
    rows = table("modules", records, plan).set_index("name", drop=False)
    out = [rows.loc["teacher"].to_dict()]
    for image, text, _ in SWEEPS:
        sizes = paper_count(preset(student_size(IMAGE[image], TEXT[text])))
        for swept, size, fixed in (("image", image, text), ("text", text, image)):
            about = dict(swept=swept, size=size, encoder_m=sizes[f"{swept}_params"] / 1e6, fixed=fixed)
            if fixed in FIXED_SIZES:
                out += [rows.loc[module_row(image, text, distilled)].to_dict() | about for distilled in (False, True)]
    return pd.DataFrame(out)


def gains(
    grid_: str | Grid, records: list[dict], score: str = "tr1", base: str | None = None, plan: Plan = FULL
) -> pd.DataFrame:
    """Gain of each row of a grid over its row `base` (by default the first), for `dlip.plots.gain_bars`.

    Columns: name, role; gain, low and high in points of the score (95% interval over seeds and test images, as in
    `dlip.experiments.conclusions`; NaN for a single seed); paper, the paper's gain; seeds. Rows that share no seed with
    the base are skipped. Raises KeyError if the grid has no such row or a run has no such score.
    """
    grid_ = grid(grid_) if isinstance(grid_, str) else grid_
    by_row, column = matched(grid_, records, plan), [*HEADLINE_SCORES].index(score)
    rows = {row.name: row for row in grid_.rows}
    first = rows[base or grid_.rows[0].name]
    base_runs, out = {record["seed"]: record for record in by_row[first.name]}, []
    for row in grid_.rows:
        own_runs = {record["seed"]: record for record in by_row[row.name]}
        seeds = sorted(own_runs.keys() & base_runs.keys())
        if row is first or not seeds:
            continue
        pairs = [(per_image(own_runs[seed], score), per_image(base_runs[seed], score)) for seed in seeds]
        values = np.array([own - other for (own, _), (other, _) in pairs])
        gain, low, high = interval([Sums(values, pairs[0][0][1], 1.0)])
        paper = (row.paper[column], first.paper[column])
        paper = math.nan if None in paper else paper[0] - paper[1]
        out.append(dict(name=row.name, role=row.role, gain=gain, low=low, high=high, paper=paper, seeds=len(seeds)))
    return pd.DataFrame(out, columns=["name", "role", "gain", "low", "high", "paper", "seeds"])
