"""report.json of a dataset: rows read from each source, kept, and dropped by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

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
        limit: the number of records to draw, as config.yaml has it.
        weight: the source's share of the mix, as config.yaml has it.
        available: records that rows_out were drawn from; None where nothing is drawn.
        unread_fields: fields of the rows that the source does not read, with the number of rows that have each.
        hub: the dataset's name on the hub; None for local files.
        commit: the commit of the hub that was read.
    """

    name: str
    options: dict[str, Any] = {}
    limit: int | None = None
    weight: float | None = None
    available: int | None = None
    unread_fields: dict[str, int] = {}
    hub: str | None = None
    commit: str | None = None


class SplitRows(Rows):
    """The rows of one split, over all its sources.

    Attributes:
        shared_prompts: prompts that are in more than one record.
    """

    shared_prompts: int
    sources: tuple[SourceRows, ...]


class Example(Record):
    """Two texts that are equal, in part or nearly, shortened.

    Attributes:
        kind: equal, begins, continues or near: what the first does to the second.
        similarity: estimated Jaccard similarity of their shingles of three words; of duplicates, of their prompts or of
            their responses, whichever is less.
    """

    kind: str
    first: str
    second: str
    similarity: float


class Overlap(JsonFile):
    """Records of a train split whose prompts recur among other prompts. Each counts once, by the first kind that holds.

    Texts are compared without case, punctuation at their ends and system turns.

    Attributes:
        records: records of the train split.
        prompts: distinct prompts that they were compared with.
        prompts_found: how many of these recur in a record; of several alike, the first.
        equal: records with an equal prompt.
        begins: records whose prompt is the beginning of another's conversation.
        continues: records whose prompt goes on from another.
        near: records with a prompt of nearly the same words: similarity of at least 0.8, estimated by MinHash.
        examples: the first of each kind; `first` is of the train split.
    """

    records: int = 0
    prompts: int = 0
    prompts_found: int = 0
    equal: int = 0
    begins: int = 0
    continues: int = 0
    near: int = 0
    examples: tuple[Example, ...] = ()

    def sentence(self, what: str) -> str:
        """What was found, in one line."""
        found = {
            "are equal to one": self.equal,
            "are the beginning of one": self.begins,
            "go on from one": self.continues,
            "are nearly equal to one": self.near,
        }
        recurring = ", ".join(f"{count} {how}" for how, count in found.items() if count) or "none recurs"
        return f"{what}: of {self.records} train prompts beside {self.prompts} others, {recurring}"


class Duplicates(Record):
    """Records of a train split that repeat an earlier one; labels are not compared.

    Attributes:
        equal: records with the prompt and the responses of an earlier one, without case and punctuation at the ends.
        near: other records whose prompt and whose responses both have nearly the words of an earlier one's: similarity
            of at least 0.8, estimated by MinHash.
        dropped: which of them were left out: none, exact or near (both).
        examples: the first of each kind; `first` is the earlier record.
    """

    equal: int = 0
    near: int = 0
    dropped: Literal["none", "exact", "near"] = "none"
    examples: tuple[Example, ...] = ()

    def sentence(self, what: str) -> str:
        """What was found, in one line."""
        dropped = {"none": "none is dropped", "exact": "the equal ones are dropped", "near": "all are dropped"}
        return (
            f"{what}: {self.equal} records are equal to an earlier one, {self.near} others nearly so; "
            f"{dropped[self.dropped]}"
        )


class DataReport(JsonFile):
    """report.json of a dataset. Every count of a split that no source has is 0.

    Attributes:
        overlaps: split -> prompts of train that recur in it (validation, test); equal ones are not among them but
            dropped.
        duplicates: records that repeat one of train, before any was cut from it or drawn.
    """

    dataset: str
    train: SplitRows
    validation: SplitRows
    test: SplitRows
    overlaps: dict[str, Overlap] = {}
    duplicates: Duplicates = Duplicates()


EXAMPLES = 3
"""Examples that are shown of each kind."""
SHOWN = 400
"""Characters of an example."""


def shown(record: Feedback, responses: bool = False) -> str:
    """A record's conversation on one line, without its middle where it is long; with its responses if wanted."""
    parts = [f"{turn['role']}: {turn['content']}" for turn in record.prompt]
    parts += [f"response: {text}" for text in record.responses] if responses else []
    return shortened(" ".join(" ".join(parts).split()), SHOWN)


def shortened(text: str, length: int) -> str:
    """A text, without its middle where it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


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
