"""NVML of a machine with GPUs that are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    """What NVML raises."""


class NVMLErrorNoPermission(NVMLError):
    """What it raises of a GPU that a control group keeps from this process."""


def nvml(*models: str, parts: tuple[int, ...] = (), free: tuple[int, ...] = ()) -> Any:
    """A module like pynvml.

    Args:
        models: names of the GPUs, which are of Hopper; they have the UUIDs GPU-0aa, GPU-1aa, ... Those without a name
            are kept from this process.
        parts: of each GPU, the number of parts (MIG) that it is in, with the UUIDs MIG-00, MIG-01, ...; none cannot be.
        free: GiB of each that are not in use; of all, 10.
    """

    def whole(index: int) -> int:
        if not models[index]:
            raise NVMLErrorNoPermission("Insufficient Permissions")
        return index

    def mode(handle: int) -> tuple[int, int]:
        if not parts:
            raise NVMLError("Not Supported")
        return (int(parts[handle] > 0),) * 2

    def part(handle: int, number: int) -> tuple[int, int]:
        if number >= parts[handle]:
            raise NVMLError("Not Found")
        return handle, number

    def memory(handle: Any) -> Any:
        index = handle[0] if isinstance(handle, tuple) else handle
        return SimpleNamespace(total=80 * GIB, free=(free[index] if free else 10) * GIB)

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_NoPermission=NVMLErrorNoPermission,
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(models),
        nvmlDeviceGetHandleByIndex=whole,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetName=lambda handle: models[handle[0] if isinstance(handle, tuple) else handle].encode(),
        nvmlDeviceGetUUID=lambda handle: "MIG-{}{}".format(*handle) if isinstance(handle, tuple) else f"GPU-{handle}aa",
        nvmlDeviceGetMigMode=mode,
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=part,
        nvmlSystemGetDriverVersion=lambda: "570.86.10",
    )
