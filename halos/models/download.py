"""Models of the Hugging Face hub: their files in its cache, at a known commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.hub import remedy

ADAPTERS = "adapter_config.json"


def download(settings: dict[str, Any]) -> dict[str, Any]:
    """Get what a model has on the hub, for `fetch`, which says what it returns; empty where there is nothing."""
    found: dict[str, Any] = {}
    origin = None if settings["path"] is None else Path(settings["path"])
    if settings["hub"] is not None:
        origin = snapshot(settings["model"], settings["hub"], settings["revision"])
        found = {"hub": settings["hub"], "revision": settings["revision"], "commit": origin.name}
    if origin is not None and (base := base_on_hub(origin)) is not None:
        found["base"] = {**base, "commit": snapshot(settings["model"], **base).name}
    return found


def base_on_hub(folder: Path) -> dict[str, str] | None:
    """The model {hub, revision} to which a folder's LoRA adapters belong, unless it is a folder itself."""
    if not (folder / ADAPTERS).is_file():
        return None
    config = json.loads((folder / ADAPTERS).read_text())
    base = config["base_model_name_or_path"]
    return None if Path(base).is_dir() else {"hub": base, "revision": config.get("revision") or "main"}


def snapshot(name: str, hub: str, revision: str) -> Path:
    """The folder of a hub model in the cache, called by its commit; downloaded where that is allowed.

    Raises:
        HalosError: it cannot be had, or has no safetensors.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    other = ["*/*", "consolidated*"]  # the same weights once more, in the layouts of other programs
    try:
        path = Path(snapshot_download(hub, revision=revision, allow_patterns=wanted, ignore_patterns=other))
    except Exception as error:  # of the hub, of its HTTP library, or of the disk: all mean the same here
        raise HalosError(
            f"models.{name}: cannot get {hub} at {revision} from the Hugging Face hub ({type(error).__name__}); "
            f"{remedy()}, or give a local `path:`"
        ) from error
    weight_files(path)
    return path


def weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise HalosError(f"{folder} holds no safetensors weights; convert the model to safetensors first")
    return found
