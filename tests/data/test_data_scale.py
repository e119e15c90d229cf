"""The benchmark of `prepare` and `tokenize` runs the verbs, and its rows are what it says they are."""

from __future__ import annotations

import csv
from itertools import islice, pairwise
from pathlib import Path

import pytest

from benchmarks import data_scale
from benchmarks.data_scale import COLUMNS, main, rows


def test_rows_are_the_same_each_time_and_as_long_as_those_of_hh() -> None:
    found = list(rows(2_000))
    assert list(islice(rows(2_000), 100)) == found[:100]
    prompts = [sum(len(turn["content"]) for turn in row["prompt"]) for row in found]
    answers = [len(row[name]) for row in found for name in ("chosen", "rejected")]
    assert 1.5 < sorted(prompts)[1_000] / sorted(answers)[2_000] < 2.5
    assert {len(row["prompt"]) for row in found} == {1, 3, 5, 7, 9}
    repeated = sum(first is second for first, second in pairwise(found))
    assert repeated == 10


def test_both_verbs_are_run_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_scale, "QUICK", (300,))
    main(["--quick", "--folder", str(tmp_path / "data"), "--output", str(tmp_path / "table.csv")])
    with (tmp_path / "table.csv").open() as file:
        first, *table = list(csv.reader(file))
    assert tuple(first) == COLUMNS
    assert [row[:2] for row in table] == [["300", "prepare"], ["300", "tokenize"]]
    assert all(float(value) > 0 for row in table for value in row[2:])
    assert (tmp_path / "data/300/store/meta.json").is_file()


def test_a_verb_that_fails_ends_the_benchmark_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"halos prepare failed:\n.*nowhere"):
        data_scale.measured("prepare", "--config", tmp_path / "nowhere", "--train", "a", "--validation", "b", "--test",
                            "c", "--report", "d")  # fmt: skip
