"""The optimiser of a stage and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from halos.errors import HalosError
from halos.train.settings import Stage


def make_optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The stage's optimiser over the trained parameters of a model.

    Raises:
        HalosError: `optimizer_args` are not arguments of this optimiser.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not stage.decay_norms_and_biases:
        flat = [p for p in trained if p.ndim < 2]
        groups = [{"params": [p for p in trained if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]
    # YAML has lists where torch wants tuples (betas)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in stage.optimizer_args.items()}
    kind = getattr(torch.optim, stage.optimizer)
    if stage.optimizer in ("Adam", "AdamW") and "foreach" not in arguments:
        # one pass over the weights instead of ten; torch has the same of others, but not for sharded weights
        arguments.setdefault("fused", True)
    try:
        optimizer: torch.optim.Optimizer = kind(groups, lr=stage.lr, **arguments)
    except (TypeError, ValueError) as error:
        raise HalosError(f"optimizer_args of {stage.optimizer}: {error}") from error
    return optimizer


def learning_rate(step: int, steps: int, warmup: float, scheduler: str) -> float:
    """Factor of the peak learning rate at a step counted from 0: linear warm-up, then constant, linear or cosine decay
    to 0 at the end. `warmup` is a fraction of all steps below 1, else a number of steps."""
    ramp = round(warmup * steps) if warmup < 1 else int(warmup)
    if step < ramp:
        return (step + 1) / ramp
    done = (step - ramp) / max(1, steps - ramp)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[scheduler]
