"""Views: the kinds of training examples that a sequence store holds. A new view is one entry of VIEWS; a plugin makes
one by the decorator `view`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, Protocol

from halos.errors import HalosError
from halos.registry import Registry

MISMATCHED = "mismatched"
"""The role of a prompt with the response to another one. `tokenize` draws its sequences: no record holds them."""


class Record(Protocol):
    """The fields of a feedback record (halos.data.feedback.Feedback) that examples are made of."""

    @property
    def prompt(self) -> Sequence[Mapping[str, Any]]: ...
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
    def definition(self) -> Callable[[Record], Rows]:
        """The function that it is made of."""
        return self.rows

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
VIEWS: Registry[View] = Registry("view")
"""name -> view. `scored` reads the unpaired table for the rows with a score, whether or not they have a label."""
for _view in (
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
):
    VIEWS.register(_view.name)(_view)


LABELS = {"desirable": "bool", "scores": "float64", "margins": "float64"}
"""label -> type, of those that have a meaning of their own (halos.losses.base.Batch)."""


def view(
    name: str,
    *,
    roles: Sequence[str],
    wants: str,
    labels: Mapping[str, str] | None = None,
    weights: bool = False,
    feedback: Sequence[str] = (),
) -> Callable[[Callable[[Record], Rows]], View]:
    """A decorator that makes a view of a function, and registers it. A dataset has it where its `views:` names it.

    The function takes a feedback record and yields a tuple for each example: for each role the index of its response
    among the record's, then the labels in order and, with `weights`, the example's weight or None. It must depend on
    the record alone.

    Args:
        name: small letters, digits and _.
        roles: the roles of an example's responses, such as best, middle, worst: what a loss finds log-probabilities by.
        wants: what to do about a dataset without examples, for an error message: "give its records scores".
        labels: label -> float64 or bool. `desirable`, `scores` and `margins` are the loss's `batch.desirable` and so
            on, the first two of the role `response`; any other is in `batch.labels`.
        weights: whether examples have weights.
        feedback: kinds of a labeller's feedback that make examples: binary, pairwise, scalar; all, if none is named.

    Raises:
        HalosError: one of these is not as it has to be.
    """
    types = dict(labels or {})
    if problem := _problem(name, roles, wants, types, feedback):
        raise HalosError(f"view {name!r}: {problem}")

    def register(rows: Callable[[Record], Rows]) -> View:
        def checked(record: Record) -> Iterator[tuple[Any, ...]]:
            try:
                yield from (_checked(row, record, len(roles), types, weights) for row in rows(record))
            except Exception as error:  # any error that a plugin's code raises
                what = f"{type(error).__name__}: {error}" if not isinstance(error, _WrongRow) else str(error)
                prompt = shorten(str(record.prompt[-1]["content"]), 60)
                raise HalosError(f"the view {name!r} fails on the record with the prompt {prompt!r}: {what}") from error

        checked.__module__, checked.__qualname__ = rows.__module__, rows.__qualname__
        columns = {role: role for role in roles}
        made = View(
            name=name, columns=columns, schema={**dict.fromkeys(columns, "int32"), **types, "weight": "float64"},
            rows=checked, wants=wants, labels={label: label for label in types}, feedback=tuple(feedback),
            optional=("weight",),
        )  # fmt: skip
        return VIEWS.register(name)(made)

    return register


def _problem(
    name: str, roles: Sequence[str], wants: str, labels: Mapping[str, str], feedback: Sequence[str]
) -> str | None:
    """What is wrong with the arguments of `view`; None if nothing is."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "a name is small letters, digits and _"
    if isinstance(roles, str) or not roles or len(set(roles)) < len(roles):
        return "roles are names of an example's responses, each once, such as ('best', 'worst')"
    if MISMATCHED in roles:
        return "mismatched responses are those of the view unpaired alone: name another role"
    if taken := sorted({*roles, *labels} & {"weight"} or {*roles} & {*labels}):
        return f"{taken[0]!r} cannot be the name of a role or label here: take another"
    if ("chosen" in roles) != ("rejected" in roles):
        return "chosen and rejected go together: name the other one, too, or take other names"
    for label, kind in labels.items():
        if kind != LABELS.get(label, kind) or kind not in ("float64", "bool"):
            return f"the label {label!r} is {LABELS.get(label, 'float64 or bool')}, not {kind!r}"
        if label in ("desirable", "scores") and tuple(roles) != ("response",):
            return f"the label {label!r} is of a single role called response: take another name for it, or such roles"
    if not isinstance(wants, str) or not wants:
        return "`wants` says what to do about a dataset that has no examples for it"
    if unknown := sorted({*feedback} - {"binary", "pairwise", "scalar"}):
        return f"a labeller gives binary, pairwise or scalar feedback, not {unknown[0]!r}"
    return None


class _WrongRow(ValueError):
    """A row that is not of its view."""


def _checked(
    row: Any, record: Record, roles: int, labels: Mapping[str, str], weights: bool
) -> tuple[int | float | bool | None, ...]:
    """A row of a view, with its weight, if it is as the view says."""
    if not isinstance(row, tuple) or len(row) != roles + len(labels) + weights:
        asked = f"{roles} responses, {len(labels)} labels{' and a weight' * weights}"
        raise _WrongRow(f"it yields {row!r}, and not a tuple of {asked}")
    for index in row[:roles]:
        whole = isinstance(index, Integral) and not isinstance(index, bool)
        if not whole or not 0 <= int(index) < len(record.responses):
            raise _WrongRow(f"{index!r} is no index of its {len(record.responses)} responses")
    for (label, kind), value in zip(labels.items(), row[roles:], strict=False):
        yes_or_no = isinstance(value, bool)
        if not (yes_or_no if kind == "bool" else not yes_or_no and isinstance(value, Real) and math.isfinite(value)):
            raise _WrongRow(f"its {label} is {value!r}, and not {'True or False' if kind == 'bool' else 'a number'}")
    weight = row[-1] if weights else None
    if weight is not None and not (isinstance(weight, Real) and 0 < float(weight) < math.inf):
        raise _WrongRow(f"its weight is {weight!r}, and not None or a number above 0: leave out what has none")
    return (*row[: roles + len(labels)], weight)
