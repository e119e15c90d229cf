"""Anthropic's helpful and harmless preferences (Bai et al. 2022, arXiv:2204.05862)."""

from __future__ import annotations

import re

from pydantic import BaseModel

from halos.data.feedback import Feedback, Turn
from halos.data.hub import Hub
from halos.data.pairs import compared
from halos.data.rows import Drop, Paths, Records, table
from halos.registry import SOURCES

HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
MARKER = re.compile(r"\n\n+(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


class HHColumns(BaseModel):
    chosen: str
    rejected: str


def hh_turns(text: str) -> list[Turn]:
    """The turns of a conversation in HH's format, each opened by a blank line and "Human:" or "Assistant:".

    Only the separators are cut: the blank lines before a marker (or the end), and one space after it. The list is
    empty when the text does not begin with a marker.
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
    rows = table(source, HHColumns, split, Hub("Anthropic/hh-rlhf", revision, files), path, test_fraction)
    return Records(rows.records(lambda row: hh_record(row.chosen, row.rejected, source)), rows.origin, limit)


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
