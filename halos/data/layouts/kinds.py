"""Which shape a row of one's own has: told by the names of its fields, and refused where they tell several shapes, or a
label that no shape reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache

from pydantic import AliasChoices

from halos.data.layouts import shapes as S
from halos.data.layouts.shapes import Row
from halos.data.layouts.turns import Invalid
from halos.data.layouts.words import LABEL_WORDS, PROMPT_WORDS, RESPONSE_WORDS, RESPONSES
from halos.data.rows import Drop

Names = tuple[str, ...]
Kind = tuple[type[Row], tuple[frozenset[str], ...]]
SHAPES: dict[str, Kind] = {
    name: (shape, tuple(frozenset(fields.split()) for fields in told_by))
    for name, shape, *told_by in (
        ("record", S.RecordRow, "prompt responses"),
        ("pairwise_feedback", S.Pairwise, "prompt output_A output_B label"),
        ("binary_feedback", S.Binary, "prompt output label"),
        ("scalar_feedback", S.Scalar, "prompt output reward"),
        ("preference", S.Preference, "chosen rejected"),
        ("unpaired", S.Binary, "prompt completion label", "completion label"),
        ("sample", S.Sample, "prompt response", "prompt output"),
        ("prompt-completion", S.PromptCompletion, "prompt completion"),
        ("alpaca", S.Alpaca, "instruction output", "instruction response"),
        ("messages", S.Messages, "messages"),
    )
}
"""name -> (model, the fields that tell it: any of these sets). A row has the shape that its `type` names, else the one
that fits."""
AS_LABEL: dict[type[Row], str] = {
    S.Messages: "completion: messages, ",
    S.Sample: "completion: response, ",
    S.Alpaca: "prompt: instruction, completion: output, ",
    S.PromptCompletion: "",
}
"""Shape without a label -> the columns that make it one with a label."""
NO_SHAPE = "of no known shape"
NO_LABEL = "no label"


@lru_cache(maxsize=1024)  # most rows of a file have the same fields
def shape_of(kind_of: str | None, fields: tuple[str, ...], given: tuple[str, ...]) -> type[Row] | Drop:
    """The shape of a row, or why it is left out.

    Args:
        kind_of: its field `type`.
        fields: the names of all fields of the row.
        given: of those that have a value.

    Raises:
        Invalid: it is of no known shape or of several, or a field says something that the shape does not read.
    """
    typed = None if kind_of is None else SHAPES.get(kind_of)
    fitting = {name: kind for name, kind in SHAPES.items() if typed in (None, kind) and _told(kind, given)}
    if not fitting:
        if half := next((k for k in SHAPES.values() if typed in (None, k) and _told(k, fields)), None):
            return _left_out(half, fields, given)
        if typed:
            return typed[0]  # its model says which field is missing
        raise Invalid(NO_SHAPE, f"{NO_SHAPE} (fields: {', '.join(given)}){_proposal(given)}")
    shape = next(iter(fitting.values()))[0]
    if shape is not S.RecordRow:
        _check_aliases(shape, given)
        if not typed:
            _check_only_one(fitting, given)
            return _unlabelled(shape, fields, given) or shape
    return shape


def _told(kind: Kind, fields: Names) -> bool:
    return any(told_by <= set(fields) for told_by in kind[1])


def _left_out(kind: Kind, fields: Names, given: Names) -> Drop:
    """Why a row is left out whose shape is told by fields of which some have no value.

    Raises:
        Invalid: it has no prompt.
    """
    empty = next(told_by for told_by in kind[1] if told_by <= set(fields)) - set(given)
    if empty <= LABEL_WORDS - RESPONSES:
        return Drop(NO_LABEL)
    if empty <= RESPONSES | LABEL_WORDS:
        return Drop(S.EMPTY)
    raise Invalid(f"field {min(empty - RESPONSES)} has no value")


def _check_aliases(shape: type[Row], given: Names) -> None:
    for names in _aliases(shape):
        if len(both := [name for name in names if name in given]) > 1:
            raise twice(both[0], both[1])


def twice(name: str, other: str) -> Invalid:
    """The complaint about two names of one field."""
    return Invalid(
        f"both {name} and {other}", f"both {name} and {other}; leave one out by `columns: {{{other}: null}}`"
    )


def _check_only_one(fitting: dict[str, Kind], given: Names) -> None:
    """Refuse a row of several shapes, unless the first reads all that tells the others."""
    (first, (shape, _)), *others = fitting.items()
    read = reads(shape)
    for name, (_, told) in others:
        if any(told_by <= set(given) and not told_by <= read for told_by in told):
            extra = min(frozenset().union(*told) & set(given) - read)
            raise Invalid(
                "of several shapes",
                f"of several shapes, {first} and {name}; say which is meant by a field `type`, or leave a column out, "
                f"as in `columns: {{{extra}: null}}`",
            )


def _unlabelled(shape: type[Row], fields: Names, given: Names) -> Drop | None:
    """A Drop for a row whose labels have no value; None where it has one, or has no column of labels.

    Raises:
        Invalid: a label is in a column that the shape does not read.
    """
    labels = [name for name in fields if _is_label(name, shape)]
    if told := [name for name in labels if name in given and name not in reads(shape)]:
        raise unread_label(told[0], shape)
    return Drop(NO_LABEL) if labels and not set(labels) & set(given) else None


def unread_label(name: str, shape: type[Row]) -> Invalid:
    """The complaint about a label in a column that the shape does not read."""
    said = f"say so by `columns: {{{AS_LABEL[shape]}label: {name}}}`, or " if shape in AS_LABEL else ""
    return Invalid(
        "a label that is not read",
        f"field {name} may be a label, and is not read; {said}leave it out by `columns: {{{name}: null}}`",
    )


def _is_label(name: str, shape: type[Row]) -> bool:
    """Whether a column's name is a word for a label; beside a shape without labels, its last word is enough."""
    name = name.lower()
    return name in LABEL_WORDS or (shape in AS_LABEL and re.split(r"[-_ .]", name)[-1] in LABEL_WORDS)


def _proposal(given: Names) -> str:
    """How a row of no known shape may be read, if two of its columns are called like a prompt and a response."""
    prompts = [name for name in given if name.lower() in PROMPT_WORDS | {"prompt"}]
    responses = [name for name in given if name.lower() in RESPONSE_WORDS]
    if not prompts or not responses:
        return ""
    columns = {"prompt": prompts[0], "completion": responses[0]}
    named = ", ".join(f"{name}: {column}" for name, column in columns.items() if column != name)
    return f"; is it `columns: {{{named}}}`?" if named else ""


def _aliases(shape: type[Row]) -> Iterable[list[str]]:
    """The names of each field of a shape that has several."""
    for info in shape.model_fields.values():
        if isinstance(info.validation_alias, AliasChoices):
            yield [str(choice) for choice in info.validation_alias.choices]


@cache
def reads(shape: type[Row]) -> frozenset[str]:
    """The names of the fields that a shape reads."""
    aliases = (name for names in _aliases(shape) for name in names)
    return frozenset(shape.model_fields) | frozenset(aliases) | {"type"}
