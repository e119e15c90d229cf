"""docs/data.md says what is read: each row of its tables is read, and gives what stands beside it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from halos.data.feedback import Feedback
from halos.data.readers import READ_SUFFIXES
from halos.data.rows import Drop
from halos.data.sources.hub import hub
from halos.data.sources.local import local
from halos.errors import HalosError

TEXT = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def cells(heading: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def read(folder: Path, row: str) -> list[Feedback | Drop]:
    path = folder / "row.jsonl"
    path.write_text(row.strip("`") + "\n", encoding="utf-8")
    return list(local("train", path={"train": str(path), "test": str(path)}))


def shown(record: Feedback | Drop) -> str:
    """A record as the table writes it."""
    assert isinstance(record, Feedback)
    order = [i for pair in record.pairs for i in pair] or range(len(record.responses))
    responses = [
        record.responses[i]
        + (f" ({record.scores[i]})" if record.scores else "")
        + ({True: " ✓", False: " ✗"}[bool(record.desirable[i])] if record.desirable else "")
        for i in order
    ]
    prompt = " · ".join(f"{turn['role']}: {turn['content']}" for turn in record.prompt)
    return f"{prompt} → {' > '.join(responses)}".replace("\n", "⏎")


@pytest.mark.parametrize(("row", "expected"), [pytest.param(*row[1:], id=row[0]) for row in cells("Layouts")])
def test_a_row_of_each_layout_becomes_what_the_table_says(row: str, expected: str, tmp_path: Path) -> None:
    [record] = read(tmp_path, row)
    assert shown(record) == expected


@pytest.mark.parametrize(("row", "expected"), cells("Weights and margins"))
def test_a_row_has_the_weight_and_the_margin_that_the_table_says(row: str, expected: str, tmp_path: Path) -> None:
    [record] = read(tmp_path, row)
    assert isinstance(record, Feedback)
    [weight] = set(record.pair_weights + record.weights) or {1}
    assert f"{weight:g}, {f'{record.margins[0]:g}' if record.margins else 'none'}" == expected
    assert bool(record.pair_weights) == bool(record.pairs and weight != 1)


@pytest.mark.parametrize(("row", "outcome"), cells("What is refused, and what is left out"))
def test_what_the_table_refuses_is_refused_and_what_it_leaves_out_is_a_drop(
    row: str, outcome: str, tmp_path: Path
) -> None:
    what, reason = outcome.split(": ", 1)
    if what == "left out":
        assert read(tmp_path, row) == [Drop(reason)]
    else:
        with pytest.raises(HalosError, match=re.escape(reason)) as caught:
            read(tmp_path, row)
        assert "\n" not in str(caught.value)


def test_every_option_is_described_and_every_suffix_named() -> None:
    named = {name for row in cells("Options") for name in re.findall(r"`(\w+)`", row[0])}
    taken = {name for source in (local, hub) for name in list(inspect.signature(source).parameters)[1:]}
    assert named == taken
    assert not [suffix for suffix in READ_SUFFIXES if f"`{suffix}`" not in TEXT.split("## Files")[1]]
