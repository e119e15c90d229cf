"""The source `hub`: any dataset of the Hugging Face hub, in the shapes that the source `local` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from halos.data.hub import Hub
from halos.data.layouts.own import OnInvalid, Own
from halos.data.layouts.parse import Layout
from halos.data.paths import SPLIT_WORDS
from halos.data.readers import FORMATS, READ_SUFFIXES, is_readable
from halos.data.rows import SPLITS, Records, check_fraction
from halos.errors import HalosError
from halos.registry import SOURCES


@SOURCES.register("hub")
def hub(
    part: str,
    /,
    *,
    path: str,
    split: str | dict[str, str] = "train",
    subset: str | None = None,
    revision: str = "main",
    test_fraction: float = 0.1,
    limit: int | None = None,
    columns: dict[str, str | None] | None = None,
    roles: dict[str, str] | None = None,
    invalid: OnInvalid = "refuse",
    every_turn: bool = False,
    group: str | None = None,
    category: str | None = None,
) -> Records:
    """A dataset of the hub whose files are in one of the layouts of docs/data.md. No code of the dataset is run.

    The files of a split are those that the dataset's card names, else those that have its name in theirs. Rows become
    records as those of the source `local` do, and the options that both have are the same.

    Args:
        part: "train", "validation" or "test".
        path: "owner/name".
        split: a split of the hub, which is divided; or {"train": one, "validation": one, "test": one}, or some of them.
        subset: a configuration of the dataset, such as a language; by default the default one.
        revision: commit on the hub, or a branch or tag, which may move.
        test_fraction: fraction of the conversations that is the test split, where one split of the hub is divided; 0
            for no test split.

    Raises:
        HalosError: the dataset has no such split, its files are neither on the hub nor in the cache, or as for `local`.
    """
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise HalosError(f"source hub: {path} is no owner/name of the hub; the source `local` reads files of your own")
    if isinstance(split, dict) and (not split or not set(split) <= set(SPLITS)):
        raise HalosError("source hub: `split` takes one split of the hub, or {train: ..., validation: ..., test: ...}")
    layout = Layout(columns or {}, roles or {}, every_turn)
    dataset = Hub(path, revision, "*")
    if isinstance(split, dict):
        if part not in split:
            return Records(())
        commit, files = _files(dataset, split[part], subset)
        fraction = None
    else:
        check_fraction("hub", test_fraction)
        commit, files = _files(dataset, split, subset)
        fraction = test_fraction
    return Own("hub", files, fraction, layout, invalid, group, category).records(
        part, limit, {"hub": path, "commit": commit}
    )


hub.path_is_hub_name = True  # type: ignore[attr-defined]
hub.splits = SPLITS  # type: ignore[attr-defined]


def _files(dataset: Hub, split: str, subset: str | None) -> tuple[str, list[Path]]:
    """(commit, files of a split of the hub).

    Raises:
        HalosError: the dataset has no such subset or split, or no file of it that is read.
    """
    commit, cards = dataset.download("hub", ["README.md"])
    named = _named_files(dataset.name, _card(cards), split, subset)
    attempts = [named] if named else [_patterns(split, subset), _any_file(subset) if split == "train" else []]
    dataset = Hub(dataset.name, commit, "*")  # one commit throughout
    for patterns in filter(None, attempts):
        found = [file for file in dataset.download("hub", patterns)[1] if is_readable(file.name)]
        if patterns is attempts[-1] and not named:
            found = [file for file in found if not _tells_another_split(file)]
        if found:
            return commit, found
    of = f" of its subset {subset}" if subset else ""
    raise HalosError(
        f"source hub: {dataset.name} has no file of a split {split!r}{of} at commit {commit}; name another `split`, or"
        f" a `subset`. Files that are read: {FORMATS}"
    )


def _card(cards: list[Path]) -> dict[str, Any]:
    """The fields at the head of a dataset's README.md."""
    text = cards[0].read_text(encoding="utf-8") if cards else ""
    head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    try:
        fields = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _named_files(name: str, card: dict[str, Any], split: str, subset: str | None) -> list[str]:
    """The patterns of a split's files that a dataset's card names; none where it names no files.

    Raises:
        HalosError: it names subsets, but not this one, or splits, but not this one.
    """
    configs = card.get("configs")
    named = (
        [one for one in configs if isinstance(one, dict) and one.get("data_files")] if isinstance(configs, list) else []
    )
    subsets = {str(one.get("config_name", "default")): one for one in named}
    if not subsets:
        return []
    default = next((key for key, one in subsets.items() if one.get("default") or key == "default"), None)
    chosen = subset or default or (next(iter(subsets)) if len(subsets) == 1 else None)
    if chosen not in subsets:
        raise HalosError(f"source hub: {name} has the subsets {', '.join(subsets)}; name one by `subset:`")
    files = dict(_splits(subsets[chosen]["data_files"]))
    if split not in files:
        raise HalosError(f"source hub: {name} has the splits {', '.join(files)}; name one by `split:`")
    return files[split]


def _splits(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of what a card names as its files: for each split, or those of `train` alone."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    if isinstance(data_files, str) or all(isinstance(one, str) for one in data_files):
        data_files = [{"split": "train", "path": data_files}]
    for one in data_files:
        yield str(one["split"]), [one["path"]] if isinstance(one["path"], str) else list(one["path"])


def _patterns(split: str, subset: str | None) -> list[str]:
    """Patterns of files whose name, or whose folder's name, is that of a split."""
    folders = (f"{subset}/", f"*/{subset}/") if subset else ("", "*/")
    return [
        f"{folder}{name}"
        for folder, name in product(folders, (f"{split}.*", f"{split}-*", f"*-{split}.*", f"{split}/*"))
    ]


def _any_file(subset: str | None) -> list[str]:
    """Patterns of all files that are read: a dataset without a split in its files' names is its train split."""
    folders = (f"{subset}/", f"*/{subset}/") if subset else ("", "*/")
    return [f"{folder}*{suffix}" for folder, suffix in product(folders, READ_SUFFIXES)]


def _tells_another_split(file: Path) -> bool:
    """Whether a file's name, or its folder's, is that of a split."""
    return not SPLIT_WORDS.keys().isdisjoint(re.split(r"[^a-z]+", f"{file.parent.name}/{file.stem}".lower()))
