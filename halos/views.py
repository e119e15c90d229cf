"""Views: the kinds of training examples that a sequence store holds. A new view is one entry of VIEWS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

MISMATCHED = "mismatched"
"""The role of a prompt with the response to another one. `tokenize` draws its sequences: no record holds them."""


class Record(Protocol):
    """The fields of a feedback record (halos.data.feedback.Feedback) that examples are made of."""

    @property
    def responses(self) -> list[str]: ...
    @property
    def scores(self) -> list[float]: ...
    @property
    def pairs(self) -> list[tuple[int, int]]: ...
    @property
    def desirable(self) -> list[bool | None]: ...
    @property
    def target(self) -> int | None: ...
    @property
    def weights(self) -> list[float]: ...
    @property
    def pair_weights(self) -> list[float]: ...
    @property
    def margins(self) -> list[float | None]: ...


Rows = Iterable[tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class View:
    """One kind of training example, and its index table in a sequence store.

    Attributes:
        name: its name in config.yaml's losses, in reports and in the name of its index table.
        columns: role -> the column of that role's sequences. A list column makes a group: one example holds several
            responses to a prompt.
        schema: column -> type: int32, float64 or bool, each nullable, or a list of one such as list<int32>.
        rows: the rows that a feedback record adds to the index table, in the order of the schema. A sequence is given
            as the index of its response in the record. The mismatched column is left out.
        wants: what to do about a dataset that has no rows for the view, for an error message.
        labels: "desirable", "scores" or "margins" -> the column of that label.
        weight: the column of its examples' weights; of a grouped view, of its responses'.
        optional: columns that a table lacks where no row has a value: nothing is changed for data without them.
        having: the column that has a value in the rows of this view; None where all rows of the table are its own.
        table: name of the index table, where it is another view's.
        by_scores: name of the view to read when labels are made from scores.
        feedback: kinds of a labeller's feedback that have rows for this view; empty when all have.
    """

    name: str
    columns: Mapping[str, str]
    schema: Mapping[str, str]
    rows: Callable[[Record], Rows]
    wants: str
    labels: Mapping[str, str]
    having: str | None = None
    table: str = ""
    by_scores: str | None = None
    feedback: tuple[str, ...] = ()
    weight: str = "weight"
    optional: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose sequences the loss of an example is computed from; the mismatched one is an extra."""
        return tuple(role for role in self.columns if role != MISMATCHED)

    @property
    def paired(self) -> bool:
        """Whether an example is a chosen and a rejected response."""
        return "chosen" in self.columns

    @property
    def labelled(self) -> bool:
        """Whether an example is desirable or undesirable."""
        return "desirable" in self.labels

    @property
    def grouped(self) -> bool:
        """Whether an example holds any number of responses to its prompt."""
        return self.schema[self.columns[self.roles[0]]].startswith("list<")

    @property
    def compares(self) -> bool:
        """Whether an example needs more than one response to its prompt."""
        return self.grouped or len(self.roles) > 1

    @property
    def file(self) -> str:
        """The name of its index table, less the split."""
        return self.table or self.name


def _targets(record: Record) -> Rows:
    if record.target is not None:
        weight = record.weights[record.target] if record.weights else None
        if weight != 0:
            yield record.target, weight


def _pairs(record: Record) -> Rows:
    none: Sequence[None] = [None] * len(record.pairs)
    for pair, weight, margin in zip(record.pairs, record.pair_weights or none, record.margins or none, strict=True):
        if weight != 0:
            yield *pair, weight, margin


def _labelled_or_scored(record: Record) -> Rows:
    none: Sequence[None] = [None] * len(record.responses)
    columns = (record.desirable or none, record.scores or none, record.weights or none)
    for index, (label, score, weight) in enumerate(zip(*columns, strict=True)):
        if (label is not None or score is not None) and weight != 0:
            yield index, label, score, weight


def _groups(record: Record) -> Rows:
    weights: Sequence[float | None] = record.weights or [None] * len(record.scores)
    kept = [index for index, weight in enumerate(weights) if weight != 0]
    if record.scores and kept:
        yield kept, [record.scores[i] for i in kept], [weights[i] for i in kept]


_UNPAIRED = View(
    name="unpaired",
    columns={"response": "sequence", MISMATCHED: MISMATCHED},
    schema={"sequence": "int32", "desirable": "bool", "score": "float64", "weight": "float64", MISMATCHED: "int32"},
    rows=_labelled_or_scored,
    wants="give its responses desirable labels, label them by their scores (label_by), or use another loss",
    labels={"desirable": "desirable", "scores": "score"},
    having="desirable",
    by_scores="scored",
    feedback=("binary", "pairwise"),
    optional=("weight",),
)
VIEWS = {
    view.name: view
    for view in (
        View(
            name="sft",
            columns={"response": "sequence"},
            schema={"sequence": "int32", "weight": "float64"},
            rows=_targets,
            optional=("weight",),
            wants="give its records a target, or leave out losses that imitate one",
            labels={},
        ),
        View(
            name="paired",
            columns={"chosen": "chosen", "rejected": "rejected"},
            schema={"chosen": "int32", "rejected": "int32", "weight": "float64", "margin": "float64"},
            rows=_pairs,
            wants="give its records pairs, or use a loss that takes unpaired feedback",
            labels={"margins": "margin"},
            optional=("weight", "margin"),
            feedback=("pairwise",),
        ),
        _UNPAIRED,
        replace(
            _UNPAIRED,
            name="scored",
            wants="give its records scores, or use what reads labels (no label_by, another loss)",
            having="score",
            table="unpaired",
            by_scores=None,
            feedback=(),
        ),
        View(
            name="grouped",
            columns={"response": "sequences"},
            schema={"sequences": "list<int32>", "scores": "list<float64>", "weights": "list<float64>"},
            rows=_groups,
            wants="give its records scores, or use another loss",
            labels={"scores": "scores"},
            weight="weights",
            optional=("weights",),
        ),
    )
}
"""name -> view. `scored` reads the unpaired table for the rows with a score, whether or not they have a label."""
