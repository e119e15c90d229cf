"""Sharding of a network that the main process alone has read (FSDP2): each other process holds no more than its shard.

The main process builds the network, with its weights; the others build the same modules without memory for weights, on
the meta device. `Weights.take` then removes the main process's weights from its network too, and `hand_out` gives each
process its shard of them, one weight at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from halos.distributed.sharding import reshard
from halos.errors import HalosError

T = TypeVar("T")
F = TypeVar("F")


def from_main(work: Callable[[], T], accelerator: Any) -> T:
    """The result of work that the main process does, in every process; where it raises a HalosError, all raise it.

    Args:
        work: what to do; its result is pickled.
        accelerator: the processes.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except HalosError as error:
            outcome = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], HalosError):
        raise outcome[0]
    result: T = outcome[0]
    return result


def build(make: Callable[[F | None], tuple[T, F]], accelerator: Any) -> T:
    """Build something that holds a network: where weights are sharded, by the main process first, in which alone it has
    weights.

    Args:
        make: builds it, and returns it with the findings by which it can be built without weights; it is given those of
            the main process where it is to be built so.
        accelerator: the processes.
    """
    if not accelerator.is_fsdp2:
        return make(None)[0]
    ours: list[T] = []

    def whole() -> F:
        thing, findings = make(None)
        ours.append(thing)
        return findings

    findings = from_main(whole, accelerator)
    return ours[0] if ours else make(findings)[0]


class Spec(NamedTuple):
    """A parameter or buffer of a network, without its values.

    Attributes:
        first: the name of the first one that is the same tensor; its own name if it is the first.
        trained: whether it is trained; None of a buffer.
    """

    first: str
    shape: torch.Size
    dtype: torch.dtype
    trained: bool | None


@dataclass(frozen=True)
class Weights:
    """The parameters and buffers of a network that is to be sharded.

    Attributes:
        specs: name -> what the main process's network has there; the same in every process.
        values: name -> tensor, each once; empty in all processes but the main one.
        accelerator: the processes.
    """

    specs: dict[str, Spec]
    values: dict[str, Tensor]
    accelerator: Any

    @classmethod
    def take(cls, network: nn.Module, accelerator: Any) -> Weights:
        """Take the weights out of a network, in place. It is left without values, and in every process its parameters
        have the shapes and types of the main one's, the same ones are trained, and the same ones are one tensor.

        Args:
            network: on the CPU; in all processes but the main one, the same modules with any parameters.
            accelerator: the processes.
        """
        names: dict[int, str] = {}
        values: dict[str, Tensor] = {}
        specs: dict[str, Spec] = {}
        if accelerator.is_main_process:
            for name, tensor in tensors_of(network):
                first = names.setdefault(id(tensor), name)
                values[first] = tensor.detach()
                trained = tensor.requires_grad if isinstance(tensor, nn.Parameter) else None
                specs[name] = Spec(first, tensor.shape, tensor.dtype, trained)
        specs = from_main(lambda: specs, accelerator)
        empty = {}
        for name, spec in specs.items():
            if spec.first == name:
                tensor = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                empty[name] = tensor if spec.trained is None else nn.Parameter(tensor, spec.trained)
            put(network, name, empty[spec.first])
        return cls(specs, values, accelerator)

    def hand_out(self, *networks: nn.Module) -> None:
        """Give each process its shard of every parameter, and all buffers; the main process lets go of each in turn.

        Args:
            networks: the network that the weights were taken from, and copies of it that lack some of its modules or
                none, sharded and without values.
        """
        held = [(network, dict(tensors_of(network))) for network in networks]
        names: dict[str, list[str]] = {}
        for name, spec in self.specs.items():
            names.setdefault(spec.first, []).append(name)
        for first, same in names.items():
            whole, ours = self.values.pop(first, None), None
            for network, like in ((network, tensors[first]) for network, tensors in held if first in tensors):
                if ours is None:
                    ours = self._shard(like, whole) if isinstance(like, DTensor) else self._whole(like, whole)
                else:
                    ours = ours.clone()
                tensor = nn.Parameter(ours, like.requires_grad) if isinstance(like, nn.Parameter) else ours
                for name in same:
                    put(network, name, tensor)

    def _shard(self, like: DTensor, whole: Tensor | None) -> DTensor:
        """A process's shard of a parameter, by rows: equally many in each process, and the last ones may have fewer."""
        world, device = self.accelerator.num_processes, self.accelerator.device
        rows = -(-like.shape[0] // world)
        ours = torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=device)
        parts = None
        if whole is not None:
            parts = [*whole.to(device, like.dtype).contiguous().split(rows)]
            parts += [ours[:0]] * (world - len(parts))
            parts = [part if len(part) == rows else _padded(part, ours) for part in parts]
        dist.scatter(ours, parts, src=0)
        if isinstance(self.accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
            ours = ours.cpu()
        return DTensor.from_local(
            ours[: len(like.to_local())], like.device_mesh, like.placements, run_check=False, shape=like.shape,
            stride=like.stride(),
        )  # fmt: skip

    def _whole(self, like: Tensor, whole: Tensor | None) -> Tensor:
        """A buffer, which each process has whole."""
        ours = torch.empty_like(like, device=self.accelerator.device) if whole is None else whole
        ours = ours.to(self.accelerator.device).contiguous()
        dist.broadcast(ours, src=0)
        return ours


@torch.no_grad()
def gather(module: nn.Module, accelerator: Any) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a module's state, for the main process, which gets sharded ones one after the other in
    its main memory; none for the other processes, each of which has to run this to its end, too.

    A tensor with several names is gathered once.
    """
    reshard(module)
    names: dict[int, str] = {}
    first = {n: names.setdefault(id(p), n) for n, p in module.named_parameters(remove_duplicate=False)}
    wholes: dict[str, Tensor | None] = {}
    for name, tensor in module.state_dict().items():
        whole: Tensor | None = tensor
        if isinstance(tensor, DTensor):
            if first[name] not in wholes:
                shards: Any = tensor.to(accelerator.device)
                gathered = shards.full_tensor()
                wholes[first[name]] = gathered.cpu() if accelerator.is_main_process else None
            whole = wholes[first[name]]
        if whole is not None and accelerator.is_main_process:
            yield name, whole


def tensors_of(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a network, under each of their names."""
    return [*chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))]


def put(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter or buffer of a name."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor


def _padded(part: Tensor, like: Tensor) -> Tensor:
    padded = torch.zeros_like(like)
    padded[: len(part)] = part
    return padded
