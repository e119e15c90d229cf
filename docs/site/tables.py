"""Texts and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """A text that fits a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; its cells are Markdown, in one line each."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def plain(text: str) -> str:
    """A docstring's text, in which Markdown takes nothing for emphasis or HTML outside `code`."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
