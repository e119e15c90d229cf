"""The optimiser of a stage and its learning rate."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from halos.errors import HalosError
from halos.train.settings import EIGHT_BIT, Stage

UNSHARDED = {"Adafactor": "torch", "AdamW8bit": "bitsandbytes", "PagedAdamW8bit": "bitsandbytes"}
"""Optimiser that takes whole weights alone -> the library that it is of."""


def make_optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The stage's optimiser over the trained parameters of a model.

    With `decay_norms_and_biases: false`, one-dimensional parameters are a group of their own without weight decay.

    Raises:
        HalosError: `optimizer_args` are not arguments of this optimiser, or its library is not installed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not stage.decay_norms_and_biases:
        vectors = [p for p in trained if p.ndim < 2]
        groups = [{"params": [p for p in trained if p.ndim >= 2]}, {"params": vectors, "weight_decay": 0.0}]
    # YAML has no tuples, which torch wants (betas)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in stage.optimizer_args.items()}
    kind = optimizer_class(stage.optimizer)
    if stage.optimizer in ("Adam", "AdamW") and "foreach" not in arguments:
        # one pass over the weights instead of ten; torch's other fused optimisers cannot take sharded weights
        arguments.setdefault("fused", True)
    try:
        optimizer: torch.optim.Optimizer = kind(groups, lr=stage.lr, **arguments)
    except (TypeError, ValueError) as error:
        raise HalosError(f"optimizer_args of {stage.optimizer}: {error}") from error
    return optimizer


def optimizer_class(name: str) -> Any:
    """The class of an optimiser: of torch, or of bitsandbytes, whose states take 8 bits a number.

    Paged states may be moved from a GPU to main memory, where they are in any case without one.
    """
    if name not in EIGHT_BIT:
        return getattr(torch.optim, name)
    if find_spec("bitsandbytes") is None:
        raise HalosError(f"the optimiser {name} needs bitsandbytes: pip install bitsandbytes")
    import bitsandbytes

    return getattr(bitsandbytes.optim, name if torch.cuda.is_available() else "AdamW8bit")


def learning_rate(
    step: int, steps: int, warmup: float, scheduler: str, min_lr_ratio: float = 0.0, decay: float = 0.1
) -> float:
    """Learning rate of a step, as a fraction of the peak.

    Args:
        step: the step, counted from 0.
        steps: number of all steps.
        warmup: linear warm-up: below 1 a fraction of all steps, else a number of steps.
        scheduler: from the warm-up on `constant`, or a `linear` or `cosine` decay to the end; `wsd` (warm-up, stable,
            decay) is constant and then decays linearly. Hägele et al. 2024, Scaling Laws and Compute-Optimal Training
            Beyond Fixed Training Durations (arXiv 2405.18392).
        min_lr_ratio: what a decay would reach one step after the last, as a fraction of the peak.
        decay: the length of wsd's decay, given as `warmup` is.
    """
    ramp = whole_steps(warmup, steps)
    if step < ramp:
        return (step + 1) / ramp
    begin = max(ramp, steps - whole_steps(decay, steps)) if scheduler == "wsd" else ramp
    done = max(0, step - begin) / max(1, steps - begin)
    shape = {"constant": 1.0, "linear": 1 - done, "wsd": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return min_lr_ratio + (1 - min_lr_ratio) * shape[scheduler]


def whole_steps(length: float, steps: int) -> int:
    """A number of steps that is given as such, or, below 1, as a fraction of all `steps`."""
    return round(length * steps) if length < 1 else int(length)
