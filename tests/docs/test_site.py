"""The site is whole, and what is made from the code is all there."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.site import losses, pages, python, reference
from docs.site.__main__ import build
from halos.cli import VERBS, verb_parser
from halos.errors import HalosError
from halos.losses import Batch, Logps, Loss, Output, log_ratio
from halos.registry import LOSSES, SOURCES
from halos.study.catalogue import schema
from halos.views import VIEWS

OWN = sorted(name for name in LOSSES if LOSSES[name].__module__.startswith("halos."))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("build")
    build(folder)
    return folder / "site"


class Addresses(HTMLParser):
    """What a page loads from elsewhere as it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.loaded.append(given.get("href") or "")


def test_every_page_is_built_and_searched_and_loads_nothing_from_the_network(site: Path) -> None:
    markdown = {*pages.written().values(), *pages.generated()}
    assert len(markdown) > 50
    for page in markdown:
        parser = Addresses()
        parser.feed((site / page).with_suffix(".html").read_text())
        assert parser.loaded
        assert not [address for address in parser.loaded if re.match("(https?:)?//", address)], page
    assert "losses/kto.html" in (site / "search.json").read_text()
    assert (site / "search.js").exists()  # by which it is found from a folder, too


@pytest.mark.parametrize("name", OWN)
def test_every_loss_has_a_page_with_its_equation_hyperparameters_and_names(name: str, site: Path) -> None:
    html = (site / f"losses/{name}.html").read_text()
    assert '<div class="equation"><math ' in html
    about = losses.facts_of(name)
    assert about["when"]
    assert about["trl"]
    assert about["halos"]
    for field in dataclasses.fields(LOSSES[name]):
        assert f"<code>{field.name}</code>" in html
        assert losses.meaning(name, field.name), f"losses.yaml does not say what {field.name} of {name} is"
    assert f'href="{name}.html"' in (site / "losses/index.html").read_text()


def test_the_facts_are_of_losses_and_hyperparameters_that_there_are() -> None:
    assert sorted(losses.facts()["losses"]) == OWN
    for name, about in losses.facts()["losses"].items():
        assert set(about.get("hyperparameters", ())) <= {field.name for field in dataclasses.fields(LOSSES[name])}


@pytest.mark.usefixtures("plugins_forgotten")
def test_a_new_loss_has_a_page_and_a_place_in_the_menu_by_itself(tmp_path: Path) -> None:
    @LOSSES.register("brand_new")
    @dataclass(frozen=True)
    class BrandNew(Loss):
        """max(0, r_l - r_w)."""

        slope: float = 2.0
        view = VIEWS["paired"]

        def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
            chosen, rejected = (log_ratio(policy, reference, role) for role in ("chosen", "rejected"))
            return Output((rejected - chosen).clamp(min=0), chosen.detach(), rejected.detach())

    assert "max(0, r_l - r_w)." in losses.pages()["losses/brand_new.md"]
    assert "| `slope` | `2.0` |" in losses.pages()["losses/brand_new.md"]
    assert {"Others": [{"brand_new": "losses/brand_new.md"}]} in losses.menu()
    pages.write(tmp_path)


def test_every_key_of_the_config_every_option_and_every_source_is_in_the_reference() -> None:
    config, cli, registered = reference.config(), reference.cli(), reference.registered()
    whole = schema()
    for kind in (whole, *whole["$defs"].values()):
        for key, about in kind["properties"].items():
            shown = f"| `{key}` |" in config
            assert shown or about["description"].startswith(reference.OF_LOSSES), key
    for verb in VERBS:
        assert f"\n## {verb}\n" in cli
        options = [action for action in verb_parser(verb)._actions if not isinstance(action, argparse._HelpAction)]
        assert all(f"`{option.option_strings[0]}" in cli for option in options if option.option_strings)
    assert all(f"\n### {source}\n" in registered for source in SOURCES)


def test_what_plugins_import_is_shown_as_it_is_imported() -> None:
    """Whatever examples of the documentation import of the package, but for registries, is on the page."""
    shown = re.findall(r"^`(from \S+ import \S+)`$", python.page(), re.MULTILINE)
    for line in shown:
        exec(line, {})
    names = {line.split()[-1] for line in shown}
    for page in ("tutorials/adding.md", "extending.md"):
        text = (pages.DOCS / page).read_text()
        for imported in re.findall(
            r"^from halos\.(?:data|losses|forward|views|report\.subject)\S* import (.*)$", text, re.MULTILINE
        ):
            assert {name.strip() for name in imported.split(",")} - {"VIEWS"} <= names, imported


def broken() -> Iterator[tuple[str, str, str]]:
    yield (
        "a file that is not there",
        "see [it](nothing.md)",
        "index.md: its link nothing.md leads to nothing: correct it",
    )
    yield "a heading that is not there", "see [it](data.md#nowhere)", "anchor does not exist"


@pytest.mark.parametrize(("text", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in broken()])
def test_a_link_to_what_is_not_there_is_an_error(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pages.written()
    index = pages.DOCS / "index.md"
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read(path) + (text if path == index else ""))
    assert index in written
    with pytest.raises(HalosError, match=re.escape(sentence)):
        build(tmp_path)


def test_links_in_blocks_of_code_are_left_alone() -> None:
    text = "see [a](b.md)\n\n```yaml\nsee [a](b.md)\n```\n\nsee [a](b.md)\n"
    changed = pages.outside_code(text, lambda part: part.replace("b.md", "c.md"))
    assert changed == "see [a](c.md)\n\n```yaml\nsee [a](b.md)\n```\n\nsee [a](c.md)\n"


def test_the_command_says_where_the_site_is() -> None:
    done = subprocess.run([sys.executable, "-m", "docs.site"], cwd=pages.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "site: build/site/index.html\n"), done.stderr
