"""Stanford Human Preferences (Ethayarajh et al. 2022): comments on Reddit posts, compared by their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, FiniteFloat

from halos.data.feedback import Feedback
from halos.data.hub import Hub
from halos.data.pairs import joined, with_labels
from halos.data.paths import SPLITS
from halos.data.rows import Drop, Paths, Records, asked, table
from halos.registry import SOURCES


class SHPColumns(BaseModel):
    history: str
    human_ref_A: str
    human_ref_B: str
    score_A: FiniteFloat
    score_B: FiniteFloat
    labels: Literal[0, 1]


def _shp_record(row: SHPColumns, min_score_ratio: float | None) -> Feedback | Drop:
    low, high = sorted([row.score_A, row.score_B])
    if min_score_ratio is not None and low <= 0:
        return Drop("a score is not positive")
    if min_score_ratio is not None and high / low < min_score_ratio:
        return Drop("score ratio below min_score_ratio")
    if row.human_ref_A == row.human_ref_B:
        return Drop("the two responses are equal")
    responses, scores = [row.human_ref_A, row.human_ref_B], [row.score_A, row.score_B]
    pair = (0, 1) if row.labels else (1, 0)
    return Feedback(asked(row.history), responses, "shp", scores=scores, pairs=[pair], target=0)


def _capped(records: Iterable[Feedback | Drop], max_pairs: int) -> Iterator[Feedback | Drop]:
    """Records with at most `max_pairs` pairs, drawn by hash: the same ones on every machine and in any order."""
    for record in records:
        if isinstance(record, Feedback) and len(record.pairs) > max_pairs:
            texts = record.responses

            def rank(pair: tuple[int, int], texts: list[str] = texts) -> bytes:
                return hashlib.sha256("\0".join(texts[i] for i in pair).encode()).digest()

            kept = set(sorted(record.pairs, key=rank)[:max_pairs])
            yield from [Drop("over max_pairs of its prompt")] * (len(record.pairs) - max_pairs)
            record = replace(record, pairs=[pair for pair in record.pairs if pair in kept])
        yield record


@SOURCES.register("shp")
def shp(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "e94b5f32602712d78ed494fe79105b1959396686",
    limit: int | None = None,
    min_score_ratio: float = 2.0,
    max_pairs: int = 5,
    both_labels: bool = False,
) -> Records:
    """Stanford Human Preferences: comments on Reddit (Ethayarajh et al. 2022, arXiv:2110.08420).

    From the hub's stanfordnlp/SHP. Each row is two comments on a Reddit post, the prompt. Adjacent rows of a post are
    one record: its responses are the comments, scores their votes, pairs one for each row, and the target is the first
    response, since the best is not known. Rows are as many as the pairs and drops.

    Args:
        min_score_ratio: pairs whose scores are closer than this are dropped, of train.
        max_pairs: pairs kept of a record, drawn by hash, of train; a response that is left without a pair has no label.
        both_labels: list a response that wins one pair and loses another as desirable and as undesirable; without
            this, it has no label.
    """
    files = {name: f"*/{name}.json" for name in SPLITS}
    rows = table("shp", SHPColumns, split, Hub("stanfordnlp/SHP", revision, files), path, test_fraction)
    ratio = min_score_ratio if split == "train" else None
    records = joined(rows.records(lambda row: _shp_record(row, ratio)))
    if split == "train":
        records = _capped(records, max_pairs)
    return Records(with_labels(records, both_labels), rows.origin, limit)


shp.splits = SPLITS  # type: ignore[attr-defined]
