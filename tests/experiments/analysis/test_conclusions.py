"""Verdicts on records with known effects."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from dlip.cost.count import paper_count
from dlip.experiments import ablation
from dlip.experiments.analysis.claims import COMPOSITE, CONCLUSIONS, MARGIN, Claim, claimed_rows, slopes
from dlip.experiments.analysis.conclusions import (
    CANNOT_TELL,
    EQUAL,
    FAILS,
    HOLDS,
    combine,
    conclusions,
    detectable_effect,
    judge,
    spreads,
    text,
)
from dlip.experiments.analysis.statistics import DRAWS, Effect, noncentrality
from dlip.experiments.grids import GRIDS, TEACHER_ROW
from dlip.models.config import preset
from tests.experiments.helpers import RANGE, cached_identity, grid_records, student_record


@pytest.fixture(autouse=True)
def fast_identity(monkeypatch):
    monkeypatch.setattr(ablation, "identity", cached_identity)


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
    return grid_records("modules", levels, spread, seeds=2)


# --- the seven conclusions --------------------------------------------------------------------------------------------


def test_claims_compare_rows_that_grids_have():
    for claim in (claim for conclusion in CONCLUSIONS for claim in conclusion.claims):
        assert set(claim.rows) <= {row.name for row in GRIDS[claim.grid].rows}
        assert sum(claim.rows.values()) == pytest.approx(0)
        assert set(claim.score) == set(COMPOSITE) and sum(claim.score.values()) == pytest.approx(
            0 if claim.score != COMPOSITE else 1
        )
    assert ("init", "both trained") in claimed_rows() and ("init", "image trained") in claimed_rows()


def test_slopes_of_a_straight_line():
    weights = slopes()
    assert sum(weights.values()) == pytest.approx(0) and len(weights) == 12
    sizes = {row.name: paper_count(preset(row.size)) for row in GRIDS["modules"].rows}
    line = {name: 3 * np.log2(c["image_params"]) + 2 * np.log2(c["text_params"]) for name, c in sizes.items()}
    # The text encoder's cross-attention reads image states: it shrinks a little with the image encoder.
    assert sum(weight * line[name] for name, weight in weights.items()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("image", "text", "spread", "expected"),
    [(5, 5, 0.1, HOLDS), (6, 2, 0.1, FAILS), (2, 6, 0.1, FAILS), (4.5, 3, 2, CANNOT_TELL), (4, 4, 9, CANNOT_TELL)],
)
def test_1_equal_encoders(image, text, spread, expected):
    result, rows = verdict(1, encoder_records(image, text, spread))
    assert result == expected
    assert rows["effect"].item() == pytest.approx(image - text, abs=0.4 + spread / 4)


@pytest.mark.parametrize(
    ("half", "spread", "expected"),
    [(90, 0.3, HOLDS), (95, 0.3, HOLDS), (80, 0.3, FAILS), (88.4, 2, CANNOT_TELL), (90, 9, CANNOT_TELL)],
)
def test_2_half_of_the_layers(half, spread, expected):
    levels = {"6 of 6 layers fused": 90.0, "3 of 6 layers fused": half}
    result, rows = verdict(2, grid_records("fusion", levels, spread))
    assert result == expected and rows["effect"].item() == pytest.approx(90 - half, abs=0.5)


@pytest.mark.parametrize(
    ("hr", "at", "spread", "expected"),
    [
        (90, 80, 1, HOLDS),
        (80, 90, 1, FAILS),
        (80.5, 80, 3, CANNOT_TELL),
        (90, 80, 30, CANNOT_TELL),
        (80, 80, 0.4, EQUAL),
    ],
)
def test_3_representations(hr, at, spread, expected):
    levels = {"VLP+HR": hr, "VLP+AT": at, "VLP+HR as in the paper": 10}
    result, rows = verdict(3, grid_records("objectives", levels, spread))
    row, beside = rows.iloc[0], rows.iloc[1]
    assert result == expected == row["claim"] and beside["claim"] == FAILS and not beside["decides"]
    assert row["low"] < row["effect"] < row["high"] and row["seeds"] == 6
    assert row["effect"] == pytest.approx(hr - at, abs=0.4)
    for score in COMPOSITE:  # in percent, of which the points are a share
        assert row[f"d_{score}"] == pytest.approx(RANGE[score] * (hr - at), abs=0.4)


@pytest.mark.parametrize(
    ("fusion", "cross", "expected"),
    [(90, 85, HOLDS), (90, 70, FAILS), (83, 85, FAILS), (90, 80, EQUAL), (85, 85, EQUAL)],
)
def test_4_holds_only_where_all_its_claims_do(fusion, cross, expected):
    states = grid_records("modalities", {"fusion": fusion, "image": 80, "text": 85})
    result, rows = verdict(4, states, grid_records("attention", {"cross-attention": cross, "self-attention": 80.0}))
    assert result == expected and len(rows) == 3


@pytest.mark.parametrize(
    ("retrieval", "words", "expected"), [(80, 90, HOLDS), (80, 80, EQUAL), (90, 80, FAILS), (70, 75, HOLDS)]
)
def test_5_is_an_interaction(retrieval, words, expected):
    """The difference of differences: of decoder and fusion states, and of generated words and retrieval."""
    decoder = {"ir1": retrieval, "facts_f1": words + 0.5, "vqa_mean": words - 0.5}
    result, rows = verdict(5, grid_records("modalities", {"decoder": decoder, "fusion": 80}))
    assert result == expected
    d = {score: rows[f"d_{score}"].item() / RANGE[score] for score in COMPOSITE}
    assert rows["effect"].item() == pytest.approx((d["facts_f1"] + d["vqa_mean"]) / 2 - d["ir1"])
    assert rows["effect"].item() == pytest.approx((words - 80) - (retrieval - 80), abs=0.5)


@pytest.mark.parametrize(
    ("image", "text", "both", "expected"),
    [(80, 60, 80, HOLDS), (80, 61, 79, HOLDS), (80, 70, 90, FAILS), (60, 60, 60, FAILS), (80, 50, 70, FAILS)],
)
def test_6_beginnings(image, text, both, expected):
    """Each encoder's effect is averaged over the other one's beginnings."""
    levels = {"neither trained": 60, "image trained": image, "text trained": text, "both trained": both}
    result, rows = verdict(6, grid_records("init", levels))
    assert result == expected
    gains = (image - 60 + both - text) / 2, (text - 60 + both - image) / 2
    assert list(rows["effect"]) == pytest.approx(gains, abs=0.4)


@pytest.mark.parametrize(
    ("task", "both", "expected"),
    [(75, 90, HOLDS), (75, 82, FAILS), (75, 85, EQUAL), (88, 90, FAILS), (80, 90, EQUAL)],
)
def test_7_terms_add_up(task, both, expected):
    levels = {"VLP": task, "VLP+AT+HR": both, "VLP+HR": 85, "VLP+AT": 80}
    assert verdict(7, grid_records("objectives", levels))[0] == expected


# --- records that lack something --------------------------------------------------------------------------------------

LEVELS = {"VLP+HR": 90, "VLP+AT": 80}


def why(records: list[dict]) -> str:
    result, rows = verdict(3, records)
    assert result == CANNOT_TELL and rows["claim"].iloc[0] == CANNOT_TELL
    return rows["why"].iloc[0]


def test_missing_runs_leave_it_unresolved():
    assert "there is no run of 'VLP+HR'; run dlip ablate objectives" in why([])
    records = grid_records("objectives", LEVELS)
    assert "no run of 'teacher'" in why(records[1:])
    other_seeds = [r | {"seed": 7 + r["seed"]} if r["name"] == "VLP+HR" else r for r in records]
    assert why(other_seeds) == "its rows share no seed"


def test_one_seed_has_an_effect_without_limits():
    records = grid_records("objectives", LEVELS, seeds=1)
    assert why(records) == "too few runs to know how much seeds differ"
    _, rows = verdict(3, records)
    assert rows["effect"].iloc[0] == pytest.approx(10, abs=0.3) and math.isnan(rows["low"].iloc[0])
    printed = text(rows, spreads(records))
    assert (
        " points from 1 of 6 seeds, claimed above 0: cannot be told (too few runs" in printed and "nan" not in printed
    )


# --- rules ------------------------------------------------------------------------------------------------------------


def test_seeds_are_paired():
    """A seed that raises the scores of both rows adds no noise to their difference."""
    records = [student_record(TEACHER_ROW, 100.0)]
    rows = {row.name: row for row in GRIDS["objectives"].rows}
    for seed, lift in enumerate((-8.0, 0.0, 8.0)):
        records += [student_record(rows["VLP+HR"], 83 + lift, seed), student_record(rows["VLP+AT"], 80 + lift, seed)]
    assert verdict(3, records)[0] == HOLDS


def test_deviation_is_pooled_over_rows_that_train_a_task():
    """Rows that no claim compares count; AT+HR, whose runs are all at chance, does not."""
    alone = grid_records("objectives", LEVELS, spread=1.0)
    noisy = grid_records("objectives", {**LEVELS, "VLP+AT+HR+kd.lm": 85}, spread=1.0)[-6:]
    for seed, record in enumerate(noisy):
        noisy[seed] = student_record(GRIDS["objectives"].rows[-3], 85 + 9 * (-1) ** seed, record["seed"])
    assert {r["name"] for r in noisy} == {"VLP+AT+HR+kd.lm"}
    at_chance = [student_record(r, 0.0, s) for r in GRIDS["objectives"].rows if r.name == "AT+HR" for s in range(6)]
    first, with_noisy, with_chance = (
        verdict(3, records)[1].iloc[0] for records in (alone, alone + noisy, alone + at_chance)
    )
    assert with_noisy["deviation"] > 3 * first["deviation"] and with_noisy["effect"] == pytest.approx(first["effect"])
    assert (first["dof"], with_noisy["dof"]) == (5, 10)
    assert list(with_chance[["deviation", "dof"]]) == list(first[["deviation", "dof"]])
    row = next(r for r in GRIDS["objectives"].rows if r.name == "AT+HR")
    by_luck = [student_record(row, 1.0 if seed else 0.0, seed) for seed in range(6)]
    assert spreads(alone + by_luck).set_index("grid").loc["objectives"]["collapsed"] == []


def test_spreads_and_collapses_of_a_grid():
    records = grid_records("attention", {"cross-attention": 80, "self-attention": 70}, spread=1.0)
    rows = {row.name: row for row in GRIDS["attention"].rows}
    records[1] = student_record(rows["self-attention"], 30.0, 0)
    row = spreads(records).set_index("grid").loc["attention"]
    assert (row["runs"], row["dof"]) == (12, 5) and row["deviation"] > 5
    assert row["half_width"] == pytest.approx(stats.t.ppf(0.95, 5) * row["deviation"] / math.sqrt(3))
    (run,) = row["collapsed"]
    assert run.startswith("self-attention, seed 0: 30.")
    fewer = spreads([r for r in records if r["name"] != "self-attention" or r["seed"] < 3])
    half_width = fewer.set_index("grid").loc["attention"]["half_width"]
    assert half_width == pytest.approx(stats.t.ppf(0.95, 2) * fewer["deviation"].item() * math.sqrt(2 / 3))
    _, with_collapse = verdict(4, records)  # it counts as any other
    assert with_collapse["effect"].iloc[2] == pytest.approx(80 - (70 - 40 / 6), abs=1)
    assert "1 collapsed run\n" in text(with_collapse, spreads(records)) and run in text(with_collapse, spreads(records))


@dataclass
class Limits:
    """An effect whose limits at 5% and 95% are these, and which is sure of nothing more."""

    low: float
    high: float

    def limit(self, share: float) -> float:
        return {0.05: self.low, 0.95: self.high}.get(share, math.inf if share > 0.95 else -math.inf)


@pytest.mark.parametrize(
    ("bounds", "limits", "expected"),
    [
        ((0, math.inf), (0.1, 2), HOLDS),
        ((0, math.inf), (0.1, 1), HOLDS),
        ((0, math.inf), (-2, -0.1), FAILS),
        ((0, math.inf), (-1.4, 1.4), EQUAL),
        ((0, math.inf), (-0.1, 1.6), CANNOT_TELL),
        ((0, math.inf), (-1.6, 0.1), CANNOT_TELL),
        ((0, math.inf), (math.nan, math.nan), CANNOT_TELL),
        ((-MARGIN, MARGIN), (-1.4, 1.4), HOLDS),
        ((-MARGIN, MARGIN), (1.6, 4), FAILS),
        ((-MARGIN, MARGIN), (-4, -1.6), FAILS),
        ((-MARGIN, MARGIN), (1.4, 1.6), CANNOT_TELL),
        ((-math.inf, MARGIN), (-9, 1.4), HOLDS),
        ((-math.inf, MARGIN), (1.6, 2), FAILS),
        ((-math.inf, MARGIN), (1.4, 1.6), CANNOT_TELL),
        ((MARGIN, math.inf), (1.6, 2), HOLDS),
        ((MARGIN, math.inf), (1, 1.4), FAILS),
        ((MARGIN, math.inf), (1, 1.6), CANNOT_TELL),
    ],
)
def test_verdict_on_a_claim(bounds, limits, expected):
    assert judge(Claim("", "", {}, *bounds), Limits(*limits)) == expected


def test_claims_of_a_conclusion_share_the_error_of_failing():
    """Of two claims that both hold, one must not fail in more than 5% together; holding needs no such share."""
    found = Effect(-1.8, 6, 1.0, 15, np.full(DRAWS, -1.8))  # upper limits: -0.05 at 95%, 0.33 at 97.5%
    assert judge(Claim("", "", {}), found) == FAILS and judge(Claim("", "", {}), found, 2) == CANNOT_TELL
    found = Effect(1.8, 6, 1.0, 15, np.full(DRAWS, 1.8))
    assert judge(Claim("", "", {}), found, 4) == HOLDS


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, EQUAL), EQUAL),
        ((EQUAL, CANNOT_TELL, HOLDS), CANNOT_TELL),
        ((HOLDS, CANNOT_TELL, FAILS), FAILS),
    ],
)
def test_verdict_on_a_conclusion(verdicts, expected):
    assert combine(verdicts) == expected


def test_detectable_effect_of_claims_with_one_bound_and_two():
    found = Effect(0.3, 6, 0.5, 15, np.full(DRAWS, 0.3))
    assert detectable_effect(Claim("", "", {}), found) == pytest.approx(0.5 * noncentrality(15, 0.8))
    margin = detectable_effect(Claim("", "", {}, -MARGIN, MARGIN), found)
    rng = np.random.default_rng(0)  # equality within this margin is found in 80% of grids without an effect
    values, errors = rng.normal(0, 0.5, 4000), 0.5 * np.sqrt(rng.chisquare(15, 4000) / 15)
    assert np.mean(np.abs(values) + stats.t.ppf(0.95, 15) * errors < margin) == pytest.approx(0.8, abs=0.02)
