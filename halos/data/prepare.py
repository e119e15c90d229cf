"""`prepare`, the verb that mixes named sources into a dataset, and counts what became of every row."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.mixture import KEPT, REASONS, fates
from halos.data.repeats.duplicates import Contents
from halos.data.repeats.fingerprint import Fingerprint
from halos.data.repeats.overlap import Comparison, PromptIndex
from halos.data.report import DataReport, Duplicates, Overlap, SourceRows, SplitRows, Tally
from halos.data.rows import SPLITS, Drop
from halos.data.settings import DataSlice, Source, origin
from halos.data.sound import sound
from halos.errors import HalosError
from halos.files import whole
from halos.hub import read_fetched

Opened = list[tuple[Source, Iterable[Feedback | Drop]]]
"""The sources of a split, each with its records and drops."""


def prepare(config: Path, train: Path, test: Path, report: Path, fetched: Sequence[Path] = ()) -> None:
    """Make a dataset's feedback records from its sources.

    Rows that cannot be used are dropped and counted. A prompt of the test split never occurs in train, compared without
    case, punctuation at the ends and system turns. A prompt that occurs in two sources, or in two records of one, stays
    in each record: sources score on different scales, so their responses are not one group. Duplicates within train,
    and prompts of train that are nearly in test, are counted and shown. The three files appear together, after the last
    row is read.

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
    commits = _commits(settings.all_sources, read_fetched(fetched).get("sources"))
    parts = {"train": commits[: len(settings.sources)], "test": commits[-len(settings.sources_of("test")) :]}
    # all are opened first: a source that checks its files does so before anything is written
    opened: dict[str, Opened] = {
        split: [(s, s.open(split, c)) for s, c in zip(settings.sources_of(split), parts[split], strict=True)
                if split in s.splits]
        for split in SPLITS
    }  # fmt: skip
    with ExitStack() as stack:
        files = {"train": stack.enter_context(whole(train)), "test": stack.enter_context(whole(test))}
        index = PromptIndex()
        held_out = _Split("test", opened["test"])
        held_out.write(files["test"], index.add)
        test_rows = held_out.counted(settings.dataset, needed=any(s.holds_out for s in settings.sources_of("test")))
        learned = _Split("train", opened["train"])
        duplicates, overlap = _write_train(settings, learned, index, files["train"], files["test"])
        train_rows = learned.counted(settings.dataset, needed=bool(opened["train"]))
        for line in (
            overlap.sentence(f"{settings.dataset}, train and test"),
            duplicates.sentence(f"{settings.dataset} train"),
        ):
            print(line, file=sys.stderr)
        DataReport(
            dataset=settings.dataset, train=train_rows, test=test_rows, overlap=overlap, duplicates=duplicates
        ).write(report)


def _commits(sources: Sequence[Source], fetched: list[dict[str, str] | None] | None) -> list[str | None]:
    """The commit to read of each source; None for a source that was not fetched."""
    if fetched is None:
        return [None] * len(sources)
    if len(fetched) != len(sources):
        raise HalosError("fetched.json is of other sources than the config's; run `python -m halos fetch` again")
    return [None if found is None else found["commit"] for found in fetched]


class _Split:
    """The records of one split, one source after the other, and their counts.

    Args:
        name: "train" or "test".
        opened: its sources.

    Attributes:
        tallies: counts of each source.
        available: records of each source before some were left out of train; None where none were.
        prompts: 64 bits of the prompt_id of each record.
    """

    def __init__(self, name: str, opened: Opened) -> None:
        self.name, self.opened = name, opened
        self.tallies = [Tally() for _ in opened]
        self.available: list[int] | None = None
        self.prompts = array("Q")

    def write(self, output: Path, see: Callable[[Fingerprint], None], without: PromptIndex | None = None) -> None:
        """Write the records that can be used, and count all rows.

        Args:
            output: the file to write.
            see: called with each record that is written.
            without: prompts that are left out.

        Raises:
            HalosError: a source cannot be read, or yields what is no record.
        """

        def seen(kept: Iterable[Fingerprint]) -> Iterator[Feedback]:
            for of in kept:
                see(of)
                self.prompts.append(int(of.record.prompt_id[:16], 16))
                yield of.record

        with tqdm(desc=self.name, unit=" rows", unit_scale=True, mininterval=1, disable=None) as bar:
            kept = (
                _kept(_sound(rows, source.name, bar), tally, without)
                for (source, rows), tally in zip(self.opened, self.tallies, strict=True)
            )
            feedback.write(seen(itertools.chain.from_iterable(kept)), output)

    def choose(self, written: Path, fate: NDArray[np.uint8], output: Path) -> None:
        """Write again those of the written records that stay, and count the others by what became of them.

        Args:
            written: the file that `write` has written.
            fate: (n,) what becomes of each of its records (halos.data.mixture).
            output: the file to write.
        """
        self.available = [tally.rows_out for tally in self.tallies]
        self.tallies = [Tally(tally.rows_in, 0, tally.drops) for tally in self.tallies]
        source_of = itertools.chain.from_iterable(map(itertools.repeat, self.tallies, self.available))

        def kept() -> Iterator[Feedback]:
            for record, what, tally in zip(feedback.read(written), fate, source_of, strict=True):
                if what == KEPT:
                    tally.add(record)
                    yield record
                else:
                    tally.drops[REASONS[what]] += 1

        feedback.write(kept(), output)
        self.prompts = array("Q", np.array(self.prompts, np.uint64)[fate == KEPT].tobytes())

    def counted(self, dataset: str, needed: bool) -> SplitRows:
        """The counts, printed in one line.

        Args:
            dataset: its name.
            needed: whether the split must have rows.

        Raises:
            HalosError: it must, and has none.
        """
        total = sum(self.tallies, Tally())
        if self.opened:
            _print_counts(dataset, self.name, total, needed)
        sources = []
        for number, ((source, rows), tally) in enumerate(zip(self.opened, self.tallies, strict=True)):
            unread: dict[str, int] = getattr(rows, "unread_fields", {})
            if unread:
                _print_unread(dataset, self.name, source.name, unread)
            available = None if self.available is None else self.available[number]
            sources.append(
                SourceRows(
                    **source.model_dump(), **origin(rows), **tally.row(), available=available, unread_fields=unread
                )
            )
        _, times = np.unique(np.array(self.prompts, np.uint64), return_counts=True)
        return SplitRows(**total.row(), shared_prompts=int((times > 1).sum()), sources=tuple(sources))


def _write_train(
    settings: DataSlice, split: _Split, index: PromptIndex, output: Path, test: Path
) -> tuple[Duplicates, Overlap]:
    """Write the train split: records whose prompts are not in test, without the duplicates that are to be dropped, as
    many of each source as the mix has.

    Args:
        settings: the dataset's.
        split: the train split, to be written and counted.
        index: the prompts of the test split.
        output: the file to write.
        test: the file of the test split.

    Returns:
        The duplicates, and what recurs in the test split.
    """
    contents, comparison, keys = Contents(), Comparison(index), array("Q")

    def see(of: Fingerprint) -> None:
        contents.add(of)
        comparison.add(of)
        if settings.draws:
            keys.append(of.draw)

    with ExitStack() as stack:
        written = output
        if settings.draws or settings.drop_duplicates != "none":
            written = output.with_name(f"{output.name}.all.parquet")
            stack.callback(written.unlink, missing_ok=True)
        split.write(written, see, without=index)
        repeats = contents.repeats()
        sources = [source for source, _ in split.opened]
        fate = fates(settings, sources, [t.rows_out for t in split.tallies], repeats, np.array(keys, np.uint64))
        if written != output:
            split.choose(written, fate, output)
        duplicates = contents.report(repeats, written, settings.drop_duplicates)
        return duplicates, comparison.overlap(contents.prompt_sketches, fate == KEPT, written, test)


def _sound(rows: Iterable[object], source: str, bar: tqdm) -> Iterator[Feedback | Drop]:
    """What a source yields, checked, and shown by a progress bar."""
    for number, row in enumerate(rows, 1):
        bar.update()
        yield sound(row, source, number)


def _kept(rows: Iterable[Feedback | Drop], tally: Tally, without: PromptIndex | None) -> Iterator[Fingerprint]:
    """The records of one source that stay in a split. The tally counts them and, by reason, the rest."""
    digests: set[bytes] = set()
    for row in rows:
        tally.rows_in += 1
        reason = row.reason if isinstance(row, Drop) else row.problem()
        if isinstance(row, Feedback) and reason is None:
            of = Fingerprint(row)
            digest = hashlib.blake2b(json.dumps({**row.row(), "prompt": None}).encode(), digest_size=16).digest()
            if without is not None and of in without:
                reason = "prompt is in the test split"
            elif digest in digests:
                reason = "duplicate record"
            else:
                digests.add(digest)
                tally.add(row)
                yield of
        if reason is not None:
            tally.drops[reason] += 1


def _print_counts(dataset: str, split: str, total: Tally, needed: bool) -> None:
    """Print one line on stderr.

    Raises:
        HalosError: the split has no rows, and needs some.
    """
    drops = ", ".join(f"{n} {reason}" for reason, n in sorted(total.drops.items())) or "none"
    if needed and not total.rows_out:
        raise HalosError(
            f"dataset {dataset}: nothing is left of its {split} split ({total.rows_in} rows read; dropped: {drops});"
            " give it more data or another test_fraction (0 for no test split); conversations that all begin with the"
            " same turn are divided by a `group`"
        )
    print(f"{dataset} {split}: {total.rows_in} rows read, {total.rows_out} kept; dropped: {drops}", file=sys.stderr)


def _print_unread(dataset: str, split: str, source: str, unread: dict[str, int]) -> None:
    fields = ", ".join(f"{name} ({rows} rows)" for name, rows in sorted(unread.items()))
    print(f"{dataset} {split}: source {source} does not read the fields {fields}", file=sys.stderr)
