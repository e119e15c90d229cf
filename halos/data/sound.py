"""What a source yields, as the rest of the package needs it: plain values of the right types, and text that can be
written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from halos.data.feedback import WEIGHTED, Feedback
from halos.data.rows import Drop
from halos.errors import HalosError

SURROGATE = "half of a surrogate pair"
NUL = "a NUL character"


class _Turn(TypedDict):
    """A turn with text; other fields are not checked here."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    role: str
    content: str


class _Fields(BaseModel):
    """The types of a record's fields. A number is an int or a float of Python, a label a bool."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: list[_Turn]
    responses: list[str]
    source: str
    prompt_id: str | None = None
    scores: list[float] = []
    pairs: list[Annotated[tuple[int, int], Field(strict=False)]] = []
    desirable: list[bool | None] = []
    target: int | None = None
    cut: list[bool] = []
    tools: list[dict[str, Any]] = []
    response_fields: list[dict[str, Any]] = []
    response_ids: list[list[int] | None] = []
    template: str | None = None
    weights: list[float] = []
    pair_weights: list[float] = []
    margins: list[float | None] = []


def sound(row: Any, source: str, number: int) -> Feedback | Drop:
    """What a source has yielded, with plain values of the right types.

    Tuples and arrays become lists, numbers of numpy those of Python, 0 and 1 labels. A mapping of a record's fields
    becomes that record. Text that no file can hold makes the row a drop.

    Args:
        row: what the source has yielded.
        source: its name, for messages, and for a mapping that names none.
        number: of the row, from 1, for messages.

    Raises:
        HalosError: the row is nothing of the kind, or a field is of another type.
    """
    if isinstance(row, Drop):
        return row
    place = f"source {source}, row {number}"
    if not isinstance(row, Feedback | dict):
        raise HalosError(f"{place} is a {type(row).__name__}; a source yields Feedback, a dict of its fields or a Drop")
    try:
        if isinstance(row, Feedback):
            try:
                _Fields.model_validate({name: getattr(row, name) for name in WEIGHTED.names})
            except (ValueError, TypeError, KeyError, AttributeError):  # a type is wrong, or there is no prompt_id
                row = {name: getattr(row, name) for name in WEIGHTED.names if name != "prompt_id"}
        if isinstance(row, dict):
            fields = {name: value for name, value in plain({"source": source, **row}).items() if value is not None}
            fields["desirable"] = [_label(value) for value in fields.get("desirable", ())]
            checked = _Fields.model_validate(fields)
            row = Feedback(**{name: value for name, value in checked if name != "prompt_id"})
        unwritable = unwritable_text(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "string_unicode":
            return Drop(SURROGATE)
        field = ".".join(map(str, first["loc"]))
        raise HalosError(f"{place}, field {field}: {first['msg']}, not {ascii(first['input'])[:60]}") from None
    except (TypeError, ValueError) as error:
        raise HalosError(f"{place} cannot be written as JSON ({error}); yield texts, numbers and lists") from None
    return row if unwritable is None else Drop(unwritable)


def plain(value: Any) -> Any:
    """A value with lists in place of tuples and arrays, and numbers of Python in place of numpy's."""
    if isinstance(value, dict):
        return {plain(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # arrays and numbers of numpy, tensors
        return plain(value.tolist())
    return value


def _label(value: Any) -> Any:
    """A label that is written as a number; NaN is none."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return bool(value) if value in (0, 1) and isinstance(value, int | float) else value


def unwritable_text(record: Feedback) -> str | None:
    """Why a record cannot be written as UTF-8, or is no text, in a few words; None when it can.

    Raises:
        TypeError: a field of a turn, or a tool, is nothing that JSON can hold.
    """
    return unwritable((turn["content"] for turn in record.prompt), record.responses) or (
        unwritable([json.dumps(other, ensure_ascii=False)]) if (other := _documents(record)) else None
    )


def unwritable(*texts: Iterable[str]) -> str | None:
    """Why one of the texts cannot be written as UTF-8, or is no text, in a few words; None when all can."""
    for text in (text for some in texts for text in some):
        if "\0" in text or "\\u0000" in text:
            return NUL
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return SURROGATE
    return None


def _documents(record: Feedback) -> list[Any]:
    """The tools, and all fields of turns besides role and content."""
    turns = [turn for turn in record.prompt if len(turn) > 2]
    return [*record.tools, *record.response_fields, *turns]
