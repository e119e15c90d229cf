"""Which shape a row of one's own has: told by its fields, and refused where they tell several, or say what no shape
reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import AliasChoices, ValidationError

from halos.data import shapes as S
from halos.data.feedback import ROLES, Feedback
from halos.data.readers import Malformed
from halos.data.rows import Drop
from halos.data.shapes import Row
from halos.data.sound import SURROGATE, unwritable_text
from halos.data.turns import WEIGHT_ZERO, Invalid, TurnReader, documents, weighed
from halos.data.words import CONTEXT_WORDS, LABEL_WORDS, NOT_TEXT, PROMPT_WORDS, RESPONSE_WORDS, RESPONSES
from halos.errors import HalosError
from halos.registry import suggest

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
SYNONYMS = {"conversations": "messages", "conversation": "messages", "system_prompt": "system", "functions": "tools"}
OPENAI_PREFERENCE = {"input", "preferred_output", "non_preferred_output"}
AS_LABEL: dict[type[Row], str] = {
    S.Messages: "completion: messages, ",
    S.Sample: "completion: response, ",
    S.Alpaca: "prompt: instruction, completion: output, ",
    S.PromptCompletion: "",
}
"""Shape without a label -> the columns that make it one with a label."""
NO_SHAPE = "of no known shape"
NO_LABEL = "no label"


@dataclass(frozen=True)
class Parsed:
    """What became of a row.

    Attributes:
        row: the row; None where it is left out before it is read.
        records: its record, or records; a Drop for what is left out.
        unread: the fields of the row and of its turns that were not read.
    """

    row: Row | None
    records: list[Feedback | Drop]
    unread: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Layout:
    """How the rows of a source are read.

    Attributes:
        columns: field that is read -> the column that it is in; None where it is not to be read.
        roles: role as it is written -> role of a record.
        every_turn: whether every assistant turn of a conversation is a target.
        mapped: the columns named in `columns` that a row had.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    every_turn: bool = False
    mapped: set[str] = field(default_factory=set)

    def check(self, source: str) -> None:
        """Check the names.

        Raises:
            HalosError: a field is none that is read, or a role none of a record.
        """
        known = frozenset().union(*(reads(shape) for shape, _ in SHAPES.values()))
        for name, column in self.columns.items():
            if column is not None and name not in known:
                raise HalosError(
                    f"source {source}: columns: {name!r} is no field that is read{suggest(name, known)} (write it as "
                    "field that is read: column of the file)"
                )
        for role, ours in self.roles.items():
            if ours not in ROLES:
                raise HalosError(f"source {source}: roles: {role} is {ours!r}; a role is one of {', '.join(ROLES)}")

    def check_found(self, source: str) -> None:
        """Check, after the last row, that the columns were there.

        Raises:
            HalosError: no row had one of them.
        """
        wanted = {column for column in self.columns.values() if column is not None}
        if missing := sorted(wanted - self.mapped):
            raise HalosError(f"source {source}: columns: no row has a column {missing[0]!r}; correct its name")

    def parse(self, content: Any) -> Parsed:
        """The records of a row of a file.

        Raises:
            Invalid: the row cannot be used.
        """
        if isinstance(content, Malformed):
            raise Invalid(content.reason, content.detail)
        if not isinstance(content, dict):
            raise Invalid("not an object with fields", f"not an object with fields but {json.dumps(content)[:40]}")
        fields = _canonical(self._mapped({name: _value(name, value) for name, value in content.items()}))
        given = {name: value for name, value in fields.items() if value is not None}
        if "weight" in given and not weighed(given["weight"], "weight"):
            return Parsed(None, [Drop(WEIGHT_ZERO)])
        shape = _shape(fields, given)
        if isinstance(shape, Drop):
            return Parsed(None, [shape])
        return self._read(shape, given)

    def _mapped(self, content: dict[str, Any]) -> dict[str, Any]:
        """The fields of a row under the names that are read."""
        if not self.columns:
            return content
        taken = {column for column in self.columns.values() if column is not None}
        self.mapped.update(taken & content.keys())
        rest = {name: value for name, value in content.items() if name not in taken and name not in self.columns}
        return rest | {name: content[c] for name, c in self.columns.items() if c is not None and c in content}

    def _read(self, shape: type[Row], given: dict[str, Any]) -> Parsed:
        reader = TurnReader(self.roles, set(given.keys() - reads(shape)))
        written = shape is S.RecordRow
        values = dict(given)
        try:
            for name in shape.turns.keys() & given.keys():
                value = _turns_of_parquet(given[name]) if written else given[name]
                values[name] = reader.turns(value, shape.turns[name], name, every_field=written)
            for name in ("tools", "response_fields"):
                if name in given:
                    values[name] = documents(given[name], name)
            row = shape.model_validate(values)
            records = list(row.records(self.every_turn))
            for record in records:
                if isinstance(record, Feedback):
                    _check(record, written)
                    if not isinstance(row, S.RecordRow | S.Messages):
                        _check_nothing_lost(row, record, given)
        except ValidationError as error:
            raise _invalid(error) from None
        except TypeError as error:  # parquet has types that JSON has not
            raise Invalid("a value that JSON cannot hold", str(error)) from None
        except HalosError as error:
            raise Invalid(str(error)) from None
        return Parsed(row, records, reader.unread)


def _value(name: str, value: Any) -> Any:
    """A cell's value; None for what stands for none."""
    if isinstance(value, float) and value != value:
        return None  # NaN, as pandas writes a missing number
    if isinstance(value, str) and name in NOT_TEXT and value.strip().lower() in ("", "nan", "none", "null"):
        return None
    return value


def _canonical(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with one name for each.

    Raises:
        Invalid: two names of one field have values.
    """
    if fields.keys() >= OPENAI_PREFERENCE and isinstance(fields["input"], dict):
        names = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
        inner = {"prompt" if name == "messages" else name: value for name, value in fields["input"].items()}
        fields = inner | {names.get(name, name): value for name, value in fields.items() if name != "input"}
    for name, ours in SYNONYMS.items():
        if fields.get(name) is None:
            continue
        if fields.get(ours) not in (None, [], ""):
            raise _twice(ours, name)
        value = fields.pop(name)
        if name == "functions" and isinstance(value, list):  # as OpenAI once had them
            value = [{"type": "function", "function": one} if isinstance(one, dict) else one for one in value]
        fields[ours] = value
    return fields


def _turns_of_parquet(prompt: Any) -> Any:
    """Turns of a parquet file of records, in which all other fields of a turn are one text of JSON."""
    if not isinstance(prompt, list):
        return prompt
    return [
        {**turn, **json.loads(turn["fields"]), "fields": None}
        if isinstance(turn, dict) and isinstance(turn.get("fields"), str)
        else turn
        for turn in prompt
    ]


def _shape(fields: dict[str, Any], given: dict[str, Any]) -> type[Row] | Drop:
    """The shape of a row, or why it is left out.

    Args:
        fields: all fields of the row.
        given: those that have a value.

    Raises:
        Invalid: it is of no known shape or of several, or a field says something that the shape does not read.
    """
    kind_of = given.get("type")
    typed = SHAPES.get(kind_of) if isinstance(kind_of, str) else None
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


def _told(kind: Kind, fields: Mapping[str, Any]) -> bool:
    return any(told_by <= fields.keys() for told_by in kind[1])


def _left_out(kind: Kind, fields: dict[str, Any], given: dict[str, Any]) -> Drop:
    """Why a row is left out whose shape is told by fields of which some have no value.

    Raises:
        Invalid: it has no prompt.
    """
    empty = next(told_by for told_by in kind[1] if told_by <= fields.keys()) - given.keys()
    if empty <= LABEL_WORDS - RESPONSES:
        return Drop(NO_LABEL)
    if empty <= RESPONSES | LABEL_WORDS:
        return Drop(S.EMPTY)
    raise Invalid(f"field {min(empty - RESPONSES)} has no value")


def _check_aliases(shape: type[Row], given: dict[str, Any]) -> None:
    for names in _aliases(shape):
        if len(both := [name for name in names if name in given]) > 1:
            raise _twice(both[0], both[1])


def _twice(name: str, other: str) -> Invalid:
    """The complaint about two names of one field."""
    return Invalid(
        f"both {name} and {other}", f"both {name} and {other}; leave one out by `columns: {{{other}: null}}`"
    )


def _check_only_one(fitting: dict[str, Kind], given: dict[str, Any]) -> None:
    """Refuse a row of several shapes, unless the first reads all that tells the others."""
    (first, (shape, _)), *others = fitting.items()
    read = reads(shape)
    for name, (_, told) in others:
        if any(told_by <= given.keys() and not told_by <= read for told_by in told):
            extra = min(frozenset().union(*told) & given.keys() - read)
            raise Invalid(
                "of several shapes",
                f"of several shapes, {first} and {name}; say which is meant by a field `type`, or leave a column out, "
                f"as in `columns: {{{extra}: null}}`",
            )


def _unlabelled(shape: type[Row], fields: dict[str, Any], given: dict[str, Any]) -> Drop | None:
    """A Drop for a row whose labels have no value; None where it has one, or has no column of labels.

    Raises:
        Invalid: a label is in a column that the shape does not read.
    """
    labels = [name for name in fields if _is_label(name, shape)]
    if told := [name for name in labels if name in given and given[name] != "" and name not in reads(shape)]:
        name = told[0]
        said = f"say so by `columns: {{{AS_LABEL[shape]}label: {name}}}`, or " if shape in AS_LABEL else ""
        raise Invalid(
            "a label that is not read",
            f"field {name} may be a label, and is not read; {said}leave it out by `columns: {{{name}: null}}`",
        )
    return Drop(NO_LABEL) if labels and not any(given.get(name) not in (None, "") for name in labels) else None


def _is_label(name: str, shape: type[Row]) -> bool:
    """Whether a column's name is a word for a label; beside a shape without labels, its last word is enough."""
    name = name.lower()
    return name in LABEL_WORDS or (shape in AS_LABEL and re.split(r"[-_ .]", name)[-1] in LABEL_WORDS)


def _check(record: Feedback, written: bool) -> None:
    """Refuse a record that is not sound. An empty response is left to be dropped, but for rows written as records."""
    if (problem := unwritable_text(record)) is not None:
        raise Invalid(problem)
    if (problem := record.problem()) is not None and (written or problem != S.EMPTY):
        raise Invalid(problem)


def _check_nothing_lost(row: Row, record: Feedback, given: dict[str, Any]) -> None:
    """Refuse a row with a part of its prompt in a column that is not read.

    Raises:
        Invalid: there is such a column, and its text is not in the record.
    """
    derived = isinstance(row, S.Preference) and not row.has_prompt
    suspects = (PROMPT_WORDS if derived else CONTEXT_WORDS) & given.keys() - reads(type(row))
    if not suspects:
        return
    text = "\n".join(turn["content"] for turn in record.prompt)
    for name in sorted(suspects):
        value = given[name].strip() if isinstance(given[name], str) else given[name]
        if value and not (isinstance(value, str) and value in text):
            said = f"say so by `columns: {{prompt: {name}}}`" if derived else "put all of the prompt into one column"
            raise Invalid(
                "a prompt that is not read",
                f"field {name} may be of the prompt, and is not read; {said}, or leave it out by `columns: {{{name}: "
                "null}`",
            )


def _proposal(given: dict[str, Any]) -> str:
    """How a row of no known shape may be read, if two of its columns are called like a prompt and a response."""
    prompts = [name for name in given if name.lower() in PROMPT_WORDS | {"prompt"}]
    responses = [name for name in given if name.lower() in RESPONSE_WORDS]
    if not prompts or not responses:
        return ""
    columns = {"prompt": prompts[0], "completion": responses[0]}
    named = ", ".join(f"{name}: {column}" for name, column in columns.items() if column != name)
    return f"; is it `columns: {{{named}}}`?" if named else ""


def _invalid(error: ValidationError) -> Invalid:
    """A model's first complaint about a row."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "string_unicode":
        return Invalid(SURROGATE)
    detail = f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    if first["type"] == "extra_forbidden":
        return Invalid("a field that records do not have", detail)
    name = ".".join(part for part in map(str, first["loc"]) if not part.isdigit())
    return Invalid(f"field {name} is malformed", detail)


def _aliases(shape: type[Row]) -> Iterable[list[str]]:
    """The names of each field of a shape that has several."""
    for info in shape.model_fields.values():
        if isinstance(info.validation_alias, AliasChoices):
            yield [str(choice) for choice in info.validation_alias.choices]


@cache
def reads(shape: type[Row]) -> frozenset[str]:
    """The names of the fields that a shape reads."""
    aliases = (name for names in _aliases(shape) for name in names)
    return frozenset(shape.model_fields) | frozenset(aliases) | {"type", "weight"}
