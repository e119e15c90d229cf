"""What sources share: rows of files and of the hub, splits, rows joined by prompt, and the row that is left out."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from halos.data.feedback import Feedback, Turn
from halos.errors import HalosError
from halos.hub import remedy

SPLITS = ("train", "test")
Paths = str | dict[str, str]
"""One file for both splits, or {"train": file, "test": file}."""


@dataclass(frozen=True)
class Drop:
    """A row that a source leaves out, and why, in a few words that are the same for every such row."""

    reason: str


def in_split(key: str, split: str, test_fraction: float) -> bool:
    """Whether what `key` (a sha256 in hex) names belongs to `split`: the same answer on every machine, in any order. It
    is the end of the key that decides: its beginning orders the prompts that are chosen of a file."""
    return (int(key[-8:], 16) < test_fraction * 2**32) == (split == "test")


def check_fraction(source: str, test_fraction: float) -> None:
    """Raises HalosError when the fraction leaves a split empty."""
    if not 0 < test_fraction < 1:
        raise HalosError(f"source {source}: test_fraction is {test_fraction}; choose one between 0 and 1")


def locate(source: str, path: Paths, split: str, test_fraction: float | None) -> Path:
    """The file of a split; a dictionary of paths names one for each.

    Raises:
        HalosError: the paths name no such split, the file is missing, or the fraction leaves a split empty.
    """
    if isinstance(path, dict):
        if set(path) != set(SPLITS):
            raise HalosError(f"source {source}: `path` takes one file, or one for train and one for test")
        path = path[split]
    elif test_fraction is not None:
        check_fraction(source, test_fraction)
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


@dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face hub.

    Attributes:
        name: "owner/name".
        revision: a commit; or a branch or tag, which may move.
        files: pattern of the files of each split; one pattern where the hub has a single split that ours share.
    """

    name: str
    revision: str
    files: Paths

    def snapshot(self, source: str, split: str) -> tuple[str, list[Path]]:
        """(commit, the split's files), downloaded once for each commit.

        Without a network, what is in the cache is used, and only if it is that commit and no file is missing. (Offline,
        `datasets.load_dataset` takes whichever commit was cached last.)

        Raises:
            HalosError: the files can be had neither from the hub nor from the cache.
        """
        from huggingface_hub import snapshot_download  # slow to import, and of no use where all files are local

        pattern = self.files if isinstance(self.files, str) else self.files[split]
        try:
            folder = Path(
                snapshot_download(self.name, repo_type="dataset", revision=self.revision, allow_patterns=pattern)
            )
        except Exception as error:  # of the hub, of either HTTP library, or of the disk: all mean the same here
            reason = " ".join(str(error).split())
            raise HalosError(
                f"source {source}: {self.name} cannot be loaded from the hub ({reason}); {remedy()}, or"
                " download its files elsewhere and name them by `path:`"
            ) from None
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if not files:
            raise HalosError(
                f"source {source}: {self.name} has no file {pattern} at commit {folder.name}; choose another revision"
            )
        return folder.name, files


Row = TypeVar("Row", bound=BaseModel)
LAYOUT_ROWS = 100
"""A column that none of so many first rows has is missing from the file, and not just from odd rows."""


@dataclass(frozen=True)
class Table(Generic[Row]):
    """The rows of one split of a source.

    Attributes:
        source: its name, for messages.
        layout: the columns it reads, with their types.
        split: "train" or "test".
        files: JSON, JSON Lines (either as .gz, too) or parquet.
        test_fraction: share of the rows that are the test split, where the files hold both splits.
        origin: name and commit on the hub, empty for files of one's own.
    """

    source: str
    layout: type[Row]
    split: str
    files: list[Path]
    test_fraction: float | None
    origin: dict[str, str]

    def rows(self, key: Callable[[Row], str]) -> Iterator[Row | Drop]:
        """The split's rows, and a Drop for each that is not of the layout.

        Args:
            key: a sha256 in hex of what decides on the split, the same for rows that belong together.

        Raises:
            HalosError: a file cannot be read or is of another layout altogether.
        """
        for content, row in self._rows():
            if self._mine(digest(content) if isinstance(row, Drop) else key(row)):
                yield row

    def records(self, parse: Callable[[Row], Feedback | Drop]) -> Iterator[Feedback | Drop]:
        """What `parse` makes of each of the split's rows; all records on a prompt are in the same split.

        Raises:
            HalosError: a file cannot be read or is of another layout altogether.
        """
        for content, row in self._rows():
            record = row if isinstance(row, Drop) else parse(row)
            # a dropped row belongs to one split as well, so that rows add up over the splits
            if self._mine(digest(content) if isinstance(record, Drop) else record.prompt_id):
                yield record

    def _mine(self, key: str) -> bool:
        return self.test_fraction is None or in_split(key, self.split, self.test_fraction)

    def _rows(self) -> Iterator[tuple[Any, Row | Drop]]:
        for file in self.files:
            for content in self._of_layout(file):
                yield content, self._row(content)

    def _row(self, content: Any) -> Row | Drop:
        if isinstance(content, Drop):
            return content
        try:
            return self.layout.model_validate(content)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            if not found["loc"]:
                return Drop("the row is no object")
            absent = len(found["loc"]) == 1 and (found["type"] == "missing" or found["input"] is None)
            return Drop(f"no {found['loc'][0]}" if absent else f"{found['loc'][0]} is malformed")

    def _of_layout(self, file: Path) -> Iterator[Any]:
        """The contents of a file, after as many as needed to see that no column is missing from it."""
        contents = _parquet_contents(file, self.layout) if file.suffix == ".parquet" else _json_contents(file)
        missing = [name for name, field in self.layout.model_fields.items() if field.is_required()]
        head: list[Any] = []
        for content in contents:
            head.append(content)
            missing = [name for name in missing if not isinstance(content, dict) or name not in content]
            if not missing or len(head) == LAYOUT_ROWS:
                break
        if missing and head:
            raise HalosError(
                f"source {self.source}: {file} has no {', '.join(missing)}; give it a file in the layout of the hub's"
            )
        yield from head
        yield from contents


def _json_contents(file: Path) -> Iterator[Any]:
    for number, text in json_rows(file):
        try:
            content = json.loads(text)
        except ValueError:
            raise HalosError(f"row {number} of {file} is no JSON; correct it") from None
        yield content if "\\u" not in text or _encodable(content) else Drop("half of a surrogate pair")


def _encodable(content: Any) -> bool:
    """Whether it can be written as UTF-8; JSON can escape what is no character."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_contents(file: Path, layout: type[BaseModel]) -> Iterator[Any]:
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:  # else what was read stays in memory
            columns = [name for name in layout.model_fields if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(256, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise HalosError(f"{file} cannot be read ({error}); it must be a parquet file") from None


def digest(content: Any) -> str:
    """sha256 of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def table(
    source: str, layout: type[Row], split: str, hub: Hub, path: Paths | None, test_fraction: float | None = None
) -> Table[Row]:
    """The rows of a split, from files of one's own or, where `path` is None, from the hub.

    Args:
        source: name of the source.
        layout: the columns it reads, with their types.
        split: "train" or "test".
        hub: where it is published.
        path: a file, or one a split.
        test_fraction: share of the prompts that are the test split where one file holds both; None for a source with a
            single split, which a single file is then wholly.

    Raises:
        HalosError: there is no such file, the hub cannot be reached, or the fraction leaves a split empty.
    """
    if path is not None:
        file = locate(source, path, split, test_fraction)
        return Table(source, layout, split, [file], test_fraction if isinstance(path, str) else None, {})
    fraction = test_fraction if isinstance(hub.files, str) else None
    if fraction is not None:
        check_fraction(source, fraction)
    commit, files = hub.snapshot(source, split)
    return Table(source, layout, split, files, fraction, {"hub": hub.name, "commit": commit})


class Records(Iterator[Feedback | Drop]):
    """The records and drops of a source, with the commit that they come from.

    Attributes:
        origin: {"hub": name, "commit": sha} of the dataset on the hub, empty for files of one's own.
    """

    def __init__(
        self, records: Iterable[Feedback | Drop], origin: dict[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.origin = origin or {}
        self._records = limited(records, limit)

    def __next__(self) -> Feedback | Drop:
        return next(self._records)


Source = Callable[..., Records]


def only(*splits: str) -> Callable[[Source], Source]:
    """For a source that by its nature has only these splits: it yields nothing for another, and carries `splits`."""

    def restrict(function: Source) -> Source:
        @functools.wraps(function)
        def restricted(split: str, **options: Any) -> Records:
            return function(split, **options) if split in splits else Records(())

        restricted.splits = splits  # type: ignore[attr-defined]
        return restricted

    return restrict


class TurnColumns(BaseModel):
    """A turn as most datasets have it; what else it holds is left out."""

    role: str
    content: str


def turns_of(columns: Iterable[TurnColumns]) -> list[Turn]:
    return [turn.model_dump() for turn in columns]


def asked(text: str) -> list[Turn]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]
