"""`prepare`, the verb that mixes named sources into a dataset, and counts what became of every row."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.report import DataReport, SourceRows, SplitRows, Tally
from halos.data.rows import SPLITS, Drop
from halos.data.settings import DataSlice, Source, origin
from halos.errors import HalosError
from halos.files import whole
from halos.hub import read_fetched


class _Prompts:
    """The distinct prompts of a split. Memory holds half a sha256 of each.

    Attributes:
        repeated: those that are in more than one record.
    """

    def __init__(self) -> None:
        self.all: set[bytes] = set()
        self.repeated: set[bytes] = set()

    def add(self, record: Feedback) -> None:
        prompt = _half(record.prompt_id)
        (self.repeated if prompt in self.all else self.all).add(prompt)

    def __contains__(self, record: Feedback) -> bool:
        return _half(record.prompt_id) in self.all


def _half(prompt_id: str) -> bytes:
    return bytes.fromhex(prompt_id[:32])


def prepare(config: Path, train: Path, test: Path, report: Path, fetched: Sequence[Path] = ()) -> None:
    """Make a dataset's feedback records from its sources.

    Rows that cannot be used are dropped and counted. A prompt of the test split never occurs in train. A prompt that
    occurs in two sources, or in two records of one, stays in each record: sources score on different scales, so their
    responses are not one group. The three files appear together, after the last row is read.

    Args:
        config: config.yaml of the dataset's folder.
        train: train split to write, .parquet or .jsonl.
        test: test split to write, .parquet or .jsonl.
        report: JSON report to write: rows read, kept and dropped by reason, for each split and source.
        fetched: the file that `fetch` wrote for the same config; its commits of the hub are read.

    Raises:
        HalosError: a source cannot be read, or a split is left without rows.
    """
    settings = DataSlice.read(config)
    commits = _commits(settings.sources, read_fetched(fetched).get("sources"))
    # all are opened first: a source that checks its files does so before anything is written
    opened = {
        split: [(s, s.open(split, c)) for s, c in zip(settings.sources, commits, strict=True) if split in s.splits]
        for split in SPLITS
    }
    counted: dict[str, SplitRows] = {}
    with ExitStack() as stack:
        files = {"train": stack.enter_context(whole(train)), "test": stack.enter_context(whole(test))}
        test_prompts = None
        for split in ("test", "train"):
            prompts = _Prompts()
            counted[split] = _write_split(settings.dataset, split, opened[split], prompts, test_prompts, files[split])
            test_prompts = prompts
        DataReport(dataset=settings.dataset, train=counted["train"], test=counted["test"]).write(report)


def _commits(sources: Sequence[Source], fetched: list[dict[str, str] | None] | None) -> list[str | None]:
    """The commit to read of each source; None for a source that was not fetched."""
    if fetched is None:
        return [None] * len(sources)
    if len(fetched) != len(sources):
        raise HalosError("fetched.json is of other sources than the config's; run `python -m halos fetch` again")
    return [None if found is None else found["commit"] for found in fetched]


def _write_split(
    dataset: str,
    split: str,
    opened: list[tuple[Source, Iterable[Feedback | Drop]]],
    prompts: _Prompts,
    test_prompts: _Prompts | None,
    output: Path,
) -> SplitRows:
    """Write the records of a split's sources, one after the other, and count them.

    Args:
        dataset: its name, for messages.
        split: "train" or "test".
        opened: each source with its records and drops.
        prompts: the split's prompts, to be filled.
        test_prompts: prompts that are left out; None for the test split.
        output: the file to write.

    Raises:
        HalosError: a source cannot be read, or it has no usable row.
    """
    tallies = [Tally() for _ in opened]
    with tqdm(desc=split, unit=" rows", unit_scale=True, mininterval=1, disable=None) as bar:
        kept = (
            _kept(_with_progress(rows, bar), tally, prompts, test_prompts)
            for (_, rows), tally in zip(opened, tallies, strict=True)
        )
        feedback.write(itertools.chain.from_iterable(kept), output)
    total = sum(tallies, Tally())
    if opened:
        _print_counts(dataset, split, total)
    sources = [
        SourceRows(**source.model_dump(), **origin(rows), **tally.row())
        for (source, rows), tally in zip(opened, tallies, strict=True)
    ]
    return SplitRows(**total.row(), shared_prompts=len(prompts.repeated), sources=tuple(sources))


def _kept(
    rows: Iterable[Feedback | Drop], tally: Tally, prompts: _Prompts, test_prompts: _Prompts | None
) -> Iterator[Feedback]:
    """The records of one source that stay in a split. The tally counts them and, by reason, the rest."""
    digests: set[bytes] = set()
    for row in rows:
        tally.rows_in += 1
        reason = row.reason if isinstance(row, Drop) else row.problem()
        if isinstance(row, Feedback) and reason is None:
            digest = hashlib.blake2b(json.dumps({**row.row(), "prompt": None}).encode(), digest_size=16).digest()
            if test_prompts is not None and row in test_prompts:
                reason = "prompt is in the test split"
            elif digest in digests:
                reason = "duplicate record"
            else:
                digests.add(digest)
                prompts.add(row)
                tally.add(row)
                yield row
        if reason is not None:
            tally.drops[reason] += 1


def _with_progress(rows: Iterable[Feedback | Drop], bar: tqdm) -> Iterator[Feedback | Drop]:
    for row in rows:
        bar.update()
        yield row


def _print_counts(dataset: str, split: str, total: Tally) -> None:
    """Print one line on stderr.

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
