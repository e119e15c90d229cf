"""Rows of sources: where they are read from, which split each belongs to, and the rows that are dropped."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from halos.data.feedback import Feedback, Turn
from halos.data.hub import Hub
from halos.data.normal import normalised
from halos.data.paths import SPLITS, Paths, by_split, files_of
from halos.data.readers import FORMATS, Malformed, read_rows
from halos.errors import HalosError


@dataclass(frozen=True)
class Drop:
    """A row that a source leaves out.

    Attributes:
        reason: a few words, the same for all rows dropped for this reason: drops are counted by it.
    """

    reason: str


def split_key(record_prompt: list[Turn], group: str | None = None) -> str:
    """sha256 in hex that decides which split a record belongs to: the same for all depths of a conversation.

    Args:
        record_prompt: the record's prompt. Its first user turn decides, normalised (halos.data.normal); its first turn
            where it has none from a user.
        group: what decides instead, such as the id of a user; None for the conversation.
    """
    if group is None:
        turns = [turn for turn in record_prompt if turn["role"] == "user"] or record_prompt[:1]
        group = normalised(turns[0]["content"]) if turns else ""
    return hashlib.sha256(group.encode()).hexdigest()


def in_split(key: str, split: str, test_fraction: float) -> bool:
    """Whether the row with a key belongs to a split; it depends on the key alone.

    Args:
        key: a sha256 in hex, such as a record's `split_key`.
        split: "train" or "test"; no row belongs to another one.
        test_fraction: fraction of all keys that belong to the test split.
    """
    return split == ("test" if int(key[-8:], 16) < test_fraction * 2**32 else "train")


def check_fraction(source: str, test_fraction: float) -> None:
    """Check a source's test_fraction.

    Raises:
        HalosError: the fraction leaves no train split.
    """
    if not 0 <= test_fraction < 1:
        raise HalosError(f"source {source}: test_fraction is {test_fraction}; choose one from 0 (no test split) to 1")


WRONG_PATH = "`path` takes files of all splits, or some for each of train, validation and test"


def locate(source: str, path: Paths, split: str, test_fraction: float | None) -> list[Path]:
    """The files that a split is read from.

    Args:
        source: name of the source, for messages.
        path: files of all splits, or of each (halos.data.paths).
        split: "train", "validation" or "test".
        test_fraction: fraction of the files of all that is the test split; None where they are not split.

    Raises:
        HalosError: the paths name no such split, a file is missing, or the fraction leaves no train split.
    """
    if isinstance(path, dict):
        if split not in path or set(path) - set(SPLITS):
            raise HalosError(f"source {source}: {WRONG_PATH}")
        path = path[split]
    elif test_fraction is not None:
        check_fraction(source, test_fraction)
    files = list(map(Path, files_of(path)))
    for file in files:
        if not file.is_file():
            what = f"no file in {file} that is read ({FORMATS})" if file.is_dir() else f"no file {file}"
            raise HalosError(f"source {source}: there is {what}; correct its `path`")
    if not files:
        raise HalosError(f"source {source}: `path` names no file; correct it")
    return files


def limited(records: Iterable[Feedback | Drop], limit: int | None) -> Iterator[Feedback | Drop]:
    """The first `limit` records (None for all) and the drops among them."""
    count = 0
    for record in records:
        if isinstance(record, Feedback):
            if count == limit:
                return
            count += 1
        yield record


Row = TypeVar("Row", bound=BaseModel)
LAYOUT_ROWS = 100
"""A column that none of the first LAYOUT_ROWS rows has is missing from the file, not just from odd rows."""


@dataclass(frozen=True)
class Table(Generic[Row]):
    """The rows of one split of a source, read from its files.

    Attributes:
        source: its name, for messages.
        layout: model of a row: the columns that the source reads, with their types.
        split: "train", "validation" or "test".
        files: of any format that is read (halos.data.readers).
        test_fraction: fraction of the rows that is the test split; None where the files hold this split alone.
        origin: {"hub": name, "commit": sha}, empty for local files.
    """

    source: str
    layout: type[Row]
    split: str
    files: list[Path]
    test_fraction: float | None
    origin: dict[str, str]

    def rows(self, key: Callable[[Row], str]) -> Iterator[Row | Drop]:
        """The split's rows, and a Drop for each that does not have the layout.

        Args:
            key: row -> sha256 in hex that decides its split, the same for rows that must not be separated.

        Raises:
            HalosError: a file cannot be read, or lacks a column of the layout.
        """
        for content, row in self._all_rows():
            if self._in_split(digest(content) if isinstance(row, Drop) else key(row)):
                yield row

    def records(self, parse: Callable[[Row], Feedback | Drop]) -> Iterator[Feedback | Drop]:
        """The split's rows as records and drops; all records of a conversation are in the same split (`split_key`).

        Args:
            parse: row -> its record, or why it is dropped.

        Raises:
            HalosError: a file cannot be read, or lacks a column of the layout.
        """
        for content, row in self._all_rows():
            record = row if isinstance(row, Drop) else parse(row)
            # a dropped row belongs to one split as well, so that rows add up over the splits
            if self._in_split(digest(content) if isinstance(record, Drop) else split_key(record.prompt)):
                yield record

    def _in_split(self, key: str) -> bool:
        return self.test_fraction is None or in_split(key, self.split, self.test_fraction)

    def _all_rows(self) -> Iterator[tuple[Any, Row | Drop]]:
        """(content, row) of every row of the files, whichever split it belongs to."""
        for file in self.files:
            for content in self._contents(file):
                yield content, self._validated(content)

    def _validated(self, content: Any) -> Row | Drop:
        try:
            row = self.layout.model_validate(content)
            row.model_dump_json()  # fails where a text is none
        except PydanticSerializationError:
            return Drop("half of a surrogate pair")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if not first["loc"]:
                return Drop("the row is no object")

            absent = len(first["loc"]) == 1 and (first["type"] == "missing" or first["input"] is None)
            return Drop(f"no {first['loc'][0]}" if absent else f"{first['loc'][0]} is malformed")
        return row

    def _contents(self, file: Path) -> Iterator[Any]:
        """The contents of a file's rows. None is given before the first rows have shown that no column is missing."""
        contents = _sound_contents(file, self.layout.model_fields)
        missing = [name for name, field in self.layout.model_fields.items() if field.is_required()]
        head: list[Any] = []
        for content in contents:
            head.append(content)
            missing = [name for name in missing if not isinstance(content, dict) or name not in content]
            if not missing or len(head) == LAYOUT_ROWS:
                break
        if missing and head:
            raise HalosError(
                f"source {self.source}: {file} has no {', '.join(missing)}; give it a file with the columns "
                f"that the dataset has on the hub"
            )
        yield from head
        yield from contents


def _sound_contents(file: Path, columns: Collection[str]) -> Iterator[Any]:
    """The content of each row of a file.

    Raises:
        HalosError: the file cannot be read.
    """
    for number, content in read_rows(file, columns):
        if isinstance(content, Malformed):
            raise HalosError(f"row {number} of {file} is {content.detail}; correct it")
        yield content


def digest(content: Any) -> str:
    """sha256 of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def table(
    source: str, layout: type[Row], split: str, hub: Hub, path: Paths | None, test_fraction: float | None = None
) -> Table[Row]:
    """The rows of a split, from local files or, where `path` is None, from the hub.

    Args:
        source: name of the source.
        layout: model of a row: the columns that the source reads, with their types.
        split: "train", "validation" or "test".
        hub: the dataset on the hub.
        path: a local file, or one for each split.
        test_fraction: fraction of the prompts that is the test split where one file holds all; None for a source that
            has only one split.

    Raises:
        HalosError: there is no such file, the hub cannot be reached, or the fraction leaves no train split.
    """
    if path is not None:
        path = by_split(path)
        files = locate(source, path, split, test_fraction)
        return Table(source, layout, split, files, None if isinstance(path, dict) else test_fraction, {})
    fraction = test_fraction if isinstance(hub.files, str) else None
    if fraction is not None:
        check_fraction(source, fraction)
    commit, files = hub.snapshot(source, split)
    return Table(source, layout, split, files, fraction, {"hub": hub.name, "commit": commit})


class Records(Iterator[Feedback | Drop]):
    """Iterator over a source's records and drops, that knows the commit they come from.

    Attributes:
        origin: {"hub": name, "commit": sha} of the dataset on the hub, empty for local files.
        unread_fields: field -> rows that have it, of the fields that nobody reads; complete after the last record.
    """

    def __init__(
        self,
        records: Iterable[Feedback | Drop],
        origin: dict[str, str] | None = None,
        limit: int | None = None,
        unread_fields: dict[str, int] | None = None,
    ) -> None:
        self.origin = origin or {}
        self.unread_fields = {} if unread_fields is None else unread_fields
        self._records = limited(records, limit)

    def __next__(self) -> Feedback | Drop:
        return next(self._records)


Source = Callable[..., Records]


def only(*splits: str) -> Callable[[Source], Source]:
    """Decorator of a source that has only these splits: it gives no records for another, and has `splits` set."""

    def restrict(function: Source) -> Source:
        @functools.wraps(function)
        def restricted(split: str, **options: Any) -> Records:
            return function(split, **options) if split in splits else Records(())

        restricted.splits = splits  # type: ignore[attr-defined]
        return restricted

    return restrict


class TurnColumns(BaseModel):
    """A turn of a conversation as most datasets have it; other fields are ignored."""

    role: str
    content: str


def turns_of(columns: Iterable[TurnColumns]) -> list[Turn]:
    """The turns of a conversation, as a record has them."""
    return [turn.model_dump() for turn in columns]


def asked(text: str) -> list[Turn]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]
