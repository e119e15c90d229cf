"""Reading a score or a verdict out of a model's answer: never out of its thoughts, and never by a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_TAGS = ("think", "thinking", "thought", "reasoning", "reflection", "scratchpad")
_THOUGHTS = [
    *((f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|channel\|>analysis", r"<\|end\|>"),
]
"""The marks around a model's thoughts: tags, and those of Magistral, Kimi and gpt-oss."""


def without_thoughts(answer: str) -> str:
    """An answer without its thoughts. Those that do not end reach to its end; those whose beginning stands in the chat
    template start where it starts."""
    for start, end in _THOUGHTS:
        kept: list[str] = []
        position, thinking = 0, False
        for mark in re.finditer(f"({start})|{end}", answer, re.IGNORECASE):
            if not mark[1]:
                kept = kept if thinking else []
                position, thinking = mark.end(), False
            elif not thinking:
                kept.append(answer[position : mark.start()])
                thinking = True
        answer = "\n".join(kept if thinking else [*kept, answer[position:]])
    return answer.strip()


OPEN = r"[\s*_`\"'$(\[{]{0,20}(?:\\text\s*\{\s*)?"
"""Markdown, quotes and brackets between a label and its value."""


def after_label(labels: str, value: str) -> re.Pattern[str]:
    """The forms in which models state a value: `Label: VALUE`, `**Label** (1-10): VALUE`, `"label": VALUE` in JSON,
    `<label>VALUE`, `[[VALUE]]` and `\\boxed{VALUE}`. A label that names a bound (`Maximum score: 10`) states none."""
    scale = r"[(\[][^()\[\]\n]{0,60}[)\]]|(?:from\s+)?\d+\s*(?:-|–|to)\s*\d+"
    label = rf"\b(?P<bound>(?:max|maximum|min|minimum|highest|lowest|possible)\s+)?(?:{labels})\b"
    mark = r"[\s*_`\"']{0,20}"
    begin = rf"{label}{mark}(?:(?:{scale}){mark})?[:=：]+|<(?:{labels})>|\[\[|\\boxed\s*\{{"
    return re.compile(rf"(?:{begin}){OPEN}{value}", re.IGNORECASE)


def stated(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The values that `after_label` finds in a text."""
    return (match for match in pattern.finditer(text) if not match["bound"])


_LABELS = r"score|rating|grade"
_NUMBER = r"[+\-\u2212]?(?:\d+\.\d+|0,\d+|\d+,\d{1,2}(?!\d)|\d+)"
_OUT_OF = r"[\s*_`]*(?:/|out\s+of)[\s*_`]*"
_DOUBT = r"(?P<doubt>\w|[.,]\d|[\s*_`]*(?:[-–—~/,]|to\b|or\b|and\b)[\s*_`]*\d)?"
"""More of a number, or a second one, as in `7th`, `1,000`, `7 or 8`, `7-8` and `7, 8`: no single score."""
_FRACTION = rf"(?P<number>{_NUMBER}){_OUT_OF}(?P<most>{_NUMBER})(?P<percent>){_DOUBT}"
_VALUE = rf"(?P<number>{_NUMBER})(?:{_OUT_OF}(?P<most>{_NUMBER}))?(?P<percent>\s?%)?{_DOUBT}"
_LABELLED = after_label(_LABELS, _VALUE)
_ALONE = re.compile(rf"{OPEN}{_VALUE}[\s*_`\"'$)\]}}.]*", re.IGNORECASE)
_LINE = re.compile(rf"^[ \t*_`$(\[]*{_FRACTION}[ \t*_`$)\].]*$", re.MULTILINE | re.IGNORECASE)
_RATED = re.compile(rf"\b(?:{_LABELS}|rate|rated|give|deserves)\b[^\d\n.;]{{0,60}}?{_FRACTION}", re.IGNORECASE)


def read_score(answer: str, low: float, high: float, pattern: re.Pattern[str] | None = None) -> float | None:
    """The score in an answer: the whole answer if it is a number, or else the last one that it states.

    Stated are `Score: N` (also rating or grade, in JSON and in tags), `[[N]]` and `\\boxed{N}`; if there are none of
    these, `I rate it N/10` or a line `N/10`, where 10 is the highest score. No other number counts:
    "there are 3 mistakes" is no score of 3. A comma before one or two digits is a decimal comma.

    Args:
        answer: the model's answer; its thoughts do not count.
        low: lowest score.
        high: highest score.
        pattern: is searched for in place of all this: the one group of its last match holds the score.

    Returns:
        None without a score, or with one off the scale, out of another number than the highest score, or in doubt
        (`7 or 8`).
    """
    text = without_thoughts(answer)
    if pattern is not None:
        groups = [match[1] or "" for match in pattern.finditer(text)]
        match = re.fullmatch(rf"\s*{_VALUE}\s*", groups[-1]) if groups else None
    else:
        match = _last(_json_score(text) or text)
    return None if match is None else _on_scale(match, low, high)


def _last(text: str) -> re.Match[str] | None:
    if alone := _ALONE.fullmatch(text):
        return alone
    ways = stated(_LABELLED, text), _LINE.finditer(text), _RATED.finditer(text)
    return next((matches[-1] for matches in map(list, ways) if matches), None)


def _json_score(text: str) -> str | None:
    """The score in an answer that is a JSON object, whose other texts may speak of other scores."""
    try:
        content = json.loads(re.sub(r"^```\w*|```$", "", text))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return next((str(value) for name, value in content.items() if re.fullmatch(_LABELS, name.lower())), None)


def _on_scale(match: re.Match[str], low: float, high: float) -> float | None:
    number, most = (
        None if text is None else float(text.replace(",", ".").replace("\u2212", "-"))
        for text in (match["number"], match["most"])
    )
    out_of_another = (most is not None and most != high) or (match["percent"] and high != 100)
    if number is None or match["doubt"] or out_of_another:
        return None
    return number if low <= number <= high else None
