"""Strengths of methods from comparisons of pairs of them, as pure functions of numbers like those of `statistics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from halos.report import statistics
from halos.report.lazy import choix, scipy
from halos.report.proportions import LEVEL, score_interval
from halos.report.statistics import DRAWS, Array, Estimate

Pair = tuple[int, int]
PRIOR = 0.5
"""Wins, and losses, that each method is given on average beside those seen, spread over its pairs: they keep the
strength finite of a method that wins, or loses, always."""

LIMIT = 100.0
"""Strengths are looked for between this and its negative: odds beyond those are never measured."""


def linked(pairs: Sequence[Pair], methods: int) -> bool:
    """Whether comparisons link every method with every other, by others where need be: else their strengths have no
    common scale."""
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    graph = scipy.sparse.coo_matrix((np.ones(len(ends)), ends.T), shape=(methods, methods))
    return int(scipy.sparse.csgraph.connected_components(graph, directed=False, return_labels=False)) == 1


def strengths(pairs: Sequence[Pair], values: ArrayLike, draws: int = DRAWS, seed: int = 0) -> list[Estimate]:
    """Strengths of methods in the model of Bradley & Terry (1952, Biometrika 39:324-345), with 95 % intervals.

    The odds that i wins against j are exp(s_i - s_j). Ties count half. The strengths that fit best are found by choix
    (Maystre & Grossglauser, 2015, Fast and Accurate Inference of Plackett-Luce Models), and have mean 0.

    The intervals are those of `statistics.bootstrap`: prompts are drawn with replacement, each with all its seeds and
    all its pairs, since the pairs of a prompt share its responses; an error is added for the seeds. A draw moves the
    fit by one Newton step, so that it is a mean over prompts: a prompt counts as s + n H^-1 e, where H is the Hessian,
    and e are the residuals of its pairs (the infinitesimal jackknife, Efron, 1982, The Jackknife, the Bootstrap and
    Other Resampling Plans, ch. 6). The wins of PRIOR vary as well, each pair's as comparisons that could have gone
    either way: without that, the interval of a method that always wins would be empty. Where wins are nearly all, or
    nearly none, an interval is bent as Wilson's is.

    Args:
        pairs: indices of both methods, each from 0; together they link all methods (`linked`).
        values: (pairs, seeds, prompts), 1 where the first method's response is better, 0 where the second one's is, .5
            for a tie; between them for a judge that weighs; NaN where nothing was decided. A prompt counts once for
            each pair, however many seeds have it.
        draws: number of draws.
        seed: seed of the random numbers.

    Returns:
        One for each method, in logits.
    """
    first, second = np.array(pairs, dtype=int).T
    table = np.asarray(values, dtype=float)
    table = table[:, :, ~np.isnan(table).all(axis=(0, 1))]
    methods, prompts = 1 + int(max(first.max(), second.max())), table.shape[2]
    known = ~np.isnan(table)
    per_prompt = np.nansum(table, axis=1) / np.maximum(known.sum(axis=1), 1)
    won, decided = per_prompt.sum(axis=1), known.any(axis=1).sum(axis=1)
    prior = PRIOR * methods / (2 * len(first))
    wins = np.zeros((methods, methods))
    np.add.at(wins, (first, second), won + prior)
    np.add.at(wins, (second, first), decided - won + prior)
    fitted = choix.ilsr_pairwise_dense(wins, max_iter=100_000)
    fitted = fitted - fitted.mean()

    expected = scipy.special.expit(fitted[first] - fitted[second])
    sides = np.zeros((len(first), methods))
    sides[np.arange(len(first)), first], sides[np.arange(len(first)), second] = 1, -1
    weights = (decided + 2 * prior) * expected * (1 - expected)
    steps = np.linalg.pinv(sides.T @ (weights[:, None] * sides), hermitian=True) @ sides.T  # (methods, pairs)
    residuals = np.where(known, table - expected[:, None, None], 0.0)
    moved = prompts * np.einsum("mk,ksp->msp", steps, residuals)
    moved[:, ~known.any(axis=0)] = np.nan
    moved += (fitted - np.nanmean(np.nanmean(moved, axis=1), axis=1))[:, None, None]
    of_prior = steps**2 @ (prior * (expected**2 + (1 - expected) ** 2))

    seeds = None
    if table.shape[1] == 2:  # strengths have mean 0, so that the seeds of the last method say nothing more
        seeds = replace(statistics.pooled(moved), df=methods - 1)
    estimates = []
    for m in range(methods):
        drawn = statistics.bootstrap(moved[m], draws, seed, seeds=seeds)
        drawn = drawn + np.sqrt(of_prior[m]) * np.random.default_rng((seed, m, methods)).standard_normal(draws)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        against = np.concatenate([fitted[second[first == m]], fitted[first[second == m]]])
        interval = _bent(float(fitted[m]), float(high - low) / 2, against)
        estimates.append(Estimate(float(fitted[m]), *interval, table.shape[1], prompts))
    return estimates


def _bent(strength: float, half: float, against: Array) -> tuple[float, float]:
    """An interval about a strength that is longer on the side where wins, or losses, are few: Wilson's interval of the
    share of wins against these strengths, with as many trials as would give `strength` the half width `half`."""

    def share(value: float) -> float:
        return float(scipy.special.expit(value - against).mean())

    def strength_of(wanted: float) -> float:
        if not share(-LIMIT) < wanted < share(LIMIT):
            return -LIMIT if wanted < 0.5 else LIMIT
        return float(scipy.optimize.brentq(lambda value: share(value) - wanted, -LIMIT, LIMIT))

    won = scipy.special.expit(strength - against)
    slope, mean, z = float((won * (1 - won)).mean()), float(won.mean()), float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
    low, high = score_interval(mean, mean * (1 - mean) / (half / z * slope) ** 2, z)
    return strength_of(low), strength_of(high)
