"""Checkpoints: whole or absent, of this run or none, and exact."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from halos.cli import main
from halos.distributed.accelerator import accelerator_for
from halos.manifest import Manifest
from halos.models.base import make
from halos.reference.compute import reference
from halos.study import catalogue as C
from halos.train import checkpoints
from halos.train.checkpoints import Checkpoints, trained
from halos.train.optimizer import optimizer_class
from halos.train.stopping import Stopped, Stopping
from halos.train.trainer import Trainer
from tests.conftest import CATALOGUE, World
from tests.train.runs import CASES, assert_equal, log, weights

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"weight_decay": 0.01, "betas": (0.9, 0.95), "eps": 1e-5},
    "RMSprop": {"alpha": 0.9, "momentum": 0.5, "centered": True},
    "SGD": {"momentum": 0.9},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {},
    "Adamax": {},
    "ASGD": {"t0": 2},
    "NAdam": {"momentum_decay": 0.01},
    "RAdam": {},
    "Rprop": {"etas": (0.4, 1.1)},
    "Adam": {"amsgrad": True},
    "AdamW8bit": {"min_8bit_size": 16},
    "PagedAdamW8bit": {"min_8bit_size": 16},
}


# ---- the files -------------------------------------------------------------------------------------------------


def setup(optimizer: str = "AdamW") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, optimizer_class(optimizer)(trained, lr=0.01, **OPTIMIZERS[optimizer])


def save(saved: Checkpoints, k: int, model: nn.Module, optimizer: torch.optim.Optimizer, **meta: Any) -> None:
    saved.save(k, {"weights": trained(model)}, optimizer, meta, accelerator_for("fp32"))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(k))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bit_for_bit_as_never_stopped(name: str, tmp_path: Path) -> None:
    model, optimizer = setup(name)
    for k in range(3):
        step(model, optimizer, k)
    saved = Checkpoints(tmp_path / "checkpoints", "f")
    save(saved, 3, model, optimizer, tokens=7)
    again, other = setup(name)
    path = saved.latest()
    assert path is not None
    meta = saved.load(path, {"weights": trained(again)}, other, accelerator_for("fp32"))
    assert (meta["step"], meta["tokens"]) == (3, 7)
    for k in range(3, 6):
        step(model, optimizer, k)
        step(again, other, k)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key]))


def test_only_trained_weights_are_kept(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "f")
    save(saved, 1, *setup())
    assert set(load_file(tmp_path / "step1/weights.safetensors")) == {"0.weight", "2.weight", "2.bias"}


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    model, optimizer = setup()
    step(model, optimizer, 0)
    save(Checkpoints(tmp_path, "f"), 1, model, optimizer)
    files = sorted(p.name for p in (tmp_path / "step1").iterdir())
    assert files == ["meta.json", "optimizer.safetensors", "weights.safetensors"]
    json.loads((tmp_path / "step1/meta.json").read_text())


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_half_written_checkpoint_is_never_seen(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoints(tmp_path, "f")
    save(saved, 1, *setup())
    calls: list[Path] = []
    save_file = checkpoints.save_file

    def failing(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == fails_at:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        save(saved, 2, *setup())
    assert saved.latest() == tmp_path / "step1"
    monkeypatch.undo()
    save(saved, 2, *setup())
    assert saved.latest() == tmp_path / "step2"


def test_only_the_newest_is_kept_by_number_and_not_by_spelling(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "f")
    for k in (9, 10):
        save(saved, k, *setup())
        assert [p.name for p in tmp_path.iterdir()] == [f"step{k}"]
    shutil.copytree(tmp_path / "step10", tmp_path / "step9")
    assert saved.latest() == tmp_path / "step10"


def test_a_checkpoint_of_another_run_is_never_resumed_and_removed(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "other"), 5, *setup())
    (tmp_path / "train.jsonl").write_text("{}\n")
    saved = Checkpoints(tmp_path, "mine")
    assert saved.latest() is None
    saved.remove_others()
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]
    save(saved, 2, *setup())
    saved.remove_others()
    assert saved.latest() == tmp_path / "step2"


def test_what_a_removal_cut_short_left_behind_stops_nothing(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, "f")
    save(saved, 3, *setup())
    (tmp_path / "step3/meta.json").unlink()
    assert saved.latest() is None
    saved.remove_others()
    assert not (tmp_path / "step3").exists()
    save(saved, 3, *setup())
    assert saved.latest() == tmp_path / "step3"


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "none", "f")
    saved.remove_others()
    assert saved.latest() is None


# ---- stopped runs ----------------------------------------------------------------------------------------------


class StopAfter:
    """Stops the run after so many of its own steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, steps: int, run: Any) -> None:
        calls = 0

        def reason(stopping: Stopping, accelerator: Any) -> str | None:
            nonlocal calls
            calls += 1
            return "a test" if calls == steps else None

        with self.monkeypatch.context() as patch:
            patch.setattr(Stopping, "reason", reason)
            with pytest.raises(Stopped, match=r"stopped by a test after step .* with a checkpoint"):
                run()


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    return StopAfter(monkeypatch)


@pytest.fixture(scope="module")
def scores(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reward model makes of the store."""
    run = world.train(tmp_path_factory.mktemp("rewards") / "run", "bradley_terry")
    file = run / "scores.safetensors"
    reference(world.slice("runs/d/m/bradley_terry/seed1"), run, world.store, "scores", file, 2048)
    return file


LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **CASES,
    "lora": ("dpo", {"lora": LORA}),
    "lora_with_control_tokens": ("csft", {"lora": LORA}),
    "lora_with_a_score_layer": ("bradley_terry", {"lora": LORA}),
    "lora_and_a_live_reference": ("kto", {"lora": LORA, "sync_reference": 2}),
    "soft_reference": ("dpo", {"sync_reference": 2, "sync_weight": 0.6}),
    "lora_and_a_soft_reference": ("dpo", {"lora": LORA, "sync_reference": 1, "sync_weight": 0.3}),
    "ppo_of_a_reward_model": ("ppo", {"reward": "score", "reward_model": "bradley_terry"}),
    "grpo_of_a_reward_model": ("grpo", {"reward_model": "bradley_terry"}),
    "inner_epochs": ("grpo", {"inner_epochs": 2, "examples": 24}),
    **{name: ("dpo", {"optimizer": name, "optimizer_args": json.loads(json.dumps(arguments)), "lr": 1e-3})
       for name, arguments in OPTIMIZERS.items()},
}  # fmt: skip
STEPS = {"batch_size": 8, "examples": 48, "checkpoint_every": 3, "eval_every": 3, "scheduler": "cosine"}
"""Six steps."""


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_and_resumed_run_is_bit_for_bit_as_never_stopped(
    name: str, world: World, scores: Path, tmp_path: Path, stop_after: StopAfter
) -> None:
    """Stopped twice, and not where it saves anyway."""
    stage, changes = RUNS[name]
    options = {"changes": {**STEPS, **changes}, "scores": [scores] if "reward_model" in changes else []}
    first, second = sorted(random.Random(name).sample([1, 2, 4, 5], 2))
    whole, run = world.train(tmp_path / "whole", stage, **options), tmp_path / "stopped"
    assert len([line for line in log(whole) if line["split"] == "train"]) == 6
    stop_after(first, lambda: world.train(run, stage, **options))
    assert not (run / "model").exists()
    assert not (run / "manifest.json").exists()
    stop_after(second - first, lambda: world.train(run, stage, **options))
    assert [p.name for p in (run / "checkpoints").glob("step*")] == [f"step{second}"]
    world.train(run, stage, **options)
    assert_equal(whole, run)
    assert log(whole) == log(run)
    tokens = [json.loads((r / "manifest.json").read_text())["tokens"] for r in (whole, run)]
    assert tokens[0] == tokens[1] > 0


def test_every_optimiser_of_the_catalogue_is_stopped_and_resumed() -> None:
    assert set(OPTIMIZERS) == set(get_args(C.Stage.model_fields["optimizer"].annotation))


def test_a_killed_run_goes_on_from_its_last_checkpoint_whatever_its_log_says(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 5, after the checkpoint of step 3, with a line half-written."""
    whole = world.train(tmp_path / "whole", "kto")
    run, step = tmp_path / "killed", Trainer.step

    def killed(trainer: Trainer, k: int) -> dict[str, Any]:
        if k == 4:
            raise KeyboardInterrupt
        return step(trainer, k)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        world.train(run, "kto")
    monkeypatch.undo()
    assert [line["step"] for line in log(run)] == [0, 1, 2, 3, 4]
    with (run / "checkpoints/train.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    world.train(run, "kto")
    assert_equal(whole, run)
    assert log(whole) == log(run)


def test_a_run_that_dies_while_it_publishes_ends_the_same_and_has_no_manifest_before(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.train(tmp_path / "whole", "dpo")
    run = tmp_path / "dying"

    def dies(manifest: Manifest, path: Path) -> None:
        assert path == run / "manifest.json"
        assert_equal(whole, run)
        assert log(run) == log(whole)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            world.train(run, "dpo")
    assert not (run / "manifest.json").exists()
    world.train(run, "dpo")
    assert_equal(whole, run)
    assert log(whole) == log(run)


def test_a_run_begun_again_with_another_config_is_not_done_before_it_is(
    world: World, tmp_path: Path, stop_after: StopAfter
) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"examples": 16})
    stop_after(2, lambda: world.train(run, "dpo"))
    assert not (run / "manifest.json").exists()


def test_a_checkpoint_of_another_config_is_not_resumed(world: World, tmp_path: Path, stop_after: StopAfter) -> None:
    run = tmp_path / "run"
    stop_after(4, lambda: world.train(run, "dpo", changes={"beta": 0.5}))
    world.train(run, "dpo")
    fresh = world.train(tmp_path / "fresh", "dpo")
    assert_equal(fresh, run)
    assert log(fresh) == log(run)


def test_a_stopped_run_goes_on_with_other_intervals(
    world: World, tmp_path: Path, stop_after: StopAfter, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come from the config or, where a workflow runs it, from the command; neither makes another run."""
    run, whole = tmp_path / "run", world.train(tmp_path / "whole", "dpo", changes=STEPS)
    stop_after(2, lambda: world.train(run, "dpo", changes=STEPS))
    stop_after(2, lambda: world.train(run, "dpo", changes={**STEPS, "eval_every": 4, "checkpoint_every": 7}))
    assert "going on from step 2 of 6" in capsys.readouterr().err
    world.train(run, "dpo", changes=STEPS, eval_every=5, checkpoint_every=1, keep_every=5)
    assert "going on from step 4 of 6" in capsys.readouterr().err
    assert [line["step"] for line in log(run) if line["split"] == "eval"] == [0, 4, 5, 6]
    assert names(run / "kept") == {"step5"}
    assert_equal(whole, run)


def test_a_time_limit_stops_with_a_checkpoint_and_the_command_fails(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = world.slice("runs/d/m/simpo/seed1")
    command = ["train", "--config", config, "--parent", world.base, "--store", world.store, "--output", run]
    assert main([*map(str, command), "--time-limit", "0"]) == 1
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert message.startswith("error: stopped by its time limit after step 1 of 8, with a checkpoint; run the same")
    assert (run / "checkpoints/step1/meta.json").is_file()
    assert not (run / "manifest.json").exists()
    assert main([*map(str, command), "--time-limit", "60"]) == 0
    assert_equal(world.train(tmp_path / "whole", "simpo"), run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    number: signal.Signals, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def signalled(trainer: Trainer, k: int) -> dict[str, Any]:
        if k == 1:
            os.kill(os.getpid(), number)
        return step(trainer, k)

    monkeypatch.setattr(Trainer, "step", signalled)
    with pytest.raises(Stopped, match="stopped by a signal after step 2 of 8"):
        world.train(tmp_path / "run", "dpo")
    assert (tmp_path / "run/checkpoints/step2/meta.json").is_file()


def test_nothing_that_a_run_writes_or_reads_is_a_pickle(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: StopAfter
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle")

    for module in (torch, torch.serialization):
        monkeypatch.setattr(module, "load", refused)
        monkeypatch.setattr(module, "save", refused)
    run, changes = tmp_path / "run", {**STEPS, "humanline": True, "keep_every": 2}
    stop_after(4, lambda: world.train(run, "ppo", changes=changes))
    found = {p.name for p in run.rglob("*") if p.is_file()}
    world.train(run, "ppo", changes=changes)
    found |= {p.name for p in run.rglob("*") if p.is_file()}
    assert {Path(name).suffix for name in found} == {".safetensors", ".json", ".jsonl", ".jinja"}


# ---- kept models -----------------------------------------------------------------------------------------------

KEEP = {"batch_size": 8, "examples": 48, "keep_every": 2, "warmup": 0, "scheduler": "constant"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("stage", ["dpo", "ppo", "csft"])
def test_a_kept_model_is_what_a_run_that_ends_there_publishes(stage: str, world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", stage, changes=KEEP)
    assert names(run / "kept") == {"step2", "step4"}
    ended = world.train(tmp_path / "ended", stage, changes={**KEEP, "examples": 32, "keep_every": None})
    assert not (ended / "kept").exists()
    assert names(run / "kept/step4") == names(ended / "model")
    expected = weights(ended)
    model = AutoModelForCausalLM.from_pretrained(run / "kept/step4")
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(found["lm_head.weight"], weights(run)["lm_head.weight"])


@pytest.mark.parametrize("stage", ["dpo", "csft"])
def test_kept_adapters_are_pefts_own_and_make_a_model(stage: str, world: World, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    changes = {**KEEP, "lora": LORA}
    run = world.train(tmp_path / "run", stage, changes=changes)
    kept = run / "kept/step4"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names(kept)
    assert not {"model.safetensors", "config.json"} & names(kept)
    catalogue = {**CATALOGUE, "models": {**CATALOGUE["models"], "x": {"path": str(kept)}}}
    other = World(tmp_path / "results", C.load(catalogue))
    make(other.slice("models/x"), tmp_path / "made")
    made = load_file(tmp_path / "made/model/model.safetensors")
    expected = AutoPeftModelForCausalLM.from_pretrained(kept).merge_and_unload().state_dict()
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    ended = weights(world.train(tmp_path / "ended", stage, changes={**changes, "examples": 32, "keep_every": None}))
    assert made.keys() == ended.keys()
    for name, value in ended.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=1e-7)


def test_kept_models_outlive_a_stop_and_those_of_another_config_do_not(
    world: World, tmp_path: Path, stop_after: StopAfter
) -> None:
    run = tmp_path / "run"
    stop_after(3, lambda: world.train(run, "dpo", changes=KEEP))
    stamp = (run / "kept/step2/model.safetensors").stat().st_mtime_ns
    world.train(run, "dpo", changes=KEEP)
    assert names(run / "kept") == {"step2", "step4"}
    assert (run / "kept/step2/model.safetensors").stat().st_mtime_ns == stamp
    stop_after(1, lambda: world.train(run, "dpo", changes={**KEEP, "beta": 0.5}))
    assert not (run / "kept").exists()
