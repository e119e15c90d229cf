"""Messages that docs/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import snakemake

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"


def texts_of(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, with a gap where a value is filled in and without backticks, and its classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("`", "")
        elif isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values]
            yield "".join(parts).replace("`", "")


@cache
def strings(package: Path) -> str:
    return "\n".join(text for file in sorted(package.rglob("*.py")) for text in texts_of(ast.parse(file.read_text())))


def quoted(heading: str) -> list[str]:
    """The messages in the first column of the tables that have this heading."""
    found, header = [], None
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            header = None
            continue
        first = line.split("|")[1].strip()
        if header is None:
            header = first
        elif header == heading:
            found += re.findall(r"`([^`]+)`", first)
    return found


@pytest.mark.parametrize("message", quoted("message"))
def test_a_quoted_message_is_one_of_the_package(message: str) -> None:
    assert message in strings(ROOT / "halos")


@pytest.mark.parametrize("message", quoted("symptom"))
def test_a_quoted_symptom_is_one_of_snakemake_or_of_the_package(message: str) -> None:
    assert message in strings(Path(snakemake.__file__).parent) + strings(ROOT / "halos")


def test_it_quotes_many() -> None:
    assert len(quoted("message")) > 40
    assert len(quoted("symptom")) > 5
