"""Feedback of your own, from files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.reading import Drop, in_split, json_rows, limited, locate
from halos.errors import HalosError
from halos.registry import SOURCES


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Turn(_Strict):
    role: str
    content: str


class _Row(_Strict):
    """The types of a feedback record in JSON; `Feedback.problem` judges its sense."""

    prompt: list[_Turn]
    responses: list[str]
    prompt_id: str | None = None
    source: str | None = None
    scores: list[FiniteFloat] | None = None
    pairs: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    desirable: list[bool | None] | None = None
    target: int | None = None


def _local_record(text: str) -> Feedback | str:
    """The record of a JSON text, or what is wrong with it."""
    try:
        record = feedback.from_row(_Row.model_validate_json(text).model_dump())
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"]))
        return f"field {where}: {found['msg']}" if where else str(found["msg"])
    return record.problem() or record


@SOURCES.register("local")
def local(
    split: str, *, path: str | dict[str, str], test_fraction: float = 0.1, limit: int | None = None
) -> Iterator[Feedback | Drop]:
    """Feedback records of your own, as the package defines them (halos.data.feedback), in JSON or JSON Lines.

    The whole file is checked before the first record is given.

    Args:
        split: "train" or "test".
        path: one file, or one a split; .gz is read as it is.
        test_fraction: share of the prompts that are the test split of a single file.
        limit: the first so many records.

    Raises:
        HalosError: a file is missing, or has rows that are no sound record.
    """
    file = locate("local", path, split, test_fraction)
    count, bad = 0, []
    for number, text in json_rows(file):
        count += 1
        if isinstance(problem := _local_record(text), str):
            bad.append(f"row {number}, {problem}")
    if bad:
        first = "; ".join(bad[:3])
        raise HalosError(f"source local: correct {file}, of whose {count} rows {len(bad)} cannot be used: {first}")
    records = (record for _, text in json_rows(file) if isinstance(record := _local_record(text), Feedback))
    whole = isinstance(path, dict)
    return limited((r for r in records if whole or in_split(r.prompt_id, split, test_fraction)), limit)
