"""Random draws of rows, nested: a larger share of the same rows holds whatever a smaller one does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa


def drawn(groups: np.ndarray, numbers: int | np.ndarray, rng: np.random.Generator) -> pa.Array:
    """(N,) bool: a random `numbers` (one, or one a row) of the rows of each group, or all where there are fewer. A
    larger number adds to what a smaller one draws."""
    order = np.lexsort((rng.random(len(groups)), groups))
    ordered = groups[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the group
    return pa.array(rank < numbers)


def shares(groups: np.ndarray, fractions: Mapping[int, float], rng: np.random.Generator) -> pa.Array:
    """(N,) bool: of each group a random share, round(fraction * n) of n rows and at least one; all of other groups.

    The share of one group does not move what is drawn of another.
    """
    numbers = np.full(len(groups), len(groups))
    for group, fraction in fractions.items():
        rows = groups == group
        numbers[rows] = max(1, round(fraction * int(rows.sum())))
    return drawn(groups, numbers, rng)
