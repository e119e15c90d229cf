"""`watch`: a table of what is trained now, from the files of a training that runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from halos.cli import main
from halos.study.watch import table
from halos.train.log import TRAINING
from halos.train.trainer import Trainer
from tests.conftest import World


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a table, by the columns that its head has."""
    head, rule, *lines = text.splitlines()
    assert set(rule) == {"-", " "}
    names = ["run", "step", "loss", "eval loss", "margin", "accuracy", "tokens/s", "time"]
    starts = [head.index(name) if name != "loss" else head.index(" loss") + 1 for name in names]
    bounds = [slice(*pair) for pair in zip(starts, [*starts[1:], None], strict=True)]
    return [{name: line[at].strip() for name, at in zip(names, bounds, strict=True)} for line in lines]


def test_a_run_that_is_trained_is_shown_until_it_has_ended(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table before each step, by the command."""
    step, shown, results = Trainer.step, [], tmp_path / "results"

    def watched(trainer: Trainer, done: int) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["watch", "--once", "--results", str(results)]) == 0
        shown.append(rows(capsys.readouterr().out))
        return step(trainer, done)

    monkeypatch.setattr(Trainer, "step", watched)
    cell = "d/m/sft-dpo/seed1/round2"
    run = world.train(results / "runs" / cell, "dpo", changes={"eval_every": 3})
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    steps, evaluated = ([line for line in lines if line["split"] == split] for split in ("train", "eval"))
    assert [[row["run"] for row in table] for table in shown] == [[cell]] * 8
    assert [table[0]["step"] for table in shown] == [f"{done} of 8" for done in range(8)]
    assert shown[0][0] | {"eval loss": ""} == {
        "run": cell, "step": "0 of 8", "loss": "", "eval loss": "", "margin": "", "accuracy": "", "tokens/s": "",
        "time": "begins",
    }  # fmt: skip
    last = shown[-1][0]
    assert last["loss"] == f"{steps[6]['loss']:.4g}"
    assert last["eval loss"] == f"{evaluated[2]['loss']:.4g}"
    assert last["margin"] == f"{steps[6]['rewards/margin']:.4g}"
    assert last["accuracy"] == f"{steps[6]['rewards/accuracy']:.4g}"
    assert last["tokens/s"] == f"{steps[6]['tokens_per_second']:.0f}"
    assert last["time"] == "0:00:00 left"
    assert table(results) == "nothing is trained now"


def test_the_time_left_is_that_of_its_steps_and_a_log_that_does_not_grow_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "runs/d/m/kto/seed1/checkpoints"
    folder.mkdir(parents=True)
    (folder / TRAINING).write_text(json.dumps({"fingerprint": "a", "key": "b", "steps": 30}))
    lines = [{"split": "train", "step": k + 1, "loss": 0.5, "seconds": 90.0, "tokens_per_second": 1e4}
             for k in range(10)]  # fmt: skip
    log = folder / "train.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"split": "tr')  # which is being written
    for age, state in ((800, "0:30:00 left"), (1000, "silent for 0:16:40")):
        for path in (log, folder / TRAINING):
            os.utime(path, (time.time() - age,) * 2)
        [row] = rows(table(tmp_path))
        assert (row["step"], row["margin"]) == ("10 of 30", "")
        assert row["time"] == state


def test_a_results_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--once", "--results", str(tmp_path / "result")]) == 1
    assert capsys.readouterr().err.startswith(f"error: there is no {tmp_path}/result: name the results folder")
