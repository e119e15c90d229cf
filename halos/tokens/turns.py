"""Turns of a conversation as a chat template can show them: shortened, or joined where it refuses or loses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from halos.data.feedback import Turn

GUIDES = ("system", "developer")
"""Roles of turns that tell the model how to answer."""
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def shorter(turns: list[Turn]) -> list[Turn]:
    """The turns without the oldest exchange; all of them where only the last is left. A system turn at the start stays.

    An exchange is a user turn and all that follows it up to the next one, so nothing is left that answers a lost turn.
    """
    first = next((i for i, turn in enumerate(turns) if turn["role"] not in GUIDES), len(turns))
    later = (i for i in range(first + 1, len(turns)) if turns[i]["role"] == "user")
    start = next(later, None)
    return turns if start is None else turns[:first] + turns[start:]


def variants(turns: list[Turn]) -> Iterator[list[Turn]]:
    """Other forms of the same turns, for templates that refuse or lose some, from the least change to the largest."""
    as_system = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    if as_system != turns:
        yield as_system
    joined = _guides_joined(turns)
    if joined != turns:
        yield joined
    merged = _alternating(joined)
    if merged and merged != joined:  # without a user turn, nothing would be left
        yield merged


def _guides_joined(turns: list[Turn]) -> list[Turn]:
    """The turns with the text of each system or developer turn in front of the next user turn's."""
    kept: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn["role"] in GUIDES:
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            kept.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            kept.append(turn)
    return [*kept, *({"role": "user", "content": text} for text in waiting)]


def _alternating(turns: list[Turn]) -> list[Turn]:
    """The turns with user and assistant alternating, the user first: neighbouring turns of one role are joined, and
    those of the assistant before any user turn are left out."""
    merged: list[Turn] = []
    for turn in turns:
        plain = set(turn) == {"role", "content"}
        if merged and plain and merged[-1]["role"] == turn["role"] != "tool" and set(merged[-1]) == set(turn):
            merged[-1] = {**turn, "content": merged[-1]["content"] + "\n\n" + turn["content"]}
        elif merged or turn["role"] == "user":
            merged.append(turn)
    return merged


def left_out(turns: list[Turn], form: list[Turn]) -> list[int]:
    """Indices of the turns before any user turn that a form of them has not."""
    answers = [i for i, turn in enumerate(turns) if turn["role"] not in GUIDES]
    if form[0]["role"] != "user":
        return []
    return [i for i in answers if not any(turn["role"] == "user" for turn in turns[: i + 1])]


def hidden(text: str, turns: list[Turn]) -> list[int]:
    """Indices of the turns whose text does not appear in a rendered conversation, in their order."""
    at, missing = 0, []
    for index, turn in enumerate(turns):
        for content in shown_texts(turn):
            found = text.find(content, at)
            if found < 0:
                content = json.dumps(content, ensure_ascii=False)[1:-1]
                found = text.find(content, at)
            if found < 0 and turn["role"] in GUIDES:
                found = text.find(content)  # some templates show it before the last user turn
                if found >= 0:
                    continue
            if found < 0:
                missing.append(index)
                break
            at = found + len(content)
    return missing


def shown_texts(turn: Turn) -> list[str]:
    """The texts of a turn that a template has to show: content, the names of tools that it calls, and its reasoning."""
    return [text for text in (*thoughts(turn), turn["content"].strip(), *called(turn)) if text]


def thoughts(turn: Turn) -> list[str]:
    """The reasoning of a turn that is apart from its content."""
    found = (turn.get(name) for name in _THOUGHTS)
    return [thought.strip() for thought in found if isinstance(thought, str) and thought.strip()][:1]


def called(turn: Turn) -> list[str]:
    """The names of the tools that a turn calls."""
    calls = turn.get("tool_calls")
    return [name for call in calls if (name := tool_name(call))] if isinstance(calls, list) else []


def tool_name(document: Any) -> str | None:
    """The name of the function in a tool's document or in a call."""
    if not isinstance(document, dict):
        return None
    function = document.get("function", document)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
