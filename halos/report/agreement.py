"""How far judges agree with each other on the same comparisons, with 95 % intervals; pure functions of numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from halos.report.proportions import LEVEL
from halos.report.statistics import Array, Estimate

SIDES = (-1, 0, 1)
"""A verdict: the baseline is better, neither is, the candidate is."""
DRAWS = 400


def kappa(first: Array, second: Array, prompts: Sequence[Hashable]) -> Estimate:
    """Agreement of two judges beyond that of chance (Cohen, 1960, Educ. Psychol. Meas. 20:37-46), by scikit-learn.

    Args:
        first, second: (comparisons,) verdicts, of SIDES.
        prompts: (comparisons,) the prompt of each; the interval is a percentile bootstrap over them.
    """
    from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

    def of(weights: Array) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a judge that always says the same, whose kappa is NaN
            return float(cohen_kappa_score(first, second, labels=SIDES, sample_weight=weights))

    return _estimate(of, prompts)


def alpha(verdicts: Array, prompts: Sequence[Hashable]) -> Estimate:
    """Agreement of several judges beyond that of chance: Krippendorff's alpha of verdicts in their order (2011,
    Computing Krippendorff's alpha-reliability), by krippendorff.

    Args:
        verdicts: (judges, comparisons), of SIDES; NaN where a judge gave none.
        prompts: as for `kappa`.
    """
    import krippendorff

    counts = np.stack([(verdicts == side).sum(axis=0) for side in SIDES], axis=1)

    def of(weights: Array) -> float:
        drawn = np.repeat(counts, weights.astype(int), axis=0)
        if np.count_nonzero(drawn.sum(axis=0)) < 2 or drawn.sum(axis=1).max() < 2:
            return np.nan
        domain = list(SIDES)
        return float(krippendorff.alpha(value_counts=drawn, value_domain=domain, level_of_measurement="ordinal"))

    return _estimate(of, prompts)


def _estimate(of: Callable[[Array], float], prompts: Sequence[Hashable]) -> Estimate:
    """A value of weighted comparisons, with its percentile interval over prompts drawn with replacement."""
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    place: NDArray[np.int64] = np.array([names[prompt] for prompt in prompts])
    n, rng = len(names), np.random.default_rng(0)
    drawn = [of(np.bincount(rng.integers(0, n, n), minlength=n)[place].astype(float)) for _ in range(DRAWS)]
    known = np.array([value for value in drawn if not np.isnan(value)])
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(known, tails) if len(known) else (np.nan, np.nan)
    return Estimate(of(np.ones(len(place))), float(low), float(high), 0, n)
