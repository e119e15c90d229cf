"""Turns of a conversation as people write them: other names of fields and roles, texts in parts, empty fields."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halos.data.feedback import ROLES, Turn
from halos.data.layouts.words import LABEL_WORDS, TRAINED_WORDS

ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "ai", "model", "chatgpt", "chatbot"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
}
"""Roles as they are written, in lower case -> roles of a record."""
FIELDS = frozenset({"name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"})
"""Fields of a turn that chat templates know; others are notes."""
PLAIN = {"role", "content"}
NEEDED = PLAIN | {"from", "value"}
WEIGHT_ZERO = "weight 0"


class Invalid(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: a few words, the same for all rows with this problem: they are counted by it.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__((detail or reason).encode(errors="backslashreplace").decode())
        self.reason = reason.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class TurnReader:
    """Reads turns.

    Attributes:
        roles: role as it is written -> role of a record, before those of ROLE_NAMES.
        left_out: fields of turns that are not to be read.
        unread: the fields of turns that were not read; it grows.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    unread: set[str] = field(default_factory=set)

    def turns(self, value: Any, speaker: str, name: str, every_field: bool = False) -> list[Turn]:
        """The turns of a field: a text is one turn, a single turn a list of one.

        A turn of weight 0 keeps its `weight`; 1 is dropped.

        Args:
            value: a text, a turn or turns. A text that spells turns in JSON, or as Python prints them, is these.
            speaker: the role of a text.
            name: the field's name, for messages.
            every_field: keep all fields of turns, also those that chat templates do not know.

        Raises:
            Invalid: it is none of these, or a turn has no known role or no text.
        """
        if isinstance(value, str):
            spelled = _spelled(value, name)
            if spelled is None:
                return [{"role": speaker, "content": value}]
            value = spelled
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            raise Invalid(f"field {name} is malformed", f"field {name}: neither a text nor a list of turns")
        return [self._turn(turn, f"{name}.{i}", name, every_field) for i, turn in enumerate(value)]

    def _turn(self, turn: dict[str, Any], place: str, name: str, every_field: bool) -> Turn:
        if turn.keys() == PLAIN and turn["role"] in ROLES and isinstance(turn["content"], str) and not self.roles:
            return turn  # as almost all are
        noted = self.left_out - NEEDED
        turn = {key: value for key, value in turn.items() if value is not None and key not in noted}
        if (call := turn.pop("function_call", None)) is not None and "tool_calls" not in turn:  # as OpenAI once had it
            turn["tool_calls"] = [{"type": "function", "function": call}]
        role = self._role(turn.pop("role", turn.pop("from", None)), place, name)
        keep = (FIELDS & turn.keys()) if not every_field else turn.keys() - {"content", "value", "weight"}
        filled = (key for key in sorted(keep) if turn[key] not in ([], ""))
        fields = {key: turn[key] if every_field else without_nulls(turn[key]) for key in filled}
        content = turn.get("content", turn.get("value", "" if "tool_calls" in fields else None))
        found = {"role": role, "content": _text(content, place, name), **fields}
        if "tool_calls" in found:
            found["tool_calls"] = _calls(found["tool_calls"], place, name)
        if "weight" in turn and not weighed(turn["weight"], f"{place}.weight"):
            found["weight"] = 0
        unread = turn.keys() - keep - {"content", "value", "weight"}
        if told := sorted(unread & (LABEL_WORDS | TRAINED_WORDS)):
            raise Invalid(
                "a label of a turn that is not read",
                f"field {place}.{told[0]} may be a label, and is not read; a turn that is not learned has `weight: 0`; "
                f"if it is none, leave it out by `columns: {{{told[0]}: null}}`",
            )
        self.unread.update(f"{key} of a turn" for key in unread)
        return found

    def _role(self, role: Any, place: str, name: str) -> str:
        if role is None:
            raise Invalid(f"a turn of {name} has no role", f"field {place}.role: Field required")
        if not isinstance(role, str):
            raise Invalid(f"a turn of {name} has no known role", f"field {place}.role: not a text")
        known = self.roles.get(role) or ROLE_NAMES.get(role.strip().lower())
        if known is None:
            raise Invalid(
                f"a turn of {name} has no known role",
                f"field {place}: a turn's role is not one of {', '.join(ROLE_NAMES)} but {ascii(role)[:40]}; say which "
                "it is by `roles: {this role: user}`",
            )
        return known


def weighed(weight: Any, place: str) -> bool:
    """Whether a turn of this weight counts.

    Raises:
        Invalid: the weight is neither 0 nor 1.
    """
    if isinstance(weight, int | float) and weight in (0, 1):
        return bool(weight)
    raise Invalid(
        "a weight of a turn that is neither 0 nor 1",
        f"field {place}: it is {ascii(weight)[:40]}, and of a turn only 0 (not trained on) and 1 are read; give any "
        "other to the whole row, as its field `weight`",
    )


def without_nulls(value: Any) -> Any:
    """A document without the fields that have no value: files of one layout for all rows have every field in each."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def documents(value: Any, name: str, every_field: bool = False) -> list[dict[str, Any]]:
    """JSON documents, given as such or as their text.

    Args:
        value: the documents, or a text of them.
        name: the field's name, for messages.
        every_field: keep fields that have no value.

    Raises:
        Invalid: it is something else.
    """
    if isinstance(value, str):
        value = _json(value) if value.strip() else []
    if isinstance(value, list):
        value = [_json(one) if isinstance(one, str) else one for one in value]
        if all(isinstance(one, dict) for one in value):
            return value if every_field else [without_nulls(one) for one in value]
    raise Invalid(f"field {name} is malformed", f"field {name}: not a list of JSON documents")


def _text(content: Any, place: str, name: str) -> str:
    """The text of a turn's content, which may be in parts."""
    if isinstance(content, str):
        return content
    if content is None:
        raise Invalid(f"a turn of {name} has no content", f"field {place}.content: Field required")
    if not isinstance(content, list):
        raise Invalid(f"a turn of {name} has no text", f"field {place}.content: neither a text nor a list of parts")
    return "".join(_part(part, place, name) for part in content)


def _part(part: Any, place: str, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Invalid(
        f"a turn of {name} has a part that is no text",
        f"field {place}.content: a part of type {ascii(kind)[:40]}; only text is read",
    )


def _calls(calls: Any, place: str, name: str) -> list[Any]:
    """Tool calls; arguments that are spelled in JSON are read, as chat templates spell them themselves."""
    calls = _json(calls) if isinstance(calls, str) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Invalid(f"a turn of {name} has malformed tool calls", f"field {place}.tool_calls: not a list of objects")
    found = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            arguments = _json(function["arguments"])
            if isinstance(arguments, dict):
                call = {**call, "function": {**function, "arguments": arguments}}
        found.append(call)
    return found


def _json(text: str) -> Any:
    """What a text spells in JSON; None where it spells nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _spelled(text: str, name: str) -> list[Any] | None:
    """The turns that a text spells in JSON, or as Python prints a list; None where it is only a text.

    Raises:
        Invalid: it begins like turns, and is not.
    """
    start = "".join(text[:40].split()).replace("'", '"')
    if not start.startswith(('[{"role":', '[{"from":', '[{"content":', '[{"value":')):
        return None
    found = _json(text)
    if found is None:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise Invalid(f"field {name} is malformed", f"field {name}: turns in a text, but not as JSON") from None
    return found if isinstance(found, list) else None
