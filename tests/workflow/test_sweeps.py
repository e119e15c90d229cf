"""Sweeps through real commands: what is tried once, what waits for the choice, and what another choice makes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.train.stage import Stage
from tests.workflow.conftest import Project

FILE = "my_study.yaml"
ARGUMENTS = ("--configfile", "config.yaml", FILE, "--", "train")
SELECT: dict[str, Any] = {"metric": "kl", "goal": "lowest"}  # on the data, where it falls with the learning rate
GRID = {"datasets": ["d"], "models": ["m"], "methods": ["dpo"], "seeds": [1, 2], "judges": ["j"]}


def study(project: Project, *rates: float, select: dict[str, Any] = SELECT, **more: Any) -> Project:
    """A sweep of the learning rate in a second config file."""
    stages = {"dpo": {"sweep": {"lr": list(rates)}, "select": select}}
    (project.path / FILE).write_text(
        yaml.safe_dump({"grid": "tuned", "stages": stages, "grids": {"tuned": GRID}, **more})
    )
    return project


def trial(rate: float) -> str:
    """The method of a trial."""
    [name] = Stage(loss="dpo", sweep={"lr": [rate]}, select=SELECT).tried
    return f"dpo~{name}"


def chosen(project: Project) -> float:
    choice = json.loads((project.results / "choices/d/m/dpo/choice.json").read_text())
    rate: float = choice["trials"][choice["chosen"]]["settings"]["lr"]
    return rate


@pytest.fixture(scope="module")
def tuned(warm: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished sweep over two learning rates, with two seeds of the chosen one."""
    project = study(warm.copy(tmp_path_factory.mktemp("tuned") / "project"), 1e-4, 1e-3)
    run = project.snakemake(*ARGUMENTS, timeout=500).ok()
    trained = [f"train_cell {method}/seed1" for method in sorted((trial(1e-4), trial(1e-3)))]
    assert [name for name in run.names if name.startswith("train_cell")] == [
        "train_cell dpo/seed1", "train_cell dpo/seed2", *trained
    ]  # fmt: skip
    assert [name for name in run.names if name.startswith("reference")] == ["reference base/seed0 responses"]
    return project


@pytest.fixture
def done(tuned: Project, tmp_path: Path) -> Project:
    return tuned.copy(tmp_path / "project")


@pytest.mark.slow
def test_the_best_trial_is_the_model_of_its_seed_and_other_seeds_are_trained_with_its_settings(done: Project) -> None:
    assert chosen(done) == 1e-3
    weights = "model/model.safetensors"
    assert (done.cell("dpo") / weights).samefile(done.cell(trial(1e-3)) / weights)
    for seed in (1, 2):
        assert yaml.safe_load((done.cell("dpo", seed) / "config.yaml").read_text())["stage"]["lr"] == 1e-3
    assert done.dry(*ARGUMENTS).jobs == []


@pytest.mark.slow
def test_a_worse_trial_more_runs_alone_and_a_better_one_makes_the_seeds_again(done: Project) -> None:
    """And without the test prompts, which no choice misses."""
    (done.results / "data/d/test.parquet").unlink()
    run = study(done, 1e-5, 1e-4, 1e-3).snakemake(*ARGUMENTS).ok()
    assert run.names == [
        "choose dpo", "configure choices/d/m/dpo", f"configure runs/d/m/{trial(1e-5)}/seed1",
        f"train_cell {trial(1e-5)}/seed1",
    ]  # fmt: skip
    assert (chosen(done), done.dry(*ARGUMENTS).jobs) == (1e-3, [])
    run = study(done, 1e-4, 1e-3, 1e-2).snakemake(*ARGUMENTS).ok()
    assert run.names == [
        "choose dpo", "configure choices/d/m/dpo", "configure runs/d/m/dpo/seed1", "configure runs/d/m/dpo/seed2",
        f"configure runs/d/m/{trial(1e-2)}/seed1", "train_cell dpo/seed1", "train_cell dpo/seed2",
        f"train_cell {trial(1e-2)}/seed1",
    ]  # fmt: skip
    assert (chosen(done), done.dry(*ARGUMENTS).jobs) == (1e-2, [])


@pytest.mark.slow
def test_the_best_snapshot_is_the_model_of_its_seed_and_other_seeds_end_where_it_does(
    warm: Project, tmp_path: Path
) -> None:
    """Without a sweep. The log-ratio falls with each step, so that the first snapshot is closest to the reference."""
    project = study(warm.copy(tmp_path / "project"))
    overlay = yaml.safe_load((project.path / FILE).read_text())
    select = {"metric": "kl", "goal": "highest", "checkpoint": "best"}
    overlay["stages"] = {"dpo": {"snapshots": 2, "select": select}}
    (project.path / FILE).write_text(yaml.safe_dump(overlay))
    run = project.snakemake(*ARGUMENTS, timeout=500).ok()
    [trained] = [name for name in run.names if "~" in name and name.startswith("train_cell")]
    method = trained.removeprefix("train_cell ").removesuffix("/seed1")
    assert [name for name in run.names if name.startswith("snapshot")] == [f"snapshot {trained.split()[1]}"]
    choice = json.loads((project.results / "choices/d/m/dpo/choice.json").read_text())
    assert choice["chosen"] == f"{method.removeprefix('dpo~')}.1"
    weights = "model/model.safetensors"
    assert (project.cell("dpo") / weights).samefile(project.cell(method) / "snapshot1" / weights)
    assert len((project.cell("dpo", 2) / "train.jsonl").read_text().splitlines()) == 2 + 2  # steps, evaluations
    assert project.dry(*ARGUMENTS).jobs == []


JUDGED: dict[str, Any] = {
    "prompts": {"v": {"split": "validation", "limit": 8, "max_new_tokens": 8}},
    "judges": {
        "jv": {"kind": "verifier", "verifier": "toy", "prompts": "v", "baseline": {"method": "base", "seed": 0}}
    },
}


def test_trials_answer_validation_prompts_alone_and_no_choice_depends_on_a_test_file(
    small: Project, tmp_path: Path
) -> None:
    project = study(small.copy(tmp_path / "project"), 1e-4, 1e-3, select={"judge": "jv"}, **JUDGED)
    run = project.dry("--configfile", "config.yaml", FILE, "--", "all")
    trials = sorted((trial(1e-4), trial(1e-3)))
    sampled = [name for name in run.names if name.startswith(("sample", "judge"))]
    assert sampled == [
        "judge dpo/seed1 j", "judge dpo/seed2 j", *(f"judge {method}/seed1 jv" for method in trials),
        "sample base/seed0 v", "sample dpo/seed1 p", "sample dpo/seed2 p",
        *(f"sample {method}/seed1 v" for method in trials),
    ]  # fmt: skip
    made = {file: job for job in run.jobs for file in job.fields.get("output", "").split(", ")}
    upstream, wanted = set(), ["results/choices/d/m/dpo/choice.json"]
    while wanted:
        file = wanted.pop()
        if file and file not in upstream:
            upstream.add(file)
            wanted += made[file].input if file in made and made[file].rule != "prepare" else []
    assert "results/data/d/validation.parquet" in upstream
    assert [file for file in upstream if "test" in file] == []
    last = {job.name for job in run.jobs if "results/data/d/test.parquet" in job.input}
    assert {"answer dpo/seed1", "decide KEY"} <= last  # else nothing would be looked for


def test_trials_are_judged_by_one_process_before_the_choice_and_what_is_chosen_by_another(
    warm: Project, tmp_path: Path
) -> None:
    project = study(warm.copy(tmp_path / "project"), 1e-4, 1e-3, select={"judge": "jv"}, **JUDGED)
    arguments = ("--configfile", "config.yaml", FILE, "--", "judged")
    run = project.snakemake(*arguments).ok()
    decided = [job.input for job in run.jobs if job.rule == "decide"]
    methods = [sorted({Path(path).parts[4] for path in files if path.endswith(".jsonl")}) for files in decided]
    assert sorted(methods) == [["base", *sorted((trial(1e-4), trial(1e-3)))], ["dpo"]]
    assert project.dry(*arguments).jobs == []


def test_snapshots_are_judged_on_validation_prompts_with_what_training_began_with(
    small: Project, tmp_path: Path
) -> None:
    stages = {"kto": {"snapshots": 3}}
    grids = {"tuned": {**GRID, "methods": ["sft-kto"], "seeds": [1], "snapshots": ["jv"], "divergence": 4}}
    project = study(small.copy(tmp_path / "project"), 1e-4, **{**JUDGED, "stages": stages, "grids": grids})
    run = project.dry("--configfile", "config.yaml", FILE, "--", "all")
    assert [name for name in run.names if name.startswith(("divergence", "judge", "snapshot"))] == [
        # the end of the training, on the grid's prompts too; and none of what it begins with, which is the reference
        "divergence sft-kto/seed1 p", "divergence sft-kto/seed1 v",
        "divergence sft-kto/seed1/snapshot1 v", "divergence sft-kto/seed1/snapshot2 v",
        "judge sft-kto/seed1 j", "judge sft-kto/seed1 jv", "judge sft-kto/seed1/snapshot1 jv",
        "judge sft-kto/seed1/snapshot2 jv", "judge sft/seed1 jv",
        "snapshot sft-kto/seed1", "snapshot sft-kto/seed1",
    ]  # fmt: skip
    assert any("figures/tuned/course.svg" in job.fields.get("output", "") for job in run.jobs)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "test prompts": ({"select": {"judge": "j"}}, "j judges answers to p, test prompts: name a judge whose prompts"),
    "a task of test prompts": ({"select": {"task": "t"}}, "t is made of test prompts: name a task with"),
    "a task of the grid": ({"select": {"task": "v"}, "tasks": {"v": {"local": "preferences", "split": "validation"}},
                            "grids": {"tuned": {**GRID, "tasks": ["v"]}}}, "v is one of the grid's tasks"),
    "an unknown judge": ({"select": {"judge": "k"}}, "stages.dpo.select.judge: there is no 'k' in judges"),
    "snapshots on test prompts": ({"stages": {"dpo": {"snapshots": 3}},
                                   "grids": {"tuned": {**GRID, "snapshots": ["j"]}}},
                                  "grids.tuned.snapshots: j judges answers to p, test prompts"),
    "snapshots that none takes": ({"grids": {"tuned": {**GRID, "snapshots": ["jv"]}}}, "none of its methods takes any"),
    "the best of no snapshots": ({"select": {"judge": "jv", "checkpoint": "best"}},
                                 "say between how many, as snapshots: 8"),
    "a baseline that is chosen": ({"select": {"judge": "jv"}, "judges": {"jv": {
        **JUDGED["judges"]["jv"], "baseline": {"method": "dpo"}}}}, "what chooses its settings is made from"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_choice_that_cannot_be_is_refused_before_any_job(mistake: str, small: Project, tmp_path: Path) -> None:
    changes, words = MISTAKES[mistake]
    project = study(small.copy(tmp_path / "project"), 1e-4, 1e-3, **{**JUDGED, **changes})
    run = project.snakemake("-n", *ARGUMENTS).failed()
    assert words in run.output
