"""`fetch`, the one verb that downloads: what a model, a dataset or a task has on the Hugging Face hub.

It fills the hub's caches, below HF_HOME, and writes down the commits that it found. All other verbs are offline, and
read those caches at those commits. On a cluster, then, only the machine on which the workflow is started needs a
network, and HF_HOME has to be on a file system that the nodes share with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos.data.settings import DataSlice, Source, origin
from halos.errors import HalosError
from halos.files import write_json
from halos.settings import read_slice


def fetch(config: Path, output: Path) -> None:
    """Download what a model, a dataset or a task has on the hub.

    Args:
        config: slice of its entry.
        output: JSON to write. Of a model: {hub, revision, commit}, and the same under `base` for the model that LoRA
            adapters belong to. Of a dataset: {sources}, with {hub, commit} of each that is on the hub, None of another.
            Of a task: {task, data}, with {hub, name, commit} of each dataset.

    Raises:
        HalosError: something cannot be had, or the config names nothing that is on the hub.
    """
    content = read_slice(config)
    found: dict[str, Any] = {}
    if "architecture" in content:
        from halos.models.download import download

        found = download(content)
    elif "sources" in content:
        sources = [_open(source) if source.on_hub else None for source in DataSlice.read(config).sources]
        found = {"sources": sources} if any(sources) else {}
    elif content.get("task") is not None:
        from halos.evaluate.tasks.lm_eval import download as download_task

        found = download_task(content["task"])
    if not found:
        raise HalosError(f"{config} names nothing on the hub: there is nothing to fetch")
    write_json(output, found)


def _open(source: Source) -> dict[str, str] | None:
    """Open a source in each of its splits, which downloads them; both are of one commit."""
    found: dict[str, str] = {}
    for split in source.splits:
        found = origin(source.open(split, found.get("commit")))
    return found or None
