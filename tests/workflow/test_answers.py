"""Prompt sets and tasks of a cell through real commands: how often its model is loaded, and what runs again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from halos.sample.backends import LOADS
from tests.workflow.conftest import CATALOGUE, Project, Run

pytestmark = pytest.mark.slow  # the finished cell that they share takes longer than 20 seconds

TASK = CATALOGUE["tasks"]["t"]
STUDY: dict[str, Any] = {
    "prompts": {"p": {"limit": 8, "max_new_tokens": 8}, "q": {"limit": 4, "max_new_tokens": 4, "samples": 2}},
    "tasks": {"t": TASK, "u": {**TASK, "limit": 5}, "v": {**TASK, "limit": 200, "batch_size": 1},
              "w": {**TASK, "limit": 6}},
    "grids.both": {"datasets": ["d"], "models": ["m"], "methods": ["base"], "judges": ["j"], "prompts": ["q"],
                   "tasks": ["t", "u", "v"]},
}  # fmt: skip
TARGETS = ("samples", "judged", "tasks")
CELL = "base/seed1"


def loads(project: Project) -> list[int]:
    """How often each log of the rule `answer` says that the model was loaded, in the order of their times."""
    logs = sorted((project.results / "logs/answer").rglob("*.log"), key=lambda path: path.stat().st_mtime)
    return [log.read_text().count(LOADS.format("results/models/m/model")) for log in logs]


def answered(run: Run) -> list[str]:
    """The jobs that answer, take out and judge."""
    return [name for name in run.names if name.split()[0] in ("answer", "sample", "task", "judge")]


@pytest.fixture(scope="module")
def cell(warm: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """A cell with its answers to two prompt sets and three tasks, and the command that made them."""
    project = warm.copy(tmp_path_factory.mktemp("cell") / "project").edit(STUDY)
    return project, project.snakemake(*TARGETS).ok()


@pytest.fixture
def done(cell: tuple[Project, Run], tmp_path: Path) -> Project:
    return cell[0].copy(tmp_path / "project")


def test_two_prompt_sets_and_three_tasks_are_one_load(cell: tuple[Project, Run]) -> None:
    project, run = cell
    assert answered(run) == [
        f"answer {CELL}", f"judge {CELL} j", f"sample {CELL} p", f"sample {CELL} q",
        f"task {CELL} t", f"task {CELL} u", f"task {CELL} v",
    ]  # fmt: skip
    assert loads(project) == [1]
    assert not list(project.results.rglob("answers"))
    assert not list((project.results / "runs").rglob("kept"))
    assert project.dry(*TARGETS).jobs == []


def test_a_task_that_is_added_is_one_more_load_and_runs_alone(done: Project) -> None:
    before = {path: path.stat().st_mtime for path in done.cell("base").glob("*/*.json*")}
    run = done.edit({"grids.both.tasks": ["t", "u", "v", "w"]}).snakemake(*TARGETS).ok()
    assert answered(run) == [f"answer {CELL}", f"task {CELL} w"]
    assert loads(done) == [1, 1]
    assert {path: path.stat().st_mtime for path in before} == before
    assert done.dry(*TARGETS).jobs == []


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        ({"tasks.u.limit": 4}, ["task u"]),
        ({"prompts.p.max_new_tokens": 6}, ["judge j", "sample p"]),
        ({"prompts.q.samples": 3, "tasks.t.metric": "acc_norm"}, ["sample q", "task t"]),
    ],
)
def test_a_change_answers_again_what_it_touches(done: Project, change: dict[str, Any], jobs: list[str]) -> None:
    named = [f"{rule} {CELL} {name}" for rule, name in map(str.split, jobs)]
    assert answered(done.edit(change).dry(*TARGETS)) == [f"answer {CELL}", *named]


def test_data_that_change_answer_again_what_is_made_from_them(quick: Project) -> None:
    data = CATALOGUE["datasets"]["d"]
    quick.edit({
        "datasets": {"d": data, "e": data}, "prompts": {**STUDY["prompts"], "q": {"dataset": "e", "limit": 2}},
        "grids.both": {**STUDY["grids.both"], "tasks": ["t"]},
    }).snakemake(*TARGETS).ok()  # fmt: skip
    again = [f"answer {CELL}", f"sample {CELL} q"]
    source = {"name": "toy", "options": {"prompts": 200, "test_prompts": 26}}
    assert answered(quick.edit({"datasets.e": {**data, "sources": [source]}}).dry(*TARGETS)) == again
    assert answered(quick.edit({"prompts.q.limit": 3}).snakemake(*TARGETS).ok()) == again
    assert quick.dry(*TARGETS).jobs == []
    source["options"]["test_prompts"] = 28
    assert answered(quick.edit({"datasets.e": {**data, "sources": [source]}}).dry(*TARGETS)) == again


def test_one_file_can_be_asked_for_alone(small: Project, done: Project) -> None:
    folder = f"results/runs/d/m/{CELL}"
    run = small.copy(done.path.with_name("fresh")).edit(STUDY).dry(f"{folder}/tasks/u.json")
    assert answered(run) == [f"answer {CELL}", f"task {CELL} u"]
    (done.path / folder / "tasks/u.json").unlink()
    assert answered(done.dry("all")) == [f"answer {CELL}", f"task {CELL} u"]
    run = small.copy(done.path.with_name("two")).edit(STUDY).dry(f"{folder}/tasks/u.json", f"{folder}/samples/q.jsonl")
    assert answered(run) == [f"answer {CELL}", f"sample {CELL} q", f"task {CELL} u"]


def test_a_new_model_answers_all_by_one_load_whatever_made_its_files(done: Project) -> None:
    done.edit({"grids.both.tasks": ["t", "u", "v", "w"], "tasks.v.limit": 9}).snakemake(*TARGETS).ok()
    assert loads(done) == [1, 1]
    run = done.edit({"models.m.seed": 7}).dry(*TARGETS)
    assert run.rules["answer"] == 1
    assert (run.rules["sample"], run.rules["task"], run.rules["judge"]) == (2, 4, 1)


def test_records_that_are_gone_are_no_reason_to_answer_again(done: Project) -> None:
    for folder in (done.path / ".snakemake").glob("metadata*"):
        folder.rename(done.path / "gone")
    assert answered(done.dry(*TARGETS)) == []


def test_answers_of_before_cells_shared_their_settings_stay_as_they_are(done: Project) -> None:
    [shared] = done.results.glob("answering/*/config.yaml")
    asked = done.cell("base") / "answering" / shared.parent.name / "asked.yaml"
    assert asked.read_text() == shared.read_text()
    asked.unlink()
    shared.rename(asked.with_name("config.yaml"))
    assert done.dry(*TARGETS).jobs == []
    assert answered(done.edit({"tasks.u.limit": 4}).dry(*TARGETS)) == [f"answer {CELL}", f"task {CELL} u"]


def test_forced_files_are_made_anew_alone(done: Project) -> None:
    assert answered(done.dry("--force", f"results/runs/d/m/{CELL}/tasks/u.json")) == [
        f"answer {CELL}", f"task {CELL} u"
    ]  # fmt: skip
    assert done.dry("--forceall", *TARGETS).rules["answer"] == 1


def test_a_task_that_fails_leaves_the_others_and_says_why(done: Project) -> None:
    changes = {"tasks.u.metric": "accc", "tasks.t.limit": 4}
    run = done.edit(changes).snakemake(*TARGETS).failed()
    assert "error: task preferences has no metric 'accc'" in run.output
    assert "Error in rule task" in run.output
    assert not list(done.results.rglob("answers"))
    run = done.edit({"tasks.u.metric": "acc_norm"}).snakemake(*TARGETS).ok()
    assert answered(run) == [f"answer {CELL}", f"task {CELL} u"]


def answering(process: Any) -> psutil.Process | None:
    """The `python -m halos answer` that a running snakemake has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[1:4] == ["-m", "halos", "answer"]:
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_kill_in_the_third_task_loses_neither_samples_nor_the_first_two(
    small: Project, cell: tuple[Project, Run], tmp_path: Path
) -> None:
    project = small.copy(tmp_path / "project").edit(STUDY)
    batches, deadline = project.cell("base") / "answering", time.monotonic() + 120
    with project.started(*TARGETS) as (process, log):
        while not list(batches.glob("*/kept/tasks/u-*")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        victim = answering(process)
        assert victim is not None
        victim.kill()
        assert process.wait(60) != 0
    times = {
        path.name.split("-")[0]: path.stat().st_mtime_ns for path in batches.glob("*/kept/*/*") if path.name[0] != "."
    }
    assert set(times) == {"p", "q", "t", "u"}
    assert not list(project.cell("base").glob("tasks/*"))
    again = project.snakemake(*TARGETS).ok()
    assert again.rules["answer"] == 1
    [said] = [path.read_text() for path in (project.results / "logs/answer").rglob("*.log")]
    assert said.count("finished by an earlier attempt") == 4
    for path in cell[0].cell("base").glob("samples/*"):
        assert (project.cell("base") / "samples" / path.name).read_bytes() == path.read_bytes()
    assert not list(batches.glob("*/kept"))
