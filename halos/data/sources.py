"""Named sources of feedback: published datasets, each by a small function that states its rules.

Here are those of compared responses, one comparison a row; oasst.py reads trees, demonstrations.py single responses.

A source is a function `(split, **options)` that yields the records of "train" or "test", and a `Drop` for each row that
it leaves out. A source of your own is one such function with `@SOURCES.register("name")` in a plugin.

The options that all of them have:

    path           a file in the layout of the hub's (JSON, JSON Lines, either as .gz, or parquet), or one a split;
                   without it the dataset is loaded from the hub, once
    test_fraction  share of the prompts that are the test split, where one file holds both
    revision       commit on the hub
    limit          the first so many records

All raise HalosError when the hub cannot be reached, or a file is missing, unreadable or of another layout. Text is kept
as it is published, white space included.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, FiniteFloat

from halos.data import demonstrations as demonstrations
from halos.data import oasst as oasst
from halos.data.feedback import Feedback, Turn
from halos.data.reading import Drop, Hub, Paths, Records, TurnColumns, asked, joined, labelled, table, turns_of
from halos.registry import SOURCES


def compared(source: str, chosen: list[Turn], rejected: list[Turn], scores: Sequence[float] = ()) -> Feedback | Drop:
    """The record of two conversations that are equal up to their last turn; the chosen one's is the target."""
    if any(not turns or turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return Drop("no assistant turn at the end")
    if chosen[:-1] != rejected[:-1]:
        return Drop("chosen and rejected have different prompts")
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    if responses[0] == responses[1]:
        return Drop("chosen and rejected are equal")
    return labelled(Feedback(chosen[:-1], responses, source, scores=list(scores), pairs=[(0, 1)], target=0))


def with_labels(records: Iterable[Feedback | Drop], both_labels: bool = False) -> Iterator[Feedback | Drop]:
    return (r if isinstance(r, Drop) else labelled(r, both_labels) for r in records)


HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"

MARKER = re.compile(r"\n\n+(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


class HHColumns(BaseModel):
    chosen: str
    rejected: str


def hh_turns(text: str) -> list[Turn]:
    """The turns of a conversation in HH's layout, each opened by a blank line and "Human:" or "Assistant:".

    Only what separates turns is cut: the blank lines before a marker (or the end), and one space after it. Empty when
    the text does not begin with a marker.
    """
    head, *parts = MARKER.split(text.rstrip("\n"))
    if head.strip():
        return []
    return [{"role": ROLE[name], "content": content} for name, content in zip(parts[::2], parts[1::2], strict=True)]


def hh_record(chosen: str, rejected: str, source: str = "hh") -> Feedback | Drop:
    """The record of two conversations that are equal up to their last turn."""
    winner, loser = hh_turns(chosen), hh_turns(rejected)
    if not winner or not loser:
        return Drop("the text does not begin with a turn")
    return compared(source, winner, loser)


def _hh(
    source: str,
    subset: str,
    split: str,
    path: Paths | None,
    test_fraction: float,
    revision: str,
    limit: int | None,
) -> Records:
    files = {name: f"{subset}/{name}.jsonl.gz" for name in ("train", "test")}
    found = table(source, HHColumns, split, Hub("Anthropic/hh-rlhf", revision, files), path, test_fraction)
    return Records(found.records(lambda row: hh_record(row.chosen, row.rejected, source)), found.origin, limit)


@SOURCES.register("hh")
def hh(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    subset: str | None = None,
    revision: str = HH_REVISION,
    limit: int | None = None,
) -> Records:
    """Anthropic's helpful and harmless comparisons (Bai et al. 2022, arXiv:2204.05862).

    From the hub's Anthropic/hh-rlhf. Each row is a record, also where several rows share a prompt: the prompt is all
    turns but the last, in which the two conversations differ; the chosen response is better, desirable and the target.
    Roles come from the text.

    Args:
        subset: a folder of the dataset on the hub, such as "helpful-online"; by default all.
    """
    return _hh("hh", subset or "*", split, path, test_fraction, revision, limit)


@SOURCES.register("hh_helpful")
def hh_helpful(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = HH_REVISION,
    limit: int | None = None,
) -> Records:
    """The comparisons of `hh` by helpfulness, of the base model: the hub's folder helpful-base."""
    return _hh("hh_helpful", "helpful-base", split, path, test_fraction, revision, limit)


@SOURCES.register("hh_harmless")
def hh_harmless(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = HH_REVISION,
    limit: int | None = None,
) -> Records:
    """The comparisons of `hh` by harmlessness: the hub's folder harmless-base."""
    return _hh("hh_harmless", "harmless-base", split, path, test_fraction, revision, limit)


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


def _capped(records: Iterable[Feedback | Drop], most: int) -> Iterator[Feedback | Drop]:
    """Records with at most so many pairs, drawn by hash: the same ones on every machine, whatever their order."""
    for record in records:
        if isinstance(record, Feedback) and len(record.pairs) > most:
            texts = record.responses

            def place(pair: tuple[int, int], texts: list[str] = texts) -> bytes:
                return hashlib.sha256("\0".join(texts[i] for i in pair).encode()).digest()

            kept = set(sorted(record.pairs, key=place)[:most])
            yield from [Drop("over max_pairs of its prompt")] * (len(record.pairs) - most)
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
    response, since the best is not known. Rows are as many as the pairs and drops. The hub's validation split is not
    used.

    Args:
        min_score_ratio: pairs whose scores are closer than this are dropped, of train.
        max_pairs: pairs kept of a record, drawn by hash, of train; a response that is left without a pair has no label.
        both_labels: list a response that wins one pair and loses another as desirable and as undesirable; without
            this, it has no label.
    """
    files = {name: f"*/{name}.json" for name in ("train", "test")}
    found = table("shp", SHPColumns, split, Hub("stanfordnlp/SHP", revision, files), path, test_fraction)
    ratio = min_score_ratio if split == "train" else None
    records = joined(found.records(lambda row: _shp_record(row, ratio)))
    if split == "train":
        records = _capped(records, max_pairs)
    return Records(with_labels(records, both_labels), found.origin, limit)


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
    found = table("ultrabin", UltrabinColumns, split, hub, path, test_fraction)
    return Records(with_labels(joined(found.records(_ultrabin_record))), found.origin, limit)


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
    found = table(source, ArmoRMColumns, split, hub, path, test_fraction)
    return Records(found.records(lambda row: _armorm_record(row, source)), found.origin, limit)


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


class SafeColumns(BaseModel):
    prompt: str
    response_0: str
    response_1: str
    better_response_id: Literal[0, 1]


def _safe_record(row: SafeColumns) -> Feedback | Drop:
    ask, responses = asked(row.prompt), (row.response_0, row.response_1)
    conversations = [[*ask, {"role": "assistant", "content": text}] for text in responses]
    better = row.better_response_id
    return compared("safe_rlhf", conversations[better], conversations[1 - better])


@SOURCES.register("safe_rlhf")
def safe_rlhf(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "877416778ed53479d63315795558fe83495276d8",
    limit: int | None = None,
) -> Records:
    """PKU-SafeRLHF's comparisons by one preference (Ji et al. 2024, arXiv:2406.15513).

    From the hub's PKU-Alignment/PKU-SafeRLHF-single-dimension. The response named by better_response_id is better and
    the target. Adjacent rows of a prompt are one record, with a pair for each row and the first row's target; a
    response that wins one pair and loses another has no label.
    """
    files = {name: f"data/*/{name}.jsonl" for name in ("train", "test")}
    hub = Hub("PKU-Alignment/PKU-SafeRLHF-single-dimension", revision, files)
    found = table("safe_rlhf", SafeColumns, split, hub, path, test_fraction)
    return Records(with_labels(joined(found.records(_safe_record))), found.origin, limit)
