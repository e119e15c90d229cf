"""How rewards rank preference pairs, how far their margins are probabilities, and whether they follow length.

Pure functions of numbers, as in `statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halos.evaluate.rewards.rewards import RewardedPrompt
from halos.report.lazy import scipy
from halos.report.statistics import LEVEL, Array, Estimate, bootstrap, clustered

BINS = 10
PAIRS_OF_BIN = 20
"""The least pairs of a point of a calibration curve; with fewer pairs there are fewer points."""


@dataclass(frozen=True)
class Bin:
    """A point of a calibration curve.

    Attributes:
        predicted: mean probability that the preferred response is the chosen one.
        observed: share of pairs in which it is, with its interval over prompts.
        pairs: their number.
    """

    predicted: float
    observed: Estimate
    pairs: int


def margins(prompt: RewardedPrompt) -> Array:
    """(pairs,) reward of the chosen less that of the rejected response."""
    rewards = np.array(prompt.rewards)
    chosen, rejected = np.array(prompt.pairs).T
    difference: Array = rewards[chosen] - rewards[rejected]
    return difference


def right(margin: Array) -> Array:
    """1 for a margin above 0, 0 for one below, .5 for 0."""
    value: Array = (np.sign(margin) + 1) / 2
    return value


def calibration(prompts: Sequence[tuple[str, Array]]) -> list[Bin]:
    """The calibration curve of rewards as a Bradley-Terry model: the probability sigmoid(|margin|) of the response with
    the higher reward, against the share of pairs in which it is the chosen one (Guo et al., 2017, arXiv 1706.04599,
    sec. 2, but in bins of as many pairs each).

    Args:
        prompts: (prompt_id, margins of its pairs), more than once for several seeds.

    Returns:
        Points from the least certain on.
    """
    margin = np.concatenate([margins for _, margins in prompts])
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in prompts))}
    place = np.concatenate([np.full(len(margins), names[prompt]) for prompt, margins in prompts])
    predicted = scipy.special.expit(np.abs(margin))
    order = np.argsort(predicted, kind="stable")
    points = []
    for members in np.array_split(order, max(1, min(BINS, len(order) // PAIRS_OF_BIN))):
        trials = np.bincount(place[members], minlength=len(names))
        hits = np.bincount(place[members], right(margin[members]), minlength=len(names))
        points.append(Bin(float(predicted[members].mean()), clustered(hits, trials), len(members)))
    return points


def calibration_error(points: Sequence[Bin]) -> float:
    """The expected calibration error: the mean distance of predicted from observed, by the number of pairs (Guo et al.,
    2017, eq. 3)."""
    return float(np.average([abs(p.predicted - p.observed.mean) for p in points], weights=[p.pairs for p in points]))


def length_correlation(prompts: Sequence[RewardedPrompt]) -> Estimate:
    """Pearson's correlation of reward and length within prompts: of both, each less its mean over a prompt's responses.
    The interval is a percentile bootstrap over prompts. NaN where all lengths or all rewards of each prompt are equal.

    Args:
        prompts: more than once for several seeds; the responses of a prompt then count as one draw.
    """
    sums: dict[str, Array] = {}
    for prompt in prompts:
        x, y = (np.array(values, dtype=float) - np.mean(values) for values in (prompt.lengths, prompt.rewards))
        sums[prompt.prompt_id] = sums.get(prompt.prompt_id, np.zeros(3)) + np.array([x @ y, x @ x, y @ y])
    xy, xx, yy = np.array(list(sums.values())).T
    if not xx.any() or not yy.any():
        return Estimate(np.nan, np.nan, np.nan, 0, len(sums))
    drawn = [bootstrap(values) for values in (xy, xx, yy)]  # the same prompts are drawn for all three
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = drawn[0] / np.sqrt(drawn[1] * drawn[2])
    low, high = np.nanquantile(correlations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(xy.sum() / np.sqrt(xx.sum() * yy.sum())), float(low), float(high), 0, len(sums))
