"""What the style of a page has to hold, so that it can be read in the dark and in Snakemake's report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT

PAGES = sorted([*ROOT.glob("halos/**/*.html.jinja"), *ROOT.glob("halos/**/*.html")])


def style(page: Path) -> str:
    """A page's style sheet, without the colour of pictures, which are drawn for a light page."""
    found = re.search("<style>(.*)</style>", page.read_text(), flags=re.DOTALL)
    assert found is not None
    return re.sub(r"(img|\.vega-embed) \{[^}]*\}", "", found[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_colour_of_a_page_is_a_name_that_the_dark_scheme_has_as_well(page: Path) -> None:
    light, dark = re.findall(r"\{ ?(?:color-scheme: light dark; )?(--\w[^}]*)\}", style(page))[:2]
    names = [set(re.findall(r"--([\w-]+):", scheme)) for scheme in (light, dark)]
    assert names[0] == names[1]
    rest = style(page).replace(light, "").replace(dark, "")
    assert re.findall(r"#[0-9a-f]{3,8}\b|rgb\(|\b(?:white|black)\b(?!-)", rest) == []
    assert set(re.findall(r"var\(--([\w-]+)\)", rest)) <= names[0]
    assert "@media (prefers-color-scheme: dark)" in rest
    assert "color-scheme: light dark" in style(page)


def test_no_rule_of_the_overview_reaches_what_else_snakemakes_report_shows() -> None:
    """The page is put into that report as it is; a rule for `body` or `table` would restyle all of it."""
    overview = ROOT / "halos/publish/templates/overview.html.jinja"
    css = re.sub(r"\{#.*?#\}", "", style(overview), flags=re.DOTALL)
    css = css.replace("@media (prefers-color-scheme: dark) {", "")
    selectors = [part for rule in re.findall(r"([^{}]+)\{", css) for part in re.split(r",\s*(?![^(]*\))", rule)]
    assert len(selectors) > 20
    assert [selector for selector in selectors if ".overview" not in selector] == []


def test_a_table_of_the_overview_scrolls_within_its_frame() -> None:
    text = (ROOT / "halos/publish/templates/overview.html.jinja").read_text()
    assert ".overview .wide { overflow-x: auto; }" in text
    tables = re.findall(r"(.*)(<table|\{\{ (?:table|methods) \}\})", text)
    assert len(tables) == 3
    assert all(before.endswith('<div class="wide">') for before, _ in tables)
