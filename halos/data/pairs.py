"""Pairwise comparisons: rows joined into one feedback record per prompt, and labels from pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from halos.data.feedback import Feedback, Turn, labels_of_pairs
from halos.data.rows import Drop


def joined(records: Iterable[Feedback | Drop]) -> Iterator[Feedback | Drop]:
    """One record for each run of adjacent records on a prompt; memory holds one prompt at a time.

    Equal responses become one, with the first's index and score; the target is the first record's. A record that adds
    no pair is dropped, so that rows of one pair each add up to the pairs and drops. Records on the same prompt that are
    not adjacent stay apart.
    """
    run: list[Feedback] = []
    for record in records:
        if isinstance(record, Drop):
            yield record
            continue
        if problem := record.problem():  # checked alone, so that it does not spoil the record it would be joined to
            yield Drop(problem)
            continue
        if run and run[0].prompt != record.prompt:
            yield from _join(run)
            run = []
        run.append(record)
    if run:
        yield from _join(run)


def _join(run: list[Feedback]) -> Iterator[Feedback | Drop]:
    index_of: dict[str, int] = {}
    scores: dict[int, float] = {}
    weights: dict[int, float] = {}
    pairs: dict[tuple[int, int], tuple[float, float | None]] = {}  # (winner, loser) -> weight, margin
    for record in run:
        indices = [index_of.setdefault(text, len(index_of)) for text in record.responses]
        for index, score in zip(indices, record.scores, strict=False):  # a record may have no scores
            scores.setdefault(index, score)
        for index, weight in zip(indices, record.weights or repeat(1.0), strict=False):
            weights.setdefault(index, weight)
        known = len(pairs)
        for (w, lo), weight, margin in each_pair(record):
            pairs.setdefault((indices[w], indices[lo]), (weight, margin))
        if len(pairs) == known:
            yield Drop("pair repeats one of the same prompt")
    yield replace(
        run[0],
        responses=list(index_of),
        scores=list(scores.values()),
        pairs=list(pairs),
        **weighted(weights.values(), pairs.values()),
    )


def each_pair(record: Feedback) -> Iterator[tuple[tuple[int, int], float, float | None]]:
    """(pair, weight, margin) of each pair of a record."""
    weights, margins = record.pair_weights or repeat(1.0), record.margins or repeat(None)
    return zip(record.pairs, weights, margins, strict=False)


def weighted(weights: Iterable[float], pairs: Iterable[tuple[float, float | None]]) -> dict[str, Any]:
    """A record's fields of its responses' weights and its pairs' (weight, margin), empty where they say nothing."""
    of_pairs, margins = ([pair[side] for pair in pairs] for side in (0, 1))
    of_responses = list(weights)
    return {
        "weights": of_responses if any(weight != 1 for weight in of_responses) else [],
        "pair_weights": of_pairs if any(weight != 1 for weight in of_pairs) else [],
        "margins": margins if any(margin is not None for margin in margins) else [],
    }


def labelled(record: Feedback, both_labels: bool = False) -> Feedback:
    """The record with desirable labels from its pairs; unchanged if it has none.

    Args:
        record: a record without labels.
        both_labels: a response that wins one pair and loses another is desirable, and listed once more as undesirable,
            instead of having no label.
    """
    if not record.pairs:
        return record
    labels = labels_of_pairs(len(record.responses), record.pairs)
    winners, losers = ({pair[side] for pair in record.pairs} for side in (0, 1))
    twice = sorted(winners & losers) if both_labels else []
    return replace(
        record,
        responses=record.responses + [record.responses[i] for i in twice],
        scores=record.scores + [record.scores[i] for i in twice if record.scores],
        weights=record.weights + [record.weights[i] for i in twice if record.weights],
        desirable=[True if i in twice else label for i, label in enumerate(labels)] + [False] * len(twice),
    )


def compared(source: str, chosen: list[Turn], rejected: list[Turn], scores: Sequence[float] = ()) -> Feedback | Drop:
    """The record of two conversations that differ in their last turn alone; the chosen response is the target."""
    if any(not turns or turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return Drop("no assistant turn at the end")
    if chosen[:-1] != rejected[:-1]:
        return Drop("chosen and rejected have different prompts")
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    if responses[0] == responses[1]:
        return Drop("chosen and rejected are equal")
    return labelled(Feedback(chosen[:-1], responses, source, scores=list(scores), pairs=[(0, 1)], target=0))


def with_labels(records: Iterable[Feedback | Drop], both_labels: bool = False) -> Iterator[Feedback | Drop]:
    """Records with labels from their pairs (see `labelled`)."""
    return (r if isinstance(r, Drop) else labelled(r, both_labels) for r in records)
