"""The README's examples do what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from halos.data.feedback import from_row
from tests.conftest import World

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    [found] = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b]
    return str(found)


def test_the_loss_of_ones_own_trains_as_written(world: World, tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text(block("python", "class DummyKTO"))
    catalogue = yaml.safe_load(block("yaml", "dummy_kto:"))
    catalogue["plugins"] = [str(tmp_path / name) for name in catalogue["plugins"]]
    catalogue["stages"]["dummy_kto"] |= {"examples": 16, "batch_size": 8}
    rest = world.config.model_dump(mode="json", exclude={"plugins", "stages"}, exclude_unset=True)
    rest["grids"]["g"]["methods"] = ["dummy_kto"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**rest, **catalogue}))

    def halos(*words: object) -> str:
        command = [sys.executable, "-m", "halos", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(halos("config", "runs/d/m/dummy_kto/seed1", "--config", tmp_path / "config.yaml"))
    halos("train", "--config", run / "config.yaml", "--parent", world.base, "--store", world.store,
          "--reference", world.reference()[0], "--output", run)  # fmt: skip
    first, *_, last = map(json.loads, (run / "train.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(0.5)
    assert last["loss"] < 0.5
    assert json.loads((run / "manifest.json").read_text())["config"]["stage"]["beta"] == 0.2


def test_the_feedback_record_is_one() -> None:
    assert from_row(json.loads(block("json", "prompt"))).problem() is None


def test_every_command_of_the_package_that_is_shown_exists() -> None:
    from halos.cli import VERBS

    shown = set(re.findall(r"python -m halos ([a-z]+)", README))
    assert shown
    assert shown <= {*VERBS, "list", "config", "schema"}
