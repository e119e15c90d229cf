"""Averages of weights: beside means computed by hand, resumed, and over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halos.manifest import KEPT, Manifest
from halos.train.average import Ema, Uniform
from halos.train.averaged import Averaged
from halos.train.inputs import Inputs
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from halos.train.stopping import Stopped, Stopping
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.distributed.processes import run_verbs
from tests.distributed.test_sharding import command
from tests.models.test_models import LORA
from tests.train.runs import assert_equal, log, weights
from tests.train.test_resumed import CONSTANT, further

STEPS: dict[str, Any] = {"batch_size": 8, "examples": 48, "lr": 1e-3, "warmup": 0, "checkpoint_every": 4,
                         "eval_every": 2}  # fmt: skip
"""Six steps."""
EMA = {"kind": "ema", "decay": 0.75}
KINDS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "ema": (EMA, [0.75**k for k in (5, 4, 3, 2, 1, 0)]),
    "second half": ({"kind": "uniform", "start": 0.5}, [0, 0, 0, 1, 1, 1]),
    "all steps": ({"kind": "uniform", "start": 0}, [1] * 6),
    "last step": ({"kind": "uniform", "start": 0.99}, [0, 0, 0, 0, 0, 1]),
}
"""name -> setting, and the weight of each step in the mean."""


def mean(tensors: list[Tensor], by: list[float]) -> Tensor:
    """Their weighted mean, in float64."""
    stacked = torch.stack([tensor.double() for tensor in tensors])
    return (torch.tensor(by, dtype=torch.float64) @ stacked.flatten(1) / sum(by)).reshape(tensors[0].shape).float()


# ---- by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_published_weights_are_the_mean_of_those_after_each_step(name: str, world: World, tmp_path: Path) -> None:
    """Those after each step but the last are kept, and those are what a run without an average ends with."""
    average, by = KINDS[name]
    run = world.train(tmp_path / "run", "dpo", changes={**STEPS, "keep_every": 1, "average": average})
    plain = world.train(tmp_path / "plain", "dpo", changes={**STEPS, "keep_every": 1})
    steps = [load_file(plain / f"kept/step{k}/model.safetensors") for k in range(1, 6)] + [weights(plain)]
    for k in range(1, 6):
        kept = load_file(run / f"kept/step{k}/model.safetensors")
        assert all(torch.equal(steps[k - 1][key], tensor) for key, tensor in kept.items())
    for key, tensor in weights(run).items():
        torch.testing.assert_close(tensor, mean([step[key] for step in steps], by), rtol=1e-6, atol=1e-7)
    if name == "last step":
        assert_equal(run, plain)
    else:
        assert not torch.equal(weights(run)["lm_head.weight"], weights(plain)["lm_head.weight"])
    assert Manifest.read(run / "manifest.json").steps == 6


def test_only_adapters_are_averaged(world: World, tmp_path: Path) -> None:
    """The mean of the factors, not of their products: what is published is one adapter, merged."""
    changes = {**STEPS, "keep_every": 1, "lora": {**LORA, "dropout": 0.1}}
    run = world.train(tmp_path / "run", "lora", changes={**changes, "average": EMA})
    shorter = world.train(tmp_path / "shorter", "lora", changes={**changes, "examples": 40, "average": EMA})
    steps = [load_file(run / f"kept/step{k}/adapter_model.safetensors") for k in range(1, 6)]
    averaged = {key: mean([step[key] for step in steps], KINDS["ema"][1][1:]) for key in steps[0]}
    base, merged = load_file(world.base / "model/model.safetensors"), weights(shorter)
    changed = 0
    for name, tensor in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" in averaged:
            product = averaged[f"{prefix}B.weight"] @ averaged[f"{prefix}A.weight"]
            torch.testing.assert_close(merged[name], tensor + LORA["alpha"] / LORA["r"] * product, rtol=0, atol=1e-6)
            changed += 1
        else:
            assert torch.equal(merged[name], tensor)
    assert changed == 14


def test_evaluations_are_of_the_average_as_soon_as_there_is_one(world: World, tmp_path: Path) -> None:
    """So each of them is the last one of a run that ends there; training does not see the average."""
    average = {"kind": "uniform", "start": 0.5}
    runs = {
        name: world.train(tmp_path / name, "dpo", changes={**STEPS, **changes})
        for name, changes in {"plain": {}, "uniform": {"average": average}, "ema": {"average": EMA}}.items()
    }
    lines = {name: {(line["split"], line["step"]): line for line in log(run)} for name, run in runs.items()}
    for key, line in lines["plain"].items():
        trained = key[0] == "train" or key[1] == 0
        assert (lines["ema"][key] == line) == trained
        assert (lines["uniform"][key] == line) == (trained or key[1] <= 4)  # of one step, after 4
    shorter = world.train(tmp_path / "shorter", "dpo", changes={**STEPS, "examples": 32, "average": EMA})
    assert log(shorter)[-1] == lines["ema"]["eval", 4]


# ---- stopped and resumed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ema", "second half"])
@pytest.mark.parametrize(("stage", "changes"), [("dpo", {}), ("kto", {"humanline": True}), ("lora", {}), ("ppo", {})])
def test_a_run_that_is_stopped_and_resumed_is_bit_for_bit_as_never_stopped(
    stage: str, changes: dict[str, Any], kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first, third and fifth step, and once more while it publishes."""
    changes = {**STEPS, "average": KINDS[kind][0], **changes}
    whole, run, asked = world.train(tmp_path / "whole", stage, changes=changes), tmp_path / "run", 0

    def reason(stopping: Stopping, accelerator: Any) -> str | None:
        nonlocal asked
        asked += 1
        return "a test" if asked in (1, 3, 5) else None

    def dies(manifest: Manifest, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stopping, "reason", reason)
    for step in (1, 3, 5):
        with pytest.raises(Stopped, match=f"after step {step} of 6"):
            world.train(run, stage, changes=changes)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            world.train(run, stage, changes=changes)
    world.train(run, stage, changes=changes)
    assert_equal(whole, run)
    assert log(whole) == log(run)
    ours, theirs = (Manifest.read(path / "manifest.json") for path in (whole, run))
    assert ours.value_head == theirs.value_head


def test_a_longer_run_goes_on_with_the_moving_average(world: World, tmp_path: Path) -> None:
    changes = {**CONSTANT, "average": EMA}
    whole = world.train(tmp_path / "whole", "dpo", changes={**changes, "examples": 48, "eval_every": 3})
    short = world.train(tmp_path / "short", "dpo", changes={**changes, "examples": 24}, keep_optimizer=True)
    assert (short / KEPT / "average.safetensors").is_file()
    run = further(world, tmp_path / "run", "dpo", short, average=EMA)
    assert_equal(whole, run)
    assert log(whole) == log(run)


# ---- settings --------------------------------------------------------------------------------------------------

ONLINE: dict[str, Any] = {"rounds": 2, "prompts_per_round": 8, "label": "l"}


@pytest.mark.parametrize(
    ("average", "settings", "message"),
    [
        (EMA, {"online": {**ONLINE, "continue_optimizer": True}}, "with average a round does not publish its last wei"),
        ({"kind": "uniform"}, {"resume_from": "dpo"}, "a longer training begins its uniform average at another step"),
        ({"kind": "ema", "start": 0.5}, {}, r"average\.ema\.start\s+Extra inputs"),
        ({"kind": "ema", "decay": 1}, {}, r"average\.ema\.decay\s+Input should be less than 1"),
        ({"kind": "swa"}, {}, "give its kind, {kind: ema, decay: 0.99} or {kind: uniform, start: 0.5}"),
        ({"decay": 0.9}, {}, "give its kind"),
    ],
)
def test_what_contradicts_it_is_refused(average: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(loss="dpo", average=average, **settings)


def test_a_slice_has_its_kind_and_number_alone() -> None:
    assert stage_slice(Stage(loss="dpo", average={"kind": "ema"}))["average"] == {"kind": "ema", "decay": 0.99}
    assert stage_slice(Stage(loss="dpo", average={"kind": "uniform"}))["average"] == {"kind": "uniform", "start": 0.5}
    assert "average" not in stage_slice(Stage(loss="dpo"))


@pytest.mark.parametrize("settings", [Ema(kind="ema", decay=0.999), Uniform(kind="uniform", start=0.25)])
def test_the_mean_of_equal_weights_is_these_however_many_they_are(settings: Ema | Uniform) -> None:
    ours = {"weight": torch.randn(64, generator=torch.Generator().manual_seed(0))}
    expected = ours["weight"].clone()
    averaged = Averaged(settings, lambda: ours, 1000)
    for step in range(1, 1001):
        averaged.update(step)
    assert torch.equal(averaged.weights["weight"], expected)


def test_it_is_held_in_float32_and_takes_the_memory_of_what_is_trained(world: World, tmp_path: Path) -> None:
    config = world.slice("runs/d/m/lora/seed1", average=EMA)
    inputs = Inputs.open(config, world.base, world.store, world.parts(Stage(loss="dpo")))
    trainer = Trainer(inputs, tmp_path / "run", 2048)
    assert trainer.average is not None
    tensors = trainer.average.weights.values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert sum(map(torch.numel, tensors)) == trainer.publisher.coverage.trained


# ---- several processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["ddp", "fsdp"])
def test_two_processes_have_the_average_of_one(profile: str, world: World, tmp_path: Path) -> None:
    """And where they are stopped after a step and go on, the very same again."""
    plain = {"optimizer": "SGD", "optimizer_args": {}, "lr": 0.3, "batch_size": 7, "examples": 28, "eval_every": 1}
    runs = {"ema": ("dpo", {"average": EMA}), "uniform": ("kto", {"average": {"kind": "uniform"}, "humanline": True}),
            "lora": ("lora", {"average": EMA, "lora": LORA})}  # fmt: skip
    commands = []
    for name, (stage, changes) in runs.items():
        changes = {**plain, **changes}
        world.train(tmp_path / "one" / name, stage, changes=changes, tokens_per_microbatch=400)
        whole = command(world, tmp_path, name, stage, changes)
        parts = command(world, tmp_path, f"{name}_parts", stage, changes)
        commands += [whole, [*parts, "--time-limit", "0"], parts]
    assert run_verbs(tmp_path, commands, 2, profile) == [0, 1, 0] * len(runs)
    start = load_file(world.base / "model/model.safetensors")
    for name in runs:
        two = tmp_path / "two" / name
        assert_equal(two, tmp_path / f"two/{name}_parts")
        assert log(two) == log(tmp_path / f"two/{name}_parts")
        a, b = weights(tmp_path / "one" / name), weights(two)
        for key in a:
            moved = a[key] - start[key]
            torch.testing.assert_close(b[key] - start[key], moved, rtol=1e-3, atol=1e-3 * float(moved.abs().max()))
        for x, y in zip(log(tmp_path / "one" / name), log(two), strict=True):
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-3, abs=1e-4)
