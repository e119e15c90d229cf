"""Early stopping: when a training ends, and that the weights of the best evaluation are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.settings import dump, read_slice
from halos.train.checkpoints import Checkpoints
from halos.train.early import EarlyStopping
from halos.train.run import train
from halos.train.slices import RunSlice, stage_slice
from halos.train.stage import Stage
from halos.train.stopping import Stopped, Stopping
from tests.conftest import World
from tests.distributed.processes import run_verbs
from tests.distributed.test_sharding import command
from tests.models.test_models import LORA
from tests.train.runs import assert_equal, log

ROUGH: dict[str, Any] = {
    "batch_size": 8, "examples": 96, "warmup": 0, "scheduler": "constant", "eval_every": 1, "checkpoint_every": 3,
}  # fmt: skip
"""Twelve steps, each of them followed by an evaluation."""
RUNS: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "dpo": ("dpo", {"lr": 3e-2}, 4, 3, 7),
    "simpo": ("simpo", {"lr": 1e-2}, 3, 7, 10),
    "live reference": ("kto", {"lr": 1e-2, "humanline": True}, 3, 2, 5),
    "lora": ("lora", {"lr": 5e-2, "lora": {**LORA, "dropout": 0.1}}, 3, 5, 8),
    "value head": ("ppo", {"lr": 1e-2}, 3, 2, 5),
}
"""name -> stage, changes, patience, step of the best evaluation, step at which it ends: learning rates that are too
high, so that evaluations get better and worse."""


# ---- the decision ----------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "settings", "best", "is_over"),
    [
        ([], {"patience": 1}, None, False),
        ([3.0], {"patience": 1}, 0, False),
        ([3.0, 2.0, 2.5], {"patience": 2}, 1, False),
        ([3.0, 2.0, 2.5, 2.2], {"patience": 2}, 1, True),
        ([3.0, 2.0, 2.0, 2.0], {"patience": 2}, 1, True),  # an equal one is no better, and the first is published
        ([3.0, 2.0, 2.5, 1.9, 2.0], {"patience": 2}, 3, False),  # in a row
        (
            [1.0, 0.875, 0.75],
            {"patience": 2, "min_delta": 0.125},
            2,
            True,
        ),  # the best, though by no more than min_delta
        ([1.0, 0.875, 0.625, 0.5], {"patience": 2, "min_delta": 0.125}, 3, False),
        ([NAN, 2.0, NAN], {"patience": 2}, 1, False),
        ([NAN, NAN], {"patience": 1}, 0, True),
    ],
)
def test_a_training_ends_after_evaluations_in_a_row_that_are_no_better_than_the_best(
    values: list[float], settings: dict[str, Any], best: int | None, is_over: bool
) -> None:
    lines = [{"step": 10 * k, "loss": value, "rewards/accuracy": -value} for k, value in enumerate(values)]
    expected = (None if best is None else 10 * best, is_over)
    for chosen in ({}, {"metric": "rewards/accuracy"}, {"metric": "rewards/accuracy", "goal": "highest"}):
        course = EarlyStopping(**settings, **chosen).course(lines)
        assert (course.best, course.is_over) == expected
    turned = [{**line, "loss": line["rewards/accuracy"]} for line in lines]
    course = EarlyStopping(**settings, goal="highest").course(turned)
    assert (course.best, course.is_over) == expected


# ---- runs ------------------------------------------------------------------------------------------------------


def changes_of(name: str) -> tuple[str, dict[str, Any]]:
    stage, changes, patience, _, _ = RUNS[name]
    return stage, {**ROUGH, **changes, "early_stopping": {"patience": patience}}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a run and its folder."""
    stage, changes = changes_of(request.param)
    return request.param, world.train(tmp_path_factory.mktemp("early") / "run", stage, changes=changes)


def test_the_weights_of_the_best_evaluation_are_published_and_the_log_keeps_all_lines(
    run: tuple[str, Path], world: World, tmp_path: Path
) -> None:
    name, folder = run
    stage, changes, _, best, end = RUNS[name]
    whole = world.train(tmp_path / "whole", stage, changes={**ROUGH, **changes})
    losses = {line["step"]: line["loss"] for line in log(whole) if line["split"] == "eval" and line["step"] <= end}
    assert min(losses, key=losses.__getitem__) == best
    assert log(folder) == [line for line in log(whole) if line["step"] <= end]
    ended = world.train(tmp_path / "ended", stage, changes={**ROUGH, **changes, "examples": 8 * best})
    assert_equal(ended, folder)
    manifest, other = (Manifest.read(path / "manifest.json") for path in (folder, whole))
    assert (manifest.steps, manifest.stopped_early) == (best, end)
    assert (other.steps, other.stopped_early) == (12, None)
    assert manifest.value_head == Manifest.read(ended / "manifest.json").value_head
    assert not (folder / "checkpoints").exists()


def test_a_run_that_is_stopped_and_resumed_ends_at_the_same_step_with_the_same_weights(
    run: tuple[str, Path], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step, after two more, and after one or two more, so right before its end, too."""
    name, whole = run
    stage, changes = changes_of(name)
    asked, stops = 0, [1, 3, RUNS[name][4] - 1]

    def reason(stopping: Stopping, accelerator: Any) -> str | None:
        nonlocal asked
        asked += 1
        return "a test" if asked in stops else None

    monkeypatch.setattr(Stopping, "reason", reason)
    for step in sorted(set(stops)):
        with pytest.raises(Stopped, match=f"stopped by a test after step {step} of 12"):
            world.train(tmp_path / "run", stage, changes=changes)
        assert len(list((tmp_path / "run/checkpoints").glob("step*"))) <= 2
    world.train(tmp_path / "run", stage, changes=changes)
    assert_same(whole, tmp_path / "run")


def assert_same(one: Path, other: Path) -> None:
    assert_equal(one, other)
    assert log(one) == log(other)
    ours, theirs = (Manifest.read(path / "manifest.json") for path in (one, other))
    for field in ("steps", "stopped_early", "tokens", "value_head", "weights"):
        assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize("moment", ["between the line and the file", "before older files are removed", "at the end"])
@pytest.mark.parametrize("kind", ["simpo", "lora"])
def test_a_run_that_is_killed_where_it_keeps_the_best_weights_ends_the_same(
    kind: str, moment: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every evaluation that is the best so far, the first one among them, and while it publishes."""
    stage, changes = changes_of(kind)
    whole = world.train(tmp_path / "whole", stage, changes=changes)
    best, killed, write = RUNS[kind][3], set(), Checkpoints.write
    values = [(line["loss"], line["step"]) for line in log(whole) if line["split"] == "eval"]
    records = {step for k, (value, step) in enumerate(values) if all(value < earlier for earlier, _ in values[:k])}
    assert {0, best} < records

    def dies(saved: Checkpoints, path: Path, step: int, *rest: Any) -> None:
        late = moment == "before older files are removed"
        if late or step in killed or step not in records:
            write(saved, path, step, *rest)
        if step in records and step not in killed:
            killed.add(step)
            raise KeyboardInterrupt

    def publishes(manifest: Manifest, path: Path) -> None:
        raise KeyboardInterrupt

    folder, deaths = tmp_path / "run", 0
    with monkeypatch.context() as patch:
        patch.setattr(*((Manifest, "write", publishes) if moment == "at the end" else (Checkpoints, "write", dies)))
        for _ in records if moment != "at the end" else [0]:
            with pytest.raises(KeyboardInterrupt):
                world.train(folder, stage, changes=changes)
            deaths += 1
            assert not (folder / "manifest.json").exists()
    assert deaths == (1 if moment == "at the end" else len(records))
    world.train(folder, stage, changes=changes)
    assert_same(whole, folder)


def test_a_run_that_gets_no_better_publishes_what_it_began_with_and_one_that_always_does_its_end(
    world: World, tmp_path: Path
) -> None:
    changes = {**ROUGH, "lr": 1e-3, "examples": 48}
    for goal, steps, stopped in (("highest", 0, 2), ("lowest", 6, None)):
        early = {"patience": 2, "goal": goal}
        run = world.train(tmp_path / goal, "simpo", changes={**changes, "early_stopping": early})
        manifest = Manifest.read(run / "manifest.json")
        assert (manifest.steps, manifest.stopped_early) == (steps, stopped)
    start, end = (load_file(tmp_path / name / "model/model.safetensors") for name in ("highest", "lowest"))
    base = load_file(world.base / "model/model.safetensors")
    assert all(torch.equal(start[key], tensor) for key, tensor in base.items())
    assert not torch.equal(end["lm_head.weight"], base["lm_head.weight"])


def test_without_an_evaluation_at_the_beginning_the_others_decide(world: World, tmp_path: Path) -> None:
    changes = {**ROUGH, "lr": 1e-3, "eval_every": 2, "eval_first": False}
    early = {"patience": 2, "goal": "highest"}
    run = world.train(tmp_path / "run", "simpo", changes={**changes, "early_stopping": early})
    manifest = Manifest.read(run / "manifest.json")
    assert (manifest.steps, manifest.stopped_early) == (2, 6)


# ---- what a run is ---------------------------------------------------------------------------------------------


def test_intervals_of_evaluations_are_part_of_a_stage_where_they_decide_and_only_there() -> None:
    early = {"patience": 3}
    for changes in ({"eval_every": 5}, {"eval_first": False}):
        assert stage_slice(Stage(loss="dpo", **changes)) == stage_slice(Stage(loss="dpo"))
        one, other = (stage_slice(Stage(loss="dpo", early_stopping=early, **c)) for c in (changes, {}))
        assert one != other
    plain, stopping = stage_slice(Stage(loss="dpo")), stage_slice(Stage(loss="dpo", early_stopping=early))
    assert {"early_stopping", "average"}.isdisjoint(plain)
    assert stopping.keys() - plain.keys() == {"early_stopping", "eval_every", "eval_first"}
    assert stage_slice(Stage(loss="dpo", early_stopping=early, checkpoint_every=7)) == stopping


def test_a_changed_interval_is_another_run_from_the_command_line_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, changes = changes_of("dpo")
    run = tmp_path / "run"
    for eval_every, begins in ((1, True), (1, False), (2, True)):
        with pytest.raises(Stopped):
            world.train(run, stage, changes=changes, eval_every=eval_every, checkpoint_every=1, time_limit=0)
        assert ("going on from step" in capsys.readouterr().err) != begins
    with pytest.raises(Stopped):
        world.train(run, stage, changes=changes, eval_every=2, skip_first_evaluation=True, time_limit=0)
    assert "going on from step" not in capsys.readouterr().err
    done = world.train(run, stage, changes=changes, eval_every=2, skip_first_evaluation=True)
    settings = RunSlice.model_validate(Manifest.read(done / "manifest.json").config)
    assert settings.stage is not None
    assert (settings.stage.eval_every, settings.stage.eval_first) == (2, False)
    assert settings.identity["stage"]["eval_every"] == 2
    assert [line["step"] for line in log(done) if line["split"] == "eval"][:3] == [2, 4, 6]


def test_a_trial_with_other_intervals_is_another_training(world: World, tmp_path: Path) -> None:
    stage, changes = changes_of("simpo")
    content = read_slice(world.slice(f"runs/d/m/{stage}/seed1", **{**changes, "examples": 16}))
    runs = {"trial": 1, "same": 1, "other": 2}
    for name, eval_every in runs.items():
        config = tmp_path / f"{name}.yaml"
        config.write_text(dump({**content, "method": f"{stage}~0a1b2c" if name == "trial" else stage}))
        trial = None if name == "trial" else tmp_path / "trial"
        train(config, world.base, world.store, tmp_path / name, eval_every=eval_every, trial=trial)
    models = {name: tmp_path / name / "model/model.safetensors" for name in runs}
    assert models["same"].samefile(models["trial"])
    assert not models["other"].samefile(models["trial"])


def test_older_manifests_are_read(run: tuple[str, Path], tmp_path: Path) -> None:
    content = json.loads((run[1] / "manifest.json").read_text())
    del content["stopped_early"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.read(tmp_path / "manifest.json").stopped_early is None


ONLINE: dict[str, Any] = {"rounds": 2, "prompts_per_round": 8, "label": "l"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": {"kind": "ema"}}, "publishes the weights of one step, average a mean of many: take out one"),
        (
            {"keep_optimizer": True},
            "keep_optimizer is of the state at the end, and early_stopping publishes weights befo",
        ),
        ({"resume_from": "dpo"}, "resume_from is of the state at the end"),
        ({"online": {**ONLINE, "continue_optimizer": True}}, "with early_stopping a round does not publish its last"),
    ],
)
def test_what_contradicts_it_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(loss="dpo", early_stopping={"patience": 3}, **settings)
    assert Stage(loss="dpo", early_stopping={"patience": 3}, online=ONLINE).online is not None


def test_an_unknown_metric_is_refused_by_the_first_evaluation(world: World, tmp_path: Path) -> None:
    changes = {**ROUGH, "early_stopping": {"patience": 3, "metric": "rewards/acuracy"}}
    with pytest.raises(HalosError, match=r"no 'rewards/acuracy'; did you mean 'rewards/accuracy'\?"):
        world.train(tmp_path / "run", "dpo", changes=changes)
    assert [line["step"] for line in log(tmp_path / "run")] == [0]
    with pytest.raises(HalosError, match="leave out --keep-optimizer"):
        world.train(tmp_path / "run", "dpo", changes=changes_of("dpo")[1], keep_optimizer=True)


# ---- several processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(profile: str, world: World, tmp_path: Path) -> None:
    """And again where they are stopped after a step, and go on."""
    commands = []
    for name in ("dpo", "lora"):
        stage, changes = changes_of(name)
        if "lora" in changes:
            changes |= {"lora": LORA, "lr": 3e-2}  # of which the best step is clear without dropout, too
        world.train(tmp_path / "one" / name, stage, changes=changes, tokens_per_microbatch=400)
        whole = command(world, tmp_path, name, stage, changes)
        parts = command(world, tmp_path, f"{name}_parts", stage, changes)
        commands += [whole, [*parts, "--time-limit", "0"], parts]
    assert run_verbs(tmp_path, commands, 2, profile) == [0, 1, 0] * 2
    for name in ("dpo", "lora"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert_same(two, tmp_path / f"two/{name}_parts")
        ours, theirs = (Manifest.read(path / "manifest.json") for path in (one, two))
        assert (ours.steps, ours.stopped_early) == (theirs.steps, theirs.stopped_early)
        assert theirs.stopped_early is not None
        a, b = (load_file(path / "model/model.safetensors") for path in (one, two))
        for key, tensor in a.items():
            torch.testing.assert_close(b[key], tensor, rtol=1e-2, atol=2e-3)
