"""The verdict in an answer to a judge's own prompt."""

from __future__ import annotations

import math
import re

from halos.evaluate.judging.judgement import TIE
from halos.scoring.reading import OPEN, after_label, stated, without_thoughts

FIRST, SECOND = 1.0, 2.0
"""alpaca_eval's preferences for the response that is shown first, and second."""
_SIDES = {"a": FIRST, "b": SECOND}

_NOUN = r"(?:output|response|assistant|answer|model)\s+"
_TIE = r"(?:a\s+)?(?P<tie>tie\b|draw\b|(?<=\[\[)c(?=\]\]))"
_ORDER = r"(?P<order>[ab]\s?[<>=]{1,2}\s?[ab])\b"
_SIDE = rf"(?:{_NOUN})?\(?(?P<side>[ab])(?![\w'])\)?"
_DOUBT = rf"(?P<doubt>[\s*_`\"']{{0,20}}(?:or\b|and\b|[/,&|])[\s*_`\"']{{0,20}}(?:{_NOUN})?\(?[ab](?![\w']))?"
"""A second side, as in `A or B`: no verdict."""
_VALUE = rf"(?:{_TIE}|{_ORDER}|{_SIDE}{_DOUBT})"
_LABELLED = after_label("verdict|winner|preference|decision|choice", _VALUE)
_ALONE = re.compile(rf"{OPEN}{_VALUE}[\s*_`\"'$)\]}}.]*", re.IGNORECASE)
_LINE = re.compile(rf"^[ \t*_`]*(?={_NOUN}){_VALUE}[ \t*_`.]*$", re.IGNORECASE | re.MULTILINE)


def read_verdict(answer: str, pattern: re.Pattern[str] | None = None) -> list[float]:
    """The verdict in an answer, as alpaca_eval's parsers give it: the whole answer if it is one, or else the last one
    that it states.

    A verdict is A, B or tie, also `Response A`, `Output (a)` and `A>B`. Stated are `Verdict: A` (also winner,
    preference, decision or choice, in JSON and in tags), `[[A]]` (with `[[C]]` for a tie) and `\\boxed{A}`; if there
    are none of these, a line `Output (a)`.

    Args:
        answer: the model's answer; its thoughts do not count.
        pattern: is searched for in place of all this: the one group of its last match holds the verdict.

    Returns:
        [NaN] without a verdict, or with one in doubt (`A or B`).
    """
    text = without_thoughts(answer)
    if pattern is not None:
        groups = [match[1] or "" for match in pattern.finditer(text)]
        match = re.fullmatch(rf"\s*{_VALUE}\s*", groups[-1], re.IGNORECASE) if groups else None
    else:
        match = _last(text)
    return [math.nan if match is None else _preference(match)]


def _last(text: str) -> re.Match[str] | None:
    if alone := _ALONE.fullmatch(text):
        return alone
    matches = list(stated(_LABELLED, text)) or list(_LINE.finditer(text))
    return matches[-1] if matches else None


def _preference(match: re.Match[str]) -> float:
    if match["tie"]:
        return TIE
    if order := match["order"]:
        better, other = (order[-1], order[0]) if "<" in order else (order[0], order[-1])
        sides = better.lower(), other.lower()
        return math.nan if sides[0] == sides[1] else TIE if "=" in order else _SIDES[sides[0]]
    article = match["side"] == "a" and re.match(r"\s+[a-z]", match.string[match.end("side") :])  # `a bit better`
    return math.nan if match["doubt"] or article else _SIDES[match["side"].lower()]
