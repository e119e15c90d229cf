"""The tutorials, as they are written: their files are put where they say, and their commands typed, in a copy of the
project whose config.yaml has a tiny model and little data under the same names. That on Slurm is in tests/slurm."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.distributed.devices import FOLDER, KNOWN, VISIBLE
from tests.conftest import World
from tests.workflow.conftest import CATALOGUE, ROOT, Project
from tests.workflow.tutorial import TUTORIALS, Tutorial, typed


def tiny(content: dict[str, Any]) -> dict[str, Any]:
    """The project's config.yaml, whose model and data take seconds."""
    content["models"]["tiny"] = {
        **CATALOGUE["models"]["m"],
        "tokenizer": {"train_on": "toy", "vocab_size": 512},
        "stages": {name: {k: v for k, v in CATALOGUE["stages"][name].items() if k not in ("loss", "label")}
                   for name in ("sft", "dpo", "kto")}
        | {"rm": {"lr": 1e-3, "batch_size": 8, "examples": 32}},
    }  # fmt: skip
    content["datasets"]["toy"] = CATALOGUE["datasets"]["d"]
    content["prompts"]["held_out"] = CATALOGUE["prompts"]["p"]
    return content


@pytest.fixture
def laptop(warm: Project, tmp_path: Path) -> Project:
    project = warm.copy(tmp_path / "project")
    project.write_config(tiny(yaml.safe_load((ROOT / "config.yaml").read_text())))
    return project


def test_every_tutorial_is_run() -> None:
    assert {file.stem for file in TUTORIALS.glob("*.md")} == {"own_model", "rounds", "tuned", "adding", "paper"}
    assert all(Tutorial(file.stem).commands for file in TUTORIALS.glob("*.md"))


@pytest.mark.slow
def test_own_data_and_an_own_model_on_one_gpu(laptop: Project, world: World, tmp_path: Path) -> None:
    """There is no GPU: it is a name. The model is one without training."""
    project = replace(laptop, variables={KNOWN: "GPU-0", VISIBLE: "0", FOLDER: str(tmp_path / "locks")})
    shutil.copytree(world.base / "model", project.path / "models/mine")
    tutorial = Tutorial("own_model")
    tutorial.write_files(project.path)
    printed = tutorial.run(lambda command: typed(project, command))
    table = printed["cat results/tables/mine/main.md"]
    assert all(f"| {method} " in table for method in ("Base", "SFT", "SFT + DPO", "SFT + KTO"))
    assert len(json.loads(printed["cat answer.jsonl"])["response"]) > 0


@pytest.mark.slow
def test_a_reward_model_and_online_rounds(laptop: Project) -> None:
    tutorial = Tutorial("rounds")
    tutorial.write_files(laptop.path)
    printed = tutorial.run(lambda command: typed(laptop, command))
    assert "Ranking accuracy" in printed["cat results/tables/rounds/main.md"]
    labelled = [json.loads(line) for line in (laptop.path / "labelled.jsonl").read_text().splitlines()]
    assert len(labelled) == CATALOGUE["prompts"]["p"]["limit"]


@pytest.mark.slow
def test_a_tuned_comparison(laptop: Project) -> None:
    tutorial = Tutorial("tuned")
    tutorial.write_files(laptop.path)
    printed = tutorial.run(lambda command: typed(laptop, command))
    choice = json.loads(printed["cat results/choices/toy/tiny/sft-dpo/choice.json"])
    assert len(choice["trials"]) == 2
    assert choice["chosen"] in choice["trials"]
    assert "KTO" in printed["cat results/tables/tuned_pair/tuned.md"]


@pytest.mark.slow
def test_a_dataset_a_loss_a_judge_and_a_figure_of_ones_own(laptop: Project) -> None:
    tutorial = Tutorial("adding")
    tutorial.write_files(laptop.path)
    printed = tutorial.run(lambda command: typed(laptop, command))
    shown = printed["cat results/tables/helpdesk/main.md results/figures/helpdesk/pace.csv"]
    assert "DUMMY KTO" in shown
    assert "tokens_per_second" in shown
    run = laptop.results / "runs/helpdesk/tiny/sft-dummy_kto/seed1"
    assert json.loads((run / "manifest.json").read_text())["config"]["stage"]["beta"] == 0.2
