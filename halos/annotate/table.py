"""Votes as a table: comparisons for another tool to show, and the votes that come back from it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import get_args

from halos.annotate.ballot import Ballot
from halos.errors import HalosError
from halos.evaluate.judging.votes import Choice, Vote
from halos.files import whole

COLUMNS = ("comparison", "prompt", "response_1", "response_2", "annotator", "vote", "note")
MEANT: dict[str, Choice] = {"response_1": "1", "response_2": "2", "left": "1", "right": "2", "1.0": "1", "2.0": "2"}
"""Other words of tools for a vote."""


def write_table(ballot: Ballot, path: Path, annotator: str | None) -> int:
    """Write a row for each vote, and one without a vote for each comparison that has none; the number of rows.

    Args:
        ballot: the comparisons.
        path: CSV file to write.
        annotator: whose votes and comparisons alone; None for everyone's.
    """
    keys = [*ballot.comparisons] if annotator is None else ballot.keys(annotator)
    names = sorted(ballot.votes) if annotator is None else [annotator]
    rows: list[tuple[str, ...]] = []
    for key in keys:
        texts = (key, ballot.comparisons[key].instruction, *ballot.shown(key))
        votes = [(name, of[key]) for name in names if key in (of := ballot.given(name))]
        rows += [(*texts, name, vote.vote, vote.note) for name, vote in votes] or [(*texts, annotator or "", "", "")]
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def read_table(ballot: Ballot, path: Path, annotator: str | None) -> dict[str, list[Vote]]:
    """The votes in a table, by annotator; rows without one are left out, and those that are there already.

    The columns `comparison` and `vote` are needed; `annotator` too, unless all votes are of one; `note` may be there.

    Args:
        ballot: the comparisons.
        path: CSV file.
        annotator: whose votes they are, where the table has no such column or its cell is empty.

    Raises:
        HalosError: the file is no such table, or a row is about another comparison or holds no vote.
    """
    csv.field_size_limit(sys.maxsize)  # a response may be longer than Python expects of a cell
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise HalosError(f"{path} cannot be read as CSV ({error}): give one that --export wrote, with votes") from None
    for name in ("comparison", "vote"):
        if rows and name not in rows[0]:
            raise HalosError(f"{path} has no column {name}: keep the columns that --export writes")
    found: dict[str, list[Vote]] = {}
    for number, row in enumerate(rows, 2):
        said = (row["vote"] or "").strip().lower()
        if not said:
            continue
        choice, key = MEANT.get(said, said), row["comparison"] or ""
        where, own = f"{path}, row {number}", (row.get("annotator") or "").strip()
        if choice not in get_args(Choice):
            raise HalosError(f"{where}: {said!r} is no vote: write 1, 2, tie or skip")
        if not (own or annotator):
            raise HalosError(f"{where} has no annotator: fill in the column, or give --annotator")
        name = own or str(annotator)
        ballot.check_name(name)
        if key not in ballot.keys(name):
            raise HalosError(f"{where}: {name} has no comparison {key!r} to vote on: export them anew")
        vote = Vote.model_validate({"comparison": key, "vote": choice, "note": (row.get("note") or "").strip()})
        known = ballot.given(name).get(key)
        if known is None or (known.vote, known.note) != (vote.vote, vote.note):
            found.setdefault(name, []).append(vote)
    return found
