"""The feedback record: what every source becomes, and all that later stages read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from halos.errors import HalosError

ROLES = ("system", "user", "assistant")
Turn = dict[str, str]

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "responses": pa.list_(pa.string()),
        "scores": pa.list_(pa.float64()),
        "pairs": pa.list_(pa.list_(pa.int32(), 2)),
        "desirable": pa.list_(pa.bool_()),
        "target": pa.int32(),
        "source": pa.string(),
    }
)


def prompt_id(prompt: list[Turn]) -> str:
    """sha256 of the conversation, roles included: the same on every machine, in every call and source."""
    turns = [[turn["role"], turn["content"]] for turn in prompt]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def labels_of_pairs(n: int, pairs: Iterable[tuple[int, int]]) -> list[bool | None]:
    """Whether each of `n` responses is desirable, by (winner, loser) pairs: one that only wins is, one that only loses
    is not, and None for one that does both or neither."""
    winners, losers = set(), set()
    for winner, loser in pairs:
        winners.add(winner)
        losers.add(loser)
    return [None if (i in winners) == (i in losers) else i in winners for i in range(n)]


@dataclass(frozen=True)
class Feedback:
    """One prompt with its responses and what is known of them.

    Attributes:
        prompt: turns {"role", "content"}, oldest first; the last is the user's.
        responses: the responses' texts; labels below refer to them by index.
        source: the name of the source it came from.
        scores: one number for each response (higher is better), or empty.
        pairs: (winner, loser) indices into `responses`.
        desirable: one label for each response, None where it has none, or empty.
        target: index of the response that SFT imitates, or None.
    """

    prompt: list[Turn]
    responses: list[str]
    source: str
    scores: list[float] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    desirable: list[bool | None] = field(default_factory=list)
    target: int | None = None

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt)

    def problem(self) -> str | None:
        """What makes this record unusable, in a few words; None when it is sound."""
        n = len(self.responses)
        if not self.prompt:
            return "empty prompt"
        if any(t.get("role") not in ROLES or not isinstance(t.get("content"), str) for t in self.prompt):
            return f"a turn's role is not one of {', '.join(ROLES)}, or its content is not text"
        if self.prompt[-1]["role"] != "user" or not self.prompt[-1]["content"].strip():
            return "the prompt does not end in a user turn with text"
        if not n:
            return "no response"
        if any(not isinstance(r, str) or not r.strip() for r in self.responses):
            return "empty response"
        if self.scores and len(self.scores) != n:
            return "scores and responses differ in number"
        if not all(map(math.isfinite, self.scores)):
            return "a score is not a finite number"
        if self.desirable and len(self.desirable) != n:
            return "desirable and responses differ in number"
        if any(not (0 <= w < n and 0 <= lo < n and w != lo) for w, lo in self.pairs):
            return "a pair names a response that does not exist, or the same one twice"
        if self.target is not None and not 0 <= self.target < n:
            return "target names a response that does not exist"
        return None

    def row(self) -> dict[str, Any]:
        """The record as a row of SCHEMA."""
        pairs = [list(p) for p in self.pairs]
        return {**self.__dict__, "pairs": pairs, "prompt_id": self.prompt_id}


def from_row(row: dict[str, Any]) -> Feedback:
    """The record of a row of SCHEMA, as parquet or JSON gives it (absent columns are empty).

    Raises:
        HalosError: a key that a record does not have, or one it needs and the row has not.
    """
    known = set(SCHEMA.names)
    if unknown := sorted(set(row) - known):
        raise HalosError(f"unknown field {unknown[0]!r} (a feedback record has {', '.join(SCHEMA.names)})")
    if missing := [k for k in ("prompt", "responses") if row.get(k) is None]:
        raise HalosError(f"no field {missing[0]!r}")
    target = row.get("target")
    return Feedback(
        prompt=[dict(turn) for turn in row["prompt"]],
        responses=list(row["responses"]),
        source=row.get("source") or "local",
        scores=list(row["scores"]) if row.get("scores") is not None else [],
        pairs=[(int(p[0]), int(p[1])) for p in row["pairs"]] if row.get("pairs") is not None else [],
        desirable=list(row["desirable"]) if row.get("desirable") is not None else [],
        target=None if target is None else int(target),
    )


def write(records: Iterable[Feedback], path: Path, chunk: int = 10_000) -> int:
    """Write records to a parquet file, `chunk` at a time; returns how many."""
    count = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        for record in records:
            rows.append(record.row())
            count += 1
            if len(rows) == chunk:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return count


def read(path: Path, chunk: int = 1_000) -> Iterator[Feedback]:
    """The records of a parquet file, read `chunk` at a time."""
    if not Path(path).is_file():
        raise HalosError(f"there is no feedback file {path}; make it with `python -m halos prepare`")
    for batch in pq.ParquetFile(path).iter_batches(chunk):
        yield from map(from_row, batch.to_pylist())
