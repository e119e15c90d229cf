"""`prepare`, the verb that mixes named sources into a dataset, and counts what became of every row."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.mixture import KEPT, REASONS, VALIDATION, Keys, fates
from halos.data.repeats.duplicates import Contents
from halos.data.repeats.fingerprint import Fingerprint
from halos.data.repeats.overlap import Comparison, PromptIndex
from halos.data.report import DataReport, Duplicates, Overlap, SourceRows, SplitRows, Tally
from halos.data.rows import SPLITS, Drop, Records
from halos.data.settings import DataSlice, Source, origin
from halos.data.sound import sound
from halos.errors import HalosError
from halos.files import whole
from halos.hub import read_fetched

Opened = dict[int, tuple[Source, Iterable[Feedback | Drop]]]
"""The sources of a split, by their places among the dataset's, each with its records and drops."""
Indices = dict[str, PromptIndex]
"""split -> its prompts."""
Numbers = NDArray[np.int64]


def prepare(
    config: Path, train: Path, validation: Path, test: Path, report: Path, fetched: Sequence[Path] = ()
) -> None:
    """Make a dataset's feedback records from its sources.

    Rows that cannot be used are dropped and counted. A prompt of the validation or test split never occurs in train,
    nor one of test in validation, compared without case, punctuation at the ends and system turns. The validation split
    is that of the sources that have one; of the others, whole conversations are cut from train, before any record of it
    is drawn. A prompt that occurs in two sources, or in two records of one, stays in each record: sources score on
    different scales, so their responses are not one group. Duplicates within train, and prompts of train that are
    nearly in another split, are counted and shown. The four files appear together, after the last row is read.

    Args:
        config: config.yaml of the dataset's folder.
        train: train split to write, .parquet or .jsonl.
        validation: validation split to write, .parquet or .jsonl.
        test: test split to write, .parquet or .jsonl.
        report: JSON report to write: rows read, kept and dropped by reason, for each split and source.
        fetched: the file that `fetch` wrote for the same config; its commits of the hub are read.

    Raises:
        HalosError: a source cannot be read, a split is left without rows, or the validation split cannot be as large as
            it should.
    """
    settings = DataSlice.read(config)
    commits = _commits(settings.all_sources, read_fetched(fetched).get("sources"))
    # all are opened first: a source that checks its files does so before anything is written
    opened = {split: _opened(settings, split, commits) for split in SPLITS}
    with ExitStack() as stack:
        paths = dict(zip(SPLITS, (train, validation, test), strict=True))
        files = {split: stack.enter_context(whole(path)) for split, path in paths.items()}
        indices = {"validation": PromptIndex(), "test": PromptIndex()}
        splits = {split: _Split(split, opened[split]) for split in SPLITS}
        splits["test"].write(files["test"], indices["test"].add, without={})
        held_out = splits["test"].counted(
            settings.dataset, needed=any(s.holds_out for s in settings.sources_of("test"))
        )
        duplicates, overlaps = _write_train_and_validation(
            settings, splits["train"], splits["validation"], indices, files
        )
        rows = {
            split: splits[split].counted(settings.dataset, needed=bool(opened[split] and split == "train"))
            for split in ("validation", "train")
        }
        for split, overlap in overlaps.items():
            print(overlap.sentence(f"{settings.dataset}, train and {split}"), file=sys.stderr)
        print(duplicates.sentence(f"{settings.dataset} train"), file=sys.stderr)
        DataReport(dataset=settings.dataset, **rows, test=held_out, overlaps=overlaps, duplicates=duplicates).write(
            report
        )


def _opened(settings: DataSlice, split: str, commits: Sequence[str | None]) -> Opened:
    """The sources that have a split, opened."""
    if split == "validation" and settings.validation_prompts == 0:
        return {}
    sources = settings.sources_of(split)
    first = len(settings.sources) if sources is settings.test_sources else 0
    return {
        place: (source, source.open(split, commits[place]))
        for place, source in enumerate(sources, first)
        if split in source.splits
    }


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
        name: "train", "validation" or "test".
        opened: its sources.

    Attributes:
        tallies: counts of each source, by its place.
        available: records of each source before some were left out of train; empty where none were.
        prompts: 64 bits of the prompt_id of each record.
    """

    def __init__(self, name: str, opened: Opened) -> None:
        self.name, self.opened = name, opened
        self.tallies = {place: Tally() for place in opened}
        self.available: dict[int, int] = {}
        self.prompts = array("Q")

    def write(self, output: Path, see: Callable[[Fingerprint], None], without: Indices) -> None:
        """Write the records that can be used, and count all rows.

        Args:
            output: the file to write.
            see: called with each record that is written.
            without: splits whose prompts are left out.

        Raises:
            HalosError: a source cannot be read, or yields what is no record.
        """

        def seen(kept: Iterable[Fingerprint]) -> Iterator[Feedback]:
            for of in kept:
                see(of)
                self._count(of.record)
                yield of.record

        with tqdm(desc=self.name, unit=" rows", unit_scale=True, mininterval=1, disable=None) as bar:
            kept = (
                _kept(_sound(rows, source.name, bar), self.tallies[place], without)
                for place, (source, rows) in self.opened.items()
            )
            feedback.write(seen(itertools.chain.from_iterable(kept)), output)

    def chosen(
        self, written: Path, places: Numbers, wanted: NDArray[np.bool_], see: Callable[[Fingerprint], None]
    ) -> Iterator[Feedback]:
        """Records of a file, counted.

        Args:
            written: the file.
            places: (n,) place of the source of each of its records.
            wanted: (n,) the records to choose.
            see: called with each of them.
        """
        for record, place in zip(feedback.records_where(written, wanted), places[wanted], strict=True):
            self.tallies[place].add(record)
            self._count(record)
            see(Fingerprint(record))
            yield record

    def _count(self, record: Feedback) -> None:
        self.prompts.append(int(record.prompt_id[:16], 16))

    def counted(self, dataset: str, needed: bool) -> SplitRows:
        """The counts, printed in one line.

        Args:
            dataset: its name.
            needed: whether the split must have rows.

        Raises:
            HalosError: it must, and has none.
        """
        total = sum(self.tallies.values(), Tally())
        if self.opened:
            _print_counts(dataset, self.name, total, needed)
        sources = []
        for place, (source, rows) in sorted(self.opened.items()):
            unread: dict[str, int] = getattr(rows, "unread_fields", {})
            if unread:
                _print_unread(dataset, self.name, source.name, unread)
            counts = {**self.tallies[place].row(), "available": self.available.get(place), "unread_fields": unread}
            sources.append(SourceRows(**source.model_dump(), **origin(rows), **counts))
        _, times = np.unique(np.array(self.prompts, np.uint64), return_counts=True)
        return SplitRows(**total.row(), shared_prompts=int((times > 1).sum()), sources=tuple(sources))


def _write_train_and_validation(
    settings: DataSlice, train: _Split, validation: _Split, indices: Indices, files: dict[str, Path]
) -> tuple[Duplicates, dict[str, Overlap]]:
    """Write the train split, without what is left out, cut off or not drawn, and the validation split.

    Args:
        settings: the dataset's.
        train: the train split, to be written and counted.
        validation: the validation split likewise.
        indices: the prompts of the test split, and an empty index for those of validation.
        files: the file of each split; that of test is written.

    Returns:
        The duplicates, and what recurs in the other splits.
    """
    contents = Contents()
    comparisons = {split: Comparison(index) for split, index in indices.items()}

    def compare(of: Fingerprint) -> None:
        for comparison in comparisons.values():
            comparison.add(of)

    with ExitStack() as stack:
        own, everything = (file.with_name(f"{file.name}.all.parquet") for file in (files["validation"], files["train"]))
        validation.write(own, indices["validation"].add, {"test": indices["test"]})
        stack.callback(own.unlink, missing_ok=True)
        cut = _cut(settings, train, validation)
        keys = Keys(any(cut), settings.draws)
        chooses = any(cut) or settings.leaves_out

        def see(of: Fingerprint) -> None:
            contents.add(of)
            keys.add(of)
            if not chooses:
                compare(of)

        written = everything if chooses else files["train"]  # in the latter case, all of it stays
        stack.callback(everything.unlink, missing_ok=True)
        train.write(written, see, indices)
        repeats = contents.repeats()
        counts = [tally.rows_out for tally in train.tallies.values()]
        fate = fates(settings, [source for source, _ in train.opened.values()], counts, cut, repeats, keys)
        places = np.repeat([*train.tallies], counts)
        held_out: Iterator[Feedback] = iter(())
        if chooses:
            _count_anew(settings, train, validation, places, fate)
            held_out = validation.chosen(written, places, fate == VALIDATION, indices["validation"].add)
        feedback.write(itertools.chain(feedback.read(own), held_out), files["validation"])
        if chooses:
            feedback.write(train.chosen(written, places, fate == KEPT, compare), files["train"])
        duplicates = contents.report(repeats, written, settings.drop_duplicates)
        kept = np.flatnonzero(fate == KEPT)
        return duplicates, {
            split: comparison.overlap(contents.prompt_sketches, kept, files["train"], files[split])
            for split, comparison in comparisons.items()
        }


def _cut(settings: DataSlice, train: _Split, validation: _Split) -> list[bool]:
    """Whether the validation split is cut from each source of train: from those that gave it no record of their own.

    Raises:
        HalosError: it is to have a number of conversations, and is cut from none.
    """
    wanted = settings.validation_prompts
    cut = [
        wanted != 0 and not (place in validation.opened and validation.tallies[place].rows_out)
        for place in train.opened
    ]
    if wanted and not any(cut):
        raise HalosError(
            f"dataset {settings.dataset}: validation_prompts is {wanted}, and no source is there to cut them from: each"
            " has a validation split of its own, or none for training; take it out"
        )
    return cut


def _count_anew(
    settings: DataSlice, train: _Split, validation: _Split, places: Numbers, fate: NDArray[np.uint8]
) -> None:
    """Count what became of the records of train that were written, but for those that stay: `chosen` counts these. A
    record that is cut off is a row of validation, as if it had been read for that."""
    train.prompts = array("Q")
    for place, (source, rows) in train.opened.items():
        tally, counts = train.tallies[place], np.bincount(fate[places == place], minlength=len(REASONS) + 2).tolist()
        moved = counts[VALIDATION]
        if settings.leaves_out:
            train.available[place] = tally.rows_out - moved
        left_out = Counter({reason: counts[what] for what, reason in REASONS.items() if counts[what]})
        train.tallies[place] = Tally(tally.rows_in - moved, drops=tally.drops + left_out)
        if moved:
            validation.opened.setdefault(place, (source, Records((), origin(rows))))
            validation.tallies.setdefault(place, Tally()).rows_in += moved


def _sound(rows: Iterable[object], source: str, bar: tqdm) -> Iterator[Feedback | Drop]:
    """What a source yields, checked, and shown by a progress bar."""
    for number, row in enumerate(rows, 1):
        bar.update()
        yield sound(row, source, number)


def _kept(rows: Iterable[Feedback | Drop], tally: Tally, without: Indices) -> Iterator[Fingerprint]:
    """The records of one source that stay in a split. The tally counts them and, by reason, the rest."""
    digests: set[bytes] = set()
    for row in rows:
        tally.rows_in += 1
        reason = row.reason if isinstance(row, Drop) else row.problem()
        if isinstance(row, Feedback) and reason is None:
            of = Fingerprint(row)
            digest = hashlib.blake2b(json.dumps({**row.row(), "prompt": None}).encode(), digest_size=16).digest()
            leak = next((split for split, index in without.items() if of in index), None)
            if leak is not None:
                reason = f"prompt is in the {leak} split"
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
