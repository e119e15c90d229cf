"""Which shape a row of one's own has: told by its fields, and refused where they tell several, or say what no shape
reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from halos.data.feedback import ROLES, Feedback
from halos.data.layouts import shapes as S
from halos.data.layouts.completions import NO_PROMPT
from halos.data.layouts.kinds import AS_LABEL, SHAPES, reads, shape_of, twice, unread_label
from halos.data.layouts.shapes import Row
from halos.data.layouts.turns import WEIGHT_ZERO, Invalid, TurnReader, documents
from halos.data.layouts.words import CONTEXT_WORDS, MEDIA_WORDS, NOT_TEXT, PROMPT_WORDS, VERDICTS
from halos.data.readers import Malformed
from halos.data.rows import Drop
from halos.data.sound import SURROGATE, unwritable_text
from halos.errors import HalosError
from halos.registry import suggest

SYNONYMS = {"conversations": "messages", "conversation": "messages", "system_prompt": "system", "functions": "tools"}
OPENAI_PREFERENCE = {"input", "preferred_output", "non_preferred_output"}


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
        seen: the columns that a row had, where `columns` names any.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    every_turn: bool = False
    seen: set[str] = field(default_factory=set)

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
        if missing := sorted(wanted - self.seen):
            raise HalosError(
                f"source {source}: columns: no row has a column {missing[0]!r}{suggest(missing[0], self.seen)}"
            )

    def parse(self, content: Any) -> Parsed:
        """The records of a row of a file.

        Raises:
            Invalid: the row cannot be used.
        """
        if isinstance(content, Malformed):
            raise Invalid(content.reason, content.detail)
        if not isinstance(content, dict):
            raise Invalid("not an object with fields", f"not an object with fields but {json.dumps(content)[:40]}")
        if _in_columns(content):
            raise Invalid(
                "columns, not rows", 'columns, not rows; write rows (in pandas: orient="records", lines=True)'
            )
        fields = _canonical(self._mapped({name: _value(name, value) for name, value in content.items()}))
        given = {name: value for name, value in fields.items() if value is not None}
        if _is_zero(given.get("weight")):
            return Parsed(None, [Drop(WEIGHT_ZERO)])
        kind = given.get("type")
        shape = shape_of(kind if isinstance(kind, str) else None, tuple(fields), tuple(given))
        if isinstance(shape, Drop):
            return Parsed(None, [shape])
        if shape in AS_LABEL:
            _check_verdicts(shape, given)
        if shape is S.Preference and all(map(_is_texts, (given["chosen"], given["rejected"]))):
            shape = S.Preferences
        try:
            parsed = self._read(shape, given)
        except Invalid as error:
            if error.reason == NO_PROMPT:
                _check_no_prompt(fields)
            raise
        if isinstance(parsed.row, S.Preference) and not parsed.row.has_prompt:
            _check_no_prompt(fields)
        return parsed

    def _mapped(self, content: dict[str, Any]) -> dict[str, Any]:
        """The fields of a row under the names that are read."""
        if not self.columns:
            return content
        taken = {column for column in self.columns.values() if column is not None}
        self.seen.update(content)
        rest = {name: value for name, value in content.items() if name not in taken and name not in self.columns}
        return rest | {name: content[c] for name, c in self.columns.items() if c is not None and c in content}

    def _read(self, shape: type[Row], given: dict[str, Any]) -> Parsed:
        left_out = frozenset(name for name, column in self.columns.items() if column is None)
        reader = TurnReader(self.roles, left_out, set(given.keys() - reads(shape)))
        written = shape is S.RecordRow
        values = dict(given)
        try:
            for name in shape.turns.keys() & given.keys():
                value = _turns_of_parquet(given[name]) if written else given[name]
                values[name] = reader.turns(value, shape.turns[name], name, every_field=written)
            for name in ("tools", "response_fields"):
                if name in given:
                    values[name] = documents(given[name], name, every_field=written)
            row = shape.model_validate(values)
            records = list(row.records(self.every_turn))
            for record in records:
                if isinstance(record, Feedback):
                    _check(record, written)
                    if not written:
                        _check_nothing_lost(row, record, given)
        except ValidationError as error:
            raise _invalid(error) from None
        except (TypeError, RecursionError) as error:  # parquet has types that JSON has not
            raise Invalid("a value that JSON cannot hold", str(error)) from None
        except HalosError as error:
            raise Invalid(str(error)) from None
        return Parsed(row, records, reader.unread)


def _in_columns(content: dict[str, Any]) -> bool:
    """Whether it is all of a table, as pandas writes one unless it is told to write rows."""
    by_index = bool(content) and all(isinstance(value, dict) and "0" in value for value in content.values())
    return by_index or content.keys() in ({"columns", "index", "data"}, {"columns", "data"}, {"schema", "data"})


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _is_zero(weight: Any) -> bool:
    """Whether a weight, a number or as a cell of CSV is, its text, is 0."""
    try:
        return isinstance(weight, int | float | str) and float(weight) == 0
    except (ValueError, OverflowError):
        return False


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
            raise twice(ours, name)
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
        {**turn, **documents([turn["fields"]], "prompt.fields", every_field=True)[0], "fields": None}
        if isinstance(turn, dict) and isinstance(turn.get("fields"), str)
        else turn
        for turn in prompt
    ]


def _check(record: Feedback, written: bool) -> None:
    """Refuse a record that is not sound. An empty response is left to be dropped, but for rows written as records."""
    if (problem := unwritable_text(record)) is not None:
        raise Invalid(problem)
    if (problem := record.problem()) is not None and (written or problem != S.EMPTY):
        raise Invalid(problem)


def _check_verdicts(shape: type[Row], given: dict[str, Any]) -> None:
    """Refuse a row of a shape without labels that has the text of one, in a column of any name.

    Raises:
        Invalid: it has.
    """
    for name in given.keys() - reads(shape):
        if isinstance(given[name], str) and given[name].strip().lower() in VERDICTS:
            raise unread_label(name, shape)


def _check_no_prompt(fields: dict[str, Any]) -> None:
    """Refuse a preference that has a column for its prompt, and no value there.

    Raises:
        Invalid: it has.
    """
    if name := next((name for name in ("prompt", "messages") if name in fields), None):
        raise Invalid(
            f"field {name} has no value",
            f"field {name} has no value; where the prompt is what chosen and rejected begin with, say so by `columns: "
            f"{{{name}: null}}`",
        )


def _check_nothing_lost(row: Row, record: Feedback, given: dict[str, Any]) -> None:
    """Refuse a row with a part of its prompt in a column that is not read.

    Raises:
        Invalid: there is such a column, and its text is not in the record.
    """
    derived = isinstance(row, S.Preference) and not row.has_prompt
    words = PROMPT_WORDS if derived else CONTEXT_WORDS
    suspects = (MEDIA_WORDS if isinstance(row, S.Messages) else words | MEDIA_WORDS) & given.keys() - reads(type(row))
    if not suspects:
        return
    text = "\n".join(turn["content"] for turn in record.prompt)
    for name in sorted(suspects):
        value = given[name].strip() if isinstance(given[name], str) else given[name]
        if value and not (isinstance(value, str) and value in text):
            if name in MEDIA_WORDS:
                raise Invalid(
                    "a prompt that is not text",
                    f"field {name} may be of the prompt, and only text is read; leave such rows out, or the column by "
                    f"`columns: {{{name}: null}}`",
                )
            said = f"say so by `columns: {{prompt: {name}}}`" if derived else "put all of the prompt into one column"
            raise Invalid(
                "a prompt that is not read",
                f"field {name} may be of the prompt, and is not read; {said}, or leave it out by `columns: {{{name}: "
                "null}`",
            )


def _invalid(error: ValidationError) -> Invalid:
    """A model's first complaint about a row."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "string_unicode":
        return Invalid(SURROGATE)
    detail = f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    if first["type"] == "bool_type":
        detail = f"{detail.split(':')[0]}: {ascii(first['input'])[:40]} is no label; write true or false, or 1 or 0"
    elif first["type"] not in ("missing", "extra_forbidden", "too_short", "too_long"):
        detail += f", not {ascii(first['input'])[:40]}"
    if first["type"] == "extra_forbidden":
        return Invalid("a field that records do not have", detail)
    name = ".".join(part for part in map(str, first["loc"]) if not part.isdigit())
    return Invalid(f"field {name} is malformed", detail)
