"""Small trainings for tests: how they are set up, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from halos.models.base import make
from halos.reference.cache import parts_for
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.tokens.store import Store
from halos.train.inputs import Inputs
from halos.train.slices import RunSlice
from halos.train.trainer import Trainer
from tests.conftest import CATALOGUE, World

HUMANLINE = ("dpo", "grpo", "kto", "ppo")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in LOSSES},
    **{f"humanline_{name}": (name, {"humanline": True}) for name in HUMANLINE},
    "ppo_of_scores": ("ppo", {"reward": "score"}),
    "mixture": ("dpo", {"loss": {"dpo": 0.8, "bco": 0.2, "sft": 1.0}}),
    "sft_weight": ("hinge", {"sft_weight": 0.5}),
}
"""name -> (stage, its changes): every loss, and what makes another objective of one."""
TIMING = {"seconds", "tokens_per_second", "examples_per_second", "peak_memory_gb", "mfu"}
PLAIN = {"optimizer": "SGD", "optimizer_args": {}, "lr": 0.3}
"""An optimiser whose step is its gradient: AdamW would blow rounding errors of tiny gradients up to full steps."""


def log(run: Path) -> list[dict[str, Any]]:
    """train.jsonl, or the unfinished run's, without what differs from run to run."""
    path = run / "train.jsonl" if (run / "train.jsonl").exists() else run / "checkpoints/train.jsonl"
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model/model.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def setup(
    world: World, output: Path, stage: str, budget: int = 2048, seed: int = 1, precision: str = "fp32",
    checkpointing: bool = False, computes: dict[str, Any] | None = None, **changes: Any,
) -> Trainer:  # fmt: skip
    """A trainer that has not begun; `computes` is how its model does: attention, liger, compile."""
    config = world.slice(f"runs/d/m/{stage}/seed{seed}", **changes)
    config.write_text(dump({**read_slice(config), "precision": precision, **(computes or {})}))
    return Trainer(open_inputs(world, config), output, budget, checkpointing)


def open_inputs(world: World, config: Path) -> Inputs:
    """The inputs of a run of the base model, with the parts of its reference that the stage reads."""
    stage = RunSlice.read(config).stage
    assert stage is not None
    return Inputs.open(config, world.base, world.store, world.parts(stage))


def base_of(world: World, folder: Path, architecture: dict[str, Any]) -> Path:
    """A base model of another architecture, with the tokenizer and template of the world's."""
    model = {**CATALOGUE["models"]["m"], "architecture": architecture}
    other = World(folder, C.load({**CATALOGUE, "models": {"m": model}}))
    if not (other.base / "manifest.json").exists():
        make(other.slice("models/m"), other.base, [world.results / "data/d/train.parquet"])
    return other.base


def references(world: World, base: Path, config: Path) -> list[Path]:
    """The parts of a base model's own reference that a run's stage reads."""
    stage = RunSlice.read(config).stage
    assert stage is not None
    wanted = parts_for(stage.make_loss(), live=stage.sync_every is not None)
    by = "runs/d/m/sft/seed1"  # whose precision and attention references are made with
    if not (world.results / by / "config.yaml").exists():
        world.slice(by)
    return [file for file in world.reference_of(base) if file.stem in wanted] if wanted else []


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@torch.no_grad()
def plain_logps(model: Any, store: Store, rows: np.ndarray) -> Tensor:
    """(N,) sum over its tokens of the log-probabilities of each response, run alone."""
    found = []
    for prompt, response in map(store.sequence, rows):
        ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(logps.gather(1, ids[len(prompt) :, None]).sum())
    return torch.stack(found)
