"""The page in headless Chromium, by key presses; skipped where playwright or Chromium is not installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import krippendorff
import pytest

from halos.evaluate.judging.votes import read_votes
from halos.report import agreement
from halos.report.subjects.trust import _votes as votes_of
from tests.annotate.conftest import MARKUP, Votes

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `pip install playwright`")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: install its package")
SHOTS = os.environ.get("HALOS_SCREENSHOTS")
"""A folder for pictures of the page, to look at."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    yield opened
    assert opened.errors == []
    context.close()


def shoot(tab: Any, name: str) -> None:
    if SHOTS:
        tab.screenshot(path=Path(SHOTS) / f"{name}.png")


def number(tab: Any, n: int) -> None:
    """Wait until the page shows comparison `n`, from 1."""
    sync_api.expect(tab.locator("#count")).to_have_text(re.compile(rf"this is number {n}$"))


def place(tab: Any, text: str) -> str:
    """The key for the response in which a text is, or else for the data's own."""
    shown = tab.locator("#responses .text").all_inner_texts()
    wanted = text if any(text in response for response in shown) else "target"
    return "1" if wanted in shown[0] else "2"


def test_twenty_votes_by_key_presses_outlive_the_server_and_a_second_annotator_agrees(votes: Votes, tab: Any) -> None:
    file = Path("annotations/people/ann.jsonl")
    with votes.served() as address:
        tab.goto(address)
        tab.fill("#name", "ann")
        tab.keyboard.press("Enter")
        for n in range(1, 12):
            number(tab, n)
            if n == 4:
                shoot(tab, "voting")
                tab.keyboard.press("n")
                tab.keyboard.type("1 2 ties, in words")  # keys of votes, which are none here
                tab.keyboard.press("Enter")
            tab.keyboard.press("s" if n == 7 else place(tab, "sft"))
        number(tab, 12)
        assert len(read_votes(file)) == 11
    tab.keyboard.press("1")  # the server was killed
    tab.wait_for_selector("#wrong:not([hidden])")
    assert "this vote is not saved" in tab.inner_text("#wrong")
    shoot(tab, "killed")
    assert len(read_votes(file)) == 11
    with votes.served("--annotator", "ann") as address:
        tab.goto(address)
        for n in range(12, 21):
            number(tab, n)
            tab.keyboard.press(place(tab, "sft"))
        tab.wait_for_selector("#done:not([hidden])")
        shoot(tab, "done")
        tab.keyboard.press("ArrowLeft")
        number(tab, 20)
        assert tab.get_attribute("[data-vote][aria-pressed=true]", "data-vote") in ("1", "2")
    own = list(read_votes(file).values())
    assert [len(own), [v.vote for v in own].count("skip"), own[3].note] == [20, 1, "1 2 ties, in words"]
    with votes.served() as address:
        tab.goto(f"{address}?annotator=bob")
        for n in range(1, 21):
            number(tab, n)
            tab.keyboard.press("t" if n % 4 == 0 else place(tab, "sft"))
        tab.wait_for_selector("#done:not([hidden])")
    both = [votes.judged("sft"), votes.judged("base")]
    assert [(j.n, j.failures) for j in both] == [(10, 0), (10, 0)]
    table, prompts = votes_of([a for judgement in both for a in judgement.annotations])
    assert table.shape == (2, 19)  # one was skipped
    ties = int((table[1] == 0).sum())
    assert (table[0] == table[1]).sum() == 19 - ties
    known = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal", value_domain=[-1, 0, 1])
    assert agreement.alpha(table, prompts).mean == pytest.approx(known)
    assert 4 <= ties <= 5
    assert 0.5 < known < 1


def test_markup_in_a_response_is_shown_and_not_run(votes: Votes, tab: Any) -> None:
    with votes.served("--annotator", "ann") as address:
        tab.goto(address)
        for n in range(1, 21):
            number(tab, n)
            if MARKUP in tab.inner_text("#responses"):
                break
            tab.keyboard.press("t")
        assert MARKUP in tab.inner_text("#responses")
        assert tab.title() == "Which response is better?"


def test_a_name_that_is_not_in_the_settings_is_refused_on_the_page(votes: Votes, tab: Any) -> None:
    votes.write(annotators=["ann", "bob"])
    with votes.served() as address:
        tab.goto(address)
        tab.fill("#name", "eve")
        tab.click("#ask button")
        tab.wait_for_selector("#wrong:not([hidden])")
        assert "names no 'eve'" in tab.inner_text("#wrong")
        shoot(tab, "name")
        tab.fill("#name", "bob")
        tab.click("#ask button")
        number(tab, 1)
        tab.emulate_media(color_scheme="dark")
        tab.set_viewport_size({"width": 420, "height": 800})
        shoot(tab, "narrow")
