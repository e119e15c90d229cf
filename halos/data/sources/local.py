"""The source `local`: feedback from files of your own, in any of the shapes of halos.data.shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback, labels_of_pairs
from halos.data.readers import json_rows, parquet_rows
from halos.data.rows import Drop, in_split, limited, locate
from halos.data.shapes import NO_SHAPE, SHAPES, Row, parse
from halos.errors import HalosError
from halos.registry import SOURCES

ParsedRow = tuple[Row, Feedback]
SHOWN_PROBLEMS = 3


@SOURCES.register("local")
def local(
    split: str, *, path: str | dict[str, str], test_fraction: float = 0.1, limit: int | None = None
) -> Iterator[Feedback | Drop]:
    """Feedback of your own in JSON, JSON Lines (either as .gz, too) or parquet. Each row tells its shape by its fields:

    - records: prompt, responses, and any other field of halos.data.feedback.Feedback;
    - files of the HALOs repository: `type: sample` (output or response, optional reward), `binary_feedback` (output,
      label), `scalar_feedback` (output, reward), `pairwise_feedback` (output_A, output_B, label: 1 where A is
      preferred); the samples of `python -m halos sample` are such rows, too;
    - TRL's formats: preference (chosen, rejected, optional prompt), unpaired (prompt, completion, label),
      prompt-completion (prompt, completion) and messages, whose last turn is the response.

    A prompt or a response is a text or turns; a preference without a prompt has it at the beginning of both texts.
    Neighboring rows of one shape on one prompt become one record. Its target is the best-scored (or first) of the
    desirable responses. Samples and scalar feedback may repeat, as in a group of samples, and all are kept; of other
    shapes, a row that repeats a neighbor is dropped. Records, prompt-completion and messages are not joined. A response
    without text is dropped, and so is a pair of equal responses.

    The whole file is checked before the first record is given.

    Args:
        split: "train" or "test". A row's `split` field decides, where it has one.
        path: one file, or one for each split.
        test_fraction: fraction of the prompts without a `split` field that is the test split of a single file.
        limit: the number of records to read; None for all.

    Raises:
        HalosError: a file is missing, or has rows of no known shape or that do not make a sound record.
    """
    file = locate("local", path, split, test_fraction)
    stat = file.stat()
    _check(file, stat.st_mtime_ns, stat.st_size)
    return limited(_joined(_of_split(file, split, None if isinstance(path, dict) else test_fraction)), limit)


def _parsed_rows(file: Path) -> Iterator[tuple[int, ParsedRow | str]]:
    """(row number from 1, the row and its record, or what is wrong with it) of each row of a file."""
    if file.suffix == ".parquet":
        yield from enumerate(map(parse, parquet_rows(file, chunk=1_000)), 1)
        return
    for number, text in json_rows(file):
        try:
            content = json.loads(text)
        except ValueError as error:
            yield number, f"no JSON: {error}"
        else:
            yield number, parse(content)


@lru_cache(maxsize=16)  # both splits of one file need the check once
def _check(file: Path, *_: int) -> None:
    """Check every row of a file. The other arguments, its time and size, make a changed file a new one.

    Raises:
        HalosError: a row has no known shape, or does not make a sound record.
    """
    count, wrong = 0, 0
    problems: list[str] = []
    for number, parsed in _parsed_rows(file):
        count += 1
        if isinstance(parsed, str):
            wrong += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"row {number}, {parsed}")
    if problems:
        message = f"source local: correct {file}, of whose {count} rows {wrong} cannot be used: {'; '.join(problems)}"
        if NO_SHAPE in message:
            known = " · ".join(f"{name} ({', '.join(sorted(fields))})" for name, (_, fields) in SHAPES.items())
            message += f"; the shapes and the fields that tell them are {known}"
        raise HalosError(message)


def _of_split(file: Path, split: str, test_fraction: float | None) -> Iterator[ParsedRow | Drop]:
    """The rows of a split; without a test_fraction, all but those that are marked as the other split's."""
    for _, parsed in _parsed_rows(file):
        assert not isinstance(parsed, str), "the file has changed since it was checked"
        row, record = parsed
        if row.split is not None:
            belongs = row.split == split
        else:
            belongs = test_fraction is None or in_split(record.prompt_id, split, test_fraction)
        if belongs:
            yield parsed
        elif test_fraction is None:  # the other split is read from another file: only this call can count the row
            yield Drop("marked as of the other split")


def _joined(rows: Iterable[ParsedRow | Drop]) -> Iterator[Feedback | Drop]:
    """One record for each run of neighboring rows that belong together; memory holds one run at a time."""
    run: list[ParsedRow] = []
    for row in rows:
        if isinstance(row, Drop):
            yield row
            continue
        if run and not _belong_together(run[-1], row):
            yield from _join(run)
            run = []
        run.append(row)
    if run:
        yield from _join(run)


def _belong_together(previous: ParsedRow, following: ParsedRow) -> bool:
    """Whether two neighboring rows go into one record: of one shape and prompt, and both or neither with scores."""
    (row, record), (next_row, next_record) = previous, following
    alike = type(row) is type(next_row) and bool(record.scores) == bool(next_record.scores)
    return row.joins and alike and record.prompt == next_record.prompt


def _join(run: list[ParsedRow]) -> Iterator[Feedback | Drop]:
    """The record of rows that belong together, and a Drop for each that adds nothing to it."""
    shape, first = run[0]
    if not shape.joins:
        yield first
        return
    # (text, score, label, cut, row number or 0) -> index: equal responses are one, unless the shape repeats
    index_of: dict[tuple[Any, ...], int] = {}
    pairs: dict[tuple[int, int], None] = {}  # an ordered set
    for number, (_, record) in enumerate(run):
        if reason := _nothing_to_learn(record):
            yield Drop(reason)
            continue
        columns: list[list[Any]] = [record.responses, record.scores, record.desirable, record.cut]
        responses = zip(*(column or [None] * len(record.responses) for column in columns), strict=True)
        before = len(index_of), len(pairs)
        indices = [index_of.setdefault((*r, number * shape.repeats), len(index_of)) for r in responses]
        pairs.update(((indices[winner], indices[loser]), None) for winner, loser in record.pairs)
        if (len(index_of), len(pairs)) == before:
            yield Drop("repeats another row of the same prompt")
    if index_of:
        texts, scores, labels, cut, _ = map(list, zip(*index_of, strict=True))
        joined = replace(
            first,
            responses=texts,
            scores=scores if first.scores else [],
            pairs=list(pairs),
            desirable=labels_of_pairs(len(texts), pairs) if pairs else labels if first.desirable else [],
            cut=list(map(bool, cut)) if any(cut) else [],
        )
        yield replace(joined, target=_target(joined))


def _nothing_to_learn(record: Feedback) -> str | None:
    """Why a row that passed the check is dropped all the same; None when it is kept."""
    if record.pairs and record.responses[0] == record.responses[1]:
        return "chosen and rejected are equal"
    return record.problem()


def _target(record: Feedback) -> int | None:
    """The best-scored, or the first, of the desirable responses; None when all are undesirable."""
    good = [i for i, label in enumerate(record.desirable) if label]
    if not record.desirable:
        good = list(range(len(record.responses)))
    elif not good:  # with pairs: every winner also loses one
        good = [winner for winner, _ in record.pairs]
    return max(good, key=lambda i: record.scores[i] if record.scores else 0, default=None)
