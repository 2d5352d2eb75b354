"""Tables for charts equal the records' numbers."""

import numpy as np
import pytest

from dlip.cost.count import paper_count
from dlip.experiments.analysis.effects import gains, images_worth, sweeps
from dlip.experiments.grids import DATA_IMAGES, GRIDS, MODALITIES, TEACHER_ROW
from dlip.models.config import preset
from dlip.plots import gain_bars, module_curves
from tests.experiments.helpers import grid_records, student_record


@pytest.fixture(scope="module")
def modalities() -> list[dict]:
    return grid_records("modalities", {"none": 80.0, "image": 82.0, "fusion": 90.0}, spread=0.5)


def test_gains_are_over_the_first_row(modalities):
    df = gains("modalities", modalities, "tr1")
    assert list(df["name"]) == ["image", "fusion"] and set(df["role"]) == {"distilled"}
    # the teacher's TR@1 is 80: 2% and 10% of it are 1.6 and 8 points
    assert df["gain"].tolist() == pytest.approx([1.6, 8.0], abs=0.2)
    assert (df["low"] < df["gain"]).all() and (df["gain"] < df["high"]).all() and (df["seeds"] == 6).all()
    assert df["paper"].tolist() == pytest.approx([86.9 - 85.5, 88.6 - 85.5])
    assert gains("modalities", modalities, "composite")["gain"].tolist() == pytest.approx([2.0, 10.0], abs=0.2)
    assert gains("modalities", modalities, "cider")["gain"].tolist() == pytest.approx([4.0, 20.0], abs=2.0)
    bars = gain_bars(df).data[0]
    assert list(bars.x) == df["gain"].tolist()


def test_gains_of_one_seed_have_no_limits(modalities):
    one_seed = [record for record in modalities if record["seed"] == 0]
    df = gains(MODALITIES, one_seed, "vqa")
    assert list(df["name"]) == ["image", "fusion"] and (df["gain"] > 0).all() and df["low"].isna().all()


def test_gains_without_records(modalities):
    assert gains("modalities", [], "tr1").empty and gains("modalities", [], "composite").empty
    assert gains("modalities", modalities[1:], "composite").empty  # no teacher, no points


def test_sweeps_put_every_student_on_its_curves():
    rows = {row.name: row for row in GRIDS["modules"].rows}
    records = [student_record(TEACHER_ROW, 100.0)] + [
        student_record(row, 50.0 + 2 * i, seed) for i, row in enumerate(rows.values()) for seed in (0, 1)
    ]
    for record in records:  # the columns of the table come from the metrics
        record["metrics"]["retrieval"]["tr@1"] = float(len(record["name"])) + record["seed"]
    df = sweeps(records)
    assert df.loc[0, "role"] == "teacher" and df["swept"].isna().sum() == 1
    students = df.iloc[1:]
    assert students.groupby(["swept", "fixed", "role"]).size().to_dict() == {
        (swept, fixed, role): 4
        for swept in ("image", "text")
        for fixed in ("base", "small")
        for role in ("distilled", "undistilled")
    }
    for _, row in students.iterrows():
        own = paper_count(preset(rows[row["name"]].size))
        assert row["encoder_m"] == own[f"{row['swept']}_params"] / 1e6
        assert f"{row['swept']} {row['size']}" in row["name"] and row["fixed"] in row["name"]
        assert row["tr1"] == len(row["name"]) + 0.5 and row["tr1_sd"] == pytest.approx(np.sqrt(0.5))
    assert len(module_curves(df).data) == 8


def test_images_worth_is_read_off_the_curve():
    """Alone, each doubling of the images brings 10 points; a teacher brings 20, as many as four times the images."""
    levels = {}
    for i, images in enumerate(DATA_IMAGES):
        levels |= {f"{images:,} images": 20.0 + 10 * i, f"{images:,} images, distilled": 40.0 + 10 * i}
    worth = images_worth(grid_records("data", levels, spread=0.0, seeds=2)).set_index("images")
    assert worth.index.tolist() == [*DATA_IMAGES]
    assert worth.loc[[250, 500], "worth"].tolist() == pytest.approx([4, 4], rel=0.1)
    assert worth.loc[[2000, 4000], "worth"].isna().all()  # more than the grid has images
    assert images_worth([]).empty and images_worth(grid_records("data", {}), "ir1").empty
