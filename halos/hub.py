"""Offline use of the Hugging Face hub: the verb `fetch` downloads, all others read what it downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halos.errors import HalosError

FETCHED = "fetched.json"
"""File in the folder of a model, a dataset or a task with the commits that `fetch` downloaded."""


class Unavailable(HalosError):
    """Something on the hub that is neither in the cache nor can be downloaded.

    Attributes:
        repository: `models/owner/name` or `datasets/owner/name`.
    """

    def __init__(self, repository: str, sentence: str) -> None:
        super().__init__(sentence)
        self.repository = repository


def go_offline() -> None:
    """Set the hub's libraries to offline, unless the environment says otherwise; they read this when imported.

    Transformers takes no kernels of the hub, then, but those that are asked for.
    """
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ.setdefault(name, "1")


def remedy() -> str:
    """The end of a message about something on the hub that cannot be read: what to do about it."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return "this step is offline: run `python -m halos fetch` on its config.yaml where there is a network"
    return "check the name, the revision, your token and the network"


def read_fetched(files: Sequence[Path]) -> dict[str, Any]:
    """The content of a fetched.json.

    Args:
        files: the file, or nothing where nothing is on the hub, as rules pass it.

    Returns:
        The content; empty without a file.

    Raises:
        HalosError: the file is missing.
    """
    if not files:
        return {}
    if not files[0].is_file():
        raise HalosError(f"there is no {files[0]}; `python -m halos fetch` writes it")
    content: dict[str, Any] = json.loads(files[0].read_text())
    return content
