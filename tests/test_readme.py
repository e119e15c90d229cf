"""The examples of the README, and of the pages that it leads to, do what is said of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.throughput.__main__ import RESULTS
from benchmarks.throughput.table import markdown
from halos.data.feedback import from_row, read
from halos.data.paths import SPLITS
from halos.study import catalogue as C
from tests.conftest import World

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ADDING = (ROOT / "docs/tutorials/adding.md").read_text()
ROUNDS = (ROOT / "docs/tutorials/rounds.md").read_text()
SPEED = (ROOT / "docs/speed.md").read_text()
PAGES = [README, *(file.read_text() for file in (ROOT / "docs").rglob("*.md"))]


def block(document: str, language: str, containing: str) -> str:
    [found] = [b for b in re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL) if containing in b]
    return str(found)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_table_of_speed_is_that_of_the_results() -> None:
    assert f"\n{markdown(RESULTS)}\n\n" in SPEED


def test_the_loss_of_ones_own_trains_as_written(world: World, tmp_path: Path) -> None:
    assert block(README, "python", "class DummyKTO") == block(ADDING, "python", "class DummyKTO")
    (tmp_path / "my_losses.py").write_text(block(README, "python", "class DummyKTO"))
    catalogue = yaml.safe_load(block(README, "yaml", "dummy_kto:"))
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


def test_the_dataset_of_ones_own_is_made_as_written(tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text(block(ADDING, "python", "def helpdesk"))
    (tmp_path / "data").mkdir()
    rows = [f'"Why is it {i}?","It is {i}, since {i}.",{"" if i % 10 == 0 else "No."}\n' for i in range(100)]
    (tmp_path / "data/helpdesk.csv").write_text("question,solved,failed\n" + "".join(rows))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({
        "grid": "g", **yaml.safe_load(block(ADDING, "yaml", "plugins: [my_data.py]\n")), "models": {"m": {"path": "m"}},
        "grids": {"g": {"datasets": ["helpdesk"], "models": ["m"], "methods": ["base"]}},
    }))  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def halos(*words: str) -> str:
        command = [sys.executable, "-m", "halos", *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        ).stdout  # fmt: skip

    (tmp_path / "slice.yaml").write_text(halos("config", "data/helpdesk"))
    halos("prepare", "--config", "slice.yaml", "--train", "train.parquet", "--validation", "validation.parquet",
          "--test", "test.parquet", "--report", "report.json")  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    splits = [report[split] for split in SPLITS]
    assert sum(split["rows_out"] for split in splits) == 90
    assert sum(split["drops"].get("no failed answer", 0) for split in splits) == 10
    records = [record for split in SPLITS for record in read(tmp_path / f"{split}.parquet")]
    assert {record.responses[0] for record in records} == {f"It is {i}, since {i}." for i in range(100) if i % 10}


def test_the_labeller_and_the_online_stage_are_ones() -> None:
    catalogue = yaml.safe_load(block(ROUNDS, "yaml", "rated:"))
    config = C.load({**catalogue, "grid": "g", "models": {"m": {"path": "m"}},
                     "datasets": {"d": {"sources": [{"name": "toy"}]}},
                     "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["dpo_online"]}}})  # fmt: skip
    online = config.stages["dpo_online"].online
    assert online is not None
    assert online.rounds == 3


def test_the_feedback_record_is_one() -> None:
    assert from_row(json.loads(block(ADDING, "json", "prompt"))).problem() is None


def test_every_command_of_the_package_that_is_shown_exists() -> None:
    from halos.cli import VERBS

    shown = {verb for page in PAGES for verb in re.findall(r"python -m halos ([a-z]+)", page)}
    assert len(shown) > 5
    assert shown <= set(VERBS)
