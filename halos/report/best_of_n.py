"""Best-of-n sampling: what the best of several responses to a prompt is worth, from the scores of samples alone.

Pure functions of numbers, as in `statistics`: the same input gives the same output, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from halos.report.lazy import scipy
from halos.report.statistics import Array


def best_of(proxy: ArrayLike, gold: ArrayLike) -> Array:
    """The gold score that the best of k samples by their proxy scores is expected to have, for each k.

    Of N samples in ascending order of proxy score, the i-th is the best one of C(i-1, k-1) of the C(N, k) sets of k,
    so that the sum over i of C(i-1, k-1) / C(N, k) times its gold score is an unbiased estimate, with less variance
    than one drawn set has (Nakano et al., 2021, arXiv 2112.09332, appendix I; Gao et al., 2023, arXiv 2210.10760). Of
    equal proxy scores each is as likely to be taken, so that all count with the mean of their gold scores.

    Args:
        proxy: (prompts, N) scores by which samples are chosen; without NaN.
        gold: (prompts, N) scores by which they are measured; the proxy scores themselves for the expected maximum.

    Returns:
        (N, prompts): for k = 1, ..., N. The first row is the mean, the last the gold score of the best sample.
    """
    p, g = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    size = p.shape[1]
    i, k = np.arange(size, dtype=float), np.arange(size, dtype=float)[:, None]  # both less one
    # C(i, k) / C(N, k + 1), by logarithms: the binomials of a thousand samples are beyond floating point
    logs = _log_binomial(np.maximum(i, k), k) - _log_binomial(np.full_like(k, size), k + 1)
    weights = np.where(i >= k, np.exp(logs), 0.0)
    ordered = np.stack([_ordered(*row) for row in zip(p, g, strict=True)], axis=1)
    best: Array = weights @ ordered
    return best


def kl(n: ArrayLike) -> Array:
    """The KL divergence of best-of-n sampling from the policy that is sampled, in nats: log n - (n - 1) / n (Stiennon
    et al., 2020, arXiv 2009.01325, appendix G.3).

    It holds where no two responses are equally good, and is otherwise an upper bound (Beirami et al., 2024, arXiv
    2401.01879).
    """
    k = np.asarray(n, dtype=float)
    nats: Array = np.log(k) - (k - 1) / k
    return nats


def _ordered(proxy: Array, gold: Array) -> Array:
    """Gold scores in ascending order of proxy scores; of equal proxy scores the mean."""
    _, rank, number = np.unique(proxy, return_inverse=True, return_counts=True)
    means = np.bincount(rank, gold) / number
    return np.repeat(means, number)


def _log_binomial(n: Array, k: Array) -> Array:
    gammaln = scipy.special.gammaln
    value: Array = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return value


def complete(tables: Sequence[dict[tuple[str, int], float]], samples: int) -> tuple[list[str], list[Array]]:
    """The prompts all of whose samples are scored in each of several tables, and their scores.

    Args:
        tables: {(prompt_id, sample): score} of each.
        samples: their number for each prompt.

    Returns:
        The ids, and of each table (prompts, samples) scores.
    """
    ids = sorted({prompt for prompt, _ in tables[0]})
    whole = [i for i in ids if all((i, sample) in table for table in tables for sample in range(samples))]
    values = [[[table[i, sample] for sample in range(samples)] for i in whole] for table in tables]
    return whole, [np.array(scores, dtype=float).reshape(len(whole), samples) for scores in values]
