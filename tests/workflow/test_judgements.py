"""Judgements of many cells through real commands: how often the reward model is loaded, and what is judged again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from halos.sample.backends import LOADS
from tests.workflow.conftest import CATALOGUE, Project, Run

pytestmark = pytest.mark.slow  # the finished study that they share takes longer than 20 seconds

MODEL = "results/runs/d/m/rm/seed1/model"
METHODS = ["base", "sft", "simpo"]
STUDY: dict[str, Any] = {
    "stages.rm": {"loss": "bradley_terry", "batch_size": 8, "examples": 16},
    "judges": {
        "j": CATALOGUE["judges"]["j"],
        "r": {"kind": "reward_model", "reward_model": "rm", "prompts": "p"},
        "close": {"kind": "reward_model", "reward_model": "rm", "prompts": "p", "tie_margin": 0.5},
    },
    "grids.both": {"datasets": ["d"], "models": ["m"], "methods": METHODS, "judges": ["r", "j", "close"]},
}
JUDGED = sorted(f"judge {method}/seed1 {judge}" for method in METHODS for judge in STUDY["judges"])


def judging(run: Run) -> list[str]:
    """The jobs that judge and take judgements out."""
    return [name for name in run.names if name.split()[0] in ("decide", "judge")]


def loads(project: Project) -> list[int]:
    """How often each batch has loaded the reward model, in the order of their times."""
    logs = sorted((project.results / "logs/decide").glob("*.log"), key=lambda path: path.stat().st_mtime)
    return [log.read_text().count(LOADS.format(MODEL)) for log in logs]


def judgements(project: Project) -> dict[Path, tuple[bytes, int]]:
    """{path below the project: content and time} of all judgements."""
    found = sorted((project.results / "runs").rglob("judged/*.json"))
    return {path.relative_to(project.path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def study(warm: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """Three cells, each judged by a verifier and twice by one reward model, and the command that judged them."""
    project = warm.copy(tmp_path_factory.mktemp("judged") / "project").edit(STUDY)
    return project, project.snakemake("judged").ok()


@pytest.fixture
def done(study: tuple[Project, Run], tmp_path: Path) -> Project:
    return study[0].copy(tmp_path / "project")


def test_a_reward_model_is_loaded_once_for_all_cells_and_all_judges_that_name_it(study: tuple[Project, Run]) -> None:
    project, run = study
    assert judging(run) == ["decide KEY", "decide KEY", *JUDGED]
    assert sorted(loads(project)) == [0, 1]
    assert not list(project.results.rglob("judgements"))
    assert not list(project.results.rglob("kept/*"))
    assert project.dry("judged").jobs == []


def test_a_judgement_is_what_the_verb_judge_makes_of_its_cell_alone(done: Project) -> None:
    cell = done.cell("simpo")
    subprocess.run(
        ["python", "-m", "halos", "judge", "--config", "results/judges/r/config.yaml", "--samples",
         str(cell / "samples/p.jsonl"), "--feedback", "results/data/d/test.parquet", "--output", "alone.json",
         "--reward-model", MODEL, str(Path(MODEL).with_name("manifest.json")), "--tokens-per-microbatch", "2048"],
        cwd=done.path, env=done.environment(), check=True, timeout=120,
    )  # fmt: skip
    assert (done.path / "alone.json").read_bytes() == (cell / "judged/r.json").read_bytes()


def test_a_cell_that_is_added_is_judged_alone(done: Project) -> None:
    before = judgements(done)
    run = done.edit({"grids.both.methods": [*METHODS, "dpo"]}).snakemake("judged").ok()
    assert judging(run) == ["decide KEY", "decide KEY", *(f"judge dpo/seed1 {judge}" for judge in ("close", "j", "r"))]
    assert sorted(loads(done)) == [0, 0, 1, 1]
    assert {path: judgements(done)[path] for path in before} == before
    assert done.dry("judged").jobs == []


@pytest.mark.parametrize(
    ("change", "judges"),
    [
        ({"judges.close.tie_margin": 0.1}, ["close"]),
        ({"stages.rm.lr": 1e-4}, ["close", "r"]),
        ({"prompts.p.max_new_tokens": 6}, ["close", "j", "r"]),
        ({"judges.r.label": "R", "models.m.resources.tokens_per_microbatch": 512}, []),
    ],
)
def test_a_change_judges_again_what_it_touches_by_one_process_for_each_scorer(
    done: Project, change: dict[str, Any], judges: list[str]
) -> None:
    scorers = {"close": "rm", "r": "rm", "j": "toy"}
    named = sorted(f"judge {method}/seed1 {judge}" for method in METHODS for judge in judges)
    batches = ["decide KEY"] * len({scorers[judge] for judge in judges})
    assert judging(done.edit(change).dry("judged")) == [*batches, *named]


def test_a_cell_that_cannot_be_trained_delays_the_others_by_one_command(done: Project) -> None:
    """Two cells are added, and in the place of one's checkpoints is a file."""
    methods = [*METHODS, "dpo", "kto"]
    done.edit({"grids.both": {**STUDY["grids.both"], "methods": methods, "judges": ["j"]}})
    in_the_way = done.cell("kto") / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    assert done.snakemake("judged").code != 0
    assert not list(done.cell("dpo").glob("judged/*"))
    assert done.snakemake("judged").code != 0
    assert (done.cell("dpo") / "judged/j.json").is_file()
    in_the_way.unlink()
    assert judging(done.dry("judged")) == ["decide KEY", "judge kto/seed1 j"]


def test_judgements_of_before_there_were_batches_stay_as_they_are(done: Project) -> None:
    """Each was a job's that read its own files, as Snakemake has recorded."""
    for record in filter(Path.is_file, (done.path / ".snakemake/metadata").rglob("*")):
        content = json.loads(record.read_text())
        if content.get("rule") == "judge":
            files = ["results/judges/j/config.yaml", "results/data/d/test.parquet"]
            record.write_text(json.dumps({**content, "input": sorted(files)}))
    shutil.rmtree(done.results / "judging")
    assert done.dry("judged").jobs == []
    run = done.edit({"judges.close.tie_margin": 0.1}).dry("judged")
    assert judging(run) == ["decide KEY", *(f"judge {method}/seed1 close" for method in METHODS)]


def deciding(process: Any) -> psutil.Process | None:
    """The `python -m halos decide` that a running snakemake has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[1:4] == ["-m", "halos", "decide"]:
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_kill_in_the_third_cell_loses_nothing_of_the_first_two(small: Project, done: Project) -> None:
    before = judgements(done)
    for path in before:
        (done.path / path).unlink()
    project = Project(done.path, python=small.python)  # processes of its own, to kill one
    project.edit({"grids.both.judges": ["r"]})
    kept, deadline = project.results / "judging/kept", time.monotonic() + 120
    with project.started("judged") as (process, log):
        while len(list(kept.rglob("r-*.json"))) < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        victim = deciding(process)
        assert victim is not None
        victim.kill()
        assert process.wait(60) != 0
    times = {path.name: path.stat().st_mtime_ns for path in kept.rglob("r-*.json") if path.name[0] != "."}
    assert len(times) >= 2
    assert not judgements(project)
    project.edit({"grids.both.judges": ["r", "close"]}).snakemake("judged").ok()
    said = "".join(path.read_text() for path in (project.results / "logs/decide").glob("*.log"))
    assert said.count("finished by an earlier attempt") == len(times)
    assert {path: content for path, (content, _) in judgements(project).items()} == {
        path: content for path, (content, _) in before.items() if path.stem != "j"
    }
    assert not list(project.results.rglob("kept/*"))
