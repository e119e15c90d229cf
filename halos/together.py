"""Items that one process makes together: each is kept as soon as it is finished, and fails alone."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from halos.errors import HalosError
from halos.files import hash_content, whole

FAILED = ".failed"
"""Suffix of the file that has the reason in place of an item that failed."""


@dataclass(frozen=True)
class Item:
    """One file of those that a process makes.

    Attributes:
        place: its file in the output.
        kept: its file until the output is whole; the name tells of all that it is made from.
    """

    place: str
    kept: Path

    @classmethod
    def of(cls, place: str, kept: Path, made_from: list[Any]) -> Self:
        path = Path(place)
        return cls(place, kept / path.with_stem(f"{path.stem}-{hash_content(made_from)[:16]}"))

    @property
    def done(self) -> bool:
        return self.kept.is_file()


class Failures:
    """The errors of items, which are said in the log and stop no other item.

    Attributes:
        reasons: the error of each item that failed.
    """

    def __init__(self) -> None:
        self.reasons: dict[Item, Exception] = {}

    @contextmanager
    def of(self, item: Item) -> Iterator[None]:
        """A block that makes an item, or part of it."""
        try:
            yield
        except Exception as error:
            self.reasons[item] = error
            print(f"{item.place} failed:\n{words(error)}", file=sys.stderr, end="")

    def publish(self, items: Sequence[Item], output: Path, kept: Path | None = None) -> None:
        """Write the folder of all items, with the reason in place of each that failed, and keep them no longer.

        Args:
            items: all items.
            output: the folder.
            kept: the folder in which finished items are kept, removed if nothing else is in it; None to leave it, as
                other processes may be about to write there.

        Raises:
            Exception: that of the first item, if all failed.
        """
        if len(self.reasons) == len(items):
            raise next(iter(self.reasons.values()))
        with whole(output) as folder:
            for item in items:
                place = folder / item.place
                place.parent.mkdir(parents=True, exist_ok=True)
                if item in self.reasons:
                    place.with_suffix(FAILED).write_text(words(self.reasons[item]))
                else:
                    shutil.copyfile(item.kept, place)
        for item in items:
            item.kept.unlink(missing_ok=True)
        within = {folder for item in items for folder in item.kept.parents if kept and folder.is_relative_to(kept)}
        for folder in sorted(within, reverse=True):  # the innermost first
            with suppress(OSError):  # it is not empty, or not there
                folder.rmdir()


def words(error: Exception) -> str:
    """What is said of an error: the sentence for the user, or else the whole traceback."""
    return f"error: {error}\n" if isinstance(error, HalosError) else "".join(traceback.format_exception(error))
