"""The accelerator of a training or reference pass (devices, processes, precision), and peak memory."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from halos.distributed.launch import PROCESSES
from halos.errors import HalosError

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 2
"""Hours that processes wait for the main one, which reads and writes whole models, before the job fails."""


def accelerator_for(precision: str) -> Accelerator:
    """The accelerator for the processes and devices that this process was launched with.

    Weights are float32. With bf16, single processes and DDP compute under autocast. FSDP2 computes on bfloat16 copies
    of its shards, but reduces gradients and returns outputs in float32. For speed on the CPU, denormals are flushed to
    zero and freed memory is kept.

    Args:
        precision: compute type, `bf16` or `fp32`.

    Raises:
        HalosError: the launcher is not supported, or the processes did not find each other.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType, InitProcessGroupKwargs
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    torch.set_flush_denormal(True)
    # without `cpu=True`, processes on a machine without an accelerator would not find each other
    options: dict[str, Any] = {"cpu": not torch.accelerator.is_available()}
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    policies: dict[str, Any] = {}
    if precision == "bf16":
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policies["mixed_precision_policy"] = half
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        policies["cpu_offload"] = CPUOffloadPolicy(pin_memory=torch.accelerator.is_available())
    if sharded:  # weights that are handed out shall leave the main memory
        _mallopt(MMAP_THRESHOLD, 2**20)
        options |= {"fsdp_plugin": FullyShardedDataParallelPlugin(**policies)} if policies else {}
    elif not torch.accelerator.is_available():
        _keep_freed_memory()
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=PATIENCE))
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", kwargs_handlers=[patience],
                              **options)  # fmt: skip
    kind = accelerator.distributed_type
    unsupported = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if kind in unsupported or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise HalosError("this launcher is not supported: use profiles/accelerate/ddp.yaml or fsdp.yaml")
    if sharded and not accelerator.is_fsdp2:  # accelerate would silently use DDP
        raise HalosError("weights are sharded over GPUs, and there are none here: leave out `parallel: fsdp`")
    check_processes(accelerator.num_processes)
    return accelerator


def check_processes(found: int) -> None:
    """Check that all processes found each other: those that work alone would all write the same files.

    Args:
        found: number of processes that found each other.

    Raises:
        HalosError: it is not the number that was launched.
    """
    launched = int(os.environ.get(PROCESSES) or os.environ.get("WORLD_SIZE", "1"))
    if found != launched:
        raise HalosError(f"{launched} processes were launched but {found} found each other: start the job again")


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory that tensors free. To get it anew from the system, page by page, takes about as long
    as the computation."""
    _mallopt(MMAP_MAX, 0)
    _mallopt(TRIM_THRESHOLD, 2**31 - 1)


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's malloc, by its malloc.h: memory of at least MMAP_THRESHOLD bytes is the system's once freed, up
to MMAP_MAX pieces."""


def _mallopt(parameter: int, value: int) -> None:
    """Set a parameter of glibc's malloc, where that is the allocator."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)


def peak_memory_gb() -> float:
    """Peak memory of this process in GB (10^9 bytes): of its GPU if it has one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
