"""Votes of people on comparisons: one file for each annotator, to which each vote is added at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from halos.errors import HalosError
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.settings import People
from halos.files import Record, hash_content, writing

Choice = Literal["1", "2", "tie", "skip"]
"""The better response, by the place in which it is shown; none is better; no opinion."""


class Vote(Record):
    """A line of a file of votes.

    Attributes:
        comparison: its key, by `key_of`.
        seconds: from the time that it was shown; None where it was not shown here.
        at: when, in ISO 8601.
    """

    comparison: str
    vote: Choice
    note: str = ""
    seconds: float | None = None
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def key_of(comparison: Comparison) -> str:
    """A comparison by its content: the prompt and the two texts, whichever of them is the baseline's. A response that
    was sampled anew is another comparison, and one that several models give to a prompt is the same."""
    texts = sorted([comparison.candidate, comparison.baseline])
    return hash_content([comparison.prompt_id, *texts])[:16]


def candidate_first(comparison: Comparison) -> bool:
    """Whether the candidate's response is the first of the two that people see. The key decides, so that whose it is
    cannot be told from its place, and all annotators see the same."""
    return (comparison.candidate < comparison.baseline) == (int(key_of(comparison), 16) % 2 == 0)


def sees(people: People, annotator: str, key: str) -> bool:
    """Whether an annotator is to vote on a comparison: those do whose names' hashes with it are lowest."""
    if not people.annotators:
        return True
    ranked = sorted(people.annotators, key=lambda name: hashlib.sha256(f"{name}/{key}".encode()).digest())
    return annotator in ranked[: people.votes]


def missing(people: People, keys: Sequence[str], votes: Mapping[str, Mapping[str, Vote]]) -> dict[str, int]:
    """How many comparisons each annotator has still to vote on, of those who have any; without names in the settings,
    under "" how many have too few votes.

    Args:
        people: the judge's settings.
        keys: of the comparisons.
        votes: of each annotator, by the keys of comparisons.
    """
    if not people.annotators:
        given = (sum(key in of for of in votes.values()) for key in keys)
        left = {"": sum(number < (people.votes or 1) for number in given)}
    else:
        left = {
            name: sum(sees(people, name, key) and key not in votes.get(name, {}) for key in keys)
            for name in people.annotators
        }
    return {name: number for name, number in left.items() if number}


def read_votes(path: Path) -> dict[str, Vote]:
    """The votes in a file by the keys of their comparisons; of several on one, the last. A line whose writing was cut
    off, without an end, is no vote.

    Raises:
        HalosError: a line is no vote.
    """
    votes: dict[str, Vote] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else (), 1):
        try:
            vote = Vote.model_validate_json(line)
        except ValidationError:
            raise HalosError(f"{path}: line {number} is no vote: correct it, or take it out") from None
        votes[vote.comparison] = vote
    return votes


def add_vote(path: Path, vote: Vote) -> None:
    """Append a vote. It is on the disk when this returns.

    Raises:
        HalosError: the disk takes no more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = vote.model_dump_json().encode() + b"\n"
    with writing(path), path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if not content.endswith(b"\n"):  # a line whose writing was cut off
            file.truncate(content.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
