"""A source gives the records of its limit or weight to train: exactly, and the same in any order of its rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos.data import feedback
from halos.data.mixture import shares
from halos.data.settings import Dataset, Source
from halos.errors import HalosError
from tests.data.files import record, run_prepare, write_lines


def source(folder: Path, name: str, count: int, test: int = 3, **settings: Any) -> dict[str, Any]:
    """`count` records of train and `test` of test whose responses begin with the name."""
    paths = {}
    for split, number in (("train", count), ("test", test)):
        rows = [record(i, prompt=[{"role": "user", "content": f"{name} {split} {i}"}]) for i in range(number)]
        paths[split] = str(write_lines(folder / f"{name}_{split}.jsonl", rows))
    return {"name": "local", "options": {"path": paths}, **settings}


def prompts(folder: Path, split: str = "train") -> list[str]:
    return [r.prompt[0]["content"] for r in feedback.read(folder / f"out/{split}.parquet")]


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ([{"limit": 30}, {}], [30, 40]),
        ([{"limit": 30}, {"limit": 1}], [30, 1]),
        ([{"weight": 3}, {"weight": 1}], [100, 33]),
        ([{"weight": 0.1}, {"weight": 0.9}], [5, 40]),
        ([{"weight": 1.0e-9}, {"weight": 1.0}], [0, 40]),
        ([{"weight": 5}, {"weight": 2}], [100, 40]),
    ],
)
def test_sources_are_mixed_as_asked(tmp_path: Path, settings: list[dict[str, Any]], drawn: list[int]) -> None:
    sources = [source(tmp_path, name, n, **s) for name, n, s in zip("ab", (100, 40), settings, strict=True)]
    report = run_prepare(tmp_path, *sources)
    for split in ("train", "test"):
        assert report[split]["rows_in"] == report[split]["rows_out"] + sum(report[split]["drops"].values())
    assert [s["rows_out"] for s in report["train"]["sources"]] == drawn
    assert [s["available"] for s in report["train"]["sources"]] == [100, 40]
    assert report["train"]["drops"].get("not drawn by the limit or weight of its source", 0) == 140 - sum(drawn)
    assert [[text[0] for text in prompts(tmp_path)].count(name) for name in "ab"] == drawn
    assert report["test"]["rows_out"] == 6  # all of test stays
    assert report["overlaps"]["test"]["records"] == sum(drawn)
    for found, asked in zip(report["train"]["sources"], settings, strict=True):
        assert {key: found[key] for key in ("limit", "weight") if found[key] is not None} == asked


def test_a_draw_does_not_depend_on_the_order_of_rows_but_on_the_seed(tmp_path: Path) -> None:
    entry = source(tmp_path, "a", 200, limit=50)
    run_prepare(tmp_path, entry)
    first = set(prompts(tmp_path))
    assert first != {f"a train {i}" for i in range(50)}
    file = Path(entry["options"]["path"]["train"])
    lines = file.read_text().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    file.write_text("".join(lines))
    run_prepare(tmp_path, entry)
    assert set(prompts(tmp_path)) == first
    run_prepare(tmp_path, entry, seed=1)
    assert len(set(prompts(tmp_path)) - first) > 20


def test_a_larger_limit_keeps_the_smaller_draw(tmp_path: Path) -> None:
    draws = []
    for limit in (20, 60):
        run_prepare(tmp_path, source(tmp_path, "a", 100, limit=limit))
        draws.append(set(prompts(tmp_path)))
    assert draws[0] < draws[1]


def test_records_are_drawn_of_those_that_are_left(tmp_path: Path) -> None:
    entry = source(tmp_path, "a", 20, limit=10)
    file = Path(entry["options"]["path"]["train"])
    shouted = [record(i, prompt=[{"role": "user", "content": f"A TRAIN {i}!"}]) for i in range(10)]
    write_lines(file.with_name("more.jsonl"), shouted)
    file.write_text(file.read_text() + file.with_name("more.jsonl").read_text())
    report = run_prepare(tmp_path, entry, drop_duplicates="exact")
    assert len(set(map(str.lower, prompts(tmp_path)))) == 10
    assert report["train"]["drops"] == {
        "equal to an earlier record": 10,
        "not drawn by the limit or weight of its source": 10,
    }


def test_a_source_with_fewer_records_than_its_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="source local: 5 records of train are left, fewer than its limit of 6; lower"):
        run_prepare(tmp_path, source(tmp_path, "a", 5, limit=6))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"limit": 1, "weight": 1.0}], "a limit and a weight; give it one of them"),
        ([{"weight": 1.0}, {}], "give each source a weight, or none"),
        ([{"weight": 0}], "greater than 0"),
        ([{"weight": float("inf")}], "finite number"),
        ([{"limit": 0}], "greater than 0"),
    ],
)
def test_a_mix_that_cannot_be_meant_is_refused(sources: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(sources=tuple(Source(name="toy", **settings) for settings in sources))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 1_000)), min_size=1, max_size=6))
def test_shares_are_exact_shares_of_their_sum_rounded_and_as_many_as_there_can_be(
    sources: list[tuple[int, int]],
) -> None:
    available, weights = zip(*sources, strict=True)
    counts = shares(available, weights)
    total, weight = sum(counts), sum(weights)
    assert all(n <= most for n, most in zip(counts, available, strict=True))
    assert all(abs(n * weight - total * w) < weight for n, w in zip(counts, weights, strict=True))
    # one more of each, in proportion, is more than some source has
    assert any((total + len(counts)) * w // weight + 1 > most for w, most in zip(weights, available, strict=True))
