"""Statistics of a grid: effects, limits that cover the noise of seeds and of test images, and detectable effects.

The section "Statistics" of docs/ablations.md states the rules and the reasons; `conclusions` applies them to records.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy import special, stats

LEVEL = 0.05
"""Error of a one-sided limit."""
POWER = 0.8
"""Probability with which a detectable effect is seen."""
DRAWS, SEED = 4000, 0


@dataclass(frozen=True)
class Runs:
    """One score of N runs of a grid. A row and a seed name one run."""

    rows: Sequence[str]
    seeds: Sequence[int]
    values: np.ndarray
    """float64 [N]."""
    drawn: np.ndarray
    """The values on resampled test images, float64 [DRAWS, N]; every run and every row on the same images."""

    def seeds_of(self, rows: Mapping[str, float]) -> list[int]:
        """The seeds that all these rows have, sorted."""
        own = [{seed for name, seed in zip(self.rows, self.seeds, strict=True) if name == row} for row in rows]
        return sorted(set.intersection(*own))


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, pooled over the rows of a grid."""

    deviation: float
    dof: int
    """Degrees of freedom; with none, the deviation is NaN."""


@dataclass(frozen=True)
class Effect:
    """A weighted sum of rows' means over their common seeds, with its errors."""

    value: float
    seeds: int
    seed_error: float
    """Standard error from seeds."""
    dof: int
    """Degrees of freedom of `seed_error`; with none, limits are NaN."""
    drawn: np.ndarray
    """The value on resampled test images, float64 [DRAWS]."""

    def limit(self, share: float) -> float:
        """The value below which the true effect lies with probability `share`, in the sense of one-sided limits.

        A quantile of the value on resampled test images plus an error from seeds, drawn from Student's t.
        """
        if not self.dof:
            return math.nan
        return float(np.quantile(self.drawn + self.seed_error * t_draws(self.dof), share))

    @property
    def error(self) -> float:
        """Standard error from seeds and test images together."""
        return math.hypot(self.seed_error, self.drawn.std())

    def detectable(self, power: float = POWER) -> float:
        """Distance of a true effect from a bound at which its one-sided limit passes the bound with this power.

        Degrees of freedom of both errors together by Satterthwaite (1946), with infinitely many of test images.
        """
        if not self.dof or not self.seed_error:
            return math.nan
        return self.error * noncentrality(self.dof * (self.error / self.seed_error) ** 4, power)


def noncentrality(dof: float, power: float) -> float:
    """Distance in standard errors at which a one-sided t test at `LEVEL` has this power (noncentral t)."""
    return float(special.nctdtrinc(dof, 1 - power, stats.t.ppf(1 - LEVEL, dof)))


def pooled_spread(rows: Sequence[str], seeds: Sequence[int], values: np.ndarray) -> Spread:
    """Residual standard deviation after a least-squares fit of a number per row and a number per seed.

    values: float64 [N]. Two runs per row and seed are not expected. With R rows of the same S seeds this is the
    residual of a two-way table, with (R - 1)(S - 1) degrees of freedom.
    """
    design = np.concatenate([np.equal.outer(names, np.unique(names)) for names in map(np.asarray, (rows, seeds))], 1)
    fit, _, rank, _ = np.linalg.lstsq(design.astype(float), values, rcond=None)
    dof = len(values) - int(rank)
    return Spread(math.sqrt(((values - design @ fit) ** 2).sum() / dof) if dof else math.nan, dof)


def effect(runs: Runs, weights: Mapping[str, float], spread: Spread) -> Effect:
    """The sum of rows' means, weighted, over the seeds that they share. The weights add up to 0.

    Raises ValueError if the rows share no seed.
    """
    if not (seeds := runs.seeds_of(weights)):
        raise ValueError("the rows share no seed")
    shares = np.array(
        [
            weights.get(row, 0.0) / len(seeds) if seed in seeds else 0.0
            for row, seed in zip(runs.rows, runs.seeds, strict=True)
        ]
    )
    error = spread.deviation * math.sqrt((shares**2).sum()) if spread.dof else math.nan
    return Effect(float(shares @ runs.values), len(seeds), error, spread.dof, runs.drawn @ shares)


def half_width(spread: Spread, seeds: int) -> float:
    """Half-width of the 90% interval of the difference of two rows with this number of seeds, from seeds alone."""
    if not spread.dof:
        return math.nan
    return float(stats.t.ppf(1 - LEVEL, spread.dof)) * spread.deviation * math.sqrt(2 / seeds)


def collapsed(rows: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Whether a run has less than half of its row's median, bool [N].

    values: float64 [N], where 0 is chance. A row with a median of 0 or less has no collapsed run.
    """
    medians = np.array([np.median(values[np.equal(rows, row)]) for row in rows])
    return (medians > 0) & (values < medians / 2)


def resampled_sums(sums: np.ndarray, images: int) -> np.ndarray:
    """Sums over each resample of the test images, float64 [DRAWS, N, K], of N runs' sums per image, [N, P, K].

    images: number of test images. A score that is measured on the first P of them has those P of each resample, so
    that all scores are on the same images.
    """
    runs, own, parts = sums.shape
    flat = sums.transpose(1, 0, 2).reshape(own, runs * parts).astype(np.float32)
    return (resamples(images)[:, :own] @ flat).astype(float).reshape(DRAWS, runs, parts)


@lru_cache(1)
def resamples(images: int) -> np.ndarray:
    """Count of each image in each bootstrap draw, float32 [DRAWS, P]; the same in every call."""
    uniform = np.full(images, 1 / images)
    return np.random.default_rng(SEED + 1).multinomial(images, uniform, DRAWS).astype(np.float32)


@cache
def t_draws(dof: int) -> np.ndarray:
    """Evenly spaced quantiles of Student's t in random order, float64 [DRAWS]; unlike few draws, with exact tails."""
    quantiles = stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, dof)
    return np.random.default_rng(SEED).permutation(quantiles)
