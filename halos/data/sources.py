"""Named sources of feedback, and `prepare`, which mixes them into a dataset.

A source is a function `(split, **options)` that yields the records of "train" or "test", and a `Drop` for each row that
it leaves out. A source of your own is one such function with `@SOURCES.register("name")` in a plugin.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from tqdm import tqdm

import halos.data.toy  # noqa: F401  (registers the toy source and its verifier)
from halos.data import feedback
from halos.data.feedback import Feedback, Turn
from halos.errors import HalosError
from halos.registry import SOURCES

SPLITS = ("train", "test")
HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"


@dataclass(frozen=True)
class Drop:
    """A row that a source leaves out, and why, in a few words that are the same for every such row."""

    reason: str


# ---------------------------------------------------------------------------------------------------------- files


def in_split(key: str, split: str, test_fraction: float) -> bool:
    """Whether what `key` (a sha256 in hex) names belongs to `split`: the same answer on every machine, in any order."""
    return (int(key[:8], 16) < test_fraction * 2**32) == (split == "test")


def _locate(source: str, path: str | dict[str, str], split: str, test_fraction: float) -> Path:
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


def _rows(file: Path) -> Iterator[tuple[int, str]]:
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


def _first(records: Iterable[Feedback | Drop], limit: int | None) -> Iterator[Feedback | Drop]:
    """Up to the `limit`-th record; drops do not count towards it."""
    count = 0
    for record in records:
        if isinstance(record, Feedback):
            if count == limit:
                return
            count += 1
        yield record


# ------------------------------------------------------------------------------------------------------------- hh

MARKER = re.compile(r"\n\n+(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


def hh_turns(text: str) -> list[Turn]:
    """The turns of a conversation in HH's layout, each opened by a blank line and "Human:" or "Assistant:".

    Only what separates turns is cut: the blank lines before a marker (or the end), and one space after it. Empty when
    the text does not begin with a marker.
    """
    head, *parts = MARKER.split(text.rstrip("\n"))
    if head.strip():
        return []
    return [{"role": ROLE[name], "content": content} for name, content in zip(parts[::2], parts[1::2], strict=True)]


def hh_record(chosen: str, rejected: str) -> Feedback | Drop:
    """The record of two conversations that are equal up to their last turn."""
    if chosen == rejected:
        return Drop("chosen and rejected are equal")
    winner, loser = hh_turns(chosen), hh_turns(rejected)
    if not winner or not loser:
        return Drop("the text does not begin with a turn")
    if winner[-1]["role"] != "assistant" or loser[-1]["role"] != "assistant":
        return Drop("no assistant turn at the end")
    if winner[:-1] != loser[:-1]:
        return Drop("chosen and rejected have different prompts")
    responses = [winner[-1]["content"], loser[-1]["content"]]
    if responses[0] == responses[1]:
        return Drop("chosen and rejected are equal")
    return Feedback(winner[:-1], responses, "hh", pairs=[(0, 1)], desirable=[True, False], target=0)


@SOURCES.register("hh")
def hh(
    split: str,
    *,
    path: str | dict[str, str] | None = None,
    test_fraction: float = 0.1,
    subset: str | None = None,
    revision: str = HH_REVISION,
    limit: int | None = None,
) -> Iterator[Feedback | Drop]:
    """Anthropic's helpful and harmless comparisons (Bai et al. 2022, arXiv:2204.05862), from the hub or from files.

    Args:
        split: "train" or "test".
        path: a file of Anthropic's own (.jsonl or .jsonl.gz, "chosen" and "rejected" on each line), or one a split;
            without it the dataset is loaded from the hub.
        test_fraction: share of the prompts that are the test split of a single file.
        subset: a folder of the dataset on the hub, such as "helpful-base" or "harmless-base"; by default all.
        revision: commit on the hub.
        limit: the first so many records.

    Raises:
        HalosError: the hub cannot be reached, or a file is missing or not in this layout.
    """
    if path is None:
        pairs = _hh_hub(split, subset, revision)
        return _first((hh_record(*pair) for pair in pairs), limit)
    pairs = _hh_file(_locate("hh", path, split, test_fraction))
    fraction = None if isinstance(path, dict) else test_fraction
    return _first(_hh_split(pairs, split, fraction), limit)


def _hh_hub(split: str, subset: str | None, revision: str) -> Iterator[tuple[str, str]]:
    import datasets  # slow to import, and of no use offline

    name = "Anthropic/hh-rlhf"
    try:
        table = datasets.load_dataset(name, data_dir=subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise HalosError(
            f"source hh: {name} cannot be loaded from the hub ({reason}); check the connection, subset and revision, or"
            " download its files elsewhere and name them by `path:`"
        ) from None
    return ((row["chosen"], row["rejected"]) for row in table)


def _hh_file(file: Path) -> Iterator[tuple[str, str]]:
    for number, text in _rows(file):
        try:
            row = json.loads(text)
            chosen, rejected = row["chosen"], row["rejected"]
        except (ValueError, TypeError, KeyError):
            chosen = rejected = None
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise HalosError(f"source hh: row {number} of {file} lacks the texts chosen and rejected; correct it")
        yield chosen, rejected


def _hh_split(pairs: Iterable[tuple[str, str]], split: str, fraction: float | None) -> Iterator[Feedback | Drop]:
    for pair in pairs:
        record = hh_record(*pair)
        # a dropped row belongs to one split as well, so that rows add up over the splits
        key = record.prompt_id if isinstance(record, Feedback) else hashlib.sha256(pair[0].encode()).hexdigest()
        if fraction is None or in_split(key, split, fraction):
            yield record


# ---------------------------------------------------------------------------------------------------------- local


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
    file = _locate("local", path, split, test_fraction)
    count, bad = 0, []
    for number, text in _rows(file):
        count += 1
        if isinstance(problem := _local_record(text), str):
            bad.append(f"row {number}, {problem}")
    if bad:
        first = "; ".join(bad[:3])
        raise HalosError(f"source local: correct {file}, of whose {count} rows {len(bad)} cannot be used: {first}")
    records = (record for _, text in _rows(file) if isinstance(record := _local_record(text), Feedback))
    whole = isinstance(path, dict)
    return _first((r for r in records if whole or in_split(r.prompt_id, split, test_fraction)), limit)


# -------------------------------------------------------------------------------------------------------- prepare


@dataclass
class Tally:
    """What became of the rows of one source in one split."""

    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Feedback) -> None:
        self.rows_out += 1
        self.counts.update(
            responses=len(record.responses),
            pairs=len(record.pairs),
            desirable=record.desirable.count(True),
            undesirable=record.desirable.count(False),
            ties=sum(n * (n - 1) // 2 for n in Counter(record.scores).values()),
            targets=int(record.target is not None),
            multi_turn=int(sum(turn["role"] == "user" for turn in record.prompt) > 1),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            self.drops + other.drops,
            self.counts + other.counts,
        )

    def row(self) -> dict[str, Any]:
        names = ("responses", "pairs", "desirable", "undesirable", "ties", "targets", "multi_turn")
        counts = {name: self.counts[name] for name in names}
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, "drops": dict(sorted(self.drops.items())), **counts}


def _kept(rows: Iterable[Feedback | Drop], split: str, tally: Tally, test_prompts: set[bytes]) -> Iterator[Feedback]:
    """The records of one source that stay in its split; `tally` counts them and, by reason, the rest.

    Test prompts are added to `test_prompts`, train records on one of them are dropped. Only hashes are held in memory.
    """
    seen: set[bytes] = set()
    for row in rows:
        tally.rows_in += 1
        reason = row.reason if isinstance(row, Drop) else row.problem()
        if isinstance(row, Feedback) and reason is None:
            prompt = bytes.fromhex(row.prompt_id)
            digest = hashlib.sha256(json.dumps([row.prompt_id, row.responses]).encode()).digest()
            if split == "train" and prompt in test_prompts:
                reason = "prompt is in the test split"
            elif digest in seen:
                reason = "duplicate record"
            else:
                seen.add(digest)
                if split == "test":
                    test_prompts.add(prompt)
                tally.add(row)
                yield row
        if reason is not None:
            tally.drops[reason] += 1


def prepare(config: Path, train: Path, test: Path, report: Path) -> None:
    """Read every source of a dataset, drop (and count) what cannot be used, and write both splits.

    A prompt of the test split never occurs in train. The three files appear together, when all is well.

    Args:
        config: the dataset's slice of the catalogue: `dataset`, `sources`, `plugins`.
        train: the parquet file of the train split to write.
        test: that of the test split.
        report: the JSON file to write: rows, drops by reason and labels, per split and source. rows_in is rows_out
            plus all drops.

    Raises:
        HalosError: a source cannot be read, or a split is left without rows.
    """
    from halos.config import read_slice  # it imports this module, for the sources' names

    content = read_slice(config)
    outputs = {"train": Path(train), "test": Path(test)}
    # opened first: a source that checks its files does so before anything is written
    rows = {s: [SOURCES[entry["name"]](s, **entry["options"]) for entry in content["sources"]] for s in SPLITS}
    summary: dict[str, Any] = {"dataset": content["dataset"], **dict.fromkeys(SPLITS)}
    test_prompts: set[bytes] = set()

    with contextlib.ExitStack() as stack:
        temporary = {path: path.with_name(f".{path.name}.tmp") for path in (*outputs.values(), Path(report))}
        for path in temporary.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(path.unlink, missing_ok=True)
        for split in ("test", "train"):  # train leaves the prompts of test out
            tallies = [Tally() for _ in rows[split]]
            streams = [_kept(r, split, t, test_prompts) for r, t in zip(rows[split], tallies, strict=True)]
            records = tqdm(itertools.chain.from_iterable(streams), f"{split} rows", unit="", disable=None)
            feedback.write(records, temporary[outputs[split]])
            total = sum(tallies, Tally())
            _say(content["dataset"], split, total)
            sources = [{**e, **t.row()} for e, t in zip(content["sources"], tallies, strict=True)]
            summary[split] = {**total.row(), "sources": sources}
        temporary[Path(report)].write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        for path, written in temporary.items():
            os.replace(written, path)


def _say(dataset: str, split: str, total: Tally) -> None:
    """One line on stderr.

    Raises:
        HalosError: the split has no rows.
    """
    drops = ", ".join(f"{n} {reason}" for reason, n in sorted(total.drops.items())) or "none"
    if not total.rows_out:
        raise HalosError(
            f"dataset {dataset}: nothing is left of its {split} split ({total.rows_in} rows read; dropped: {drops});"
            " give it more data or another test_fraction"
        )
    print(f"{dataset} {split}: {total.rows_in} rows read, {total.rows_out} kept; dropped: {drops}", file=sys.stderr)
