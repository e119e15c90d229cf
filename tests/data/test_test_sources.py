"""`test_sources`: the test split of a dataset is that of other sources than its training's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback
from halos.data.settings import Dataset, DataSlice
from halos.errors import HalosError
from halos.study import catalogue as C
from halos.study.slices import config_slice
from tests.conftest import CATALOGUE
from tests.data.files import local, record, run_prepare, write_lines


def own(folder: Path, name: str, rows: list[Any], **options: Any) -> dict[str, Any]:
    """Files of the training, all of them."""
    return {"name": "local", "options": {"path": str(write_lines(folder / name, rows)), "test_fraction": 0, **options}}


def other(folder: Path, name: str, rows: list[Any]) -> dict[str, Any]:
    return {"name": "local", "options": {"path": {"test": str(write_lines(folder / name, rows))}}}


def test_the_test_split_is_that_of_the_test_sources_alone(tmp_path: Path) -> None:
    first = local(tmp_path, [record(i) for i in range(10)], [record(i) for i in range(50, 60)])
    second = own(tmp_path, "more.jsonl", [record(i) for i in range(10, 20)])
    tests = [other(tmp_path, "a.jsonl", [record(i) for i in (3, 100, 101)]), other(tmp_path, "b.jsonl", [record(102)])]
    report = run_prepare(tmp_path, first, second, test_sources=tests)
    prompts = {
        split: {r.prompt[0]["content"] for r in feedback.read(tmp_path / f"out/{split}.parquet")}
        for split in ("train", "test")
    }
    assert prompts["test"] == {f"Question {i}?" for i in (3, 100, 101, 102)}
    assert prompts["train"] == {f"Question {i}?" for i in range(20) if i != 3}  # none of test is in train
    assert report["train"]["drops"] == {"prompt is in the test split": 1}
    assert [source["rows_out"] for source in report["test"]["sources"]] == [3, 1]
    assert [source["rows_out"] for source in report["train"]["sources"]] == [9, 10]


def test_a_source_may_be_of_both_splits(tmp_path: Path) -> None:
    both = local(tmp_path, [record(0)], [record(1)])
    report = run_prepare(tmp_path, both, test_sources=[both])
    assert (report["train"]["rows_out"], report["test"]["rows_out"]) == (1, 1)


def test_train_prompts_that_nearly_recur_in_them_are_counted(tmp_path: Path) -> None:
    long = "What is the best way to learn how a bicycle is repaired at home without any tools at all"
    near = [{**record(0), "prompt": [{"role": "user", "content": text}]} for text in (f"{long}?", f"{long}, please?")]
    sources = own(tmp_path, "a.jsonl", [near[0], record(1)])
    report = run_prepare(tmp_path, sources, test_sources=[other(tmp_path, "b.jsonl", [near[1]])])
    assert report["overlaps"]["test"]["records"] == 2
    assert report["overlaps"]["test"]["near"] == 1


def test_no_row_may_be_lost_between_the_splits() -> None:
    plain = {"name": "local", "options": {"path": "a.jsonl"}}
    whole = {"name": "local", "options": {"path": "a.jsonl", "test_fraction": 0}}
    test = {"name": "local", "options": {"path": {"test": "b.jsonl"}}}
    for sources, tests, sentence in (
        (plain, test, "and the test split is that of test_sources; give it `test_fraction: 0`"),
        (whole, plain, r"name them for the test split, as in `path: \{test: FILE\}`"),
        (whole, {**test, "limit": 3}, "limit and weight of source local are for train: take them out"),
        (whole, {"name": "local", "options": {"path": {"train": "b.jsonl"}}}, "source local has no test split"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Dataset(sources=[sources], test_sources=[tests])  # type: ignore[list-item, arg-type]
    hub = {"name": "hub", "options": {"path": "some/one", "split": {"test": "validation"}}}
    Dataset(sources=[whole], test_sources=[test, hub, {"name": "alpacaeval"}])  # type: ignore[list-item, arg-type]


def test_they_are_part_of_the_datas_identity_only_where_there_are_some(tmp_path: Path) -> None:
    def slice_of(**more: Any) -> dict[str, Any]:
        datasets = {"d": {**CATALOGUE["datasets"]["d"], **more}}
        return config_slice(C.load({**CATALOGUE, "datasets": datasets}), "data/d")

    assert "test_sources" not in slice_of()
    source = other(tmp_path, "a.jsonl", [record(1)])
    content = slice_of(test_sources=[source])
    assert DataSlice.model_validate(content).test_sources[0].options == source["options"]
    assert list(content["local"]) == [source["options"]["path"]["test"]]


def test_an_empty_test_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError):
        run_prepare(tmp_path, own(tmp_path, "a.jsonl", [record(1)]), test_sources=[other(tmp_path, "b.jsonl", [])])
