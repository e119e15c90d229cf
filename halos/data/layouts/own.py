"""Rows of one's own, of files in any shape that is read: checked, cut into splits, and joined to records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

from halos.data.feedback import Feedback, labels_of_pairs
from halos.data.layouts.kinds import NO_SHAPE, SHAPES
from halos.data.layouts.parse import Layout, Parsed
from halos.data.layouts.shapes import Row
from halos.data.layouts.turns import Invalid
from halos.data.pairs import each_pair, weighted
from halos.data.paths import SPLITS
from halos.data.readers import read_rows
from halos.data.rows import Drop, Records, digest, in_split, split_key
from halos.errors import HalosError

ParsedRow = tuple[Row, Feedback]
OnInvalid = Literal["refuse", "drop"]
SHOWN_PROBLEMS = SHOWN_ROWS = 3
CHUNK = 1_000
MOST_UNREAD = 200
"""So many names of unread fields are counted one by one."""
_sound: dict[str, frozenset[str]] = {}
"""Digest of files that were found sound, and of how they are read -> the splits that rows are marked as of. All splits
of one file need the check once."""


@dataclass(frozen=True)
class Own:
    """The files of one split, or of all, and how their rows are read.

    Attributes:
        source: name of the source, for messages.
        files: the files.
        test_fraction: fraction of the conversations that is the test split; None where the files hold one split alone.
        layout: how a row is read.
        invalid: whether a row that cannot be used is an error, or is dropped and counted.
        group: the column whose value decides the split; None for the conversation's first turn.
        category: the column whose value is the record's `source`; None to leave that as it is.
    """

    source: str
    files: list[Path]
    test_fraction: float | None
    layout: Layout
    invalid: OnInvalid
    group: str | None
    category: str | None = None

    def records(self, split: str, limit: int | None, origin: dict[str, str] | None = None) -> Records:
        """The records of a split and a Drop for each row that is left out; all files are checked before.

        Raises:
            HalosError: an option is wrong, a file cannot be read, or has rows that cannot be used.
        """
        if self.invalid not in ("refuse", "drop"):
            raise HalosError(f"source {self.source}: invalid is {self.invalid!r}; it is `refuse` or `drop`")
        self.layout.check(self.source)
        marks = self._check()
        if split == "validation" and self.test_fraction is not None and split not in marks:
            return Records((), origin)  # files that are divided, into train and test alone
        unread: Counter[str] = Counter()
        return Records(_joined(self._of_split(split, unread)), origin, limit, unread)

    def _rows(self, file: Path) -> Iterator[tuple[int, Any, Parsed | Invalid]]:
        """(row number from 1, content, what became of it) of each row of a file."""
        for number, content in read_rows(file, chunk=CHUNK):
            try:
                parsed = self.layout.parse(content)
                for what, column in (("group", self.group), ("category", self.category)):
                    if column is not None and _value(content, column) is None:
                        raise Invalid(f"no value of the {what} {column}", f"no field {column!r}, which is its {what}")
            except Invalid as error:
                yield number, content, error
            else:
                yield number, content, parsed

    def _check(self) -> frozenset[str]:
        """Read every row once.

        Returns:
            The splits that rows are marked as of.

        Raises:
            HalosError: a row cannot be used, where that is an error, or a column that was named is in no row.
        """
        stats = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in self.files]
        key = digest([stats, asdict(replace(self.layout, seen=set())), self.invalid, self.group, self.category])
        if key in _sound:
            return _sound[key]
        refusals, marks = [], set()
        for file in self.files:
            count, wrong = 0, 0
            rows_of: dict[str, list[int]] = {}  # the first problems, each with the rows that have it
            for number, content, parsed in self._rows(file):
                count += 1
                marks.add(_mark(content))
                if isinstance(parsed, Invalid):
                    wrong += 1
                    if (problem := str(parsed)) in rows_of or len(rows_of) < SHOWN_PROBLEMS:
                        rows_of[problem] = [*rows_of.get(problem, ()), number][: SHOWN_ROWS + 1]
            if wrong and self.invalid == "refuse":
                refusals.append(self._refusal(file, count, wrong, rows_of))
        self.layout.check_found(self.source)  # first: a wrong name may be why rows are refused
        if refusals:
            raise HalosError(refusals[0])
        return _sound.setdefault(key, frozenset(filter(None, marks)))

    def _refusal(self, file: Path, count: int, wrong: int, rows_of: dict[str, list[int]]) -> str:
        problems = [
            f"row {', '.join(map(str, rows[:SHOWN_ROWS]))}{' ...' * (len(rows) > SHOWN_ROWS)}, {problem}"
            for problem, rows in rows_of.items()
        ]
        message = (
            f"source {self.source}: correct {file}, of whose {count} rows {wrong} cannot be used: {'; '.join(problems)}"
        )
        if wrong < count:
            message += " (`invalid: drop` leaves such rows out and counts them)"
        if NO_SHAPE in message:
            known = (f"{name} ({', '.join(sorted(told[0]))})" for name, (_, told) in SHAPES.items())
            message += (
                "; say which columns of the file they are, as in `columns: {prompt: question, chosen: good, rejected: "
                f"bad}}`; the shapes and the fields that tell them are {' · '.join(known)}"
            )
        return message

    def _of_split(self, split: str, unread: Counter[str]) -> Iterator[ParsedRow | Drop]:
        """The rows of a split; where the files hold one split alone, all but those that are marked as another's."""
        for file in self.files:
            for _, content, parsed in self._rows(file):
                marked = _mark(content)
                if marked is not None:
                    belongs = marked == split
                else:
                    key = self._key(content, parsed)
                    belongs = self.test_fraction is None or in_split(key, split, self.test_fraction)
                if not belongs:
                    if self.test_fraction is None:  # other splits are in other files: only this call counts the row
                        yield Drop("marked as of another split")
                    continue
                if isinstance(parsed, Invalid):
                    yield Drop(parsed.reason)
                    continue
                for name in sorted(parsed.unread - {self.category}):
                    unread[_countable(name, unread)] += 1
                for record in parsed.records:
                    if isinstance(record, Feedback):
                        assert parsed.row is not None
                        group = None if self.group is None else _value(content, self.group)
                        category = None if self.category is None else _value(content, self.category)
                        yield parsed.row, replace(record, group=group, source=category or record.source)
                    else:
                        yield record

    def _key(self, content: Any, parsed: Parsed | Invalid) -> str:
        """What decides the split of a row; one that is left out belongs to a split, too, so that rows add up."""
        if isinstance(parsed, Invalid):
            return digest(content)
        if self.group is not None:
            return split_key([], _value(content, self.group))
        prompts = [record.prompt for record in parsed.records if isinstance(record, Feedback)]
        return split_key(prompts[-1]) if prompts else digest(content)


def _value(content: dict[str, Any], column: str) -> str | None:
    """The value of a row's column as a text; None where it has none. An id is the same as a number and as a text."""
    value = content.get(column)
    if value is None or value != value:  # NaN, as pandas writes a missing number
        return None
    if isinstance(value, float) and value.is_integer():  # as pandas holds ids of which some are missing
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.strip().encode(errors="backslashreplace").decode() or None


def _mark(content: Any) -> str | None:
    """The split that a row's own field tells; None where it tells none."""
    marked = content.get("split") if isinstance(content, dict) else None
    return marked if marked in SPLITS else None


def _countable(name: str, counted: Counter[str]) -> str:
    """The name of a field as it is counted: one that can be written, and not one of ever more."""
    name = name.encode(errors="backslashreplace").decode() or "(no name)"
    return name if name in counted or len(counted) < MOST_UNREAD else "others"


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
    """Whether two neighboring rows go into one record: of one shape, prompt, tokenizer, group and category, and both or
    neither with scores."""
    (row, record), (next_row, next_record) = previous, following
    alike = type(row) is type(next_row) and bool(record.scores) == bool(next_record.scores)
    same = (record.prompt, record.tools, record.template, record.group, record.source) == (
        next_record.prompt,
        next_record.tools,
        next_record.template,
        next_record.group,
        next_record.source,
    )
    return row.joins and alike and same


def _join(run: list[ParsedRow]) -> Iterator[Feedback | Drop]:
    """The record of rows that belong together, and a Drop for each that adds nothing to it."""
    shape, first = run[0]
    if not shape.joins:
        reason = first.problem()
        yield first if reason is None else Drop(reason)
        return
    # what a response is, and its row number or 0 -> index: equal responses are one, unless the shape repeats
    index_of: dict[tuple[Any, ...], int] = {}
    found: list[tuple[Any, ...]] = []
    weights: list[float] = []  # of a response of several rows, and of a pair, the first row's
    pairs: dict[tuple[int, int], tuple[float, float | None]] = {}  # (winner, loser) -> weight, margin
    for number, (_, record) in enumerate(run):
        if reason := _nothing_to_learn(record):
            yield Drop(reason)
            continue
        lists: tuple[list[Any], ...] = (
            record.responses, record.scores, record.desirable, record.cut, record.response_fields, record.response_ids,
        )  # fmt: skip
        before = len(found), len(pairs)
        indices = []
        given = zip(*(values or [None] * len(record.responses) for values in lists), strict=True)
        for response, weight in zip(given, record.weights or repeat(1.0), strict=False):
            more = json.dumps(response[4:]) if any(response[4:]) else ""
            key = (*response[:4], more, number * shape.repeats)
            indices.append(index_of.setdefault(key, len(found)))
            if indices[-1] == len(found):
                found.append(response)
                weights.append(weight)
        for (winner, loser), weight, margin in each_pair(record):
            pairs.setdefault((indices[winner], indices[loser]), (weight, margin))
        if (len(found), len(pairs)) == before:
            yield Drop("repeats another row of the same prompt")
    if found:
        texts, scores, labels, cut, fields, ids = map(list, zip(*found, strict=True))
        scores = scores if first.scores else []
        labels = labels_of_pairs(len(texts), pairs) if pairs else labels if first.desirable else []
        yield replace(
            first,
            responses=texts,
            scores=scores,
            pairs=list(pairs),
            desirable=labels,
            target=_target(len(texts), scores, labels, pairs),
            cut=list(map(bool, cut)) if any(cut) else [],
            response_fields=[one or {} for one in fields] if any(fields) else [],
            response_ids=ids if any(ids) else [],
            **weighted(weights, pairs.values()),
        )


def _nothing_to_learn(record: Feedback) -> str | None:
    """Why a row that passed the check is dropped all the same; None when it is kept."""
    if record.pairs and len(set(record.responses)) == 1 and len(set(map(json.dumps, record.response_fields))) <= 1:
        return "chosen and rejected are equal"
    return record.problem()


def _target(n: int, scores: list[float], labels: list[bool | None], pairs: Iterable[tuple[int, int]]) -> int | None:
    """The best-scored, or the first, of the desirable of n responses; None when all are undesirable."""
    good = [i for i, label in enumerate(labels) if label] if labels else list(range(n))
    if labels and not good:  # with pairs: every winner also loses one
        good = [winner for winner, _ in pairs]
    return max(good, key=lambda i: scores[i] if scores else 0, default=None)
