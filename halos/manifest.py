"""manifest.json: what a run or a base model was made from, where, and with what."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from halos.files import JsonFile, Record
from halos.seeds import RECIPE

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pyarrow", "tokenizers", "vllm")


class Hardware(Record):
    """What a run was made on: CPU cores and threads of its process, and the names of its GPUs."""

    machine: str
    cpus: int | None
    threads: int
    gpus: tuple[str, ...]


class Round(Record):
    """One round of an online stage: hashes and counts as in its own manifest, and the report of its labeller."""

    weights: str
    inputs: dict[str, str]
    data: dict[str, dict[str, int]]
    steps: int
    tokens: int
    seconds: float
    labels: dict[str, Any]


class Manifest(JsonFile):
    """manifest.json, written last: a folder that has one is complete.

    Attributes:
        config: the slice of the catalogue that made it.
        weights: hash of the model's weights.
        files: name -> sha256 of each file of `model/`.
        revision: of a base model from the hub, its commit.
        inputs: hashes of what a run was trained from: weights, store and template; reference, scores and adapters where
            it had them.
        data: split -> counts of its examples, responses and labels.
        tokens: of all sequences that were trained on.
        seconds: wall time, over all attempts.
        peak_memory_gb: of one process's device.
        rounds: of an online stage.
        seed_recipe: how seeds were derived (halos/seeds.py).
    """

    config: dict[str, Any]
    weights: str
    files: dict[str, str]
    revision: str | None = None
    inputs: dict[str, str] = {}
    data: dict[str, dict[str, int]] = {}
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    gpu_hours: float = 0.0
    peak_memory_gb: float | None = None
    parameters: int | None = None
    processes: int = 1
    rounds: tuple[Round, ...] = ()
    seed_recipe: str = RECIPE
    packages: dict[str, str] = {}
    python: str | None = None
    commit: str | None = None
    hardware: Hardware | None = None


def environment() -> dict[str, Any]:
    """The fields of a manifest that say where it is made: versions, commit and hardware."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"packages": versions, "python": platform.python_version(), "commit": _commit(), "hardware": _hardware()}


def _commit() -> str | None:
    """The git commit of this package's checkout, marked when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("-modified" if found[1] else "")


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}  # fmt: skip
