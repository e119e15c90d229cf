"""`prepare`, the verb that mixes named sources into a dataset, and counts what became of every row."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.report import Tally
from halos.data.rows import SPLITS, Drop
from halos.data.settings import pinned
from halos.errors import HalosError
from halos.hub import read_fetched
from halos.registry import SOURCES
from halos.settings import read_slice


class _Prompts:
    """Which prompts have been met. Half a sha256 of each is held in memory."""

    def __init__(self) -> None:
        self.met: set[bytes] = set()
        self.shared: set[bytes] = set()

    def add(self, record: Feedback) -> None:
        prompt = _half(record.prompt_id)
        (self.shared if prompt in self.met else self.met).add(prompt)

    def __contains__(self, record: Feedback) -> bool:
        return _half(record.prompt_id) in self.met


def _half(prompt_id: str) -> bytes:
    return bytes.fromhex(prompt_id[:32])


def _kept(
    rows: Iterable[Feedback | Drop], tally: Tally, prompts: _Prompts, others: _Prompts | None
) -> Iterator[Feedback]:
    """The records of one source that stay in its split; `tally` counts them and, by reason, the rest.

    What stays is entered into `prompts`, the split's own; prompts of `others`, the test split's, do not stay.
    """
    seen: set[bytes] = set()
    for row in rows:
        tally.rows_in += 1
        reason = row.reason if isinstance(row, Drop) else row.problem()
        if isinstance(row, Feedback) and reason is None:
            digest = hashlib.blake2b(json.dumps({**row.row(), "prompt": None}).encode(), digest_size=16).digest()
            if others is not None and row in others:
                reason = "prompt is in the test split"
            elif digest in seen:
                reason = "duplicate record"
            else:
                seen.add(digest)
                prompts.add(row)
                tally.add(row)
                yield row
        if reason is not None:
            tally.drops[reason] += 1


def prepare(config: Path, train: Path, test: Path, report: Path, fetched: Sequence[Path] = ()) -> None:
    """Read every source of a dataset, drop (and count) what cannot be used, and write both splits.

    A prompt of the test split never occurs in train. One that occurs in two sources, or in two records of one, stays in
    each record: sources score on scales of their own, so that their responses are not one group. The three files
    appear together, when all is well.

    Args:
        config: the dataset's slice of the catalogue: `dataset`, `sources`, `plugins`.
        train: the parquet file of the train split to write (or .jsonl).
        test: that of the test split. A source for evaluation alone has this one only.
        report: the JSON file to write: rows, drops by reason and labels, per split and source (with the commit of what
            came from the hub), and how many prompts of a split are in more than one record (shared_prompts). rows_in is
            rows_out plus all drops.
        fetched: what `fetch` wrote, if it did: its commits are read, and not what a revision means today.

    Raises:
        HalosError: a source cannot be read, or a split is left without rows.
    """
    content = read_slice(config)
    opened = _pinned(content["sources"], read_fetched(fetched).get("sources"))
    outputs = {"train": Path(train), "test": Path(test)}
    # opened first: a source that checks its files does so before anything is written
    rows = {split: [(e, SOURCES[e["name"]](split, **options)) for e, options in opened
                    if split in getattr(SOURCES[e["name"]], "splits", SPLITS)] for split in SPLITS}  # fmt: skip
    summary: dict[str, Any] = {"dataset": content["dataset"], **dict.fromkeys(SPLITS)}
    prompts = {split: _Prompts() for split in SPLITS}

    with contextlib.ExitStack() as stack:
        temporary = {path: path.with_name(f".partial-{path.name}") for path in (*outputs.values(), Path(report))}
        for path in temporary.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(path.unlink, missing_ok=True)
        for split, others in (("test", None), ("train", prompts["test"])):
            tallies = [Tally() for _ in rows[split]]
            bar = tqdm(desc=split, unit=" rows", unit_scale=True, mininterval=1, disable=None)
            streams = (
                _kept(_counted(found, bar), tally, prompts[split], others)
                for (_, found), tally in zip(rows[split], tallies, strict=True)
            )
            feedback.write(itertools.chain.from_iterable(streams), temporary[outputs[split]])
            bar.close()
            total = sum(tallies, Tally())
            if rows[split]:
                _say(content["dataset"], split, total)
            sources = [
                {**entry, **getattr(found, "origin", {}), **tally.row()}
                for (entry, found), tally in zip(rows[split], tallies, strict=True)
            ]
            summary[split] = {**total.row(), "shared_prompts": len(prompts[split].shared), "sources": sources}
        temporary[Path(report)].write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        for path, written in temporary.items():
            os.replace(written, path)


def _pinned(
    entries: list[dict[str, Any]], found: list[dict[str, str] | None] | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The sources, each with its options at the commit that was fetched."""
    commits = [None] * len(entries) if found is None else found
    if len(commits) != len(entries):
        raise HalosError("what was fetched is of other sources; run `python -m halos fetch` again")
    return [(entry, pinned(entry, commit)) for entry, commit in zip(entries, commits, strict=True)]


def _counted(rows: Iterable[Feedback | Drop], bar: tqdm) -> Iterator[Feedback | Drop]:
    for row in rows:
        bar.update()
        yield row


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
