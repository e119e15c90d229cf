"""The optimiser of a stage and its learning rate."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from halos.distributed.sharding import local
from halos.errors import HalosError
from halos.train.settings import EIGHT_BIT
from halos.train.stage import Stage


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
    if stage.optimizer in EIGHT_BIT and any(isinstance(p, DTensor) for p in trained):
        kind = over_shards(kind)
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


def over_shards(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """An optimiser of bitsandbytes that steps this process's shards of parameters, and keeps the states of these alone.

    Its kernels take plain tensors. The update of a number reads its own states and the scale of its block, so a shard
    is trained as it is within the whole, but for where blocks begin.
    """

    class OverShards(kind):  # type: ignore[misc, valid-type]
        def __init__(self, groups: list[dict[str, Any]], **arguments: Any) -> None:
            self.parameters = [p for group in groups for p in group["params"]]
            shards = [{**group, "params": [local(p) for p in group["params"]]} for group in groups]
            super().__init__(shards, **arguments)

        def step(self, closure: Any = None) -> Any:
            shards = [shard for group in self.param_groups for shard in group["params"]]
            for shard, parameter in zip(shards, self.parameters, strict=True):
                shard.data = local(parameter)  # FSDP may have moved it
                # a process has nothing of a parameter with fewer rows than there are processes
                shard.grad = local(parameter.grad) if parameter.grad is not None and shard.numel() else None
            return super().step(closure)

        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)
            for parameter in self.parameters:
                parameter.grad = None

    return OverShards


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
