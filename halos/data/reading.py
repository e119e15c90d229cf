"""What sources share: rows of files and of the hub, splits, and the row that is left out with a reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from halos.data.feedback import Feedback
from halos.errors import HalosError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Drop:
    """A row that a source leaves out, and why, in a few words that are the same for every such row."""

    reason: str


def in_split(key: str, split: str, test_fraction: float) -> bool:
    """Whether what `key` (a sha256 in hex) names belongs to `split`: the same answer on every machine, in any order."""
    return (int(key[:8], 16) < test_fraction * 2**32) == (split == "test")


def locate(source: str, path: str | dict[str, str], split: str, test_fraction: float) -> Path:
    """The file of a split; a dictionary of paths names one for each.

    Raises:
        HalosError: the paths name no such split, the file is missing, or the fraction leaves a split empty.
    """
    if isinstance(path, dict):
        if set(path) != set(SPLITS):
            raise HalosError(f"source {source}: `path` takes one file, or one for train and one for test")
        path = path[split]
    elif not 0 < test_fraction < 1:
        raise HalosError(f"source {source}: test_fraction is {test_fraction}; choose one between 0 and 1")
    if not Path(path).is_file():
        raise HalosError(f"source {source}: there is no file {path}; correct its `path`")
    return Path(path)


def json_rows(file: Path) -> Iterator[tuple[int, str]]:
    """(row number from 1, JSON text) of a JSON Lines file or a JSON array, gzipped or not.

    Lines are streamed; an array is read whole.

    Raises:
        HalosError: the file cannot be read.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            if next((line.lstrip() for line in stream if line.strip()), "").startswith("["):
                stream.seek(0)
                yield from enumerate(map(json.dumps, json.load(stream)), 1)
            else:
                stream.seek(0)
                yield from ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    except (OSError, EOFError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON
        raise HalosError(f"{file} cannot be read ({error}); it must be JSON or JSON Lines, or either as .gz") from None


def limited(records: Iterable[Feedback | Drop], limit: int | None) -> Iterator[Feedback | Drop]:
    """Up to the `limit`-th record; drops do not count towards it."""
    count = 0
    for record in records:
        if isinstance(record, Feedback):
            if count == limit:
                return
            count += 1
        yield record
