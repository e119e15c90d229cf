"""GPUs of this machine: which there are, and locks that give each to one job at a time.

A job waits for as many as it needs, and has them until its last process is gone, however that ends: each of its
processes holds a lock (flock) of a file for each of its GPUs, which the kernel frees. The files are in one folder of
the machine and named by the GPUs' UUIDs, so that jobs of several users and of several `snakemake`s do not collide.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos.distributed.peaks import GIB
from halos.errors import HalosError

VISIBLE = "CUDA_VISIBLE_DEVICES"
KNOWN = "HALOS_GPUS"
"""Environment variable with names of this machine's GPUs, separated by commas, in place of those that NVIDIA's driver
reports: for GPUs that it does not know, and for tests."""
HELD = "HALOS_HELD_GPUS"
"""Environment variable that tells the processes of a job which GPUs are locked for it."""
FOLDER = "HALOS_GPU_LOCKS"
"""Environment variable with the folder of the locks."""
LOCKS = "/tmp/halos-gpus"
"""Their folder by default. It is not below TMPDIR, which differs between users and jobs."""
MIG = "MIG-"
"""How the UUIDs of parts of a GPU (multi-instance GPU) begin."""
PAUSE = 0.5
"""Seconds between two looks at locks that others hold."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG).

    Attributes:
        model: what it is, as its maker calls it.
        memory: bytes in all.
        free: bytes that are not in use.
        capability: compute capability.
        uuid: its UUID; empty where only torch knows the GPU.
        index: its number, or that of the GPU that it is a part of, in the order of nvidia-smi.
        name: its name in CUDA_VISIBLE_DEVICES.
    """

    model: str
    memory: float
    free: float
    capability: tuple[int, ...]
    uuid: str = ""
    index: int = 0
    name: str = ""


def from_driver() -> tuple[list[Gpu], str]:
    """The GPUs of the machine by NVIDIA's driver, with its parts in place of one that is parted, and its version.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        Exception: NVML's own, where there is no driver.
    """
    import pynvml  # jobs without GPUs start sooner without it

    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)  # bytes in old versions

    pynvml.nvmlInit()
    try:
        wholes = []
        for number in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError_NoPermission):  # kept from this process: CUDA does not count it either
                wholes.append(pynvml.nvmlDeviceGetHandleByIndex(number))
        parts = [_parts(pynvml, whole) for whole in wholes]
        gpus = []
        for index, whole in enumerate(wholes):
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(whole))
            for handle in parts[index] or [whole]:
                model, uuid = text(pynvml.nvmlDeviceGetName(handle)), text(pynvml.nvmlDeviceGetUUID(handle))
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                # vLLM reads no UUIDs (up to 0.23 at least); where there are parts, numbers are ambiguous
                name = uuid if any(parts) else str(index)
                gpus.append(Gpu(model, memory.total, memory.free, capability, uuid, index, name))
        return gpus, text(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _parts(pynvml: Any, whole: Any) -> list[Any]:
    """Handles of the parts of a GPU; none if it is not parted."""
    parts = []
    with suppress(pynvml.NVMLError):  # GPUs that cannot be parted
        if pynvml.nvmlDeviceGetMigMode(whole)[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
                with suppress(pynvml.NVMLError):  # there may be fewer
                    parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, number))
    return parts


def visible() -> list[Gpu]:
    """The GPUs of HALOS_GPUS, or else of NVIDIA's driver, that CUDA_VISIBLE_DEVICES leaves to this process."""
    if (known := os.environ.get(KNOWN)) is not None:
        gpus = [Gpu("", 0, 0, (), name, index, str(index)) for index, name in enumerate(filter(None, known.split(",")))]
    else:
        try:
            gpus, _ = from_driver()
        except Exception:  # no driver, or one that does not answer: torch finds no GPU either
            gpus = []
    listed = os.environ.get(VISIBLE)
    return gpus if listed is None else chosen(listed, gpus)


def chosen(listed: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names, each by its number in the order of nvidia-smi or by the
    beginning of its UUID. As CUDA does, it reads no further than to a name that is not of one other GPU."""
    found: list[Gpu] = []
    for word in map(str.strip, listed.split(",")):
        if word.isdigit():
            named = [gpu for gpu in gpus if gpu.index == int(word)][:1]  # of a parted GPU, CUDA takes the first part
        else:
            named = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
        if len(named) != 1 or named[0] in found:
            break
        found += named
    return found


def usable(count: int) -> list[Gpu]:
    """The visible GPUs that a job of so many can use: to several, CUDA gives no parts of a GPU."""
    return [gpu for gpu in visible() if count == 1 or not gpu.uuid.startswith(MIG)]


def too_few(wanted: int, found: int) -> str:
    """What is wrong, and what to do, where a job wants more GPUs than there are."""
    shown = os.environ.get(VISIBLE)
    here = f"{found or 'none'} on this machine" + ("" if shown is None else f" ({VISIBLE} is {shown!r})")
    return (
        f"{wanted} GPU{'s' if wanted > 1 else ''} wanted, and there {'is' if found < 2 else 'are'} {here}: "
        "change `gpus` in the model's resources, or run `snakemake --profile slurm` on a cluster"
    )


def take(count: int) -> dict[str, str]:
    """Wait until so many GPUs are free, and lock them for this process, what takes its place by exec, and its children.

    Jobs that may use the same GPUs take turns. Whose turn it is keeps what it got until it has all, and the others wait
    behind it: a job of many GPUs gets them however many small ones there are, and no two jobs wait for each other. GPUs
    with more free memory are taken first, because programs of others may use some.

    Returns:
        The environment variables of the job; none where nothing is locked, because the job wants no GPU or has its own
        already, because no GPU is known here, or because Slurm gave it others than are seen here.

    Raises:
        HalosError: there are fewer GPUs, or their locks cannot be used.
    """
    gpus = usable(count) if count and HELD not in os.environ else []
    if not gpus or (len(gpus) < count and "SLURM_JOB_ID" in os.environ):
        return {}
    if len(gpus) < count:
        raise HalosError(too_few(count, len(gpus)))
    held: list[Gpu] = []
    with ExitStack() as turn:
        for uuid in sorted(gpu.uuid for gpu in gpus):  # in the same order for all, or two could wait for each other
            turn.callback(os.close, _take_turn(uuid))
        told = False
        while True:
            for gpu in sorted(gpus, key=lambda gpu: -(gpu.free // GIB)):
                if len(held) < count and gpu not in held and _lock(gpu.uuid):
                    held.append(gpu)
            if len(held) == count:
                break
            if not told:
                taken = ", ".join(f"{gpu.uuid} by process {_holder(gpu.uuid)}" for gpu in gpus if gpu not in held)
                _say(f"waiting for {count - len(held)} more GPUs of {count}; taken: {taken}")
                told = True
            time.sleep(PAUSE)
    _say(f"GPUs of this job: {', '.join(f'{gpu.index} ({gpu.uuid})' for gpu in held)}")
    names, uuids = ([getattr(gpu, key) for gpu in held] for key in ("name", "uuid"))
    return {VISIBLE: ",".join(names), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", HELD: ",".join(uuids)}


def hold() -> None:
    """Lock the GPUs of this process's job for this process, too: they stay the job's while any of its processes runs,
    even if the one that took them was killed.

    Raises:
        HalosError: they were given to another job.
    """
    for uuid in filter(None, os.environ.get(HELD, "").split(",")):
        if not _flock(_open(uuid), fcntl.LOCK_SH | fcntl.LOCK_NB):
            raise HalosError(f"another job has the GPU {uuid}, because the launcher of this one ended: start it again")


def check_locks() -> Path:
    """The folder of the locks.

    Raises:
        HalosError: they cannot be used.
    """
    os.close(_open("test"))
    return _folder()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _folder() -> Path:
    return Path(os.environ.get(FOLDER, LOCKS))


def _take_turn(uuid: str) -> int:
    """Wait until no other job takes GPUs of which this is one; the turn ends when the descriptor is closed."""
    name = f"{uuid}.turn"
    descriptor = _open(name)
    if not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
        _say(f"waiting for a turn: process {_holder(name)} came first, and waits for GPUs")
        _flock(descriptor, fcntl.LOCK_EX)
    _sign(descriptor)
    return descriptor


def _lock(uuid: str) -> bool:
    """Lock a GPU for this process and what takes its place by exec, in its turn; False where another job has it."""
    descriptor = _open(uuid)
    if not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
        os.close(descriptor)
        return False
    _sign(descriptor)
    _flock(descriptor, fcntl.LOCK_SH)  # which other processes of the job can hold as well
    os.set_inheritable(descriptor, True)
    return True


def _open(name: str) -> int:
    """A file of the folder of locks, which every user can open."""
    folder = _folder()
    path = folder / name.replace("/", "_")
    mask = os.umask(0)
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o1777)
        with suppress(FileExistsError):
            if not path.exists():
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # without O_CREAT, with which Linux refuses files of others in such a folder (fs.protected_regular)
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise HalosError(_unusable(error)) from None
    finally:
        os.umask(mask)


def _flock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise HalosError(_unusable(error)) from None
    return True


def _unusable(error: OSError) -> str:
    return (
        f"jobs lock their GPUs in {_folder()}, which does not work ({error.strerror}): let everyone write there (mode "
        f"1777), or set {FOLDER} to a folder on a disk of this machine that all its users share"
    )


def _sign(descriptor: int) -> None:
    """Write down who holds a lock, for those who wait."""
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _holder(name: str) -> str:
    descriptor = _open(name)
    try:
        return os.pread(descriptor, 20, 0).decode() or "?"
    finally:
        os.close(descriptor)
