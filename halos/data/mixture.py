"""What becomes of the records of train: duplicates that are left out, and those that are drawn of each source.

A number of records is drawn by `limit`, a share by `weight`. Both are of records of train, after all drops; the test
split keeps all of its records, so that other mixes are judged on the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from halos.data.repeats.duplicates import Repeats
from halos.data.settings import DataSlice, Source
from halos.errors import HalosError
from halos.seeds import derive

KEPT, EQUAL, NEAR, NOT_DRAWN = range(4)
REASONS = {
    EQUAL: "equal to an earlier record",
    NEAR: "nearly equal to an earlier record",
    NOT_DRAWN: "not drawn by the limit or weight of its source",
}


def fates(
    settings: DataSlice, sources: Sequence[Source], written: Sequence[int], repeats: Repeats, keys: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """(n,) what becomes of each record.

    Args:
        settings: the dataset's.
        sources: its sources, in the order of the records.
        written: records of each source.
        repeats: the duplicates among the records.
        keys: (n,) a hash of each record; empty where none are drawn.

    Raises:
        HalosError: a source has fewer records than its limit.
    """
    fate = np.zeros(sum(written), np.uint8)
    if settings.drop_duplicates != "none":
        fate[repeats.exact >= 0] = EQUAL
    if settings.drop_duplicates == "near":
        fate[repeats.near >= 0] = NEAR
    if not settings.draws:
        return fate
    bounds = np.cumsum([0, *written])
    rows = [begin + np.flatnonzero(fate[begin:end] == KEPT) for begin, end in pairwise(bounds)]
    wanted = sizes(sources, [len(of_source) for of_source in rows])
    for number, (of_source, count) in enumerate(zip(rows, wanted, strict=True)):
        seed = derive(settings.seed, "mix", number)
        fate[of_source[~drawn(keys[of_source], count, seed)]] = NOT_DRAWN
    return fate


def sizes(sources: Sequence[Source], available: Sequence[int]) -> list[int]:
    """The records to draw from each source: its limit, its share by weight, or all.

    Raises:
        HalosError: a source has fewer records than its limit, or none.
    """
    for source, count in zip(sources, available, strict=True):
        if not count and (source.limit or source.weight):
            raise HalosError(
                f"source {source.name}: no record of train is left, so that it cannot have its "
                f"{'limit' if source.limit else 'weight'}; take it out of the mix, or give it more data"
            )
    if any(source.weight for source in sources):
        return shares(available, [source.weight or 0 for source in sources])
    for source, count in zip(sources, available, strict=True):
        if source.limit is not None and count < source.limit:
            raise HalosError(
                f"source {source.name}: {count} records of train are left, fewer than its limit of {source.limit}; "
                f"lower the limit to {count}, or leave it out"
            )
    return [count if s.limit is None else s.limit for s, count in zip(sources, available, strict=True)]


def shares(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The largest numbers in proportion to the weights, none above what is available.

    They are those of the largest remainders: each is its exact share of their sum, rounded up or down.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    parts = [weight / sum(exact) for weight in exact]
    most = min(count / part for count, part in zip(available, parts, strict=True) if part)
    # at int(most) every count is within what is available; rounding down may leave room for a few more
    totals = range(int(most) + len(parts), int(most) - 1, -1)
    mixes = (_rounded(total, parts) for total in totals)
    return next(counts for counts in mixes if all(n <= count for n, count in zip(counts, available, strict=True)))


def _rounded(total: int, parts: Sequence[Fraction]) -> list[int]:
    """Whole numbers that add up to `total`, by the largest remainders; of equal ones, the first."""
    quotas = [total * part for part in parts]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def drawn(keys: NDArray[np.uint64], count: int, seed: int) -> NDArray[np.bool_]:
    """(n,) a draw of `count` records, which does not depend on their order.

    Args:
        keys: (n,) a hash of each record.
        count: records to draw.
        seed: of the draw.
    """
    mixed = (keys ^ np.uint64(seed)) * np.uint64(0xFF51AFD7ED558CCD)  # MurmurHash3's finaliser
    mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(mixed ^ mixed >> np.uint64(33), kind="stable")[:count]] = True
    return chosen
