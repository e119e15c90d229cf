"""What of a feedback record is learned: without the responses that cannot be used, and without examples that the cut to
max_length has made meaningless."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

from halos.data.feedback import Feedback


def without(record: Feedback, left_out: Collection[int]) -> Feedback | None:
    """The record without some of its responses, and so without their pairs and labels; None where no response is left.

    Args:
        left_out: indices of the responses to leave out.
    """
    kept = [i for i in range(len(record.responses)) if i not in left_out]
    if not kept:
        return None
    new = {old: number for number, old in enumerate(kept)}
    lists = ("responses", "scores", "desirable", "cut", "response_fields", "response_ids", "weights")
    shorter: dict[str, Any] = {name: [values[i] for i in kept] for name in lists if (values := getattr(record, name))}
    record = _with_pairs(record, [winner in new and loser in new for winner, loser in record.pairs])
    return replace(
        record,
        **shorter,
        pairs=[(new[winner], new[loser]) for winner, loser in record.pairs],
        target=None if record.target is None else new.get(record.target),
    )


def _with_pairs(record: Feedback, kept: Sequence[bool]) -> Feedback:
    """The record with some of its pairs alone, and with these pairs' weights and margins."""
    lists = ("pairs", "pair_weights", "margins")
    shorter: dict[str, Any] = {name: list(compress(getattr(record, name), kept)) for name in lists}
    return replace(record, **shorter)


def first_equal(responses: Sequence[Sequence[int]]) -> list[int]:
    """(n,) the index of the first response with the same token ids: its own index where there is no earlier one."""
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(ids), index) for index, ids in enumerate(responses)]


def distinct(record: Feedback, same: Sequence[int]) -> Feedback:
    """The record without the pairs of responses that are equal as tokens, and without the labels of those that are
    equal to one with the opposite label: a model cannot prefer one of them.

    Args:
        same: for each response, the first one that is equal to it (see `first_equal`).
    """
    good, bad = ({same[i] for i, label in enumerate(record.desirable) if label is wanted} for wanted in (True, False))
    return replace(
        _with_pairs(record, [same[winner] != same[loser] for winner, loser in record.pairs]),
        desirable=[None if same[i] in good & bad else label for i, label in enumerate(record.desirable)],
    )
