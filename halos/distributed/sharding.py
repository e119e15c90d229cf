"""Operations on models whose weights may be sharded over processes (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, detached; the whole tensor if it is not sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def shard_like(values: Tensor, parameter: Tensor) -> Tensor:
    """The inverse of `local`: a tensor sharded like a parameter, from this process's shard of it.

    Args:
        values: the shard. Values of any other shape, or for a parameter that is not sharded, are returned as they are.
        parameter: the parameter.
    """
    if isinstance(parameter, DTensor) and values.shape == parameter.to_local().shape:
        return DTensor.from_local(
            values.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
    return values


def reshard(module: nn.Module) -> None:
    """Free the parameters that a forward pass gathered.

    After a forward pass without a backward pass, the root module's parameters would still be whole tensors, and not the
    shards that the optimiser updates.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def keep_float32(module: nn.Module, accelerator: Any) -> None:
    """Shard a module by itself, before the model around it, so that it computes in float32 in a bf16 model."""
    if accelerator.is_fsdp2:
        fully_shard(module, mp_policy=MixedPrecisionPolicy(), offload_policy=accelerator.state.fsdp_plugin.cpu_offload)


def name_layers(module: nn.Module) -> None:
    """Leave, of the classes along which a module is sharded, those that it has: multimodal models name layers of towers
    of other kinds, too, which accelerate would not find."""
    present = {type(part).__name__ for part in module.modules()}
    named: list[str] = getattr(module, "_no_split_modules", None) or []
    module._no_split_modules = [name for name in named if name in present]  # type: ignore[assignment]


def shard(module: nn.Module, accelerator: Any) -> nn.Module:
    """Shard a module over the processes (FSDP2), in place; one without values is given its shards later, see
    `halos.distributed.loading`."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    sharded: nn.Module = fsdp2_prepare_model(accelerator, module)
    return sharded


def prepare_frozen(module: nn.Module, accelerator: Any) -> nn.Module:
    """Prepare a module that is not trained: on its device, and sharded if the trained module is."""
    if accelerator.is_fsdp2:
        return shard(module, accelerator)
    frozen: nn.Module = accelerator.prepare_model(module, device_placement=True, evaluation_mode=True)
    return frozen


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, share: float = 1.0) -> None:
    """Move each parameter of `target` to share * source + (1 - share) * target: by default, copy it.

    Both modules have the same parameters, sharded in the same way; those that they have in common stay as they are.
    """
    reshard(source)
    reshard(target)
    for name, parameter in target.named_parameters():
        if parameter is not source.get_parameter(name):
            values = local(source.get_parameter(name))
            local(parameter).copy_(values) if share == 1 else local(parameter).lerp_(values, share)
