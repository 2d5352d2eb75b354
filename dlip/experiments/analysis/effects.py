"""Tables of grids for charts: scores by encoder size, and gains over a row with confidence intervals."""

import math

import numpy as np
import pandas as pd

from dlip.cost.count import paper_count
from dlip.experiments.ablation import matched, table
from dlip.experiments.analysis.claims import COMPOSITE, difference
from dlip.experiments.analysis.conclusions import grid_runs, points
from dlip.experiments.analysis.statistics import LEVEL
from dlip.experiments.grids import DATA_IMAGES, IMAGE, SWEEPS, TEXT, Grid, data_row, grid, module_row, student_size
from dlip.models.config import preset

FIXED_SIZES = ("base", "small")
"""Sizes of the encoder that is not swept."""
COLUMNS = ["name", "role", "gain", "low", "high", "paper", "seeds"]
"""Columns of `gains`."""


def sweeps(records: list[dict]) -> pd.DataFrame:
    """The grid `modules` for `dlip.plots.module_curves`.

    The teacher, then one row per point of a curve; a student on two curves has two rows. Columns: those of
    `dlip.experiments.ablation.table`, swept ("image" or "text"), size (name of the swept encoder's size), encoder_m
    (its parameters in millions, in the paper's count), fixed (name of the other encoder's size).
    """
    rows = table("modules", records).set_index("name", drop=False)
    out = [rows.loc["teacher"].to_dict()]
    for image, text, _ in SWEEPS:
        sizes = paper_count(preset(student_size(IMAGE[image], TEXT[text])))
        for swept, size, fixed in (("image", image, text), ("text", text, image)):
            about = dict(swept=swept, size=size, encoder_m=sizes[f"{swept}_params"] / 1e6, fixed=fixed)
            if fixed in FIXED_SIZES:
                out += [rows.loc[module_row(image, text, distilled)].to_dict() | about for distilled in (False, True)]
    return pd.DataFrame(out)


def gains(grid_: str | Grid, records: list[dict], score: str = "tr1") -> pd.DataFrame:
    """Gain of each row of a grid over its first row, for `dlip.plots.gain_bars`.

    score: a column of `dlip.records` with outcomes of each image, or "composite", which conclusions are about. Columns:
    name, role; gain, low and high (one-sided 95% limits over seeds and test images, as in `conclusions`; NaN where too
    few runs tell how much seeds differ), in the score's own unit; paper, the paper's gain; seeds. Rows that share no
    seed with the first are skipped.
    """
    grid_ = grid(grid_)
    first, *others = grid_.rows
    out = []
    by_row, parts = matched(grid_, records), {score: 1.0}
    if score == "composite":
        own, parts = points(grid_, by_row), COMPOSITE
    else:
        own = grid_runs(grid_, by_row, {score: 0.0}, {score: 100.0})
    if isinstance(own, str):
        return pd.DataFrame(columns=COLUMNS)
    for row in others:
        if not {row.name, first.name} <= set(own.rows):
            continue
        try:
            gain = own.effect(difference(row.name, first.name), parts)
        except ValueError:
            continue
        out.append(
            dict(
                name=row.name,
                role=row.role,
                gain=gain.value,
                low=gain.limit(LEVEL),
                high=gain.limit(1 - LEVEL),
                paper=row.paper_score(score) - first.paper_score(score),
                seeds=gain.seeds,
            )
        )
    return pd.DataFrame(out, columns=COLUMNS)


def images_worth(records: list[dict], score: str = "composite") -> pd.DataFrame:
    """How many labeled images a teacher is worth, read off the grid `data`.

    Columns: images; distilled, the distilled student's mean score on so many, in points, or in the score's own unit;
    equal_images, on how many a student alone reaches it, interpolated over the logarithm of their number (NaN outside
    the grid's range); worth, their ratio. Empty where there are no runs.
    """
    own, parts = points(grid("data"), by_row := matched("data", records)), COMPOSITE
    if score != "composite":
        own, parts = grid_runs(grid("data"), by_row, {score: 0.0}, {score: 100.0}), {score: 1.0}
    out = pd.DataFrame(columns=["images", "distilled", "equal_images", "worth"])
    if isinstance(own, str):
        return out
    means = own.means(parts)
    alone = sorted((means[data_row(n)], math.log(n)) for n in DATA_IMAGES if data_row(n) in means)
    for images in (n for n in DATA_IMAGES if data_row(n, True) in means):
        level, equal = means[data_row(images, True)], math.nan
        if len(alone) > 1 and alone[0][0] <= level <= alone[-1][0]:
            equal = math.exp(np.interp(level, *zip(*alone, strict=True)))
        out.loc[len(out)] = images, level, equal, equal / images
    return out
