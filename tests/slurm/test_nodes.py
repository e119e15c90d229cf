"""Trainings over two nodes: one job each, the gradients of one process, and an end that is the end of all its parts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import NODES
from tests.slurm.conftest import ClusterProject

PLAIN = {"loss": "kto", "lr": 0.3, "optimizer": "SGD", "batch_size": 7, "examples": 28, "eval_every": 2}
"""Seven examples, which processes cannot share equally."""
ENDLESS = {**PLAIN, "lr": 1e-3, "examples": 10**6, "epochs": 10**4, "eval_every": 10**6, "checkpoint_every": 10**6}
STAGES = {"alone": PLAIN, "on_cpus": PLAIN, "on_gpus": PLAIN, "killed": ENDLESS, "signalled": ENDLESS}


@pytest.fixture(scope="module")
def spread(on_cluster: ClusterProject, tmp_path_factory: pytest.TempPathFactory) -> ClusterProject:
    """All that the trainings read, and one of them in one process, made without Slurm; the others get two nodes."""
    project = on_cluster.copy(tmp_path_factory.mktemp("nodes") / "project")
    project.edit({f"stages.{name}": stage for name, stage in STAGES.items()})
    configs = [f"results/runs/d/m/{stage}/seed1/config.yaml" for stage in STAGES]
    project.local.snakemake(manifest("alone"), *configs).ok()
    project.edit({"models.m.resources.nodes": 2, "models.m.resources.gpus": 0})
    return project


def manifest(stage: str) -> str:
    return f"results/runs/d/m/{stage}/seed1/manifest.json"


@dataclass(frozen=True)
class Job:
    number: str
    nodes: str
    state: str
    gpus: str


def jobs(project: ClusterProject, stage: str) -> list[Job]:
    """The Slurm jobs that train a stage."""
    form = "--format=%i|%N|%T|%b|%Z|%k"
    lines = project.cluster.run(["squeue", "--states=all", "--noheader", form]).splitlines()
    found = [line.split("|") for line in lines]
    return [Job(*about) for *about, folder, said in found
            if (folder, said) == (str(project.path), f"rule_train_cell_wildcards_d_m_{stage}_seed1")]  # fmt: skip


def read(project: ClusterProject, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.cell(stage) / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("gpus", "processes", "stage"), [(0, 2, "on_cpus"), (2, 4, "on_gpus")])
def test_a_training_on_two_nodes_is_one_job_and_its_gradients_are_those_of_one_process(
    gpus: int, processes: int, stage: str, spread: ClusterProject, tmp_path: Path
) -> None:
    """A node has a process for each of its GPUs; those that only Slurm knows of do not compute, so the CPU has to."""
    project = spread.copy(tmp_path / "project").edit({"models.m.resources.gpus": gpus})
    project.snakemake("--retries=0", manifest(stage), ACCELERATE_USE_CPU="true").ok()
    (job,) = jobs(project, stage)
    assert (job.nodes, job.state) == (f"{NODES[0][:-1]}[{NODES[0][-1]}-{NODES[1][-1]}]", "COMPLETED")
    assert job.gpus == (f"gres:gpu:{gpus}" if gpus else "N/A")
    assert json.loads((project.path / manifest(stage)).read_text())["processes"] == processes
    assert json.loads((project.path / manifest("alone")).read_text())["processes"] == 1
    one, several = read(project, "alone"), read(project, stage)
    assert [line["split"] for line in one].count("train") == 4
    for a, b in zip(one, several, strict=True):
        for key in {"loss", "grad_norm"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    weights, expected = (load_file(project.cell(name) / "model/model.safetensors") for name in (stage, "alone"))
    start = load_file(project.results / "models/m/model/model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        moved = tensor - start[name]
        assert float(moved.abs().max()) > 0
        torch.testing.assert_close(weights[name] - start[name], moved, rtol=1e-4, atol=1e-4 * float(moved.abs().max()))


PLACES = {"the shell of salloc": [], "its second node": ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={NODES[1]}"]}


@pytest.mark.parametrize("place", PLACES)
def test_by_hand_two_nodes_of_an_allocation_train_from_wherever_they_are_started(
    place: str, spread: ClusterProject, tmp_path: Path
) -> None:
    """The shell of salloc is on no node of the job, and the second node is not the one at which its processes meet."""
    base, run = spread.results / "runs/d/m/base/seed0", tmp_path / "run"
    references = [str(base / f"reference/{part}.safetensors") for part in ("responses", "mismatched")]
    launch = [sys.executable, "-m", "halos.distributed.launch", "--nodes", "2", "train"]
    options = {"config": spread.cell("alone") / "config.yaml", "parent": spread.results / "models/m",
               "store": spread.results / "tokens/d/m/store", "output": run, "eval-every": 2}  # fmt: skip
    words = [*launch, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    job = ["salloc", f"--nodes={len(NODES)}", "--ntasks-per-node=1", "--mem=4000", *PLACES[place]]
    environment = ["env", f"PYTHONPATH={spread.path}", "OMP_NUM_THREADS=1", "ACCELERATE_USE_CPU=true"]
    spread.cluster.run([*environment, *job, *words, "--reference", *references], spread.path, timeout=240)
    assert json.loads((run / "manifest.json").read_text())["processes"] == 2
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    for a, b in zip(read(spread, "alone"), lines, strict=True):
        for key in {"loss", "grad_norm"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)


# ---- the end of one part -------------------------------------------------------------------------------------------


def trainers(project: ClusterProject, stage: str) -> dict[str, psutil.Process]:
    """By its node, the process that trains a stage there."""
    found = {}
    for process in project.cluster.processes():
        try:
            words = process.cmdline()
            if words[1:5] == ["-u", "-m", "halos", "train"] and str(Path(manifest(stage)).parent) in words:
                found[process.environ()["SLURMD_NODENAME"]] = process
        except psutil.Error:
            continue
    return found


def wait_for(happened: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@dataclass(frozen=True)
class Ended:
    """How a training was ended: the project, the processes that it had, and what its log says."""

    project: ClusterProject
    processes: dict[str, psutil.Process]
    log: str


@pytest.fixture(scope="module")
def ended(spread: ClusterProject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Two endless trainings, started together on the same nodes: one loses a process, the other gets a signal."""
    project = spread.copy(tmp_path_factory.mktemp("ended") / "project")
    stages = ("killed", "signalled")

    def training(stage: str) -> bool:
        log = project.cell(stage) / "checkpoints/train.jsonl"
        return log.exists() and '"train"' in log.read_text()

    with project.started("--retries=0", *map(manifest, stages)) as (driver, log):
        wait_for(lambda: driver.poll() is not None or all(map(training, stages)), log)
        assert driver.poll() is None, log.read_text()
        processes = {stage: trainers(project, stage) for stage in stages}
        assert [*map(sorted, processes.values())] == [sorted(NODES)] * 2
        processes["killed"][NODES[1]].kill()
        (signalled,) = jobs(project, "signalled")
        project.cluster.run(["scancel", "--signal=TERM", signalled.number])
        assert driver.wait(240) != 0
    logs = {stage: (project.results / f"logs/train/d/m/{stage}/seed1.log").read_text() for stage in stages}
    return {stage: Ended(project, processes[stage], logs[stage]) for stage in stages}


@pytest.mark.parametrize("stage", ["killed", "signalled"])
def test_two_trainings_on_the_same_nodes_do_not_meet_and_each_ends_as_a_whole(
    stage: str, ended: dict[str, Ended]
) -> None:
    found = ended[stage]
    assert not any(process.is_running() for process in found.processes.values())
    (job,) = jobs(found.project, stage)
    assert job.state == "FAILED"
    assert not (found.project.path / manifest(stage)).exists()


def test_a_signal_reaches_all_nodes_and_leaves_a_checkpoint(ended: dict[str, Ended]) -> None:
    found = ended["signalled"]
    (checkpoint,) = (found.project.cell("signalled") / "checkpoints").glob("step*")
    stopped = f"stopped by a signal after step {checkpoint.name.removeprefix('step')} of"
    assert found.log.count(stopped) == len(NODES)
