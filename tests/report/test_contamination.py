"""A grid's report shows which of the prompts it is judged on recur in what it was trained on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.repeats.overlap import overlap
from halos.report import tables
from halos.study import catalogue as C
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.workflow.targets import Targets
from tests.conftest import CATALOGUE
from tests.data.files import dialogue, local, record, run_prepare


def judged_elsewhere(**changes: Any) -> C.Config:
    """A grid of the dataset d that is judged on prompts of d, and on both splits of another dataset."""
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["datasets"]["other"] = {"sources": [{"name": "toy"}]}
    catalogue["prompts"] |= {
        "own": {"limit": 4}, "theirs": {"dataset": "other"}, "more": {"dataset": "other", "limit": 3},
        "taught": {"dataset": "other", "split": "train"}, "named": {"dataset": "d", "split": "train"},
    }  # fmt: skip
    catalogue["judges"]["far"] = {"kind": "verifier", "verifier": "toy", "prompts": "theirs"}
    catalogue["grids"]["g"] |= {"prompts": ["own", "more", "taught", "named"], "judges": ["far"], **changes}
    return C.load(catalogue)


def test_a_grid_asks_for_the_overlap_with_each_other_dataset_that_it_answers_prompts_of() -> None:
    config = judged_elsewhere()
    assert [str(path) for path in Targets(Study(config)).compared()] == [
        "results/data/d/overlap/other/test.json",
        "results/data/d/overlap/other/train.json",
    ]
    assert Targets(Study(judged_elsewhere(prompts=[], judges=[]))).compared() == []


def test_the_table_counts_and_shows_what_recurs(tmp_path: Path, write_tree: Callable[..., tuple[Path, Path]]) -> None:
    config, results = write_tree(tmp_path)
    content = yaml.safe_load(config.read_text()) | {"prompt_data": [["other", "test"], ["toy", "test"]]}
    config.write_text(yaml.safe_dump(content))
    paths = Paths(results)
    long = "Write a letter to my landlord that asks for a new stove since the old one | has not worked since winter"
    train = [record(i, prompt=dialogue(text)) for i, text in enumerate(["Who?", f"{long}, please", "Why?", "Else"])]
    test = [record(0, prompt=dialogue("who", "Ada.", "When?")), record(1, prompt=dialogue("why"))]
    folder = tmp_path / "prepared"
    folder.mkdir()
    run_prepare(folder, local(folder, train, test))
    (results / "data/toy").mkdir(parents=True)
    (folder / "out/report.json").rename(paths.data("toy").report)
    feedback.write([Feedback(dialogue(text), ["a"], "s") for text in (long, "else!", "Unseen")], tmp_path / "p.jsonl")
    overlap(folder / "out/train.parquet", tmp_path / "p.jsonl", paths.data("toy").overlap("other", "test"))
    tables.make(config, tmp_path / "tables", results)
    with (tmp_path / "tables/contamination.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"dataset": "toy", "against": "toy", "split": "validation", "records": "3", "prompts": "0",
         "prompts_found": "0", "equal": "0", "begins": "0", "continues": "0", "near": "0"},
        {"dataset": "toy", "against": "toy", "split": "test", "records": "3", "prompts": "2", "prompts_found": "1",
         "equal": "0", "begins": "1", "continues": "0", "near": "0"},
        {"dataset": "toy", "against": "other", "split": "test", "records": "3", "prompts": "3", "prompts_found": "2",
         "equal": "1", "begins": "0", "continues": "0", "near": "1"},
    ]  # fmt: skip
    page = (tmp_path / "tables/contamination.md").read_text()
    assert "| Toy data  | Toy data (test)       |" in page
    assert "## Examples: Toy data, other (test)" in page
    assert "is nearly equal to" in page
    assert r"old one \| has not worked since winter, please" in page
    assert r"\label{tab:contamination}" in (tmp_path / "tables/contamination.tex").read_text()


def test_a_grid_whose_data_is_not_described_says_so(
    tmp_path: Path, write_tree: Callable[..., tuple[Path, Path]]
) -> None:
    config, results = write_tree(tmp_path)
    tables.make(config, tmp_path / "tables", results)
    assert "not described" in (tmp_path / "tables/contamination.md").read_text()


def test_the_slice_of_a_grid_names_the_datasets_of_its_prompts() -> None:
    content = config_slice(judged_elsewhere(), "grids/g")
    assert content["prompt_data"] == [["d", "train"], ["other", "test"], ["other", "train"]]
