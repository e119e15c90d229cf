"""Gradients of a trainer's first global batch, and how far apart two are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import CASES, setup
from tests.train.test_invariance import BEYOND, one_by_one

FAR = {"fp32": 1e-4, "bf16": 0.05}
"""Largest relative difference of two gradients of a loss, by precision; autocast makes one of 0.003 on a CPU."""
LOSS = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of two losses, relative and absolute."""
Gradient = tuple[float, dict[str, Tensor]]
"""A loss, and the gradient of each parameter."""


def trainer_of(world: World, folder: Path, case: str, weights: dict[str, Tensor], **how: Any) -> Trainer:
    """A trainer of a loss whose policy is not the reference, on this machine's device."""
    stage, changes = CASES[case]
    trainer = setup(world, folder, stage, **how, **changes, **BEYOND.get(case, {}))
    with torch.no_grad():
        for name, parameter in trainer.policy.model.named_parameters():
            if name in weights:  # control tokens and a score layer have new ones of their own
                parameter[: len(weights[name])] = weights[name].to(parameter.device)
    return trainer


def gradient(trainer: Trainer) -> Gradient:
    """Loss and gradient of the first global batch."""
    trainer.policy.train().zero_grad()
    metrics, _ = trainer.objective(trainer._prepare(trainer.examples, trainer.batches[0]), backward=True)
    found = {name: p.grad.cpu() for name, p in trainer.policy.named_parameters() if p.grad is not None}
    return metrics["loss"], found


def on_its_device(model: Any, sequences: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each sequence alone, float32, on the model's device; what it gives is on the CPU."""
    outs = one_by_one(model, [ids.to(model.device) for ids in sequences])
    return [(out.float().cpu(), states.float().cpu()) for out, states in outs]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients, over that of the second."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([found[name].double().flatten() for name in sorted(other)]) for found in (one, other))
    assert float(b.norm()) > 0
    return float((a - b).norm() / b.norm())


def assert_same(found: Gradient, expected: Gradient, precision: str) -> None:
    """Two losses and gradients are the same, up to the rounding of a compute type."""
    assert found[0] == pytest.approx(expected[0], rel=LOSS[precision], abs=LOSS[precision])
    assert distance(found[1], expected[1]) < FAR[precision]
