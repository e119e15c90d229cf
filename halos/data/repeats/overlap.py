"""Prompts of one file that recur in another: equal, cut shorter, continued, or in nearly the same words.

Memory grows with the prompts that are compared with, which should be the fewer: the validation or test split, or the
prompts that a grid is judged on. What is found is counted and shown, and never dropped here.
"""

from __future__ import annotations

import sys
from array import array
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halos.data import feedback
from halos.data.repeats.fingerprint import Fingerprint
from halos.data.repeats.sketch import Bytes, Sketches, agreement, bands, similar
from halos.data.report import EXAMPLES, Example, Overlap, shown


class Kind(IntEnum):
    """How a prompt recurs; the first that holds."""

    NONE = 0
    EQUAL = 1
    BEGINS = 2
    CONTINUES = 3
    NEAR = 4


class PromptIndex:
    """The distinct prompts of one file, to find those of another in.

    Attributes:
        rows: the row of the file in which each prompt is first.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._read = 0
        self._whole: dict[bytes, int] = {}
        self._openings: dict[bytes, int] = {}
        self._sketches = Sketches()

    def add(self, of: Fingerprint) -> None:
        """Add the next record of the file."""
        *openings, whole = of.openings
        if whole not in self._whole:
            number = self._whole[whole] = len(self.rows)
            for opening in openings:
                self._openings.setdefault(opening, number)
            self.rows.append(self._read)
            self._sketches.append(of.conversation)
        self._read += 1

    def __contains__(self, of: Fingerprint) -> bool:
        """Whether an equal prompt is in the file."""
        return of.prompt in self._whole

    def find(self, of: Fingerprint) -> tuple[Kind, int]:
        """How a prompt recurs as a whole or in whole turns, and the number of the prompt that it recurs in."""
        *openings, whole = of.openings
        if whole in self._whole:
            return Kind.EQUAL, self._whole[whole]
        if whole in self._openings:
            return Kind.BEGINS, self._openings[whole]
        number = next((self._whole[opening] for opening in openings if opening in self._whole), None)
        return (Kind.NONE, -1) if number is None else (Kind.CONTINUES, number)

    def sketch(self, number: int) -> Bytes:
        """(PERMUTATIONS,) the sketch of a prompt."""
        sketch: Bytes = self._sketches.of()[number]
        return sketch

    def find_near(self, sketches: Bytes) -> NDArray[np.int64]:
        """(n,) number of a prompt of nearly the same words as each of (n, PERMUTATIONS) sketches; -1 without one."""
        found = np.full(len(sketches), -1)
        mine = self._sketches.of()
        for theirs, own in zip(bands(sketches), bands(mine), strict=True):
            order = np.argsort(own, kind="stable")
            at = np.minimum(np.searchsorted(own[order], theirs), len(order) - 1)
            maybe = order[at]
            asked = np.flatnonzero((own[maybe] == theirs) & (found < 0))
            asked = asked[similar(sketches[asked], mine[maybe[asked]])]
            found[asked] = maybe[asked]
        return found


class Comparison:
    """The records of one file, each sought among the prompts of another.

    Args:
        index: the prompts of the other file.
    """

    def __init__(self, index: PromptIndex) -> None:
        self._index = index
        self._kinds, self._numbers = array("B"), array("q")

    def add(self, of: Fingerprint) -> None:
        """Look for the next record's prompt."""
        kind, number = self._index.find(of)
        self._kinds.append(kind)
        self._numbers.append(number)

    def overlap(self, sketches: Bytes, at: NDArray[np.intp], train: Path, prompts: Path, chunk: int = 2**16) -> Overlap:
        """What was found.

        Args:
            sketches: (m, PERMUTATIONS) of prompts.
            at: (n,) the sketch of each record that was added.
            train: the file of these records.
            prompts: the file of the index.
            chunk: records to look at together.
        """
        kinds, numbers = np.array(self._kinds), np.array(self._numbers)
        unseen = np.flatnonzero(kinds == Kind.NONE) if self._index.rows else np.empty(0, np.intp)
        for start in range(0, len(unseen), chunk):
            rows = unseen[start : start + chunk]
            near = self._index.find_near(sketches[at[rows]])
            numbers[rows] = near
            kinds[rows[near >= 0]] = Kind.NEAR
        found = [np.flatnonzero(kinds == kind) for kind in (Kind.EQUAL, Kind.BEGINS, Kind.CONTINUES, Kind.NEAR)]
        first = np.concatenate([rows[:EXAMPLES] for rows in found])
        theirs_at = {int(row): self._index.rows[numbers[row]] for row in first}
        ours, theirs = feedback.records_at(train, theirs_at), feedback.records_at(prompts, theirs_at.values())
        examples = [
            Example(
                kind=Kind(kinds[row]).name.lower(),
                first=shown(ours[row]),
                second=shown(theirs[theirs_at[row]]),
                similarity=round(float(agreement(sketches[at[row]], self._index.sketch(numbers[row]))), 2),
            )
            for row in theirs_at
        ]
        return Overlap(
            records=len(kinds),
            prompts=len(self._index.rows),
            prompts_found=len(np.unique(numbers[kinds != Kind.NONE])),
            **{kind.name.lower(): len(rows) for kind, rows in zip(list(Kind)[1:], found, strict=True)},
            examples=tuple(examples),
        )


def overlap(train: Path, prompts: Path, output: Path) -> None:
    """Count the prompts of a training split that recur among those a model is judged on.

    Args:
        train: feedback records to train on, .parquet or .jsonl.
        prompts: feedback records whose prompts are answered and judged.
        output: JSON to write: an OverlapReport.

    Raises:
        HalosError: a file is missing, or holds no feedback records.
    """
    index = PromptIndex()
    for record in feedback.read(prompts):
        index.add(Fingerprint(record))
    comparison, sketches = Comparison(index), Sketches()
    for record in feedback.read(train):
        of = Fingerprint(record)
        comparison.add(of)
        sketches.append(of.conversation)
    found = comparison.overlap(sketches.of(), np.arange(len(sketches.of())), train, prompts)
    print(found.sentence(f"{train} and the prompts of {prompts}"), file=sys.stderr)
    found.write(output)
