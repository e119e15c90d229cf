"""Intervals and tests, as pure functions of numbers: the same input gives the same output, to the bit.

A measure of one method is a table of seeds x prompts, because every seed answers the same prompts: the two are crossed,
not nested. Three things then vary, and an interval has to cover all of them: which prompts were asked, which seeds were
trained, and the randomness of one sample. benchmarks/coverage.py measures how often the intervals cover the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halos.report.lazy import scipy
from halos.report.proportions import LEVEL, score_interval, wilson

Array = NDArray[np.float64]
DRAWS = 10_000
CHUNK = 8_000_000
"""Numbers drawn at once: bounds the memory of a bootstrap at some tens of megabytes."""
NOISE = 2 / 3
"""Share of the noise within seeds that is subtracted from the variance between them. All of it would be unbiased, but
with three seeds that differ a little the rest is often 0, and an interval then covers in 91 % of cases; with none of
it, in 99 % where seeds do not differ. With two thirds it is 92 % to 98 % in all of benchmarks/results/coverage.csv."""
QUADRATURE = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and the numbers of seeds and prompts that it was computed from."""

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference with its 95 % interval, and the two-sided p value of no difference."""

    p: float


@dataclass(frozen=True)
class Seeds:
    """The variance that seeds add to a mean over them.

    Attributes:
        between: variance between seeds, divided by their number.
        noise: the part of it that is taken to be noise within seeds: `NOISE` of what that noise explains.
        df: degrees of freedom of `between`.
    """

    between: float
    noise: float
    df: int

    @property
    def excess(self) -> float:
        return max(0.0, self.between - self.noise)

    def times(self, factor: float) -> Seeds:
        return Seeds(self.between * factor, self.noise * factor, self.df)


def pooled(tables: Sequence[ArrayLike], bounded: bool = False) -> Seeds:
    """The variance between seeds of several methods, taken to be the same for all: the mean, with the degrees of
    freedom of all. For two seeds of each method, because two seeds of one method say next to nothing about it.

    Args:
        tables: (seeds, prompts) of each method.
        bounded: whether values lie in [0, 1]. The variance of the logits is then taken to be the same, because seeds
            cannot differ much near 0 and 1; the result is the variance of logits.
    """
    complete = [_complete(table) for table in tables]
    inside = [table for table in complete if not bounded or 0 < _mean(table) < 1]
    variances = [_seeds(table).times(_logit_slope(_mean(table)) ** -2 if bounded else 1) for table in inside]
    return mean_of(variances) if variances else Seeds(0.0, 0.0, 1)


def mean_of(variances: Sequence[Seeds]) -> Seeds:
    """The mean of several methods' variances between seeds, with the degrees of freedom of all."""
    between, noise = (float(np.mean([getattr(v, name) for v in variances])) for name in ("between", "noise"))
    return Seeds(between, noise, sum(v.df for v in variances))


def _logit_slope(mean: float) -> float:
    """The derivative of a mean by its logit; nearer to 0 or 1 than .01, the derivative at .01."""
    inside = min(max(mean, 0.01), 0.99)
    return inside * (1 - inside)


def bootstrap(
    values: ArrayLike, draws: int = DRAWS, seed: int = 0, tails: bool = False, seeds: Seeds | None = None
) -> Array:
    """Draws from the sampling distribution of the mean of a seeds x prompts table, over both seeds and prompts.

    A draw is the mean of as many prompts, drawn with replacement, each with all its seeds (Efron & Tibshirani, 1993,
    An Introduction to the Bootstrap, ch. 8: units that stay whole), plus an error for the seeds. Prompts are hundreds,
    so that resampling them is sound. Seeds are a handful, and resampling a handful understates its spread by
    (S - 1) / S, and again because the few values there are look more alike than they are: in simulation with three
    seeds that differ, resampled seeds covered the truth in 80 % instead of 95 % of cases, and resampled seeds and
    prompts together (Owen, 2007, Ann. Appl. Stat. 1:386-411) in 99 % to 100 % when the seeds do not differ. So the
    seeds' error is drawn from what their analysis of variance says (Searle, Casella & McCulloch, 1992, Variance
    Components, ch. 4): s / sqrt(S) times a t of S - 1 degrees of freedom, where s^2 is the variance between seeds less
    `NOISE` of what the noise within them explains.

    - one seed: nothing is known of other seeds; the interval is over prompts, for this very seed;
    - two seeds: a t of one degree of freedom, which makes an interval useless where the two differ, as two numbers say
      next to nothing about the spread of others. Tables pool the variance over methods (`pooled`);
    - three or more: as above.

    Args:
        values: (seeds, prompts); NaN where there is no judgement. A prompt counts once, however many seeds have it.
        draws: number of draws.
        seed: seed of the random numbers.
        tails: whether to draw for the far tails, that is, for p values which are corrected for their number. s^2 is 0
            in a share of studies that does not matter at one in twenty, and much at one in two hundred: with twelve
            equal methods and three seeds, 28 % of tables held a false finding. The noise is then taken off each
            draw of the variance between seeds (Weerahandi, 1993, J. Am. Stat. Assoc. 88:899-905) instead of its
            estimate.
        seeds: the variance between seeds, where it is known better than from this table.

    Returns:
        (draws,) means.
    """
    table = _complete(values)
    means = _resampled(np.nanmean(table, axis=0), draws, seed)
    variance = seeds or _seeds(table)
    if variance.between == 0 or (variance.excess == 0 and not tails):
        return means
    rng = np.random.default_rng((seed, len(table)))
    scale = variance.df / rng.chisquare(variance.df, draws)  # a normal times the root of it is a t
    scaled = np.maximum(0, variance.between * scale - variance.noise) if tails else variance.excess * scale
    drawn: Array = means + np.sqrt(scaled) * rng.standard_normal(draws)
    return drawn


def estimate(
    values: ArrayLike, bounded: bool = False, draws: int = DRAWS, seed: int = 0, seeds: Seeds | None = None
) -> Estimate:
    """Mean of a seeds x prompts table with the percentile interval of `bootstrap`.

    Args:
        values: as for `bootstrap`.
        bounded: whether values lie in [0, 1]. The interval is then Wilson's, with as many trials as would give the
            variance of the mean (Franco et al., 2019, J. Surv. Stat. Methodol. 7:334-364) and the quantile of
            `bootstrap`'s distribution for the normal one: near 0 and 1 percentiles cover too seldom (91 % for a win
            rate of .03). With one seed and no ties it is Wilson's own. Where all are 0, or all 1, prompts are the
            trials.
        draws: number of draws.
        seed: seed of the random numbers.
        seeds: variance between seeds, as `pooled` gives it with the same `bounded`; this table's by default.
    """
    table = _complete(values)
    mean = _mean(table)
    if bounded:
        low, high = _bounded(table, mean, seeds.times(_logit_slope(mean) ** 2) if seeds else _seeds(table))
    else:
        low, high = np.quantile(bootstrap(table, draws, seed, seeds=seeds), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), table.shape[0], table.shape[1])


def _bounded(table: Array, mean: float, seeds: Seeds) -> tuple[float, float]:
    prompts = table.shape[1]
    within = float(np.nanmean(table, axis=0).var()) / prompts
    variance = within + seeds.excess
    if variance == 0 or mean in (0, 1):
        return wilson(mean * prompts, prompts)
    return score_interval(mean, mean * (1 - mean) / variance, _half(within, seeds) / np.sqrt(variance))


def _half(within: float, seeds: Seeds) -> float:
    """Half the `LEVEL` interval about 0 of sqrt(within) times a normal plus sqrt(seeds.excess) times a t."""
    between, df = seeds.excess, seeds.df
    if between == 0:
        return float(scipy.stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(within))
    if within == 0:
        return float(scipy.stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(between))
    # a t is a normal whose variance is drawn, and so is the sum
    spread = np.sqrt(within + between * _t_variances(df))
    high = float(scipy.stats.norm.ppf((1 + LEVEL) / 2) * spread.max())
    return float(
        scipy.optimize.brentq(lambda half: np.mean(1 - 2 * scipy.stats.norm.sf(half / spread)) - LEVEL, 0, high)
    )


@lru_cache
def _t_variances(df: int) -> Array:
    variances: Array = df / scipy.stats.chi2.ppf((np.arange(QUADRATURE) + 0.5) / QUADRATURE, df)
    return variances


def difference(
    a: ArrayLike, b: ArrayLike, draws: int = DRAWS, seed: int = 0, seeds: Seeds | None = None, bounded: bool = False
) -> Difference:
    """Mean of a - b, paired by prompt and by seed, with the interval of `bootstrap` and a two-sided p value.

    Pairing takes out what makes a prompt hard for both. The p value is the level at which the interval just touches
    zero (Efron & Tibshirani, 1993, sec. 15.4), with one added to both counts so that it is never 0 (Davison & Hinkley,
    1997, Bootstrap Methods and their Application, eq. 4.11). With one seed it is below .05 when the interval leaves out
    zero; with several it is drawn for the tails, and then a little larger.

    Args:
        a, b: (seeds, prompts) of the same seeds and prompts in the same order; a pair with a NaN is left out.
        seeds: variance between seeds of one method, as `pooled` gives it; that of the differences by default.
        bounded: as it was for `pooled`.
    """
    table = _complete(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    of_both = _seeds(table)
    if seeds is not None:
        means = [_mean(_complete(values)) for values in (a, b)]
        of_both = seeds.times(sum(_logit_slope(mean) ** 2 for mean in means) if bounded else 2)
    low, high = np.quantile(bootstrap(table, draws, seed, seeds=of_both), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    drawn = bootstrap(table, draws, seed, tails=True, seeds=of_both)
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (tail + 1) / (draws + 1))
    return Difference(_mean(table), float(low), float(high), table.shape[0], table.shape[1], p)


def improved(a: ArrayLike, b: ArrayLike) -> Array:
    """1 where a's value for a prompt is above b's of the same seed, 0 where it is below, and .5 for a tie. The mean is
    the probability of improvement (Agarwal et al., 2021, arXiv 2108.13264, sec. 4.3).

    Args:
        a, b: as for `difference`.
    """
    better: Array = (np.sign(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) + 1) / 2
    return better


def gap(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    """Mean of a less that of an independent b, low and high, from their intervals alone: each side is the root of the
    summed squares of those that face it (Newcombe, 1998, Stat. Med. 17:873-890; Zou & Donner, 2008, 27:1693-1702)."""
    mean = a.mean - b.mean
    low = mean - float(np.hypot(a.mean - a.low, b.high - b.mean))
    return mean, low, mean + float(np.hypot(a.high - a.mean, b.mean - b.low))


def winner(
    tables: Sequence[ArrayLike | None], draws: int = DRAWS, seeds: Seeds | None = None, bounded: bool = False
) -> int | None:
    """The method that is better than every other one: the one with the highest mean, if its paired difference from each
    other one has a p value below 1 - LEVEL after Holm's correction for all these differences.

    However many methods are equally good, one of them is named in at most 5 % of studies: for k equals at the top that
    takes k - 1 false findings at once.

    Args:
        tables: (seeds, prompts) of each, of the same seeds and prompts in the same order; None where there is nothing.
        draws: number of draws for each difference.
        seeds, bounded: as for `difference`.

    Returns:
        Its index, or None.
    """
    known = [i for i, table in enumerate(tables) if table is not None]
    if len(known) < 2:
        return None
    best = max(known, key=lambda i: float(np.nanmean(np.asarray(tables[i], dtype=float))))
    first, others = np.asarray(tables[best], dtype=float), [np.asarray(tables[i], float) for i in known if i != best]
    if any(np.isnan(first - other).all() for other in others):
        return None
    p = [difference(first, other, draws, seeds=seeds, bounded=bounded).p for other in others]
    return best if holm(p).max() < 1 - LEVEL else None


def over_seeds(values: ArrayLike, errors: ArrayLike, seeds: Seeds | None = None) -> Estimate:
    """Mean of one number per seed, each with a standard error over the same items (a benchmark's), with an interval.

    The items are shared, so that more seeds do not average their error away: the mean squared standard error stays
    whole, and the variance between seeds, less `NOISE` of it, adds what `bootstrap` adds. Without standard errors only
    the seeds count; with neither, the limits are NaN.

    Args:
        values: (seeds,).
        errors: (seeds,) standard errors; NaN where there is none.
        seeds: variance between seeds of several such measures together; that of these values by default.
    """
    x, e = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    within, variance = _items(e), seeds or seeds_of_means(x, e)
    mean = float(x.mean())
    if not within and len(x) < 2:
        return Estimate(mean, np.nan, np.nan, len(x), 0)
    half = _half(within, variance)
    return Estimate(mean, mean - half, mean + half, len(x), 0)


def seeds_of_means(values: ArrayLike, errors: ArrayLike) -> Seeds:
    """The variance that seeds add to the mean of `over_seeds`."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return Seeds(0.0, 0.0, 1)
    noise = NOISE * _items(np.asarray(errors, dtype=float)) / len(x)
    return Seeds(float(np.var(x, ddof=1)) / len(x), noise, len(x) - 1)


def _items(errors: Array) -> float:
    known = errors[~np.isnan(errors)]
    return float(np.mean(known**2)) if len(known) else 0.0


def shares(values: ArrayLike, n: int | None) -> Estimate:
    """Mean of one share per seed, each of the same `n` items, with the interval of `over_seeds` kept within [0, 1].

    Where all are 0, or all 1, there is no spread to see, and the interval is Wilson's.

    Args:
        values: (seeds,) between 0 and 1.
        n: items, or None if unknown; then only the seeds count.
    """
    x = np.asarray(values, dtype=float)
    e = over_seeds(x, np.sqrt(x * (1 - x) / n) if n else np.full(len(x), np.nan))
    low, high = wilson(e.mean * n, n) if n and e.mean in (0, 1) else np.clip([e.low, e.high], 0, 1)
    return Estimate(e.mean, float(low), float(high), e.seeds, 0)


def clustered(hits: ArrayLike, trials: ArrayLike) -> Estimate:
    """Share of trials that are hits, where those of one prompt are no independent ones.

    The interval is Wilson's, with as many trials as would give the variance of the share over prompts (a ratio's,
    Cochran, 1977, Sampling Techniques, sec. 2.11); where all are hits, or none is, prompts are the trials.

    Args:
        hits, trials: (prompts,) numbers of each prompt; prompts without a trial are left out.
    """
    k, m = np.asarray(hits, dtype=float), np.asarray(trials, dtype=float)
    k, m = k[m > 0], m[m > 0]
    n = len(m)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    share = float(k.sum() / m.sum())
    variance = float(((k - share * m) ** 2).sum() / m.sum() ** 2) * n / max(n - 1, 1)
    if variance == 0 or share in (0, 1):
        return Estimate(share, *wilson(share * n, n), 0, n)
    z = float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
    return Estimate(share, *score_interval(share, share * (1 - share) / variance, z), 0, n)


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
    known = ~np.isnan(table)
    table = table[known.any(axis=1)][:, known.any(axis=0)]
    if not table.size:
        raise ValueError("no value to average")
    return table


def _mean(table: Array) -> float:
    return float(np.nanmean(table, axis=0).mean())


def _seeds(table: Array) -> Seeds:
    seeds, prompts = table.shape
    free = np.count_nonzero(~np.isnan(table)) - seeds - prompts + 1
    if seeds == 1 or free < 1:
        return Seeds(0.0, 0.0, 1)
    by_seed = np.nanmean(table - np.nanmean(table, axis=0), axis=1)
    noise = np.nansum((table - np.nanmean(table, axis=0) - by_seed[:, None]) ** 2) / free
    return Seeds(float(np.var(by_seed, ddof=1)) / seeds, float(NOISE * noise) / prompts / seeds, seeds - 1)


def _resampled(x: Array, draws: int, seed: int) -> Array:
    """Means of `draws` resamples of x."""
    n = len(x)
    if n * draws <= CHUNK:
        return _counts(n, draws, seed) @ x / n
    step = max(1, CHUNK // n)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    rng = np.random.default_rng(seed)
    return np.concatenate([x[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])


@lru_cache(maxsize=2)  # a table's methods all answer the same prompts
def _counts(n: int, draws: int, seed: int) -> Array:
    """(draws, n): how often each of n values is drawn."""
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(float)
