"""Trainings that Slurm or its user ends in the middle: each goes on from a checkpoint to the weights of one left alone.

All cells are the same but for their names, so one that nobody disturbed is the measure of all. The loss waits at each
step, so that there is time to disturb the others, while the machine's cores are free.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.conftest import ClusterProject
from tests.workflow.conftest import Run

PAUSE = 0.4
"""Seconds of each of about 90 steps: more in all than the half minute that a limit of one minute leaves."""

LOSS = """\
import time
from dataclasses import dataclass

from halos.losses.imitation import SFT
from halos.registry import LOSSES


@LOSSES.register("slow")
@dataclass(frozen=True)
class Slow(SFT):
    pause: float = 0.0

    def __call__(self, policy, reference, batch):
        time.sleep(self.pause)
        return super().__call__(policy, reference, batch)
"""

STAGE = {"loss": "slow", "lr": 1e-3, "batch_size": 8, "examples": 720, "epochs": 10, "eval_every": 1000}
LAST = 1000
"""A checkpoint after so many steps is none: what such a training goes on from, it saved when it was told to stop."""

STAGES = {
    "whole": {"pause": 0.0, "checkpoint_every": LAST},
    "cancelled": {"pause": PAUSE, "checkpoint_every": LAST},
    "requeued": {"pause": PAUSE, "checkpoint_every": LAST},
    "lost": {"pause": PAUSE, "checkpoint_every": 2},
    "limited": {"pause": PAUSE, "checkpoint_every": LAST},
    "orphaned": {"pause": PAUSE, "checkpoint_every": LAST},
    "apart": {"pause": PAUSE, "checkpoint_every": LAST},
}


@pytest.fixture(scope="module")
def prepared(on_cluster: ClusterProject, tmp_path_factory: pytest.TempPathFactory) -> ClusterProject:
    """All that the trainings read, and the one that nobody disturbs; made without Slurm."""
    project = on_cluster.copy(tmp_path_factory.mktemp("preemption") / "project")
    (project.path / "slow.py").write_text(LOSS)
    project.edit({"plugins": ["slow.py"], **{f"stages.{name}": {**STAGE, **own} for name, own in STAGES.items()}})
    configs = [f"results/runs/d/m/{stage}/seed1/config.yaml" for stage in STAGES]
    project.local.snakemake(*trained("whole"), *configs).ok()
    return project


Projects = tuple[ClusterProject, ClusterProject]


def trained(*stages: str) -> list[str]:
    return [f"results/runs/d/m/{stage}/seed1/manifest.json" for stage in stages]


def trainings(project: ClusterProject, stage: str) -> dict[str, str]:
    """The Slurm jobs that train a stage, with their states."""
    about = f"rule_train_cell_wildcards_d_m_{stage}_seed1"
    form = "--format=%i|%T|%Z|%k"
    lines = project.cluster.run(["squeue", "--states=all", "--noheader", form]).splitlines()
    found = (line.split("|") for line in lines)
    return {number: state for number, state, folder, said in found if (folder, said) == (str(project.path), about)}


def wait_for(happened: Callable[[], object], explain: Callable[[], str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def wait_for_steps(project: ClusterProject, log: Path, *stages: str, least: int = 4) -> None:
    """Return when trainings have logged some steps."""

    def steps(stage: str) -> int:
        file = project.cell(stage) / "checkpoints/train.jsonl"
        return file.read_text().count('"split": "train"') if file.exists() else 0

    wait_for(lambda: all(steps(stage) >= least for stage in stages), log.read_text)


def text_of(project: ClusterProject, stage: str) -> str:
    """The log of a training's last attempt."""
    log = project.results / f"logs/train/d/m/{stage}/seed1.log"
    return log.read_text() if log.exists() else ""


def check_went_on(project: ClusterProject, stage: str) -> None:
    """The last attempt began where another stopped, and the result is that of the training nobody disturbed."""
    began = re.search(r"going on from step (\d+) of (\d+)", text_of(project, stage))
    assert began, text_of(project, stage)
    done, steps = map(int, began.groups())
    assert 0 < done < steps
    lines = [json.loads(line) for line in (project.cell(stage) / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, steps + 1))
    weights, whole = (load_file(project.cell(name) / "model/model.safetensors") for name in (stage, "whole"))
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


# ---- what Slurm and its users do to jobs --------------------------------------------------------------------------


def drive(project: ClusterProject, node: str, *stages: str, runtime: str = "20") -> subprocess.Popen[bytes]:
    """A driver that trains stages on one node, so that the loss of the other is nothing to them."""
    extra = f"train_cell:slurm_extra='--nodelist={node}'"
    command = project.command("--set-resources", extra, f"train_cell:runtime={runtime}", "--", *trained(*stages))
    with log_of(project, stages[0]).open("wb") as log:  # it ends with the cluster, if not before
        return subprocess.Popen(command, env=project.environment(), stdout=log, stderr=log)


def log_of(project: ClusterProject, stage: str) -> Path:
    return project.path / f"driver_{stage}.log"


@pytest.fixture(scope="module")
def disturbed(prepared: ClusterProject, tmp_path_factory: pytest.TempPathFactory) -> Projects:
    """Trainings that are disturbed: three of two drivers in one folder, and in another one that loses its node."""
    cluster, apart = prepared.cluster, prepared.copy(tmp_path_factory.mktemp("lost") / "project")
    drivers = [(apart, "lost", drive(apart, "n2", "lost"))]
    drivers.append((prepared, "cancelled", drive(prepared, "n1", "cancelled", "requeued")))
    wait_for_steps(prepared, log_of(prepared, "cancelled"), "cancelled", "requeued")
    drivers.append((prepared, "limited", drive(prepared, "n1", "limited", runtime="attempt")))
    cluster.run(["scancel", *trainings(prepared, "cancelled")])
    cluster.run(["scontrol", "requeue", *trainings(prepared, "requeued")])
    wait_for_steps(apart, log_of(apart, "lost"), "lost")
    cluster.kill_node("n2")
    cluster.start_node("n2")
    for project, stage, driver in drivers:
        assert driver.wait(400) == 0, log_of(project, stage).read_text()
    return prepared, apart


def test_a_cancelled_training_saves_a_checkpoint_and_is_tried_again(disturbed: Projects) -> None:
    project, _ = disturbed
    assert sorted(trainings(project, "cancelled").values()) == ["CANCELLED", "COMPLETED"]
    check_went_on(project, "cancelled")


def test_a_requeued_training_goes_on_as_the_same_job(disturbed: Projects) -> None:
    project, _ = disturbed
    assert list(trainings(project, "requeued").values()) == ["COMPLETED"]
    check_went_on(project, "requeued")


def test_a_training_goes_on_as_the_same_job_when_its_node_is_lost(disturbed: Projects) -> None:
    _, project = disturbed
    assert list(trainings(project, "lost").values()) == ["COMPLETED"]
    check_went_on(project, "lost")


def test_a_training_stops_itself_before_slurm_would_and_is_tried_again(disturbed: Projects) -> None:
    project, _ = disturbed
    assert sorted(trainings(project, "limited").values()) == ["COMPLETED", "FAILED"], "neither is a TIMEOUT"
    check_went_on(project, "limited")


def test_a_driver_leaves_the_jobs_of_another_alone(disturbed: Projects) -> None:
    """Of two that make different files in one folder, the later one would otherwise take the first one's for left."""
    project, _ = disturbed
    assert "cancelling" not in log_of(project, "limited").read_text()


# ---- a driver that was killed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orphans(prepared: ClusterProject) -> tuple[ClusterProject, dict[str, dict[str, str]], Run]:
    """Two trainings whose driver was killed, the jobs that it left, and a later driver that makes one of the cells."""
    with prepared.started(*trained("orphaned", "apart")) as (driver, log):
        wait_for_steps(prepared, log, "orphaned", "apart")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait(30)
    left = {stage: trainings(prepared, stage) for stage in ("orphaned", "apart")}
    prepared.snakemake("--unlock").ok()
    return prepared, left, prepared.snakemake(*trained("orphaned"), timeout=300).ok()


def test_jobs_of_a_killed_driver_end_with_a_checkpoint_before_their_cell_is_trained_again(
    orphans: tuple[ClusterProject, dict[str, dict[str, str]], Run],
) -> None:
    project, left, run = orphans
    (orphan,) = left["orphaned"]
    assert left["orphaned"][orphan] == "RUNNING"
    assert f"cancelling Slurm jobs {orphan}," in run.output
    assert trainings(project, "orphaned").pop(orphan) == "CANCELLED"
    assert sorted(trainings(project, "orphaned").values()) == ["CANCELLED", "COMPLETED"]
    check_went_on(project, "orphaned")


def test_jobs_of_a_killed_driver_that_make_other_files_are_left_alone(
    orphans: tuple[ClusterProject, dict[str, dict[str, str]], Run],
) -> None:
    project, left, _ = orphans
    (orphan,) = left["apart"]
    assert left["apart"][orphan] == "RUNNING"
    wait_for(lambda: trainings(project, "apart")[orphan] == "COMPLETED", lambda: str(trainings(project, "apart")))
    assert "Nothing to be done" in project.dry(*trained("apart")).output, "what such a job has made counts"
