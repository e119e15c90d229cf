"""report.json of a dataset: rows read from each source, kept, and dropped by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from halos.data.feedback import Feedback
from halos.files import JsonFile, Record


class Rows(Record):
    """Counts of rows and of what the kept ones hold; `rows_in` is `rows_out` plus all drops.

    Attributes:
        rows_in: rows read.
        rows_out: records kept.
        drops: rows left out, by reason.
        responses: responses of the records.
        pairs: pairs of a preferred and another response.
        desirable: responses labelled desirable.
        undesirable: responses labelled undesirable.
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
    """The rows of one source in one split.

    Attributes:
        options: the source's options in config.yaml.
        hub: the dataset's name on the hub; None for local files.
        commit: the commit of the hub that was read.
    """

    name: str
    options: dict[str, Any] = {}
    hub: str | None = None
    commit: str | None = None


class SplitRows(Rows):
    """The rows of one split, over all its sources.

    Attributes:
        shared_prompts: prompts that are in more than one record.
    """

    shared_prompts: int
    sources: tuple[SourceRows, ...]


class DataReport(JsonFile):
    """report.json of a dataset. Every count of a split that no source has is 0."""

    dataset: str
    train: SplitRows
    test: SplitRows


@dataclass
class Tally:
    """Running counts of the rows of one source in one split."""

    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Feedback) -> None:
        """Count a record that is kept."""
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
        """The fields of Rows."""
        names = ("responses", "pairs", "desirable", "undesirable", "ties", "targets", "multi_turn")
        counts = {name: self.counts[name] for name in names}
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, "drops": dict(sorted(self.drops.items())), **counts}
