"""Verdicts on records with known effects, and coverage of intervals."""

import math

import numpy as np
import pytest

from dlip.cost.count import paper_count
from dlip.experiments.conclusions import (
    CONCLUSIONS,
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    Sums,
    conclusions,
    interval,
    judge,
    slopes,
    text,
)
from dlip.experiments.grids import GRIDS, TEACHER_ROW
from dlip.models.config import preset
from tests.experiments.helpers import grid_records, student_record


def verdict(number: int, *grids: list[dict]):
    df = conclusions([record for some in grids for record in some])
    rows = df[df["number"] == number]
    (result,) = set(rows["verdict"])
    return result, rows


def encoder_records(image: float, text: float, spread: float = 0.1) -> list[dict]:
    """Undistilled students that lose `image` and `text` points per halving of that encoder."""
    base = paper_count(preset("scenes-teacher"))
    levels = {}
    for row in GRIDS["modules"].rows:
        if row.role == "undistilled":
            own = paper_count(preset(row.size))
            halvings = [np.log2(own[f"{side}_params"] / base[f"{side}_params"]) for side in ("image", "text")]
            levels[row.name] = 90.0 + image * halvings[0] + text * halvings[1]
    return grid_records("modules", levels, spread)


def test_slopes_of_a_straight_line():
    weights = slopes()
    assert sum(weights.values()) == pytest.approx(0) and len(weights) == 12
    sizes = {row.name: paper_count(preset(row.size)) for row in GRIDS["modules"].rows}
    line = {name: 3 * np.log2(c["image_params"]) + 2 * np.log2(c["text_params"]) for name, c in sizes.items()}
    # The text encoder's cross-attention reads image states: it shrinks a little with the image encoder.
    assert sum(weight * line[name] for name, weight in weights.items()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("image", "text", "expected"), [(5, 5, HOLDS), (6, 2, FAILS), (2, 6, FAILS), (4, 3, UNDECIDED)]
)
def test_1_equal_encoders(image, text, expected):
    result, rows = verdict(1, encoder_records(image, text))
    assert result == expected
    assert rows["effect"].item() == pytest.approx(image - text, abs=0.4)


@pytest.mark.parametrize(("half", "expected"), [(90, HOLDS), (95, HOLDS), (80, FAILS), (89, UNDECIDED)])
def test_2_half_of_the_layers(half, expected):
    result, rows = verdict(2, grid_records("fusion", {"6 of 6 layers fused": 90.0, "3 of 6 layers fused": half}))
    assert result == expected and rows["effect"].item() == pytest.approx(90 - half, abs=0.3)


@pytest.mark.parametrize(
    ("hr", "at", "spread", "expected"),
    [(90, 80, 1, HOLDS), (80, 90, 1, FAILS), (81, 80, 3, UNDECIDED), (90, 80, 9, UNDECIDED)],
)
def test_3_representations(hr, at, spread, expected):
    result, rows = verdict(3, grid_records("objectives", {"VLP+HR": hr, "VLP+AT": at}, spread))
    assert result == expected
    row = rows.iloc[0]
    assert row["low"] < row["effect"] < row["high"] and row["seeds"] == 3
    assert row["effect"] == pytest.approx(hr - at, abs=0.3)
    assert row["d_cider"] == pytest.approx(2 * (hr - at), abs=0.5)  # of the teacher's 200
    assert row["d_vqa"] == pytest.approx(0.7 * (hr - at), abs=0.3)


@pytest.mark.parametrize(
    ("fusion", "cross", "expected"),
    [(90, 85, HOLDS), (90, 70, FAILS), (83, 85, FAILS), (90, 80, UNDECIDED), (85, 85, UNDECIDED)],
)
def test_4_holds_only_where_all_its_claims_do(fusion, cross, expected):
    states = grid_records("modalities", {"fusion": fusion, "image": 80, "text": 85})
    result, rows = verdict(4, states, grid_records("attention", {"cross-attention": cross, "self-attention": 80.0}))
    assert result == expected and len(rows) == 3


@pytest.mark.parametrize(("retrieval", "words", "expected"), [(70, 90, HOLDS), (95, 75, FAILS), (95, 80, UNDECIDED)])
def test_5_reads_decoder_tasks_alone(retrieval, words, expected):
    decoder = {"tr1": retrieval, "ir1": retrieval, "cider": words, "vqa": words}
    assert verdict(5, grid_records("modalities", {"decoder": decoder, "fusion": 80}))[0] == expected


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [(80, 62, HOLDS), (80, 75, FAILS), (60, 60, FAILS), (80, 65, UNDECIDED), (80, 50, FAILS)],
)
def test_6_beginnings(image, text, expected):
    result, rows = verdict(
        6, grid_records("init", {"from scratch": 60, "image inherited": image, "text inherited": text})
    )
    assert result == expected
    gains = image - 60, text - 60
    assert list(rows["effect"]) == pytest.approx([gains[0], gains[0] / 4 - gains[1], gains[0] / 4 + gains[1]], abs=0.4)


@pytest.mark.parametrize(
    ("task", "both", "expected"),
    [(75, 90, HOLDS), (75, 82, FAILS), (75, 85, UNDECIDED), (88, 90, FAILS), (80, 90, UNDECIDED)],
)
def test_7_terms_add_up(task, both, expected):
    levels = {"VLP": task, "VLP+AT+HR": both, "VLP+HR": 85, "VLP+AT": 80}
    assert verdict(7, grid_records("objectives", levels))[0] == expected


def test_missing_records_leave_it_undecided():
    levels = {"VLP+HR": 90, "VLP+AT": 80}
    result, rows = verdict(3)
    assert result == UNDECIDED and "there is no run of 'VLP+HR'; run dlip ablate objectives" in rows["why"].item()
    result, rows = verdict(3, grid_records("objectives", levels)[1:])
    assert result == UNDECIDED and "no run of 'teacher'" in rows["why"].item()
    result, rows = verdict(3, grid_records("objectives", levels, seeds=1))
    assert result == UNDECIDED and rows["why"].item() == "one seed has no spread"
    assert rows["effect"].item() == pytest.approx(10, abs=0.3) and math.isnan(rows["low"].item())
    assert " points from one seed, claimed above 0: undecided here (one seed" in text(rows)
    records = grid_records("objectives", levels)
    unpaired = [r | {"seed": 7 + r["seed"]} if r["name"] == "VLP+HR" else r for r in records]
    assert verdict(3, unpaired)[1]["why"].item() == "its rows share no seed"
    without_outcomes = [r | {"outcomes": {}} for r in records]
    assert verdict(3, without_outcomes)[1]["why"].item() == "a run has no TR@1"


def test_seeds_are_paired():
    """A seed that raises the scores of both rows adds no noise to their difference."""
    records = [student_record(TEACHER_ROW, 100.0)]
    rows = {row.name: row for row in GRIDS["objectives"].rows}
    for seed, lift in enumerate((-8.0, 0.0, 8.0)):
        records += [student_record(rows["VLP+HR"], 83 + lift, seed), student_record(rows["VLP+AT"], 80 + lift, seed)]
    assert verdict(3, records)[0] == HOLDS


def test_text_names_each_verdict_and_its_interval():
    printed = text(conclusions(grid_records("objectives", {"VLP+HR": 90, "VLP+AT": 80})))
    assert "3. Representations carry more than attention maps. HOLDS" in printed
    assert "VLP+HR minus VLP+AT: +10.0" in printed and "claimed above 0: holds" in printed
    assert printed.count("UNDECIDED HERE") == len(CONCLUSIONS) - 1 == 6


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.1, 2, HOLDS), (-2, 0.9, FAILS), (0.5, 2, UNDECIDED), (4, 9, UNDECIDED), (6, 9, FAILS)],
)
def test_claim_holds_if_the_whole_interval_is_in_its_range(low, high, expected):
    assert judge(Claim("", "", {}, 1.0, 5.0), low, high) == expected


@pytest.mark.parametrize(("seeds", "items"), [(1.0, 0.1), (0.1, 8.0), (0.5, 5.0)])
def test_intervals_have_their_nominal_coverage(seeds, items):
    """Noise of seeds, of images, and of both: 600 experiments each with a true effect of 2."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(600):
        image_noise = rng.normal(0, items, 100)
        values = 2 + rng.normal(0, seeds, (3, 1)) + image_noise
        effect, low, high = interval([Sums(values / 2, np.ones(100), 1.0)] * 2)
        assert effect == pytest.approx(values.mean())
        covered += low < 2 < high
    assert 0.915 <= covered / 600 <= 0.98  # a normal instead of Student's t: 0.81


def test_interval_weighs_images_by_items_and_is_deterministic():
    counts = np.array([1.0, 3.0, 2.0])
    values = np.array([[1.0, 3.0, 2.0], [2.0, 6.0, 4.0]])
    effect, low, high = interval([Sums(values, counts, 10.0)])
    assert effect == pytest.approx(15.0)  # one and two per item, in every draw
    assert interval([Sums(values, counts, 10.0)]) == (effect, low, high)
    assert low == pytest.approx(15 - 12.706 * 5, rel=0.25)  # Student's t of one degree of freedom, 97.5%
    wider = interval([Sums(values, counts, 10.0)], 0.01)
    assert wider[1] < low and wider[2] > high
