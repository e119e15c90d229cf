"""Hashes, versions, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pyarrow", "tokenizers", "vllm")


def hash_files(paths: Iterable[Path]) -> str:
    """sha256 of the files' names and contents, whatever their order."""
    return hash_content({path.name: hash_file(path) for path in paths})


def hash_file(path: Path) -> str:
    """sha256 of a file's content, as the program sha256sum gives it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_each(folder: Path) -> dict[str, str]:
    """{name: sha256} of a folder's files."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def hash_weights(model: Path) -> str:
    """sha256 of the names and contents of a model folder's safetensors files."""
    return hash_files(model.glob("*.safetensors"))


def weights_of(files: dict[str, str]) -> str:
    """The same, of the hashes of a model folder's files."""
    return hash_content({name: digest for name, digest in files.items() if name.endswith(".safetensors")})


def hash_content(content: Any) -> str:
    """sha256 of something JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is never seen half-written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for a manifest."""
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
