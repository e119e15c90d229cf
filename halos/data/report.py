"""report.json of a dataset: rows in and out of each source, and what was dropped, by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from halos.data.feedback import Feedback


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
