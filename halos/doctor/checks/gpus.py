"""GPUs: what they are, whether torch can use them, which attention works on them, and whether they reach each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halos.distributed.devices import FOLDER, Gpu, check_locks, from_driver
from halos.distributed.peaks import GIB
from halos.doctor.answers import ATTENTIONS
from halos.doctor.lines import ABSENT, OK, TO_DO, Line, check, unless
from halos.doctor.probe import FAILURE, LATE
from halos.doctor.setup import Setup
from halos.errors import HalosError
from halos.models.attention import AUTO, is_kernel
from halos.plan.devices import CONTEXT, GB, RESERVE

DRIVER = Path("/proc/driver/nvidia/version")
TOLERANCE = {"cuda": 0.05, "cpu": 1e-4}
"""Largest relative difference from eager: of bfloat16 on a GPU (0.01 to 0.02 are usual), of float32 on a CPU. Without
its mask, attention differs by 1."""
BF16 = (8, 0)
"""The compute capability from which GPUs compute in bfloat16 (Ampere)."""


def devices(setup: Setup) -> dict[str, Any]:
    """What torch says of itself and its GPUs (halos.doctor.answers.devices)."""
    return setup.probe("devices").answers()


def here(setup: Setup) -> tuple[list[Gpu], str | None]:
    """The GPUs of the machine, and the version of its driver where it is known."""
    try:
        return from_driver()
    except Exception:  # not installed, or no driver: what torch sees is all there is
        found = [Gpu(g["name"], g["memory"], g["free"], tuple(g["capability"])) for g in devices(setup).get("gpus", [])]
        said = re.search(r"\b\d{3,}(\.\d+)+", DRIVER.read_text()) if DRIVER.is_file() else None
        return found, said[0] if said else None


@check("GPU")
def gpus(setup: Setup) -> Iterator[Line]:
    """Each GPU, and whether the grid's jobs fit in number, precision and memory."""
    found, driver = here(setup)
    elsewhere = setup.on_cluster
    needed = setup.gpus > 0 and not elsewhere
    if not found:
        remedy = "; the grid's jobs get theirs from Slurm" if setup.gpus and elsewhere else (
            f"; jobs of the grid ask for up to {setup.gpus}: run them where there are, or set `gpus: 0` in the "
            "resources of small models" if needed else "")  # fmt: skip
        yield Line("GPU", unless(needed), "none here" + remedy)
        return
    for index, gpu in enumerate(found):
        bf16 = "bf16" if gpu.capability >= BF16 else "no bf16 of its own"
        memory = f"{gpu.memory / GIB:.1f} GiB ({gpu.free / GIB:.1f} free)"
        capability = ".".join(map(str, gpu.capability))
        yield Line(f"GPU {index}", OK, f"{gpu.model}, {memory}, compute capability {capability}, {bf16}, driver "
                   f"{driver or 'unknown'}")  # fmt: skip
    if setup.gpus > len(found):
        yield Line("GPU", unless(needed), f"jobs of the grid ask for up to {setup.gpus}, and {len(found)} are here: "
                   "lower `gpus` in the resources of models, or run on a cluster")  # fmt: skip
    coarse = [name for name, model in setup.models.items() if model.resources.gpus and model.precision == "bf16"]
    if coarse and any(gpu.capability < BF16 for gpu in found):
        yield Line("bf16", unless(needed), f"{', '.join(coarse)} compute in it, and not every GPU here does (Ampere "
                   "and later do): set `precision: fp32`")  # fmt: skip
    yield from _memory(setup, min(gpu.memory for gpu in found), needed)


def _memory(setup: Setup, memory: float, needed: bool) -> Iterator[Line]:
    """The GPU memory of the grid's largest job, by the plan."""
    plan = setup.plan
    if not setup.gpus or plan is None:
        return
    if isinstance(plan, HalosError):
        yield Line("GPU memory", ABSENT, f"no estimate: {plan}")
        return
    on_gpus = [job for job in plan.jobs if setup.resources[job.cell.model].gpus]
    if not on_gpus:
        return
    job = max(on_gpus, key=lambda job: job.memory.total)
    room = (1 - RESERVE) * memory - CONTEXT
    fits = job.memory.total <= room
    yield Line("GPU memory", OK if fits else unless(needed),
               f"the largest job ({job.cell.model}, {job.kind}) takes {job.memory.total / GB:.1f} GB of a GPU by "
               f"estimate, and there is room for {room / GB:.1f} GB"
               + ("" if fits else ": `python -m halos plan` names what would help"))  # fmt: skip


@check("GPU locks")
def locks(setup: Setup) -> Iterator[Line]:
    """Whether jobs can lock their GPUs, by which no two jobs of this machine have the same one."""
    if here(setup)[0]:
        yield Line("GPU locks", OK, f"jobs lock their GPUs in {check_locks()}; {FOLDER} names another folder")


@check("torch")
def torch(setup: Setup) -> Iterator[Line]:
    """torch's CUDA against the driver's and the GPUs'."""
    said, (machine, _) = devices(setup), here(setup)
    if "version" not in said:
        state = ABSENT if said.get(LATE) else TO_DO
        yield Line("torch", state, f"it cannot be imported: {said.get(FAILURE)}")
        return
    needed = unless(setup.gpus > 0 and not setup.on_cluster)
    version, cuda, seen = said["version"], said["cuda"], said.get("gpus", [])
    present = bool(machine) or DRIVER.is_file()
    if said["hip"]:
        yield Line("torch", OK, f"{version}, for ROCm {said['hip']}, sees {len(seen)} GPUs")
    elif cuda is None:
        state, note = (needed, ": install the one for CUDA, or the GPU is of no use") if present else (OK, "")
        yield Line("torch", state, f"{version}, built for CPUs{note}")
    else:
        yield _against_driver(said, present, needed)
    if len(seen) < len(machine) and cuda is not None:
        yield Line("torch", needed if not seen else ABSENT, f"it sees {len(seen)} of the {len(machine)} GPUs: look at "
                   f"CUDA_VISIBLE_DEVICES{' and at this: ' + said[FAILURE] if FAILURE in said else ''}")  # fmt: skip


def _against_driver(said: dict[str, Any], present: bool, needed: str) -> Line:
    """A torch for CUDA beside the driver and the GPUs."""
    driver, seen = said.get("driver", 0), said.get("gpus", [])
    text = f"{said['version']}, built for CUDA {said['cuda']}"
    if not driver:
        return Line("torch", needed if present else ABSENT, f"{text}, and no driver of NVIDIA answers")
    own, theirs = tuple(map(int, said["cuda"].split(".")[:2])), (driver // 1000, driver % 1000 // 10)
    text += f"; the driver knows CUDA {theirs[0]}.{theirs[1]}"
    if theirs[0] < own[0]:
        return Line("torch", needed, f"{text}: install a newer driver, or a torch for CUDA {theirs[0]}")
    if FAILURE in said:
        return Line("torch", needed, f"{text}; it cannot use the GPUs: {said[FAILURE]}")
    lacking = [gpu["name"] for gpu in seen if not _has_code(said["architectures"], *gpu["capability"])]
    if lacking:
        return Line(
            "torch", needed, f"{text}; it has no code for {', '.join(sorted(set(lacking)))}: install another torch"
        )
    return Line("torch", OK, text)


def _has_code(architectures: list[str], major: int, minor: int) -> bool:
    """Whether one of torch's architectures (sm_90, compute_90) runs on a GPU: machine code on later minor versions of
    its major one, an intermediate form on all later ones."""
    for name in architectures:
        kind, number = re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", name).groups()  # type: ignore[union-attr]
        of = divmod(int(number), 10)
        if of <= (major, minor) and (kind == "compute" or of[0] == major):
            return True
    return False


@check("attention")
def attention(setup: Setup) -> Iterator[Line]:
    """Each attention implementation on a tiny model, beside eager."""
    said = setup.attention().answers()
    on_gpu = bool(devices(setup).get("gpus"))
    place = "cuda" if on_gpu else "cpu"
    named = {model.attention for model in setup.models.values()}
    needed = (named - {AUTO}) | ({"eager", "sdpa"} if AUTO in named else set())
    for name in (*ATTENTIONS, *sorted(filter(is_kernel, named))):
        about = f"attention {name.partition('@')[0]}"
        found = said.get(name, said.get(FAILURE))
        if found is None:
            yield Line(about, ABSENT, "on a GPU only; none is here")
        elif said.get(LATE) and "eager" not in said:  # slow imports, and no fault of attention
            yield Line(about, ABSENT, found)
        elif isinstance(found, str):
            yield Line(
                about, unless(name in needed), found + ("; choose another `attention`" if name in needed else "")
            )
        elif found > TOLERANCE[place]:
            yield Line(about, unless(name in needed), f"it differs from eager by {found:.1%}, on a tiny model: choose "
                       "another `attention`")  # fmt: skip
        else:
            exact = "" if name == "eager" else f", and differs from eager by {found:.1g} of the spread"
            yield Line(about, OK, f"works on the {'GPU in bf16' if on_gpu else 'CPU in fp32'}{exact}")


@check("processes")
def processes(setup: Setup) -> Iterator[Line]:
    """A sum over all GPUs by NCCL, or over two processes by gloo."""
    said = setup.probe("collective").answers()
    backend, number = said.get("backend", "torch.distributed"), said.get("processes", 0)
    expected = number * (number + 1) / 2
    if said.get("sum") == expected and number:
        yield Line("processes", OK, f"{backend} adds up over {number} on this machine")
        return
    why = said.get(FAILURE, f"the sum is {said.get('sum')} and not {expected:g}")
    hint = "see whether `NCCL_P2P_DISABLE=1` helps" if "NCCL" in backend else "see that this host's name resolves"
    needed = setup.distributed and not (said.get(LATE) and not number)
    yield Line("processes", unless(needed), f"{backend} over {number} on this machine: {why}; {hint}")
