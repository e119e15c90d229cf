"""Files that are whole or absent, JSON, and hashes of contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
