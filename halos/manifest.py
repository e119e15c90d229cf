"""manifest.json: the hashes, settings, costs and environment of a run or a base model."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from halos.errors import HalosError
from halos.files import JsonFile, Record, hash_each, hash_file, weights_of
from halos.seeds import RECIPE

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pyarrow", "tokenizers", "vllm",
            "flash-attn", "flash-attn-3", "kernels", "liger-kernel")  # fmt: skip


VALUE_HEAD = "value_head.safetensors"
"""The file of a value head, beside `model/`: within it, programs that read every safetensors file would stumble."""
KEPT = "optimizer"
"""Folder of a run's state at its end, for another to go on from: a checkpoint, or the optimiser alone."""


class Hardware(Record):
    """The machine that made a run.

    Attributes:
        machine: architecture, such as x86_64.
        cpus: CPU cores that the process may use.
        threads: threads of torch.
        gpus: names of the GPUs that the process sees.
    """

    machine: str
    cpus: int | None
    threads: int
    gpus: tuple[str, ...]


class Round(Record):
    """One round of an online stage.

    Attributes:
        labels: the report of its labeller. The other fields are those of the round's own manifest.
    """

    weights: str
    inputs: dict[str, str]
    data: dict[str, dict[str, int]]
    steps: int
    tokens: int
    seconds: float
    labels: dict[str, Any]


class Manifest(JsonFile):
    """manifest.json, written last: a folder that has one is complete.

    A base model has the fields up to `revision`, and those of the environment where it was made here.

    Attributes:
        config: the slice of the catalogue that made it.
        weights: hash of the model's weights.
        files: name -> sha256 of each file of `model/`.
        links: name -> size and time of the last change (ns) of each file that a base model links to.
        revision: commit of a base model from the hub.
        inputs: hashes of what a run was trained from: `weights`, `store` and `template`; `reference`, `scores`,
            `adapters`, `value_head` and `resumed` where it had them.
        data: split -> counts of its examples, responses and labels.
        steps: optimiser steps of the published weights, which with early stopping may be fewer than were made.
        tokens: tokens of all sequences that were trained on; as the times, without those of a run that it goes on from.
        seconds: wall time, over all attempts.
        gpu_hours: hours of all its GPUs together; 0 on the CPU.
        peak_memory_gb: peak memory of the main process's device.
        parameters: number of the model's weights, before adapters are merged.
        trained: number of trained weights, those of adapters included.
        adapted: fraction of the model's weights that were trained, or are in matrices with LoRA adapters.
        not_adapted: names of the weights that stayed as they were, with `*` for the number of a layer.
        processes: number of processes, and so of devices.
        rounds: the rounds of an online stage, in order.
        diverged: why a trial of a sweep has its parent's weights, where its training diverged; None of all others.
        stopped_early: step at which early stopping ended the training; None where it did not, and of several rounds.
        value_head: sha256 of value_head.safetensors beside `model/`, PPO's value head; None where there is none.
        seed_recipe: how seeds were derived (halos/seeds.py).
        packages: name -> version of the installed packages that results depend on.
        python: version of Python.
        commit: git commit of this package's checkout, ending in `-modified` when files differ from it.
        hardware: the machine of the main process.
    """

    config: dict[str, Any]
    weights: str
    files: dict[str, str]
    links: dict[str, tuple[int, int]] = {}
    revision: str | None = None
    inputs: dict[str, str] = {}
    data: dict[str, dict[str, int]] = {}
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    gpu_hours: float = 0.0
    peak_memory_gb: float | None = None
    parameters: int | None = None
    trained: int | None = None
    adapted: float | None = None
    not_adapted: tuple[str, ...] = ()
    processes: int = 1
    rounds: tuple[Round, ...] = ()
    diverged: str | None = None
    stopped_early: int | None = None
    value_head: str | None = None
    seed_recipe: str = RECIPE
    packages: dict[str, str] = {}
    python: str | None = None
    commit: str | None = None
    hardware: Hardware | None = None

    def check_links(self, model: Path) -> None:
        """Check that the files that a base model links to are those that it was made from.

        Only a file that the file system says has changed is read.

        Raises:
            HalosError: one was replaced or removed.
        """
        for name, state in self.links.items():
            path = model / name
            if not path.is_file() or (state_of(path) != state and hash_file(path) != self.files[name]):
                raise HalosError(
                    f"{path.resolve()} changed since {model} was made from it: run "
                    f"`snakemake {model.parent}/manifest.json`"
                )

    @classmethod
    def of(cls, model: Path, config: dict[str, Any], **fields: Any) -> Self:
        """The manifest of a model folder that was made here and now.

        Args:
            model: the model folder, whose files are hashed.
            config: the slice of the catalogue that made it.
            fields: further fields, but those of the environment.
        """
        files = hash_each(model)
        return cls(config=config, weights=weights_of(files), files=files, **environment(), **fields)


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change, in nanoseconds, of a file or of what it links to."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def environment() -> dict[str, Any]:
    """The fields of a manifest about its environment: `packages`, `python`, `commit` and `hardware`, as of now."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"packages": versions, "python": platform.python_version(), "commit": commit(), "hardware": _hardware()}


def commit() -> str | None:
    """The git commit of this package's checkout, marked when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-modified" if changes else "")


def _hardware() -> Hardware:
    import torch

    return Hardware(
        machine=platform.machine(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
    )
