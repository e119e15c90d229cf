"""All pages of the site: those that are written, with their links turned to where things are in the site, and those
that are made from the code."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from docs.site import losses, reference
from halos.errors import HalosError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HERE = DOCS / "site"
OTHERS = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""File of the repository -> the page of the site that it is, or that has what it says."""
LINK = re.compile(r"(\]\()([^()\s]+)(\))")
FENCE = re.compile(r"(^(`{3,}).*?^\2[ \t]*$)", re.MULTILINE | re.DOTALL)


def written() -> dict[Path, str]:
    """{file: page} of all that is written by hand."""
    files = {file: str(file.relative_to(DOCS)) for file in sorted(DOCS.rglob("*.md")) if HERE not in file.parents}
    return files | {ROOT / name: page for name, page in OTHERS.items() if page not in files.values()}


def generated() -> dict[str, str]:
    """{page: its Markdown} of all that is made from the code."""
    return {**losses.pages(), **reference.pages()}


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A Markdown text with what is not in fenced blocks changed."""
    parts = FENCE.split(text)  # text, block, its fence, text, ...
    return "".join(change(part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)


def with_links(text: str, file: Path, page: str, pages: dict[Path, str], made: dict[str, str], files: Path) -> str:
    """The text of a page whose relative links lead to pages of the site, or to copies of files of the repository.

    Args:
        text: the Markdown of `file`.
        file: where it is in the repository.
        page: the page that it becomes.
        pages: written files and their pages.
        made: the pages that are generated.
        files: the folder of the site's pages, which files that are linked to are copied into.

    Raises:
        HalosError: a link leads to nothing.
    """

    def moved(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path:
            return match[0]
        target = Path(os.path.normpath(file.parent / path))
        if target in pages:
            at = pages[target]
        elif target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in made:
            at = str(target.relative_to(DOCS))
        elif target.is_file():
            inside = target.is_relative_to(DOCS)
            at = str(target.relative_to(DOCS)) if inside else f"files/{target.relative_to(ROOT)}"
            (files / at).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, files / at)
        else:
            raise HalosError(f"{file.relative_to(ROOT)}: its link {link} leads to nothing: correct it")
        return f"{before}{os.path.relpath(at, Path(page).parent)}{'#' if anchor else ''}{anchor}{after}"

    return outside_code(text, lambda part: LINK.sub(moved, part))


def write(folder: Path) -> Path:
    """Write all pages to `folder`/docs, and the settings of the site beside it.

    Returns:
        The file of the settings.

    Raises:
        HalosError: a link leads to nothing, or a page is in no menu.
    """
    target = folder / "docs"
    target.mkdir(parents=True)
    pages, made = written(), generated()
    for file, page in pages.items():
        text = with_links(file.read_text(), file, page, pages, made, target)
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(text)
    for page, text in made.items():
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(text)
    shutil.copytree(HERE / "assets", target / "assets")
    settings: dict[str, Any] = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    settings["nav"] = _with_losses(settings["nav"])
    if lacking := {*pages.values(), *made} - set(_pages_of(settings["nav"])):
        raise HalosError(f"docs/site/mkdocs.yml: its nav lacks {', '.join(sorted(lacking))}: add it there")
    file = folder / "mkdocs.yml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return file


def _with_losses(nav: list[Any]) -> list[Any]:
    """The menu with the pages of all losses behind `losses/index.md`."""
    menu: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            entry = {title: _with_losses(of) if isinstance(of, list) else of for title, of in entry.items()}
        menu.append(entry)
        if entry == "losses/index.md":
            menu += losses.menu()
    return menu


def _pages_of(nav: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        for of in entry.values() if isinstance(entry, dict) else [entry]:
            found += _pages_of(of) if isinstance(of, list) else [of]
    return found
