"""Feedback records: the one format that every source is turned into, and that later stages read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from halos.errors import HalosError
from halos.files import whole
from halos.seeds import derive

ROLES = ("system", "developer", "user", "assistant", "tool")
Turn = dict[str, Any]
"""{"role", "content"}, both text. Other fields are handed to the chat template as they are: tool_calls, name ..."""
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "fields": pa.string()})),
        "responses": pa.list_(pa.string()),
        "scores": pa.list_(pa.float64()),
        "pairs": pa.list_(pa.list_(pa.int32(), 2)),
        "desirable": pa.list_(pa.bool_()),
        "target": pa.int32(),
        "source": pa.string(),
        "cut": pa.list_(pa.bool_()),
        "tools": pa.string(),
        "response_fields": pa.list_(pa.string()),
        "response_ids": pa.list_(pa.list_(pa.int32())),
        "template": pa.string(),
    }
)
"""Columns of a parquet file of records. Other fields of a turn, and the tools, are JSON."""
WEIGHTED = pa.schema(
    [
        *SCHEMA,
        pa.field("weights", pa.list_(pa.float64())),
        pa.field("pair_weights", pa.list_(pa.float64())),
        pa.field("margins", pa.list_(pa.float64())),
    ]
)
"""Columns of a parquet file of records of which some have weights or margins."""
OPTIONAL = tuple(name for name in WEIGHTED.names if name not in SCHEMA.names)
"""Fields that a record without them does not mention, so that its digest and its file are as if there were none."""


def prompt_id(prompt: list[Turn], tools: list[dict[str, Any]] | None = None) -> str:
    """sha256 of a conversation, roles, fields of turns and tools included; it is the same on every machine and in every
    source."""
    turns: list[Any] = [
        [turn["role"], turn["content"], *([other] if (other := _other_fields(turn)) else [])] for turn in prompt
    ]
    return hashlib.sha256(_compact([*turns, tools] if tools else turns).encode()).hexdigest()


def _other_fields(turn: Turn) -> dict[str, Any]:
    """The fields of a turn besides its role and its text."""
    return {name: turn[name] for name in sorted(turn) if name not in ("role", "content")}


def _compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def labels_of_pairs(n: int, pairs: Iterable[tuple[int, int]]) -> list[bool | None]:
    """(n,) labels from (winner, loser) pairs: True for a response that only wins, False for one that only loses, None
    for one that does both or neither."""
    winners, losers = set(), set()
    for winner, loser in pairs:
        winners.add(winner)
        losers.add(loser)
    return [None if (i in winners) == (i in losers) else i in winners for i in range(n)]


@dataclass(frozen=True)
class Feedback:
    """One prompt with its responses and their labels.

    Attributes:
        prompt: turns, oldest first; the last is the user's, or what a tool returned.
        responses: the responses' texts; labels below refer to them by index.
        source: the name of the source it came from, or of its category there, where the source has a column of that.
        scores: one number for each response (higher is better), or empty.
        pairs: (winner, loser) indices into `responses`.
        desirable: one label for each response, None where it has none, or empty.
        target: index of the response that SFT imitates, or None.
        cut: whether each response was cut before its end, so that no end-of-turn token is learned there; or empty.
        tools: the functions that the model may call, as JSON documents for the chat template; or empty.
        response_fields: the fields of each response's turn besides its text, such as tool_calls; or empty.
        response_ids: token ids of each response that a model has sampled, its end-of-turn token included where it wrote
            one, and None for a response that was written elsewhere; or empty.
        template: hash of the tokenizer and chat template that the response_ids are of (halos.tokens.template.Template).
        weights: weight of each response, as a target and with its label or score, at least 0; or empty for 1 each.
            What has weight 0 is not trained on.
        pair_weights: weight of each pair, likewise.
        margins: for each pair the margin by which the winner is better, None where it has none; or empty.
        group: what keeps records in one split, as a source tells it; None for the conversation's first turn. No file
            has it.
    """

    prompt: list[Turn]
    responses: list[str]
    source: str
    scores: list[float] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    desirable: list[bool | None] = field(default_factory=list)
    target: int | None = None
    cut: list[bool] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    response_fields: list[dict[str, Any]] = field(default_factory=list)
    response_ids: list[list[int] | None] = field(default_factory=list)
    template: str | None = None
    weights: list[float] = field(default_factory=list)
    pair_weights: list[float] = field(default_factory=list)
    margins: list[float | None] = field(default_factory=list)
    group: str | None = field(default=None, compare=False)

    @cached_property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt, self.tools)

    @property
    def digest(self) -> bytes:
        """16 bytes that change with anything in the record."""
        return hashlib.sha256(_compact(self.row()).encode()).digest()[:16]

    def problem(self) -> str | None:
        """Why the record cannot be used, in a few words; None when it is sound."""
        n = len(self.responses)
        if not self.prompt:
            return "empty prompt"
        if any(t.get("role") not in ROLES or not isinstance(t.get("content"), str) for t in self.prompt):
            return f"a turn's role is not one of {', '.join(ROLES)}, or its content is not text"
        if self.prompt[-1]["role"] not in ("user", "tool") or not self.prompt[-1]["content"].strip():
            return "the prompt does not end in a user turn with text"
        if not n:
            return "no response"
        for name in ("scores", "desirable", "cut", "response_fields", "response_ids", "weights"):
            if (values := getattr(self, name)) and len(values) != n:
                return f"{name} and responses differ in number"
        for name in ("pair_weights", "margins"):
            if (values := getattr(self, name)) and len(values) != len(self.pairs):
                return f"{name} and pairs differ in number"
        if any(
            not isinstance(r, str) or not (r.strip() or (self.response_fields and self.response_fields[i]))
            for i, r in enumerate(self.responses)
        ):
            return "empty response"
        if not all(map(math.isfinite, self.scores)):
            return "a score is not a finite number"
        if not all(math.isfinite(weight) and weight >= 0 for weight in (*self.weights, *self.pair_weights)):
            return "a weight is not a finite number of at least 0"
        if not all(margin is None or math.isfinite(margin) for margin in self.margins):
            return "a margin is not a finite number"
        if self.response_ids and self.template is None:
            return "response_ids without the hash of their tokenizer (template)"
        if any(not (0 <= w < n and 0 <= lo < n and w != lo) for w, lo in self.pairs):
            return "a pair names a response that does not exist, or the same one twice"
        if self.target is not None and not 0 <= self.target < n:
            return "target names a response that does not exist"
        return None

    def row(self) -> dict[str, Any]:
        """The record as JSON holds it: the columns of SCHEMA, with turns and tools as they are, and weights and
        margins where there are any."""
        given = [name for name in OPTIONAL if getattr(self, name)]
        return {name: getattr(self, name) for name in (*SCHEMA.names, *given)}


def from_row(row: dict[str, Any]) -> Feedback:
    """The record of a row that `Feedback.row` gives (absent columns are empty).

    Raises:
        HalosError: the row has a key that records do not have, or lacks one that they need.
    """
    known = set(WEIGHTED.names)
    if unknown := sorted(set(row) - known):
        raise HalosError(f"unknown field {unknown[0]!r} (a feedback record has {', '.join(WEIGHTED.names)})")
    if missing := [k for k in ("prompt", "responses") if row.get(k) is None]:
        raise HalosError(f"no field {missing[0]!r}")
    target = row.get("target")
    optional: dict[str, Any] = {name: list(row.get(name) or []) for name in OPTIONAL}
    return Feedback(
        prompt=[dict(turn) for turn in row["prompt"]],
        responses=list(row["responses"]),
        source=row.get("source") or "local",
        scores=list(row["scores"]) if row.get("scores") is not None else [],
        pairs=[(int(p[0]), int(p[1])) for p in row["pairs"]] if row.get("pairs") is not None else [],
        desirable=list(row["desirable"]) if row.get("desirable") is not None else [],
        target=None if target is None else int(target),
        cut=list(row.get("cut") or []),
        tools=list(row.get("tools") or []),
        response_fields=list(row.get("response_fields") or []),
        response_ids=list(row.get("response_ids") or []),
        template=row.get("template"),
        **optional,
    )


def write(records: Iterable[Feedback], path: Path, chunk: int = 10_000) -> int:
    """Write records, `chunk` at a time, and return their number: JSON Lines if the name ends in .jsonl, else parquet.

    The file is whole or absent. JSON Lines leave out empty fields; both forms read back as the same records.
    """
    with whole(Path(path)) as temporary:
        if _is_lines(path):
            return _write_lines(records, temporary)
        return _write_parquet(records, temporary, chunk)


def _write_parquet(records: Iterable[Feedback], path: Path, chunk: int) -> int:
    count, records = 0, iter(records)
    schema, writer = SCHEMA, pq.ParquetWriter(path, SCHEMA)
    try:
        while block := list(islice(records, chunk)):
            if schema is SCHEMA and any(getattr(r, name) for r in block for name in OPTIONAL):
                writer.close()
                schema, writer = WEIGHTED, _widened(path)
            columns = [
                pa.array([_CELLS.get(column.name, getattr)(r, column.name) for r in block], column.type)
                for column in schema
            ]
            writer.write_batch(pa.record_batch(columns, schema))
            count += len(block)
    finally:
        writer.close()
    return count


def _widened(path: Path) -> pq.ParquetWriter:
    """A writer of the columns of WEIGHTED that has written the records of a file again, none of which has any."""
    narrow = path.rename(path.with_name(f"{path.name}.narrow"))
    writer = pq.ParquetWriter(path, WEIGHTED)
    with pq.ParquetFile(narrow) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            empty = [pa.array([[]] * len(table), WEIGHTED.field(name).type) for name in OPTIONAL]
            writer.write_table(pa.table([*table.columns, *empty], WEIGHTED))
    narrow.unlink()
    return writer


def _prompt_cell(record: Feedback, _: str) -> list[dict[str, str | None]]:
    """The prompt's turns as parquet holds them: all other fields of a turn are one text of JSON."""
    return [
        turn
        if len(turn) == 2
        else {"role": turn["role"], "content": turn["content"], "fields": _compact(_other_fields(turn))}
        for turn in record.prompt
    ]


_CELLS: dict[str, Any] = {
    "prompt": _prompt_cell,
    "tools": lambda record, _: _compact(record.tools) if record.tools else None,
    "response_fields": lambda record, _: list(map(_compact, record.response_fields)),
}
"""Column -> its value in a parquet file, for those that are not the record's attribute itself."""


def read(path: Path, chunk: int = 1_000) -> Iterator[Feedback]:
    """The records of a file that `write` made, `chunk` at a time.

    Raises:
        HalosError: there is no such file, or it holds no feedback records.
    """
    if _is_lines(path):
        yield from _read_lines(path)
    else:
        for batch in _parquet(path).iter_batches(chunk):
            yield from _records(batch)


def prompt_ids(path: Path, limit: int | None = None, skip: int = 0, seed: int | None = None) -> pa.StringArray:
    """(n,) distinct prompt ids of a file, in a random-like order.

    The order mixes the file's sources and does not depend on the order of its records.

    Args:
        path: feedback records; of a parquet file only the ids are read.
        limit: the most ids to return; None for all.
        skip: ids to skip at the start of the order.
        seed: orders the prompts by a number derived from seed and id; None for the order of the ids, which are hashes.
    """
    if _is_lines(path):
        ids = pa.array([record.prompt_id for record in read(path)], pa.string()).unique()
    else:
        ids = pc.unique(_parquet(path).read(["prompt_id"])["prompt_id"])
    ids = ids.take(pc.array_sort_indices(ids))
    if seed is not None:
        keys = pa.array([derive(seed, "prompts", name) for name in ids.to_pylist()], pa.int64())
        ids = ids.take(pc.array_sort_indices(keys))
    return ids[skip:] if limit is None else ids[skip : skip + limit]


def records_of(path: Path, ids: pa.StringArray) -> Iterator[Feedback]:
    """All records on the prompts `ids`, in the file's order. Only these rows are turned into records."""
    if _is_lines(path):
        wanted = set(ids.to_pylist())
        yield from (record for record in read(path) if record.prompt_id in wanted)
    else:
        for batch in _parquet(path).iter_batches(1_000):
            yield from _records(batch.filter(pc.is_in(batch["prompt_id"], ids)))


def records_where(path: Path, wanted: NDArray[np.bool_]) -> Iterator[Feedback]:
    """The records of a parquet file at which (n,) `wanted` is true, in the file's order."""
    start = 0
    for batch in _parquet(path).iter_batches(1_000):
        yield from _records(batch.filter(pa.array(wanted[start : start + len(batch)])))
        start += len(batch)


def records_at(path: Path, rows: Iterable[int]) -> dict[int, Feedback]:
    """{row: record} of some rows of a file, counted from 0, in the file's order."""
    wanted = sorted(set(rows))
    if _is_lines(path) and wanted:
        numbered = enumerate(islice(read(path), wanted[-1] + 1))
        return {row: record for row, record in numbered if row in set(wanted)}
    found: dict[int, Feedback] = {}
    start = 0
    for batch in _parquet(path).iter_batches(10_000) if wanted else ():
        here = [row for row in wanted if start <= row < start + len(batch)]
        found |= zip(here, _records(batch.take(pa.array([row - start for row in here], pa.int64()))), strict=True)
        start += len(batch)
        if len(found) == len(wanted):
            break
    return found


def select_prompts(path: Path, limit: int | None, skip: int = 0, seed: int | None = None) -> list[Feedback]:
    """The first record on each prompt that `prompt_ids` returns, in its order.

    Raises:
        HalosError: the file has no prompts, or no more than `skip`.
    """
    ids = prompt_ids(path, limit, skip, seed)
    if not len(ids):
        total = len(prompt_ids(path))
        raise HalosError(
            f"{path} has {total} prompts, of which {skip} are skipped: none is left; lower `skip`"
            if total
            else f"{path} has no prompts, as its dataset was made without this split: take prompts of another one"
        )
    first: dict[str, Feedback] = {}
    for record in records_of(path, ids):
        first.setdefault(record.prompt_id, record)
    return [first[name] for name in ids.to_pylist()]


def _is_lines(path: Path) -> bool:
    return Path(path).suffix == ".jsonl"


def _check(path: Path) -> None:
    if not Path(path).is_file():
        raise HalosError(f"there is no feedback file {path}; make it with `python -m halos prepare`")


def _write_lines(records: Iterable[Feedback], path: Path) -> int:
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            row = {name: value for name, value in record.row().items() if value is not None and value != []}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _read_lines(path: Path) -> Iterator[Feedback]:
    _check(path)
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield from_row(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, HalosError) as error:
                raise HalosError(f"line {number} of {path} is no feedback record ({error}); correct it") from None


def _parquet(path: Path) -> pq.ParquetFile:
    _check(path)
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # a buffer would hold all that was read
    except pa.ArrowInvalid as error:
        raise HalosError(f"{path} cannot be read ({error}); it must be a parquet file, or end in .jsonl") from None
    if file.schema_arrow.remove_metadata() not in (SCHEMA, WEIGHTED):
        raise HalosError(f"{path} holds no feedback records; turn it into some with the source `local`")
    return file


def _records(batch: pa.RecordBatch) -> Iterator[Feedback]:
    """The records of rows of SCHEMA. Whole columns are converted and then cut, which is faster than row by row."""
    turns, numbers = batch["prompt"].flatten(), batch["pairs"].flatten().flatten().to_pylist()
    texts = zip(*(turns.field(name).to_pylist() for name in ("role", "content", "fields")), strict=True)
    optional = [name for name in OPTIONAL if name in batch.schema.names]
    lists = ("responses", "scores", "desirable", "cut", "response_ids", *optional)
    flat = {
        "prompt": [
            {"role": role, "content": content, **(json.loads(other) if other else {})} for role, content, other in texts
        ],
        "pairs": list(zip(numbers[::2], numbers[1::2], strict=True)),
        "response_fields": list(map(json.loads, batch["response_fields"].flatten().to_pylist())),
        **{name: batch[name].flatten().to_pylist() for name in lists},
    }
    columns: dict[str, Any] = {name: batch[name].to_pylist() for name in ("source", "target", "template")}
    columns["tools"] = [json.loads(tools) if tools else [] for tools in batch["tools"].to_pylist()]
    columns |= {name: [[] for _ in range(len(batch))] for name in OPTIONAL if name not in optional}
    for name, values in flat.items():
        bounds = [0, *accumulate(pc.list_value_length(batch[name]).to_pylist())]
        columns[name] = [values[begin:end] for begin, end in pairwise(bounds)]
    return map(Feedback, *(columns[column.name] for column in fields(Feedback) if column.name in columns))
