"""What all that is read from the Hugging Face hub has in common: it was fetched before, and is read offline."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halos.errors import HalosError

FETCHED = "fetched.json"
"""Below the folder of a model, a dataset or a task: the commits that `fetch` found."""


def go_offline() -> None:
    """Keep the libraries that know the hub from asking it, unless the environment says otherwise. They read this when
    they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ.setdefault(name, "1")


def remedy() -> str:
    """What to do about something on the hub that cannot be had."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return "this step is offline: run `python -m halos fetch` on its config.yaml where there is a network"
    return "check the name, the revision, your token and the network"


def read_fetched(files: Sequence[Path]) -> dict[str, Any]:
    """What `fetch` wrote, as a rule hands it on: one file, or none.

    Raises:
        HalosError: the file is missing.
    """
    if not files:
        return {}
    if not files[0].is_file():
        raise HalosError(f"there is no {files[0]}: `python -m halos fetch` writes it")
    content: dict[str, Any] = json.loads(files[0].read_text())
    return content
