"""A dataset without a validation or a test split: it can be trained on, and whatever wants its prompts is refused
beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data import feedback
from halos.data.report import DataReport
from halos.errors import HalosError
from halos.report.dataset.describe import describe
from halos.sample.run import sample
from halos.settings import dump
from halos.study.catalogue import load
from halos.study.checks import check_splits
from halos.study.study import Study
from halos.tokens.store import check
from halos.tokens.tokenize import tokenize
from halos.workflow.inputs import Inputs
from halos.workflow.resources import StudyResources
from tests.conftest import CATALOGUE, World
from tests.train.runs import log


@dataclass(frozen=True)
class Made:
    """A world whose dataset has no split but train.

    Attributes:
        data: folder of the dataset.
    """

    world: World
    data: Path


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Made:
    results = tmp_path_factory.mktemp("trainonly")
    own = World(results, world.config)
    (results / "models").mkdir()
    (results / "models/m").symlink_to(world.base)
    data = results / "data/d"
    data.mkdir(parents=True)
    (data / "train.parquet").symlink_to(world.results / "data/d/train.parquet")
    for split in ("validation", "test"):
        feedback.write([], data / f"{split}.parquet")
    prepared = DataReport.read(world.results / "data/d/report.json")
    nothing = prepared.test.model_copy(update={"rows_in": 0, "rows_out": 0, "drops": {}, "sources": ()})
    prepared.model_copy(update={"validation": nothing, "test": nothing}).write(data / "report.json")
    config, files = own.slice("tokens/d/m"), (data / "train.parquet", data / "validation.parquet")
    tokenize(config, *files, own.base / "model", own.store, config.with_name("report.json"))
    return Made(own, data)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "grpo", "bradley_terry"])
def test_a_cell_is_trained_without_evaluations(
    stage: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(made.world.store, [made.world.config.stage(stage, "m").reads], tmp_path / "checked.json")
    run = made.world.train(tmp_path / "run", stage)
    lines = log(run)
    assert {line["split"] for line in lines} == {"train"}
    assert lines[-1]["examples"] >= 64
    assert "dataset d has no validation split: nothing is evaluated during training" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"].keys() == {"train"}
    assert (run / "model/model.safetensors").is_file()


def test_early_stopping_is_refused_before_the_first_step(made: Made, tmp_path: Path) -> None:
    with pytest.raises(
        HalosError, match="early_stopping reads evaluations, and dataset d has no validation prompts: set"
    ):
        made.world.train(tmp_path / "run", "sft", changes={"early_stopping": {"patience": 2}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_wants_its_prompts_is_refused_before_anything_is_trained(made: Made, tmp_path: Path, split: str) -> None:
    checked, report = tmp_path / "checked.json", made.data / "report.json"
    with pytest.raises(HalosError, match=rf"dataset d has no {split} split, and prompts\.p, tasks\.t want its prompts"):
        check(made.world.store, ["sft"], checked, report=report, **{f"{split}_for": ["prompts.p", "tasks.t"]})
    assert not checked.exists()
    (tmp_path / "prompts.yaml").write_text(dump({"limit": 2}))
    with pytest.raises(
        HalosError, match=rf"{split}.parquet has no prompts, as its dataset was made without this split"
    ):
        sample(made.world.slice("runs/d/m/base/seed1"), [tmp_path / "prompts.yaml"],
               [made.data / f"{split}.parquet"],
               made.world.base / "model", made.world.store, [tmp_path / "samples.jsonl"])  # fmt: skip


def test_the_data_report_shows_the_split_that_there_is(made: Made, tmp_path: Path) -> None:
    tokens = made.world.store.with_name("report.json")
    describe(made.data / "report.json", tokens, made.world.store, made.world.base / "model", tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["validation"]["prompts"], report["validation"]["responses"]) == (0, 0)
    assert (report["test"]["rows_in"], report["test"]["rows_out"]) == (0, 0)
    assert report["train"]["prompts"] > 0


def study(**changes: Any) -> Study:
    """The small catalogue's grid on a dataset of one local file, its entries changed."""
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["datasets"]["d"]["sources"] = [{"name": "local", "options": {"path": {"train": "mine.jsonl"}}}]
    content["datasets"]["d"]["validation_prompts"] = 0
    content["datasets"]["other"] = CATALOGUE["datasets"]["d"]
    for kind, entries in changes.items():
        content[kind] = {**content.get(kind, {}), **entries}
    return Study(load(content))


GRID = {"datasets": ["d"], "models": ["m"], "methods": ["sft"]}
ONLINE = {"loss": "kto", "online": {"rounds": 1, "prompts_per_round": 4, "label": "l"}}
JUDGE = {"kind": "verifier", "verifier": "toy", "prompts": "q"}
LABELLER = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}}


@pytest.mark.parametrize(
    ("changes", "split", "wanted"),
    [
        ({"grids": {"g": {**GRID, "judges": ["j"]}}}, "test", r"prompts\.p wants"),
        ({"grids": {"g": {**GRID, "prompts": ["p"], "tasks": ["t"]}}}, "test", r"prompts\.p, tasks\.t want"),
        ({"grids": {"g": {**GRID, "datasets": ["other"], "prompts": ["q"]}}, "prompts": {"q": {"dataset": "d"}}},
         "test", r"prompts\.q wants"),
        ({"grids": {"g": {**GRID, "methods": ["ask"]}}, "stages": {"ask": ONLINE}, "labellers": LABELLER},
         "validation", r"stages\.ask\.online wants"),
        ({"grids": {"g": {**GRID, "prompts": ["q"], "tasks": ["u"]}}, "prompts": {"q": {"split": "validation"}},
          "tasks": {"u": {"local": "preferences", "split": "validation"}}}, "validation", r"prompts\.q, tasks\.u want"),
        ({"stages": {"dpo": {"loss": "dpo", "early_stopping": {"patience": 2}}}}, "validation",
         r"stages\.dpo\.early_stopping wants"),
        ({"stages": {"dpo": {"loss": "dpo", "sweep": {"lr": [1e-3]}, "select": {"metric": "loss"}}}}, "validation",
         r"stages\.dpo\.select wants"),
        ({"stages": {"dpo": {"loss": "dpo", "sweep": {"lr": [1e-3]}, "select": {"judge": "v"}}},
          "prompts": {"q": {"split": "validation"}}, "judges": {"v": JUDGE}}, "validation", r"prompts\.q wants"),
        ({"stages": {"dpo": {"loss": "dpo", "sweep": {"lr": [1e-3]}, "select": {"task": "u"}}},
          "tasks": {"u": {"local": "preferences", "split": "validation"}}}, "validation", r"tasks\.u wants"),
    ],
)  # fmt: skip
def test_what_the_settings_show_is_refused_at_the_dry_run(changes: dict[str, Any], split: str, wanted: str) -> None:
    with pytest.raises(HalosError, match=rf"dataset d has no {split} split, and {wanted} its prompts"):
        check_splits(study(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"grids": {"g": GRID}},
        {"grids": {"g": {**GRID, "prompts": ["q"]}}, "prompts": {"q": {"dataset": "other"}}},
        {"grids": {"g": {**GRID, "prompts": ["q"]}}, "prompts": {"q": {"split": "train"}}},
    ],
)
def test_a_grid_that_reads_no_prompts_of_those_splits_is_fine(changes: dict[str, Any]) -> None:
    made = study(**changes)
    check_splits(made)
    assert made.readers("d", "test") == made.readers("d", "validation") == []


def test_a_dataset_whose_train_split_can_be_cut_may_have_a_validation_split() -> None:
    grids = {"g": {**GRID, "methods": ["ask"]}}
    made = study(grids=grids, stages={"ask": ONLINE}, labellers=LABELLER)
    d = made.config.datasets["d"].model_copy(update={"validation_prompts": None})
    check_splits(Study(made.config.model_copy(update={"datasets": {**made.config.datasets, "d": d}})))


class Wildcards:
    dataset, model = "d", "m"


def test_the_check_is_told_which_stages_read_margins() -> None:
    stages = {"odpo": {"loss": "dpo", "margin_weight": 1.0}, "rm": {"loss": "bradley_terry", "margin_weight": 0.5}}
    made = study(grids={"g": {**GRID, "methods": ["sft-dpo", "sft-odpo"], "reward_models": ["sft-rm"]}}, stages=stages)
    assert StudyResources(made, Inputs(made).judging).margins_for(Wildcards()) == "odpo rm"


def test_the_check_is_told_what_reads_each_split() -> None:
    grid = {**GRID, "judges": ["j"], "tasks": ["t"], "prompts": ["q"], "methods": ["ask"]}
    prompts = {"q": {"split": "validation"}}
    made = study(grids={"g": grid}, prompts=prompts, stages={"ask": ONLINE}, labellers=LABELLER)
    resources = StudyResources(made, Inputs(made).judging)
    assert resources.test_for(Wildcards()) == "prompts.p tasks.t"
    assert resources.validation_for(Wildcards()) == "prompts.q stages.ask.online"
