"""report.json of a dataset: rows in and out of each source, and what was dropped, by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from halos.data.feedback import Feedback
from halos.files import JsonFile, Record


class Rows(Record):
    """What became of rows: `rows_in` is `rows_out` plus all drops.

    Attributes:
        drops: rows left out, by reason.
        ties: pairs of responses to one prompt with the same score.
        targets: records with a target for imitation.
        multi_turn: records whose prompt has more than one user turn.
    """

    rows_in: int
    rows_out: int
    drops: dict[str, int]
    responses: int
    pairs: int
    desirable: int
    undesirable: int
    ties: int
    targets: int
    multi_turn: int


class SourceRows(Rows):
    """The rows of one source in one split, and which commit they were read from, if it is on the hub."""

    name: str
    options: dict[str, Any] = {}
    hub: str | None = None
    revision: str | None = None
    commit: str | None = None


class SplitRows(Rows):
    """The rows of one split.

    Attributes:
        shared_prompts: prompts that are in more than one record.
    """

    shared_prompts: int
    sources: tuple[SourceRows, ...]


class DataReport(JsonFile):
    """report.json of a dataset. A split that no source has rows for is empty."""

    dataset: str
    train: SplitRows
    test: SplitRows


@dataclass
class Tally:
    """What became of the rows of one source in one split."""

    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Feedback) -> None:
        self.rows_out += 1
        self.counts.update(
            responses=len(record.responses),
            pairs=len(record.pairs),
            desirable=record.desirable.count(True),
            undesirable=record.desirable.count(False),
            ties=sum(n * (n - 1) // 2 for n in Counter(record.scores).values()),
            targets=int(record.target is not None),
            multi_turn=int(sum(turn["role"] == "user" for turn in record.prompt) > 1),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            self.drops + other.drops,
            self.counts + other.counts,
        )

    def row(self) -> dict[str, Any]:
        names = ("responses", "pairs", "desirable", "undesirable", "ties", "targets", "multi_turn")
        counts = {name: self.counts[name] for name in names}
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, "drops": dict(sorted(self.drops.items())), **counts}
