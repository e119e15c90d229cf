"""Datasets of a model's samples: where their files are, what they depend on, and what of them is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data.feedback import Feedback, write
from halos.data.sources.sampled import sampled
from halos.errors import HalosError
from halos.plan.plan import Plan
from halos.publish.methods import of_source
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.checks import check_files, check_splits, servers
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.conftest import CATALOGUE

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {
    "dataset": "d", "model": "m", "prompts": {"train": "many", "test": "few"}, "labeller": "l",
}  # fmt: skip


def catalogue(**options: Any) -> dict[str, Any]:
    """The test catalogue whose grid trains on samples of the base model; an option that is None is left out."""
    content: dict[str, Any] = copy.deepcopy(CATALOGUE)
    given = {key: value for key, value in {**OPTIONS, **options}.items() if value is not None}
    content["datasets"]["s"] = {"sources": [{"name": "sampled", "options": given}], "max_length": 100,
                                "max_prompt_length": 60}  # fmt: skip
    content["prompts"] |= {"many": {"split": "train", "samples": 4}, "few": {"samples": 2}}
    content["labellers"] = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "pairwise"}}
    content["grids"]["g"]["datasets"] = ["s"]
    return content


def test_its_files_are_those_that_the_rule_label_writes() -> None:
    source = C.load(catalogue()).datasets["s"].sources[0]
    folder = "results/runs/d/m/base/seed0/labelled"
    assert source.options["path"] == {"train": f"{folder}/many/l.parquet", "test": f"{folder}/few/l.parquet"}
    assert source.files == [*source.options["path"].values()]
    assert source.splits == ("train", "test")  # validation is cut from train
    trained = C.load(catalogue(method="sft", seed=3)).datasets["s"].sources[0]
    assert trained.files[0] == "results/runs/d/m/sft/seed3/labelled/many/l.parquet"


def test_what_is_laid_over_it_moves_its_files() -> None:
    config = C.load(catalogue(), {"datasets": {"s": {"sources": [
        {"name": "sampled", "options": {**OPTIONS, "labeller": "other"}}]}},
        "labellers": {"other": {"kind": "verifier", "verifier": "toy", "feedback": "scalar"}}})  # fmt: skip
    assert config.datasets["s"].sources[0].files[0].endswith("labelled/many/other.parquet")
    again = C.load(config.model_dump(mode="json", exclude_unset=True))
    assert again.datasets["s"] == config.datasets["s"]


def test_a_cell_is_made_from_the_cell_that_is_sampled() -> None:
    study = Study(C.load(catalogue(method="sft", seed=3)))
    assert Cell("d", "m", "sft", 3) in study.trained
    assert Cell("d", "m", "sft", 3) in study.made_from(Cell("s", "m", "sft-dpo", 1))
    assert {*study.labellers} == {"l"}
    assert [sampling.cell.method for sampling in study.sampled] == ["sft"]
    other = Study(C.load({**catalogue(), "grids": copy.deepcopy(CATALOGUE["grids"])}))
    assert other.sampled == [] == [*other.labellers]


def test_samples_of_samples_come_each_after_what_they_are_sampled_on() -> None:
    content = catalogue()
    content["datasets"]["t"] = copy.deepcopy(content["datasets"]["s"])
    content["datasets"]["t"]["sources"][0]["options"] |= {"dataset": "s", "method": "dpo", "seed": 1}
    content["grids"]["g"]["datasets"] = ["t"]
    study = Study(C.load(content))
    assert [sampling.cell.folder for sampling in study.sampled] == ["runs/d/m/base/seed0", "runs/s/m/dpo/seed1"]
    assert study.trained[0] == Cell("s", "m", "dpo", 1)


def test_the_slice_of_the_data_tells_what_is_sampled_and_changes_with_it() -> None:
    before = config_slice(C.load(catalogue()), "data/s")
    assert before["sources"][0]["options"]["prompts"] == OPTIONS["prompts"]
    assert "local" not in before  # its files are known by the rules that make them
    assert config_slice(C.load(catalogue(seed=1)), "data/s") != before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a dataset": ({"dataset": "dd"}, "datasets.s: source sampled: dataset: there is no 'dd' in datasets; did you"),
    "a model": ({"model": "mm"}, "source sampled: model: there is no 'mm' in models"),
    "a labeller": ({"labeller": "ll"}, "source sampled: labeller: there is no 'll' in labellers"),
    "a prompt set": ({"prompts": {"train": "man"}}, "source sampled: prompts: there is no 'man' in prompts"),
    "a method": ({"method": "sft-dop"}, "source sampled: method: sft-dop: there is no 'dop' in stages"),
    "a reward model": ({"method": "sft-bradley_terry"}, "method: sft-bradley_terry ends in a reward model"),
    "no labeller": ({"labeller": None}, "source sampled needs the option 'labeller'"),
    "no prompts to learn from": ({"prompts": {"test": "few"}}, "source sampled: prompts has no train: name a prompt"),
    "an unknown split": ({"prompts": {"dev": "many"}}, "source sampled: prompts is {'dev': 'many'}; input should be"),
    "test prompts to learn from": ({"prompts": {"train": "few"}},
                                   "few are test prompts, and cannot be those of train: name a prompt set with"),
    "itself": ({"dataset": "s"}, "datasets.s: source sampled: it is sampled on s, which is sampled on s in turn"),
    "a path": ({"path": {"train": "x.parquet"}}, "datasets.s: source sampled: the workflow says what path is: take it"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_sentence_before_anything_is_sampled(mistake: str) -> None:
    options, sentence = REFUSED[mistake]
    with pytest.raises(HalosError) as caught:
        C.load(catalogue(**options))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_datasets_that_are_sampled_on_each_other_are_refused() -> None:
    content = catalogue(dataset="t")
    content["datasets"]["t"] = copy.deepcopy(content["datasets"]["s"])
    content["datasets"]["t"]["sources"][0]["options"]["dataset"] = "s"
    with pytest.raises(HalosError, match="sampled on t, which is sampled on s in turn"):
        C.load(content)


def test_files_and_splits_that_its_prompts_come_from_are_missed_before_anything_is_run(tmp_path: Path) -> None:
    content = catalogue()
    content["datasets"]["d"]["sources"] = [{"name": "local", "options": {"path": str(tmp_path / "x.jsonl")}}]
    content["models"]["m"]["tokenizer"] = {"from": "n"}
    content["models"]["n"] = {"hub": "a/b"}
    with pytest.raises(HalosError, match=r"datasets\.d: source local wants .*x\.jsonl, which does not exist"):
        check_files(Study(C.load(content)))
    content["datasets"]["d"]["sources"][0]["options"]["path"] = {"train": "x"}
    with pytest.raises(HalosError, match=r"dataset d has no test split.*prompts\.few"):
        check_splits(Study(C.load(content)))


def test_the_server_of_its_labeller_is_one_of_the_study() -> None:
    content = catalogue()
    content["labellers"]["l"] = {"kind": "openai", "openai": {"model": "x"}, "feedback": "scalar"}
    assert [*servers(Study(C.load(content)))] == ["labellers.l"]


def test_a_plan_counts_what_will_be_sampled_and_what_that_is_made_from(tmp_path: Path) -> None:
    content = catalogue(method="sft", seed=3)
    content["prompts"]["many"] |= {"limit": 32, "max_new_tokens": 16}
    plan = Plan(C.load(content), "g", "a100-80gb", tmp_path)
    amount = plan.amounts["s", "m"]
    assert (amount.prompts, amount.responses, amount.group, amount.response) == (32, 128, 4, 16)
    sampled_cell = Cell("d", "m", "sft", 3)
    assert [job.kind for job in plan.jobs if job.cell == sampled_cell] == ["sft", "sample", "sample"]


def test_methods_say_whose_responses_they_are() -> None:
    source = C.load(catalogue()).datasets["s"].sources[0]
    assert of_source(source.name, source.options) == "responses of m to prompts of d, labelled by l"
    trained = C.load(catalogue(method="sft", seed=3)).datasets["s"].sources[0]
    assert of_source(trained.name, trained.options).startswith("responses of m, trained by sft, to prompts of d")
    assert of_source("toy", {}) == "`toy`"


def test_the_example_of_the_documentation_is_a_catalogue() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("## On-policy data", 1)[1]
    example = yaml.safe_load(text.split("```yaml\n", 1)[1].split("```", 1)[0])
    config = C.load(ROOT / "config.yaml", example)
    assert config.datasets["ultrafeedback_llama"].sources[0].splits == ("train", "test")


def test_the_source_reads_the_labelled_samples_as_they_are(tmp_path: Path) -> None:
    record = Feedback(
        [{"role": "user", "content": "Why?"}], ["a", "b"], "l", scores=[1.0, 0.0], pairs=[(0, 1)], target=0
    )
    path = tmp_path / "l.parquet"
    write([record], path)
    assert list(sampled("train", **OPTIONS, path={"train": str(path)})) == [record]
    with pytest.raises(HalosError, match="the source sampled has no validation file of labelled samples"):
        sampled("validation", **OPTIONS, path={"train": str(path)})
