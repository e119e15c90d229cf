"""Two processes train the weights that one does: mixtures of experts, hybrids, and text alone in multimodal shells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import World
from tests.distributed.processes import run_verbs
from tests.train.architectures import ARCHITECTURES
from tests.train.runs import PLAIN, base_of, log, references, weights

LORA = {"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}}
SHORT = {**PLAIN, "batch_size": 7, "examples": 14, "lr": 0.1}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("mixtral", "dpo", {}),
    "mixtral_lora": ("mixtral", "lora", LORA),
    "mixtral_one_example": ("mixtral", "sft", {"batch_size": 1, "examples": 2}),
    "ernie": ("ernie4_5_moe", "sft", {"router_weight": 0.1}),
    "jamba": ("jamba", "kto", {}),
    "jamba_lora": ("jamba", "lora", LORA),
    "bamba": ("bamba", "sft", {}),
    "falcon_h1": ("falcon_h1", "sft", {}),
    "gemma3": ("gemma3", "ppo", {}),
    "gemma3_live_reference": ("gemma3", "kto", {"humanline": True}),
    "gemma3_lora": ("gemma3", "lora", LORA),
    "gemma3_adamw": ("gemma3", "sft", {"optimizer": "AdamW", "lr": 1e-3, "optimizer_args": {"eps": 1e-3}}),
    "gemma3n_lora": ("gemma3n_text", "lora", LORA),
}
"""Losses with a reference, a live one and a value head; adapters; a process that has only a filler."""
SHARDED = ("mixtral", "mixtral_lora", "ernie", "jamba", "jamba_lora", "gemma3", "gemma3_live_reference",
           "gemma3_lora", "gemma3n_lora", "gemma3_adamw")  # fmt: skip


@pytest.fixture(scope="module")
def base(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bases")
    return lambda kind: base_of(world, folder / kind, {"model_type": kind, **ARCHITECTURES[kind]})


def command(world: World, base: Path, folder: Path, name: str, stage: str, changes: dict[str, Any]) -> list[str]:
    folder.mkdir(exist_ok=True)
    config = folder / f"{name}.yaml"
    config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **{**SHORT, **changes}).read_text())
    return list(map(str, ["train", "--config", config, "--parent", base, "--store", world.store, "--output",
                          folder / name, "--tokens-per-microbatch", 400, "--reference",
                          *references(world, base, config)]))  # fmt: skip


@pytest.fixture(scope="module")
def together(world: World, base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in two processes of DDP, one after the other."""
    folder = tmp_path_factory.mktemp("together")
    runs = {**RUNS, "layers_dropped": ("opt", "sft", {"lr": 1e-3})}
    commands = [command(world, base(kind), folder, name, stage, changes)
                for name, (kind, stage, changes) in runs.items()]  # fmt: skip
    assert run_verbs(folder, commands, profile="ddp") == [0] * len(commands)
    return folder


@pytest.fixture(scope="module")
def sharded(world: World, base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some runs in two processes of FSDP2, one after the other."""
    folder = tmp_path_factory.mktemp("sharded")
    commands = []
    for name in SHARDED:
        kind, stage, changes = RUNS[name]
        commands.append(command(world, base(kind), folder, name, stage, changes))
    assert run_verbs(folder, commands) == [0] * len(commands)
    return folder


@pytest.fixture(scope="module")
def alone(world: World, base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run in one process, its microbatches as large as can be, trained once."""
    folder = tmp_path_factory.mktemp("alone")

    def run(name: str) -> Path:
        if not (folder / name / "manifest.json").exists():
            kind, stage, changes = RUNS[name]
            config = world.slice(f"runs/d/m/{stage}/seed1", **{**SHORT, **changes})
            world.train(
                folder / name, stage, parent=base(kind), reference=references(world, base(kind), config),
                changes={**SHORT, **changes}, tokens_per_microbatch=10**6,
            )  # fmt: skip
        return folder / name

    return run


def assert_equal(one: Path, two: Path, start: Path) -> None:
    """The changes that two trainings made to the parent's weights are the same, and so are their logs."""
    a, b, begun = weights(one), weights(two), load_file(start / "model/model.safetensors")
    assert a.keys() == b.keys() == begun.keys()  # tied weights once
    moved = {name: float((a[name] - begun[name]).abs().max()) for name in a}
    assert max(moved.values()) > 1e-4
    for name, largest in moved.items():
        rounded = 4 * torch.finfo(torch.float32).eps * float(a[name].abs().max())
        torch.testing.assert_close(
            b[name] - begun[name], a[name] - begun[name], rtol=1e-3, atol=1e-3 * largest + rounded, msg=name
        )
    assert not any(largest for name, largest in moved.items() if "vision_tower" in name or "multi_modal" in name)
    for x, y in zip(log(one), log(two), strict=True):
        assert x.keys() == y.keys()
        for key in {"loss", "kl", "grad_norm", "router/loss", "router/load_max", "router/load_min"} & x.keys():
            assert x[key] == pytest.approx(y[key], rel=1e-3, abs=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_the_same_weights_as_one(
    name: str, world: World, base: Callable[[str], Path], alone: Callable[[str], Path], together: Path
) -> None:
    assert json.loads((together / name / "manifest.json").read_text())["processes"] == 2
    assert_equal(alone(name), together / name, base(RUNS[name][0]))


@pytest.mark.slow
def test_layers_that_are_skipped_at_random_keep_no_process_waiting(together: Path) -> None:
    assert [line["step"] for line in log(together / "layers_dropped") if line["split"] == "train"] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_two_sharded_processes_train_the_same_weights_as_one(
    name: str, world: World, base: Callable[[str], Path], alone: Callable[[str], Path], sharded: Path
) -> None:
    assert json.loads((sharded / name / "manifest.json").read_text())["processes"] == 2
    assert_equal(alone(name), sharded / name, base(RUNS[name][0]))
