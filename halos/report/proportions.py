"""Intervals of a proportion."""

from __future__ import annotations

import numpy as np

from halos.report.lazy import scipy

LEVEL = 0.95


def clopper_pearson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson, 1934, Biometrika 26:404-413), by scipy.

    It covers at least as often as `level` says. Half of its width with level .9 is the +- of the win rates of
    Ethayarajh et al. (2024, arXiv 2402.01306).
    """
    interval = scipy.stats.binomtest(successes, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, 1927, J. Am. Stat. Assoc. 22:209-212).

    Unlike mean +- 1.96 s.e. it stays within [0, 1] and is not empty at 0 and n successes. A tie may count as half a
    success; the interval is then slightly too wide, as a tie varies less than a win and a loss.

    Args:
        successes: between 0 and n.
        n: trials; with 0 trials the interval is (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n={n}, not {successes}")
    return score_interval(successes / n, n, float(scipy.stats.norm.ppf((1 + level) / 2))) if n else (0.0, 1.0)


def score_interval(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a proportion, by the quantile z of the normal distribution."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
