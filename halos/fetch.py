"""`fetch`, the only verb that downloads: the files of a model, a dataset or a task on the Hugging Face hub.

It fills the hub's caches, below HF_HOME, and writes down the commits. All other verbs are offline and read those caches
at those commits. On a cluster only the machine that starts the workflow needs a network, and HF_HOME has to be on a
file system that the nodes share with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos.data.settings import DataSlice, Source, origin
from halos.errors import HalosError
from halos.evaluate.tasks.settings import TaskSlice
from halos.files import write_json
from halos.models.settings import ModelSlice
from halos.settings import read_one_of


def fetch(config: Path, output: Path) -> None:
    """Download the files that a model, a dataset or a task has on the hub.

    The commits are written as JSON. For a model: {hub, revision, commit}, and the same under `base` for the model that
    LoRA adapters belong to, `tokenizer` for that of another and `kernel` for an attention kernel. For a dataset:
    {sources}, with {hub, commit} for each source on the hub and null for any other. For a task: {task, data}, with
    {hub, name, commit} for each dataset.

    Args:
        config: config.yaml of the model, dataset or task.
        output: commits to write, JSON.

    Raises:
        HalosError: a download fails, or the config names nothing on the hub.
    """
    commits: dict[str, Any] = {}
    settings = read_one_of(config, ModelSlice, DataSlice, TaskSlice)
    if isinstance(settings, ModelSlice):
        from halos.models.download import download

        model = download(settings.model, settings)
        commits = {} if model is None else model.model_dump(mode="json", exclude_none=True)
    elif isinstance(settings, DataSlice):
        sources = [_open(source) if source.on_hub else None for source in settings.all_sources]
        commits = {"sources": sources} if any(sources) else {}
    elif isinstance(settings, TaskSlice) and settings.task is not None:
        from halos.evaluate.tasks.lm_eval import download as download_task

        commits = download_task(settings.task)
    if not commits:
        raise HalosError(f"{config} names nothing on the hub: there is nothing to fetch")
    write_json(output, commits)


def _open(source: Source) -> dict[str, str] | None:
    """Open a source in each of its splits, which downloads them; both are of one commit."""
    hub_commit: dict[str, str] = {}
    for split in source.splits:
        hub_commit = origin(source.open(split, hub_commit.get("commit")))
    return hub_commit or None
