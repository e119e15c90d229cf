"""What differs when a model's weights are sharded over processes (FSDP2), and is the plain thing when they are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, without gradient; the tensor itself when it is not sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def shard_like(values: Tensor, parameter: Tensor) -> Tensor:
    """The sharded tensor of which `values` is this process's shard, if they are that of a parameter's shape."""
    if isinstance(parameter, DTensor) and values.shape == parameter.to_local().shape:
        return DTensor.from_local(
            values.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
    return values


def reshard(module: nn.Module) -> None:
    """Let go of what a forward pass gathered: after one without a backward pass, a root's parameters would still be
    whole, and no longer those that the optimiser holds."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def keep_float32(module: nn.Module, accelerator: Any) -> None:
    """Shard a module by itself, before the model around it, so that it computes in float32 whatever the model does."""
    if accelerator.is_fsdp2:
        fully_shard(module, mp_policy=MixedPrecisionPolicy())


def prepare_frozen(module: nn.Module, accelerator: Any) -> nn.Module:
    """A module that is only run, placed as its trained sibling is."""
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        frozen: nn.Module = fsdp2_prepare_model(accelerator, module)
    else:
        frozen = accelerator.prepare_model(module, device_placement=True, evaluation_mode=True)
    return frozen


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Overwrite the parameters of `target` with those of `source`, which has the same and is sharded as it is."""
    reshard(source)
    reshard(target)
    for name, parameter in target.named_parameters():
        if parameter is not source.get_parameter(name):
            local(parameter).copy_(local(source.get_parameter(name)))
