"""What becomes of the records of train: duplicates that are left out, conversations that are cut from it for the
validation split, and records that are drawn of each source.

A number of records is drawn by `limit`, a share by `weight`. Both are of records of train, after all drops and the cut;
the other splits keep all of their records, so that other mixes are evaluated and judged on the same prompts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from halos.data.repeats.duplicates import Repeats
from halos.data.repeats.fingerprint import Fingerprint
from halos.data.settings import DataSlice, Source
from halos.errors import HalosError
from halos.seeds import derive

KEPT, VALIDATION, EQUAL, NEAR, LEAKING, NOT_DRAWN = range(6)
REASONS = {
    EQUAL: "equal to an earlier record",
    NEAR: "nearly equal to an earlier record",
    LEAKING: "prompt is in the validation split",
    NOT_DRAWN: "not drawn by the limit or weight of its source",
}
MOST = 256
"""Conversations of a validation split by default, or a tenth of train's where that is less."""
Hashes = NDArray[np.uint64]


class Keys:
    """Hashes of records by which some are chosen, 64 bits each.

    Args:
        cut: whether conversations are to be chosen.
        draws: whether records are to be drawn.
    """

    def __init__(self, cut: bool, draws: bool) -> None:
        self._cut, self._draws = cut, draws
        self._group_keys, self._prompt_keys, self._draw_keys = array("Q"), array("Q"), array("Q")

    def add(self, of: Fingerprint) -> None:
        """Add the next record."""
        if self._cut:
            self._group_keys.append(of.group)
            self._prompt_keys.append(int.from_bytes(of.prompt[:8], "little"))
        if self._draws:
            self._draw_keys.append(of.draw)

    @property
    def groups(self) -> Hashes:
        """(n,) equal for records that no two splits may share."""
        return np.array(self._group_keys, np.uint64)

    @property
    def prompts(self) -> Hashes:
        """(n,) equal for equal prompts."""
        return np.array(self._prompt_keys, np.uint64)

    @property
    def draws(self) -> Hashes:
        """(n,) different for records that differ in anything."""
        return np.array(self._draw_keys, np.uint64)


def fates(
    settings: DataSlice,
    sources: Sequence[Source],
    written: Sequence[int],
    cut: Sequence[bool],
    repeats: Repeats,
    keys: Keys,
) -> NDArray[np.uint8]:
    """(n,) what becomes of each record.

    Args:
        settings: the dataset's.
        sources: its sources, in the order of the records.
        written: records of each source.
        cut: whether the validation split is cut from each source.
        repeats: the duplicates among the records.
        keys: hashes of the records.

    Raises:
        HalosError: a source has fewer records than its limit, or there are not more conversations than the validation
            split is to have.
    """
    fate = np.zeros(sum(written), np.uint8)
    if settings.drop_duplicates != "none":
        fate[repeats.exact >= 0] = EQUAL
    if settings.drop_duplicates == "near":
        fate[repeats.near >= 0] = NEAR
    if any(cut):
        groups, prompts, kept = keys.groups, keys.prompts, fate == KEPT
        held_out = kept & np.isin(groups, conversations(settings, groups[kept & np.repeat(cut, written)]))
        fate[kept & np.isin(prompts, prompts[held_out])] = LEAKING  # of another group
        fate[held_out] = VALIDATION
    if not settings.draws:
        return fate
    bounds = np.cumsum([0, *written])
    draws = keys.draws
    rows = [begin + np.flatnonzero(fate[begin:end] == KEPT) for begin, end in pairwise(bounds)]
    wanted = sizes(sources, [len(of_source) for of_source in rows])
    for number, (of_source, count) in enumerate(zip(rows, wanted, strict=True)):
        seed = derive(settings.seed, "mix", number)
        fate[of_source[~drawn(draws[of_source], count, seed)]] = NOT_DRAWN
    return fate


def conversations(settings: DataSlice, groups: Hashes) -> Hashes:
    """The conversations that make the validation split: the first in an order by their hashes and the dataset's seed.

    Args:
        settings: the dataset's.
        groups: (n,) hashes of the conversations to choose from, once for each of their records.

    Raises:
        HalosError: there are none, or not more than are wanted.
    """
    every, wanted = np.unique(groups), settings.validation_prompts
    if wanted is None:
        count = min(MOST, round(len(every) / 10))
    else:
        count = wanted if isinstance(wanted, int) else round(wanted * len(every))
        if not 0 < count < len(every):
            raise HalosError(
                f"dataset {settings.dataset}: validation_prompts is {wanted}, which is {count} of the {len(every)} "
                "conversations of train; ask for at least one and fewer than all, or for 0 to have no validation split"
            )
    return every[drawn(every, count, derive(settings.seed, "validation"))]


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
