"""Effects and limits against numbers counted by hand, scipy's tests and simulated grids with known effects."""

import math

import numpy as np
import pytest
from scipy import stats

from dlip.experiments.analysis.statistics import (
    DRAWS,
    LEVEL,
    Effect,
    Runs,
    Spread,
    collapsed,
    effect,
    half_width,
    noncentrality,
    pooled_spread,
    resampled_sums,
    resamples,
)

ROWS, SEEDS = 4, 6
NAMES, NUMBERS = [f"row {i // SEEDS}" for i in range(ROWS * SEEDS)], [*range(SEEDS)] * ROWS
DIFFERENCE = {"row 0": 1.0, "row 1": -1.0}


def runs(names: list[str], seeds: list[int], values: list[float]) -> Runs:
    """Runs whose values are the same on every resample of the test images."""
    values = np.array(values, float)
    return Runs(names, seeds, values, np.broadcast_to(values, (DRAWS, len(values))))


def simulated_effects(true: float, count: int, lift: float = 3.0) -> list[Effect]:
    """Effects of row 0 minus row 1 in grids whose runs deviate by 1, and seeds by `lift` in all rows alike."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        values = rng.normal(0, 1, (ROWS, SEEDS)) + rng.normal(0, lift, SEEDS) + [[true], [0.0], [5.0], [-9.0]]
        own = runs(NAMES, NUMBERS, values.ravel())
        out.append(effect(own, DIFFERENCE, pooled_spread(NAMES, NUMBERS, own.values)))
    return out


# --- deviation over seeds ---------------------------------------------------------------------------------------------


def test_pooled_deviation_counted_by_hand():
    """Two rows differ by -1, -3 and 1 in three seeds: a variance of 4, half of it in each row, 2 degrees of freedom."""
    names, seeds = ["a"] * 3 + ["b"] * 3, [0, 1, 2] * 2
    spread = pooled_spread(names, seeds, np.array([1.0, 2, 6, 2, 5, 5]))
    assert spread.deviation == pytest.approx(math.sqrt(2)) and spread.dof == 2
    more = pooled_spread([*names, "c"], [*seeds, 1], np.array([1.0, 2, 6, 2, 5, 5, 90]))  # one run has no residual
    assert more.deviation == pytest.approx(spread.deviation) and more.dof == 2


def test_rows_with_fewer_seeds_are_pooled_too():
    """Three rows with six seeds and two with two: each row and each seed takes one of 22 degrees of freedom."""
    names = [f"row {i}" for i in range(3) for _ in range(6)] + ["row 3"] * 2 + ["row 4"] * 2
    seeds = [*range(6)] * 3 + [0, 1] * 2
    seed_lift = np.arange(6.0)
    values = np.array([float(name[-1]) for name in names]) + seed_lift[seeds]
    assert pooled_spread(names, seeds, values).deviation == pytest.approx(0, abs=1e-9)
    assert pooled_spread(names, seeds, values).dof == 22 - 5 - 5


@pytest.mark.parametrize(("names", "seeds"), [(["a", "b"], [0, 0]), (["a", "a"], [0, 1])])
def test_too_few_runs_have_no_deviation(names, seeds):
    spread = pooled_spread(names, seeds, np.array([1.0, 2.0]))
    assert math.isnan(spread.deviation) and spread.dof == 0 and math.isnan(half_width(spread, 6))
    own = effect(runs(["a", "b"], [0, 0], [3, 1]), {"a": 1, "b": -1}, spread)
    assert own.value == 2 and math.isnan(own.limit(0.05)) and math.isnan(own.detectable())


# --- effects and limits -----------------------------------------------------------------------------------------------


def test_limits_of_two_rows_are_those_of_a_paired_t_test():
    a, b = [1.0, 2, 6, 4], [2.0, 5, 5, 1]
    own = runs(["a"] * 4 + ["b"] * 4, [0, 1, 2, 3] * 2, a + b)
    found = effect(own, {"a": 1, "b": -1}, pooled_spread(own.rows, own.seeds, own.values))
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.value, found.seeds, found.dof) == (0, 4, 3)
    assert (found.limit(LEVEL), found.limit(1 - LEVEL)) == pytest.approx((expected.low, expected.high), rel=0.005)


def test_effects_are_over_the_seeds_that_rows_share():
    own = runs(["a", "a", "a", "b", "b"], [0, 1, 2, 1, 2], [100, 5, 7, 1, 2])
    found = effect(own, {"a": 1, "b": -1}, Spread(2.0, 4))
    assert found.value == pytest.approx(4.5) and found.seeds == 2
    assert found.seed_error == pytest.approx(2.0 * math.sqrt(1 / 2 + 1 / 2))
    with pytest.raises(ValueError, match="share no seed"):
        effect(runs(["a", "b"], [0, 1], [1, 2]), {"a": 1, "b": -1}, Spread(2.0, 4))


@pytest.mark.parametrize("lift", [0.0, 10.0])
def test_a_one_sided_limit_covers_with_95_percent(lift):
    """Whether or not seeds move all rows alike: 1,500 grids, a standard error of 0.6%."""
    found = simulated_effects(2.0, 1500, lift)
    below = np.mean([one.limit(LEVEL) < 2 for one in found])
    above = np.mean([one.limit(1 - LEVEL) > 2 for one in found])
    assert 0.935 <= below <= 0.965 and 0.935 <= above <= 0.965


def test_two_one_sided_tests_have_an_error_of_5_percent_at_the_margin():
    """A difference of exactly the margin is called equal in 5% of 1,500 grids."""
    margin = 3.0
    equal = [-margin < one.limit(LEVEL) and one.limit(1 - LEVEL) < margin for one in simulated_effects(margin, 1500)]
    assert 0.035 <= np.mean(equal) <= 0.065


def test_limits_cover_the_noise_of_images_too():
    """Two rows with three seeds, 80 images: 400 grids with noise of seeds, of images, and of both together."""
    rng, names, seeds = np.random.default_rng(0), ["row 0"] * 3 + ["row 1"] * 3, [0, 1, 2] * 2
    for seed_noise, image_noise in ((1.0, 0.5), (0.1, 8.0), (0.5, 4.0)):
        covered = 0
        for _ in range(400):
            values = np.array([2.0] * 3 + [0.0] * 3)[:, None] + rng.normal(0, seed_noise, (6, 1))
            values = values + rng.normal(0, image_noise, (2, 80)).repeat(3, 0)
            sums = np.stack([values, np.ones(values.shape)], -1)
            own, drawn = sums.sum(1), resampled_sums(sums, 80)
            scores = Runs(names, seeds, own[:, 0] / own[:, 1], drawn[..., 0] / drawn[..., 1])
            covered += effect(scores, DIFFERENCE, pooled_spread(names, seeds, scores.values)).limit(LEVEL) < 2
        assert 0.92 <= covered / 400 <= 0.98


def test_detectable_effect_is_that_of_the_noncentral_t():
    for dof in (2, 15, 60.5):
        critical = stats.t.ppf(0.95, dof)
        assert stats.nct.sf(critical, dof, noncentrality(dof, 0.8)) == pytest.approx(0.8, abs=1e-4)
    (found,) = simulated_effects(0.0, 1)
    assert found.detectable() == pytest.approx(found.seed_error * noncentrality(15, 0.8))
    assert found.detectable(0.9) > found.detectable(0.8) > found.limit(1 - LEVEL) - found.value


def test_a_detectable_effect_is_seen_in_80_percent_of_grids():
    true = noncentrality(15, 0.8) * math.sqrt(2 / SEEDS)  # runs deviate by 1
    seen = np.mean([one.limit(LEVEL) > 0 for one in simulated_effects(true, 1500)])
    assert 0.77 <= seen <= 0.83


# --- collapsed runs ---------------------------------------------------------------------------------------------------


def test_a_run_below_half_of_its_rows_median_is_a_collapse():
    rows = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    values = np.array([80.0, 82, 40.4, 40.6, 10, 30, 14.9, -3, 1])  # medians 60.3, 14.9 and -1
    assert list(collapsed(rows, values)) == [False] * 9
    values[3], values[2] = 30.0, 27.4  # median 55
    assert list(collapsed(rows, values)) == [False, False, True] + [False] * 6


# --- test images ------------------------------------------------------------------------------------------------------


def test_resampled_sums_are_those_of_the_drawn_images():
    sums = np.random.default_rng(0).integers(0, 5, (3, 40, 2)).astype(float)
    drawn, counts = resampled_sums(sums, 50), resamples(50).astype(int)
    assert drawn.shape == (DRAWS, 3, 2) and set(counts.sum(1)) == {50}
    for draw in (0, 17):  # a score of the first 40 of 50 images takes them from the same resamples
        images = [i for i in range(40) for _ in range(counts[draw, i])]
        np.testing.assert_allclose(drawn[draw], sums[:, images].sum(1))


def test_error_of_a_ratio_is_that_of_its_linearization():
    """Facts F1 is a ratio of sums: its bootstrap error equals the textbook's standard error of a ratio estimate."""
    rng = np.random.default_rng(0)
    claims = rng.integers(1, 9, 400)
    true = rng.binomial(claims, 0.7)
    drawn = resampled_sums(np.stack([true, claims], 1)[None].astype(float), 400)
    ratio = true.sum() / claims.sum()
    expected = math.sqrt(((true - ratio * claims) ** 2).sum()) / claims.sum()
    assert (drawn[:, 0, 0] / drawn[:, 0, 1]).std() == pytest.approx(expected, rel=0.05)
