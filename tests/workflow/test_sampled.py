"""A dataset of a model's own samples through real commands: sampled, labelled, trained on, made again when needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos.data import feedback as F
from tests.workflow.conftest import Project
from tests.workflow.test_online import VERIFIER


def with_samples(project: Project) -> Project:
    """A grid that trains on samples of the base model."""
    (project.path / "vowels.py").write_text(VERIFIER)
    content = project.read_config()
    content["plugins"] = ["vowels.py"]
    content["prompts"] |= {
        "many": {"split": "train", "limit": 24, "samples": 4, "temperature": 1.0, "max_new_tokens": 8},
        "some": {"split": "test", "limit": 4, "samples": 4, "temperature": 1.0, "max_new_tokens": 8},
    }
    content["labellers"] = {"vowels": {"kind": "verifier", "verifier": "vowels", "feedback": "pairwise"}}
    options = {"dataset": "d", "model": "m", "prompts": {"train": "many", "test": "some"}, "labeller": "vowels"}
    content["datasets"]["s"] = {
        **content["datasets"]["d"], "sources": [{"name": "sampled", "options": options}], "validation_prompts": 4,
    }  # fmt: skip
    content["stages"]["dpo"]["examples"] = 16
    content["grids"]["own"] = {
        "datasets": ["s"], "models": ["m"], "methods": ["dpo"], "tasks": ["t"], "seeds": [1],
    }  # fmt: skip
    content["grid"] = "own"
    project.write_config(content)
    return project


@pytest.fixture(scope="module")
def sampled(warm: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished cell on such a dataset."""
    project = with_samples(warm.copy(tmp_path_factory.mktemp("sampled") / "project"))
    run = project.snakemake("tasks").ok()
    # all prompt sets by one load of the model, beside the answers of the trained cell
    assert (run.rules["answer"], run.rules["label"], run.rules["train_cell"]) == (2, 2, 1)
    return project


def test_the_records_are_labelled_samples_of_the_model_on_the_prompts(sampled: Project) -> None:
    labelled = sampled.results / "runs/d/m/base/seed0/labelled/many/vowels.parquet"
    records = {record.prompt_id: record for record in F.read(labelled)}
    assert {*records} <= {record.prompt_id for record in F.read(sampled.results / "data/d/train.parquet")}
    train = list(F.read(sampled.results / "data/s/train.parquet"))
    validation = list(F.read(sampled.results / "data/s/validation.parquet"))
    assert (len(train), len(validation)) == (18, 4)  # two more ask what one of validation asks
    assert all(record == records[record.prompt_id] for record in train + validation)
    for record in train:
        assert len(record.responses) == len(record.scores) == len(record.response_ids) <= 4
        assert record.target == record.scores.index(max(record.scores))
        assert all(record.scores[better] > record.scores[worse] for better, worse in record.pairs)
    assert (sampled.results / "runs/s/m/dpo/seed1/tasks/t.json").is_file()


def test_a_finished_study_is_left_alone_and_another_labeller_samples_nothing_anew(
    sampled: Project, tmp_path: Path
) -> None:
    assert sampled.dry("tasks").jobs == []
    project = sampled.copy(tmp_path / "project").edit({"labellers.vowels.pairs": "min"})
    rules = project.dry("tasks").rules
    assert rules["label"] == 2
    assert rules["train_cell"] == 1
    assert [job.wildcards["dataset"] for job in project.dry("tasks").jobs if job.rule == "answer"] == ["s"]


def test_more_samples_are_drawn_and_all_that_is_made_of_them_is_made_again(sampled: Project, tmp_path: Path) -> None:
    project = sampled.copy(tmp_path / "project").edit({"prompts.many.samples": 5})
    rules = project.dry("tasks").rules
    assert (rules["answer"], rules["label"], rules["prepare"], rules["train_cell"]) == (2, 1, 1, 1)
