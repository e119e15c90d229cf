"""The small study as jobs of a real Slurm: what they ask for, and that they make what one machine makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterProject
from tests.workflow.conftest import ROOT, Job, Project, Run

GRID = ("--config", "grid=pair", "--", "all")
CELLS = ("sft", "sft-dpo")
GPU_RULES = {"train_cell", "reference", "answer"}
LOCAL_RULES = {"all", "configure", "check", "sample", "judge", "task", "join", "gather"}


@dataclass(frozen=True)
class Study:
    """The same grid, made on the cluster and on this machine alone."""

    slurm: ClusterProject
    local: Project
    run: Run


@pytest.fixture(scope="module")
def study(on_cluster: ClusterProject, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    slurm, local = on_cluster.copy(folder / "slurm"), on_cluster.local.copy(folder / "local")
    with local.started(*GRID) as (process, log):
        run = slurm.snakemake(*GRID, timeout=900).ok()
        assert process.wait(300) == 0, log.read_text()
    return Study(slurm, local, run)


def submitted(project: ClusterProject) -> dict[str, list[str]]:
    """What each Slurm job of a folder is about -> its GPUs, memory, cores, time limit and state."""
    form = "--format=%Z|%k|%b|%m|%C|%l|%T"
    lines = project.cluster.run(["squeue", "--states=all", "--noheader", form]).splitlines()
    found = (line.split("|") for line in lines)
    return {about: rest for folder, about, *rest in found if folder == str(project.path)}


def comment(job: Job) -> str:
    """What Slurm is told that a job is about."""
    return "_".join([f"rule_{job.rule}_wildcards", *job.wildcards.values()]).replace("/", "_")


def test_jobs_ask_slurm_for_what_the_models_entry_says(study: Study) -> None:
    """As its entry says: 1 GPU, 2 GB, 1 core, 20 minutes. The judge is a program, and has a default of its own."""
    jobs = submitted(study.slurm)
    of_model = {job.rule: jobs[comment(job)] for job in study.run.jobs if job.rule in GPU_RULES}
    assert of_model.keys() == GPU_RULES
    for rule, asked in of_model.items():
        assert asked == ["gres:gpu:1", "2000M", "1", "20:00", "COMPLETED"], rule
    (judge,) = {tuple(jobs[comment(job)]) for job in study.run.jobs if job.rule == "decide"}
    assert judge == ("N/A", "4000M", "1", "1:00:00", "COMPLETED")


def test_a_rule_without_resources_gets_the_profiles(study: Study) -> None:
    assert submitted(study.slurm)["rule_prepare_wildcards_d"] == ["N/A", "8000M", "1", "2:00:00", "COMPLETED"]


def test_cheap_rules_run_beside_the_driver_and_all_others_once_as_jobs(study: Study) -> None:
    rules = {job.rule for job in study.run.jobs}
    assert {"configure", "check"} < rules
    wanted = [comment(job) for job in study.run.jobs if job.rule not in LOCAL_RULES]
    assert sorted(submitted(study.slurm)) == sorted(wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_those_of_one_machine_bit_for_bit(study: Study, cell: str) -> None:
    theirs, ours = (load_file(p.cell(cell) / "model/model.safetensors") for p in (study.slurm, study.local))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    "file",
    [
        "tables/pair/main.md",
        "tables/pair/main.csv",
        "tables/pair/comparisons.md",
        "tables/pair/benchmarks.csv",
        "runs/d/m/sft-dpo/seed1/samples/p.jsonl",
        "runs/d/m/sft-dpo/seed1/judged/j.json",
    ],
)
def test_tables_samples_and_judgements_are_those_of_one_machine(study: Study, file: str) -> None:
    assert (study.slurm.results / file).read_bytes() == (study.local.results / file).read_bytes()


def test_a_study_made_on_the_cluster_is_finished_for_one_machine_too(study: Study) -> None:
    """No rule reruns because another profile, other resources or another machine made its files."""
    assert "Nothing to be done" in study.slurm.local.dry(*GRID).output


def test_no_job_asks_for_more_than_the_site_allows(on_cluster: ClusterProject, tmp_path: Path) -> None:
    """However often it is tried again: the profile's limits hold for each job, whatever its model's entry says."""
    project = on_cluster.copy(tmp_path / "project")
    project.edit({"models.m.resources.runtime": 60 * 24 * 365, "models.m.resources.mem_gb": 10**6})
    run = project.dry(*GRID)
    asked = {(job.resources["runtime"], job.resources["mem_mb"]) for job in run.jobs if job.rule == "train_cell"}
    assert asked == {("2880", "1000000")}


def test_a_training_knows_when_slurm_ends_its_job(cluster: Cluster) -> None:
    """Whatever limit its rule was given: the site's, or what is left when it starts, may be shorter."""
    ask = "from halos.distributed.slurm import time_limit as t; print(t(600), t(1), t(None))"
    said = cluster.run(["srun", "--time=5", str(ROOT / ".venv/bin/python"), "-c", ask], ROOT).split()
    long, short, none = map(float, said)
    assert 3 < long <= 5
    assert short == 1
    assert 3 < none <= 5
    unlimited = cluster.run(["srun", str(ROOT / ".venv/bin/python"), "-c", ask], ROOT).split()
    assert unlimited == ["600", "1", "None"]
