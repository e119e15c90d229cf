"""The page of what plugins import, made from docstrings and signatures."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from docs.site.tables import plain
from halos.data.feedback import Feedback
from halos.data.rows import Drop, in_split, split_key
from halos.forward.microbatch import Microbatch
from halos.forward.own import Forward
from halos.losses import Batch, Loss, Output, humanline, log_ratio, log_sigmoid, preference
from halos.report.subject import Outline, Subject, subject
from halos.views import View, view

PARTS: dict[str, tuple[Any, ...]] = {
    "Data": (Feedback, Drop, split_key, in_split),
    "Views": (view, View),
    "Losses": (Loss, Batch, Output, log_ratio, log_sigmoid, preference, humanline),
    "Forward passes": (Forward, Microbatch),
    "The report": (Subject, subject, Outline),
}
INTRODUCTION = """\
# For plugins

What code of your own imports: [adding things](../tutorials/adding.md) and [extending](../extending.md) show it in use.
`SOURCES`, `VERIFIERS`, `LOSSES` and `FORWARDS` of `halos.registry` each have the decorator `register(name)`.
"""
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):\n((?:    .*\n?|\n)*)", re.MULTILINE)


def page() -> str:
    """The Markdown of the page."""
    parts = [INTRODUCTION]
    for heading, objects in PARTS.items():
        parts += [f"## {heading}\n", *map(_entry, objects)]
    return "\n".join(parts)


def _entry(thing: Any) -> str:
    """An object: where it is imported from, its signature, what its docstring says, its public methods."""
    lines = [f"### {thing.__name__}", "", f"`from {thing.__module__} import {thing.__name__}`", ""]
    if not inspect.isabstract(thing):
        lines += ["```python", _signature(thing), "```", ""]
    lines += [_prose(thing), ""]
    members = vars(thing).items() if inspect.isclass(thing) else ()
    for name, member in members:
        function = member.fget if isinstance(member, property) else member
        shown = name == "__call__" or not name.startswith("_")
        if shown and inspect.isfunction(function) and function.__doc__:
            call = f"{thing.__name__}.{name}" if isinstance(member, property) else f"{name}{_arguments(function)}"
            lines += [f"`{call}`", "", _prose(function), ""]
    return "\n".join(lines)


def _arguments(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def _signature(thing: Any) -> str:
    name = thing.__name__
    if dataclasses.is_dataclass(thing):
        fields = [f"    {f.name}: {f.type}," for f in dataclasses.fields(thing)]
        return "\n".join([f"{name}(", *fields, ")"])
    return f"{name}{_arguments(thing)}"


def _prose(thing: Any) -> str:
    """A docstring in Markdown, whose sections are lists."""
    text = inspect.getdoc(thing) or ""
    prose = [
        plain(" ".join(paragraph.split())) for paragraph in SECTION.sub("", text).split("\n\n") if paragraph.strip()
    ]
    for name, body in SECTION.findall(text):
        entries = re.split(r"^ {4}(?=\S)", body, flags=re.MULTILINE)[1:]
        items = [f"- {_item(' '.join(entry.split()), name)}" for entry in entries]
        prose.append("\n".join([f"{name}:", "", *items]))
    return "\n\n".join(prose)


def _item(entry: str, section: str) -> str:
    name, colon, rest = entry.partition(":")
    named = colon and section != "Returns"
    return f"`{name}`: {plain(rest.strip())}" if named else plain(entry)
