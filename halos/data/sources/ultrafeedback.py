"""UltraFeedback: its binarized pairs, and SimPO's versions of it with responses scored by ArmoRM."""

from __future__ import annotations

from pydantic import BaseModel, FiniteFloat

from halos.data.feedback import Feedback
from halos.data.hub import Hub
from halos.data.pairs import compared, joined, labelled, with_labels
from halos.data.rows import Drop, Paths, Records, TurnColumns, asked, table, turns_of
from halos.registry import SOURCES


class UltrabinColumns(BaseModel):
    chosen: list[TurnColumns]
    rejected: list[TurnColumns]
    score_chosen: FiniteFloat
    score_rejected: FiniteFloat


def _ultrabin_record(row: UltrabinColumns) -> Feedback | Drop:
    scores = (row.score_chosen, row.score_rejected)
    return compared("ultrabin", turns_of(row.chosen), turns_of(row.rejected), scores)


@SOURCES.register("ultrabin")
def ultrabin(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
    limit: int | None = None,
) -> Records:
    """UltraFeedback, binarized (Cui et al. 2023, arXiv:2310.01377).

    From the hub's HuggingFaceH4/ultrafeedback_binarized, its splits train_prefs and test_prefs. The prompt is all turns
    but the last, in which chosen and rejected differ; the chosen response is better, desirable and the target, even
    where GPT-4's scores are equal. Adjacent rows of a prompt are one record.
    """
    files = {name: f"data/{name}_prefs-*" for name in ("train", "test")}
    hub = Hub("HuggingFaceH4/ultrafeedback_binarized", revision, files)
    rows = table("ultrabin", UltrabinColumns, split, hub, path, test_fraction)
    return Records(with_labels(joined(rows.records(_ultrabin_record))), rows.origin, limit)


class ArmoRMColumns(BaseModel):
    prompt: str
    all_generated_responses: list[str]
    all_rm_scores: list[FiniteFloat]


def _armorm_record(row: ArmoRMColumns, source: str) -> Feedback | Drop:
    if len(row.all_generated_responses) != len(row.all_rm_scores):
        return Drop("scores and responses differ in number")
    score_of: dict[str, float] = {}
    for text, score in zip(row.all_generated_responses, row.all_rm_scores, strict=True):
        score_of.setdefault(text, score)
    responses, scores = list(score_of), list(score_of.values())
    if not responses:
        return Drop("no response")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    pairs = [(best, worst)] if scores[best] > scores[worst] else []
    return labelled(Feedback(asked(row.prompt), responses, source, scores=scores, pairs=pairs, target=best))


def _armorm(
    source: str, name: str, split: str, path: Paths | None, test_fraction: float, revision: str, limit: int | None
) -> Records:
    hub = Hub(f"princeton-nlp/{name}", revision, {"train": "data/train-*", "test": "data/test-*"})
    rows = table(source, ArmoRMColumns, split, hub, path, test_fraction)
    return Records(rows.records(lambda row: _armorm_record(row, source)), rows.origin, limit)


@SOURCES.register("ultrafeedback_armorm")
def ultrafeedback_armorm(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "9d189bae5856a823f3708d2c2bc4dbb43c90eb11",
    limit: int | None = None,
) -> Records:
    """Llama-3-8B-Instruct's five responses to each UltraFeedback prompt (Meng et al. 2024, arXiv:2405.14734).

    From the hub's princeton-nlp/llama3-ultrafeedback-armorm; the scores are ArmoRM's. Each row is a record of all its
    responses with their scores, equal texts once. The best is the target; best against worst is the one pair, and gives
    the only labels (none where all scores are equal).
    """
    name = "llama3-ultrafeedback-armorm"
    return _armorm("ultrafeedback_armorm", name, split, path, test_fraction, revision, limit)


@SOURCES.register("ultrafeedback_armorm_gemma")
def ultrafeedback_armorm_gemma(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "59b3436bf2760c735828a0fb8cf10c5e836e6322",
    limit: int | None = None,
) -> Records:
    """As `ultrafeedback_armorm`, with responses of gemma-2-9b-it (Meng et al. 2024, arXiv:2405.14734).

    From the hub's princeton-nlp/gemma2-ultrafeedback-armorm.
    """
    name = "gemma2-ultrafeedback-armorm"
    return _armorm("ultrafeedback_armorm_gemma", name, split, path, test_fraction, revision, limit)
