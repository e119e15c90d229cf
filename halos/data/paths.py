"""The files that a `path:` names: files, lists of files, patterns, folders, and folders that `save_to_disk` wrote."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path

from halos.data.readers import is_readable
from halos.errors import HalosError

SPLITS = ("train", "validation", "test")
OneOrMore = str | Sequence[str]
Paths = OneOrMore | dict[str, OneOrMore]
"""Files of all splits, or {"train": files, "test": files}, perhaps with "validation". Files are one path or several: of
a file, a pattern or a folder; ~ is the home folder."""
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "eval": "test", "validation": "validation",
               "valid": "validation", "val": "validation", "dev": "validation"}  # fmt: skip
"""Words in the names of files -> the split that they tell."""


def by_split(path: Paths) -> Paths:
    """The paths of each split where `path` is a folder of `save_to_disk` that has several; else `path` as it is.

    Raises:
        HalosError: the folder has splits of other names.
    """
    folder = Path(path).expanduser() if isinstance(path, str) else None
    if folder is None or not (folder / "dataset_dict.json").is_file():
        return path
    names: list[str] = json.loads((folder / "dataset_dict.json").read_text())["splits"]
    # a folder of the very name of a split comes last, and wins
    told = {SPLIT_WORDS.get(name, name): name for name in sorted(names, key=SPLITS.__contains__)}
    if {"train", "test"} <= set(told):
        return {split: str(folder / told[split]) for split in SPLITS if split in told}
    if len(names) == 1:
        return str(folder / names[0])
    raise HalosError(
        f"{path} has the splits {', '.join(names)}; name the folders of two: path: {{train: {path}/..., "
        f"test: {path}/...}}"
    )


def files_of(path: OneOrMore) -> list[str]:
    """The files that a path or several name, in order; a path that is none is given back as it is.

    Raises:
        HalosError: files of several splits are found where nothing says which is which.
    """
    return [file for one in ([path] if isinstance(path, str) else path) for file in _files_of(str(one))]


def all_files(path: Paths) -> list[str]:
    """The files of all splits."""
    path = by_split(path)
    return [file for one in (path.values() if isinstance(path, dict) else [path]) for file in files_of(one)]


def _files_of(path: str) -> list[str]:
    place = Path(path).expanduser()
    if (place / "state.json").is_file():  # of save_to_disk
        state = json.loads((place / "state.json").read_text())
        return [str(place / file["filename"]) for file in state["_data_files"]]
    if place.is_dir():
        inside = (file for file in sorted(place.rglob("*")) if file.is_file() and is_readable(file.name))
        found = [str(file) for file in inside if "/." not in f"/{file.relative_to(place)}"]  # none that is hidden
    elif not place.exists() and glob.has_magic(path):
        found = sorted(file for file in glob.glob(str(place), recursive=True) if Path(file).is_file())
    else:
        return [str(place)]
    splits = {_split_of(Path(file).name) for file in found}
    if len(splits) > 1:
        raise HalosError(
            f"{path} holds files of several splits ({', '.join(Path(file).name for file in found[:4])}); say which are "
            "which: path: {train: ..., test: ...}"
        )
    return found or [str(place)]


def _split_of(name: str) -> str | None:
    """The split that a file's name tells."""
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), None)
