"""`prepare`, the verb that mixes named sources into a dataset, and counts what became of every row."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from halos.config import read_slice
from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.reading import SPLITS, Drop
from halos.errors import HalosError
from halos.registry import SOURCES


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
