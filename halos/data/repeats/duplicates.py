"""Records of one file that repeat an earlier one: with equal texts, or in nearly the same words."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halos.data import feedback
from halos.data.repeats.fingerprint import Fingerprint
from halos.data.repeats.sketch import Bytes, Sketches, agreement, bands, similar
from halos.data.report import EXAMPLES, Duplicates, Example, shown

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Repeats:
    """The earlier record that each record of a file repeats.

    Attributes:
        exact: (n,) the first record with the same prompt and responses, normalised; -1 without one.
        near: (n,) an earlier record whose prompt and whose responses have nearly the same words, and that is neither
            an exact nor a near duplicate itself; -1 without one, and for exact duplicates.
    """

    exact: Numbers
    near: Numbers


class Contents:
    """The contents of the records of one file, about 140 bytes for each."""

    def __init__(self) -> None:
        self._contents = array("Q")
        self._sketches = Sketches(2)

    def add(self, of: Fingerprint) -> None:
        """Add the next record."""
        self._contents.append(of.content)
        self._sketches.append(of.conversation, of.responses)

    @property
    def prompt_sketches(self) -> Bytes:
        """(n, PERMUTATIONS) of the records' prompts."""
        return self._sketches.of(0)

    @property
    def _parts(self) -> tuple[Bytes, Bytes]:
        """(n, PERMUTATIONS) of the records' prompts, and of their responses."""
        return self._sketches.of(0), self._sketches.of(1)

    def repeats(self) -> Repeats:
        """The duplicates.

        A record is compared with the first of those that are alike in some band, so that time grows with the number of
        records, even where all are alike.
        """
        contents = np.array(self._contents, np.uint64)
        rows = np.arange(len(contents))
        first = _first_equal(contents)
        exact = np.where(first < rows, first, -1)
        near = np.full(len(contents), -1)
        others = np.flatnonzero(exact < 0)
        for band in bands(*self._parts):
            maybe = others[_first_equal(band[others])]
            asked = (maybe < others) & (near[others] < 0)
            later, earlier = others[asked], maybe[asked]
            same = np.logical_and(*(similar(part[later], part[earlier]) for part in self._parts))
            near[later[same]] = earlier[same]
        chained = np.flatnonzero((near >= 0) & (near[near] >= 0))
        heads = near[near[chained]]
        same = np.logical_and(*(similar(part[chained], part[heads]) for part in self._parts))
        near[chained[same]] = heads[same]
        for row in np.flatnonzero(near >= 0):  # in order: what an earlier record repeats is settled
            if near[near[row]] >= 0:
                near[row] = -1
        return Repeats(exact, near)

    def report(self, found: Repeats, file: Path, dropped: str) -> Duplicates:
        """The counts, and the first examples.

        Args:
            found: the duplicates.
            file: the file of the records.
            dropped: which of them are left out of train: none, exact or near.
        """
        examples = []
        for kind, earlier in (("equal", found.exact), ("near", found.near)):
            rows = np.flatnonzero(earlier >= 0)
            pairs = [(int(row), int(earlier[row])) for row in rows[:EXAMPLES]]
            records = feedback.records_at(file, [row for pair in pairs for row in pair])
            for pair in pairs:
                later, first = (shown(records[row], responses=True) for row in pair)
                similarity = min(float(agreement(part[pair[0]], part[pair[1]])) for part in self._parts)
                examples.append(Example(kind=kind, first=first, second=later, similarity=round(similarity, 2)))
        return Duplicates(
            equal=int((found.exact >= 0).sum()),
            near=int((found.near >= 0).sum()),
            dropped=dropped,
            examples=tuple(examples),
        )


def _first_equal(values: NDArray[np.uint64]) -> Numbers:
    """(n,) the index of the first value that is equal to each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.ones(len(values), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    first = np.empty(len(values), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first
