"""Intervals and tests, as pure functions of numbers: the same input gives the same output, to the bit.

A measure of one method is a table of seeds x prompts, because every seed answers the same prompts: the two are crossed,
not nested. Three things then vary, and an interval has to hold all of them: which prompts were asked, which seeds were
trained, and the luck of one sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 10_000
CHUNK = 4_000_000
"""Numbers drawn at once: bounds the memory of a bootstrap at some tens of megabytes."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and what it was computed from."""

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference with its 95 % interval, and the two-sided p value of no difference."""

    p: float


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, 1927, J. Am. Stat. Assoc. 22:209-212).

    Unlike mean +- 1.96 s.e. it stays within [0, 1] and is not empty at 0 and n successes. A tie may count as half a
    success; the interval is then slightly too wide, as a tie varies less than a win and a loss.

    Args:
        successes: between 0 and n.
        n: trials; with 0 nothing is known, and the interval is (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n={n}, not {successes}")
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(values: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Array:
    """Draws from the sampling distribution of the mean of a seeds x prompts table, over both seeds and prompts.

    A draw is the mean of as many prompts, drawn with replacement, each with all its seeds (Efron & Tibshirani, 1993,
    An Introduction to the Bootstrap, ch. 8: units that stay whole), plus an error for the seeds. Prompts are hundreds,
    so that resampling them is sound. Seeds are a handful, and resampling a handful understates its spread by
    (S - 1) / S, and again because the few values there are look more alike than they are: in simulation with three
    seeds that differ, resampled seeds covered the truth in 80 % instead of 95 % of cases, and resampled seeds and
    prompts together (Owen, 2007, Ann. Appl. Stat. 1:386-411) in 99 % to 100 % when the seeds do not differ. So the
    seeds' error is drawn from what their analysis of variance says (Searle, Casella & McCulloch, 1992, Variance
    Components, ch. 4): s / sqrt(S) times a t of S - 1 degrees of freedom, where s^2 is the variance between seeds that
    the noise within them does not explain. This covered in 94 % to 96 % of cases in both situations.

    - one seed: nothing is known of other seeds; the interval is over prompts, for this very seed;
    - two seeds: a t of one degree of freedom has no variance and would make any interval useless; the error is normal
      instead, and the interval too narrow where seeds matter much (74 % coverage when they dominate);
    - three or more: as above.

    Args:
        values: (seeds, prompts); NaN where there is no judgement. A prompt counts once, however many seeds have it.
        draws: how many.
        seed: of the random numbers.

    Returns:
        (draws,) means.
    """
    table = _complete(values)
    rng = np.random.default_rng(seed)
    by_prompt = np.nanmean(table, axis=0)
    n = len(by_prompt)
    step = max(1, CHUNK // n)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    means = np.concatenate([by_prompt[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])
    spread = _between_seeds(table)
    if spread > 0:
        s = len(table)
        error = rng.standard_normal(draws) if s == 2 else rng.standard_t(s - 1, draws)
        means += spread / np.sqrt(s) * error
    return means


def estimate(values: ArrayLike, bounded: bool = False, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean of a seeds x prompts table with the percentile interval of `bootstrap`.

    Args:
        values: as for `bootstrap`.
        bounded: whether values lie in [0, 1]. The interval then stays there; and where all are 0, or all 1, there is
            nothing to resample and it is Wilson's, with prompts as trials, rather than a false certainty.
        draws: how many.
        seed: of the random numbers.
    """
    table = _complete(values)
    mean = _mean(table)
    if bounded and mean in (0, 1):
        low, high = wilson(mean * table.shape[1], table.shape[1])
    else:
        low, high = np.quantile(bootstrap(table, draws, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if bounded:
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, float(low), float(high), table.shape[0], table.shape[1])


def difference(a: ArrayLike, b: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Mean of a - b, paired by prompt and by seed, with the interval of `bootstrap` and a two-sided p value.

    Pairing takes out what makes a prompt hard for both. The p value is the level at which the interval just touches
    zero (Efron & Tibshirani, 1993, sec. 15.4), with one added to both counts so that it is never 0 (Davison & Hinkley,
    1997, Bootstrap Methods and their Application, eq. 4.11): it is below .05 when the interval leaves out zero.

    Args:
        a, b: (seeds, prompts) of the same seeds and prompts in the same order; a pair with a NaN is left out.
    """
    table = _complete(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    means = bootstrap(table, draws, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (tail + 1) / (draws + 1))
    return Difference(_mean(table), float(low), float(high), table.shape[0], table.shape[1], p)


def over_seeds(values: ArrayLike, errors: ArrayLike) -> Estimate:
    """Mean of one number per seed, each with a standard error over the same items (a benchmark's), with an interval.

    The items are shared, so that more seeds do not average their error away: the variance is the mean squared standard
    error plus the variance between seeds over their number. The luck within a seed is counted in both, which makes the
    interval a little too wide rather than too narrow. Without standard errors only the seeds count; with neither,
    the limits are NaN.

    Args:
        values: (seeds,).
        errors: (seeds,) standard errors; NaN where there is none.
    """
    x, e = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    known = e[~np.isnan(e)]
    within = float(np.mean(known**2)) if len(known) else 0.0
    between = float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else 0.0
    mean = float(x.mean())
    if not len(known) and len(x) < 2:
        return Estimate(mean, np.nan, np.nan, len(x), 0)
    quantile = stats.norm.ppf((1 + LEVEL) / 2) if len(known) else stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)
    half = float(quantile) * np.sqrt(within + between)
    return Estimate(mean, mean - half, mean + half, len(x), 0)


def shares(values: ArrayLike, n: int | None) -> Estimate:
    """Mean of one share per seed, each of the same `n` items, with the interval of `over_seeds` kept within [0, 1].

    Where all are 0, or all 1, there is no spread to see, and the interval is Wilson's.

    Args:
        values: (seeds,) between 0 and 1.
        n: items, or None where nobody knows; only the seeds count then.
    """
    x = np.asarray(values, dtype=float)
    e = over_seeds(x, np.sqrt(x * (1 - x) / n) if n else np.full(len(x), np.nan))
    low, high = wilson(e.mean * n, n) if n and e.mean in (0, 1) else np.clip([e.low, e.high], 0, 1)
    return Estimate(e.mean, float(low), float(high), e.seeds, 0)


def holm(p: ArrayLike) -> Array:
    """p values adjusted for being read together (Holm, 1979, Scand. J. Stat. 6:65-70): the chance of one or more false
    findings among all of them stays below the level. NaN stay NaN and do not count."""
    values = np.asarray(p, dtype=float)
    adjusted: Array = np.full_like(values, np.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _complete(values: ArrayLike) -> Array:
    """A 2-d table without its empty rows and columns.

    Raises:
        ValueError: nothing is left.
    """
    table: Array = np.atleast_2d(np.asarray(values, dtype=float))
    there = ~np.isnan(table)
    table = table[there.any(axis=1)][:, there.any(axis=0)]
    if not table.size:
        raise ValueError("no value to average")
    return table


def _mean(table: Array) -> float:
    return float(np.nanmean(table, axis=0).mean())


def _between_seeds(table: Array) -> float:
    """Standard deviation between seeds beyond the noise within them; 0 with one seed, or one prompt."""
    seeds, prompts = table.shape
    free = np.count_nonzero(~np.isnan(table)) - seeds - prompts + 1
    if seeds == 1 or free < 1:
        return 0.0
    by_seed = np.nanmean(table - np.nanmean(table, axis=0), axis=1)
    noise = np.nansum((table - np.nanmean(table, axis=0) - by_seed[:, None]) ** 2) / free
    return float(np.sqrt(max(0.0, np.var(by_seed, ddof=1) - noise / prompts)))
