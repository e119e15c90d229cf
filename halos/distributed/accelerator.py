"""The accelerator of a training or a reference pass: devices, processes, precision, and peak memory."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import torch

from halos.distributed.launch import PROCESSES
from halos.errors import HalosError

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator for the processes and devices at hand; on the CPU it also cures the slowness of denormals, and of
    memory that each operation gets anew from the system.

    Weights are float32. With bf16, single processes and DDP compute under autocast; FSDP2 computes on bfloat16 copies
    of its shards, but reduces gradients, and gives its outputs, in float32.

    Raises:
        HalosError: launched in a way that is not supported, or processes did not find each other.
    """
    import torch
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    torch.set_flush_denormal(True)
    if not torch.accelerator.is_available():
        _keep_freed_memory()
    # without `cpu=True`, processes on a machine without an accelerator would not find each other
    more: dict[str, Any] = {"cpu": not torch.accelerator.is_available()}
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if precision == "bf16" and sharded:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        more["fsdp_plugin"] = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", **more)
    kind = accelerator.distributed_type
    others = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if kind in others or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise HalosError("launch several processes with profiles/accelerate/ddp.yaml or fsdp.yaml, not otherwise")
    if sharded and not accelerator.is_fsdp2:  # accelerate would quietly be DDP
        raise HalosError("weights are sharded over GPUs, and there are none here: leave out `parallel: fsdp`")
    check_processes(accelerator.num_processes)
    return accelerator


def check_processes(found: int) -> None:
    """Processes that work alone without knowing it would all write the same files.

    Raises:
        HalosError: not as many found each other as were launched.
    """
    wanted = int(os.environ.get(PROCESSES) or os.environ.get("WORLD_SIZE", "1"))
    if found != wanted:
        raise HalosError(f"{wanted} processes were launched but {found} found each other: start the job again")


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones: page by page from the system, it costs as much time as what
    is computed in it."""
    import ctypes

    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def peak_memory_gb() -> float:
    """Peak memory of this process: of its GPU where there is one, else of the process itself."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
