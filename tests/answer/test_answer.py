"""One load for prompt sets and tasks: the same samples and scores as apart, and what is kept of a stopped run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from halos.answer import run as answers
from halos.errors import HalosError
from halos.evaluate.tasks.task import evaluate
from halos.sample.backends import LOADS
from halos.sample.run import sample
from halos.settings import dump
from tests.conftest import World

TASK = {"task": None, "local": "preferences", "metric": "acc", "limit": 8, "num_fewshot": None, "batch_size": 4}
PROMPTS: dict[str, dict[str, Any]] = {
    "few": {"limit": 3, "samples": 2, "max_new_tokens": 6},
    "long": {"limit": 6, "temperature": 0.0, "max_new_tokens": 40, "stop": ["e"]},
}
TASKS: dict[str, dict[str, Any]] = {
    "t": TASK,
    "u": {**TASK, "limit": 5, "metric": "acc_norm"},
    "v": {**TASK, "batch_size": 2},
}


@dataclass(frozen=True)
class Case:
    """A folder in which a base model answers."""

    world: World
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "answers"

    @property
    def test(self) -> Path:
        return self.world.results / "data/d/test.parquet"

    @property
    def cell(self) -> Path:
        return self.world.slice("runs/d/m/base/seed1")

    def answer(self, prompts: dict[str, Any] = PROMPTS, tasks: dict[str, Any] = TASKS, **changes: Any) -> Path:
        content = {"prompts": prompts, "tasks": {name: {"task_id": name, **task} for name, task in tasks.items()}}
        (self.folder / "batch.yaml").write_text(dump(content))
        options: dict[str, Any] = {
            "config": self.folder / "batch.yaml", "cell": self.cell, "model": self.world.base / "model",
            "manifest": self.world.base / "manifest.json", "store": self.world.store, "output": self.output,
            "kept": self.folder / "kept", "feedback": [self.test] * len(prompts), "local": [self.test] * len(tasks),
            "batch": 4,
        }  # fmt: skip
        answers.answer(**{**options, **changes})
        return self.output

    def apart(self, kind: str, name: str) -> Path:
        """The same by the verb that answers it alone."""
        config, output = self.folder / f"{name}.yaml", self.folder / "apart" / name
        output.parent.mkdir(exist_ok=True)
        model = self.world.base / "model"
        if kind == "prompts":
            config.write_text(dump(PROMPTS[name]))
            sample(self.cell, [config], [self.test], model, self.world.store, [output], 4)
        else:
            config.write_text(dump({"task_id": name, **TASKS[name]}))
            evaluate(config, model, output, self.test)
        return output


@pytest.fixture
def case(world: World, tmp_path: Path) -> Case:
    return Case(world, tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def scores(path: Path) -> dict[str, Any]:
    """A task's result, without what the clock says and where its documents were."""
    content = json.loads(path.read_text())
    return {key: content[key] for key in ("results", "versions", "n-shot", "n-samples", "config", "halos")}


def test_samples_and_scores_are_those_of_the_verbs_that_answer_one_alone(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    output = case.answer()
    assert capfd.readouterr().err.count(LOADS.format(case.world.base / "model")) == 1
    assert files(output) == ["samples/few.jsonl", "samples/long.jsonl", "tasks/t.json", "tasks/u.json", "tasks/v.json"]
    for name in PROMPTS:
        assert (output / f"samples/{name}.jsonl").read_bytes() == case.apart("prompts", name).read_bytes()
    for name in TASKS:
        assert scores(output / f"tasks/{name}.json") == scores(case.apart("tasks", name))
    assert not (case.folder / "kept").exists()


def test_what_fails_stops_none_of_the_others_and_says_why(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = {"bad": {**TASK, "metric": "accc"}, "t": TASK}
    output = case.answer({"none": {"skip": 1000}, "few": PROMPTS["few"]}, tasks)
    assert files(output) == ["samples/few.jsonl", "samples/none.failed", "tasks/bad.failed", "tasks/t.json"]
    assert "task preferences has no metric 'accc'" in (output / "tasks/bad.failed").read_text()
    assert "none is left; lower `skip`" in (output / "samples/none.failed").read_text()
    said = capfd.readouterr().err
    assert "tasks/bad.json failed:\nerror: task preferences has no metric 'accc'" in said
    assert "Traceback" not in said


def test_an_error_that_no_sentence_explains_is_kept_with_its_traceback(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(answers, "run_task", broken)
    text = (case.answer({"few": PROMPTS["few"]}, {"t": TASK}) / "tasks/t.failed").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("RuntimeError: out of something\n")


def test_a_batch_of_which_everything_fails_fails(case: Case) -> None:
    with pytest.raises(HalosError, match="has no metric 'accc'"):
        case.answer({}, {"bad": {**TASK, "metric": "accc"}})
    assert not case.output.exists()


class Killed(BaseException):
    """Ends a run as a signal does."""


@pytest.fixture
def stopped(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run that was stopped in its third task, and the tasks that later runs go through."""
    run: list[str] = []

    def stopping(settings: Any, *rest: Any) -> None:
        if settings.task_id == "v":
            raise Killed
        real(settings, *rest)

    def counting(settings: Any, *rest: Any) -> None:
        run.append(settings.task_id)
        real(settings, *rest)

    real = answers.run_task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "run_task", stopping)
        with pytest.raises(Killed):
            case.answer()
    assert not case.output.exists()
    monkeypatch.setattr(answers, "run_task", counting)
    return run


def test_a_stopped_run_goes_on_at_the_task_that_it_was_at(
    case: Case, stopped: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    output = case.answer()
    assert stopped == ["v"]
    said = capfd.readouterr().out
    assert [line.split(": finished")[0] for line in said.splitlines() if "finished by an earlier" in line] == [
        "samples/few.jsonl", "samples/long.jsonl", "tasks/t.json", "tasks/u.json"
    ]  # fmt: skip
    assert len(files(output)) == 5
    assert not (case.folder / "kept").exists()


def test_with_another_third_task_the_first_two_are_still_those_of_the_stopped_run(
    case: Case, stopped: list[str]
) -> None:
    case.answer(tasks={**TASKS, "v": {**TASK, "batch_size": 1}})
    assert stopped == ["v"]


def test_another_batch_begins_with_what_the_stopped_run_has_finished(case: Case, stopped: list[str]) -> None:
    kept = case.folder / "kept"
    left = files(kept)
    case.answer(tasks={**TASKS, "w": {**TASK, "limit": 3}}, kept=case.folder / "other", earlier=[kept])
    assert stopped == ["v", "w"]
    assert files(kept) == left  # its run may not have ended
    assert not (case.folder / "other").exists()


def test_another_batch_goes_on_where_a_stopped_run_was_in_its_samples(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(self: Any, requests: Any, *rest: Any) -> Any:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise Killed
        return real(self, requests, *rest)

    real, chunks = answers.Transformers.generate, 0
    monkeypatch.setattr(answers.Transformers, "generate", stopping)
    with pytest.raises(Killed):
        case.answer({"few": PROMPTS["few"]}, {})
    chunks = 2
    output = case.answer({"few": PROMPTS["few"]}, {}, kept=case.folder / "other", earlier=[case.folder / "kept"])
    assert chunks == 3  # the second of its two chunks
    assert (output / "samples/few.jsonl").read_bytes() == case.apart("prompts", "few").read_bytes()


def test_one_whose_file_is_gone_fails_alone(case: Case) -> None:
    files_ = [case.test, case.folder / "gone.parquet"]
    output = case.answer(dict.fromkeys(("few", "more"), PROMPTS["few"]), {}, feedback=files_)
    assert files(output) == ["samples/few.jsonl", "samples/more.failed"]


def test_what_another_model_has_answered_is_not_taken(case: Case, stopped: list[str]) -> None:
    manifest = case.folder / "manifest.json"
    content = json.loads((case.world.base / "manifest.json").read_text())
    manifest.write_text(json.dumps({**content, "seconds": 1.0}))
    case.answer(manifest=manifest)
    assert stopped == ["t", "u", "v"]
