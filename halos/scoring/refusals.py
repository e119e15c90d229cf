"""The text of a server's error, whatever its form, and the parameter that the server refuses in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import unescape
from typing import Any

_FIELDS = ("message", "msg", "error", "detail", "details", "errors", "error_message", "title", "metadata", "raw")
"""Fields of an error that hold its text, or another error."""
_DEEPEST = 8
_REFUSES = re.compile(
    r"unsupported|not\s+(?:\w+\s+)?(?:support|permitted|allowed|available|accepted)|unknown|unrecogni[sz]ed|unexpected"
    r"|extra_forbidden|extra(?:neous)?\s+(?:input|key|field)|forbidden|deprecated|cannot find field"
    r"|invalid\s+(?:param|arg|name|field)",
    re.IGNORECASE,
)
_REFUSES_VALUE = re.compile(r"must be|should be|only the default|too (?:low|high|large|small)|at (?:most|least)|"
                            r"(?:less|greater) than|maximum|minimum|exceed", re.IGNORECASE)  # fmt: skip


def error_text(body: Any, depth: int = 0) -> str:
    """The text of an error's body: OpenAI's and vLLM's `message`, the list of FastAPI's `detail` with the place of
    each, errors within errors, HTML without its tags, or the body itself. It may hold secrets, and be long."""
    if isinstance(body, str):
        return _text_of_text(body, depth)
    if isinstance(body, list) and depth < _DEEPEST:
        return "; ".join(_distinct(error_text(part, depth + 1) for part in body))
    if isinstance(body, dict) and depth < _DEEPEST:
        parts = _distinct(error_text(body[name], depth + 1) for name in _FIELDS if body.get(name))
        if parts:
            return _place(body, ": ".join(parts))
    return "" if body is None else json.dumps(body, default=str)


def _text_of_text(text: str, depth: int) -> str:
    text = text.strip()
    if text.startswith(("{", "[")) and depth < _DEEPEST:  # a proxy passes on another server's error
        try:
            return error_text(json.loads(text), depth + 1)
        except (ValueError, RecursionError):
            return text
    if re.match(r"<(?:!doctype|\?xml|\w+)", text, re.IGNORECASE):
        text = unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text))
    return " ".join(text.split())


def _place(body: dict[str, Any], text: str) -> str:
    """A text, with the parameter that it is about where it does not say so."""
    place = body.get("loc") or body.get("param")
    names = [str(name) for name in (place if isinstance(place, list) else [place])]
    names = [name for name in names if name not in ("body", "None")]
    return text if not names or names[-1] in text else f"{'.'.join(names)}: {text}"


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty and not part of one before them."""
    kept: list[str] = []
    for text in texts:
        if text and not any(text in other for other in kept):
            kept.append(text)
    return kept


def refused_parameter(text: str, sent: Iterable[str]) -> tuple[str, bool] | None:
    """The sent parameter that an error is about, and whether it is its value, not its name, that the server refuses.

    Args:
        text: of the error.
        sent: names of parameters.

    Returns:
        None where the error speaks of none, or of other things besides, such as the length of the prompt.
    """
    for sentence in re.split(r"[.;]\s", text):
        name, value = _REFUSES.search(sentence), _REFUSES_VALUE.search(sentence)
        places = {parameter: re.search(rf"\b{re.escape(parameter)}\b", sentence) for parameter in sent}
        named = {parameter: place.start() for parameter, place in places.items() if place}
        if named and (name or value):
            return min(named, key=named.__getitem__), not name
    return None
