"""OpenAssistant Conversations: trees of messages whose replies are ranked (Köpf et al. 2023, arXiv:2304.07327)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel

from halos.data.feedback import Feedback, Turn
from halos.data.hub import Hub
from halos.data.pairs import labelled
from halos.data.rows import Drop, Paths, Records, Table, table
from halos.registry import SOURCES

ROLE = {"prompter": "user", "assistant": "assistant"}


class Message(BaseModel):
    """One message: a row of the hub's table."""

    message_id: str
    parent_id: str | None
    text: str
    role: Literal["prompter", "assistant"]
    lang: str
    rank: int | None
    message_tree_id: str
    deleted: bool | None = None


def _path(message: Message, messages: dict[str, Message]) -> list[Turn] | None:
    """The turns from the root to a message; None where one is missing or the parents form a circle."""
    turns: list[Turn] = []
    visited: set[str] = set()
    current: Message | None = message
    while current is not None:
        if current.message_id in visited:
            return None
        visited.add(current.message_id)
        turns.append({"role": ROLE[current.role], "content": current.text})
        if current.parent_id is None:
            return turns[::-1]
        current = messages.get(current.parent_id)
    return None


def _record(prompt: list[Turn], replies: list[Message], both_labels: bool) -> Iterator[Feedback | Drop]:
    """The record of a prompt and its ranked replies, and a Drop for each of these that repeats a better one."""
    rank_of: dict[str, int | None] = {}
    for reply in sorted(replies, key=lambda reply: reply.rank or 0):
        if reply.text in rank_of:
            yield Drop("repeats a better reply")
        rank_of.setdefault(reply.text, reply.rank)
    ranks = list(rank_of.values())
    pairs = [(i, j) for i, j in pairwise(range(len(ranks))) if ranks[i] != ranks[j]]
    yield labelled(Feedback(prompt, list(rank_of), "oasst", pairs=pairs, target=0), both_labels)


def _kept(rows: Table[Message], lang: str) -> Iterator[Message | Drop]:
    """The messages of one language that are not deleted, each once."""
    seen: set[str] = set()
    for message in rows.rows(lambda message: hashlib.sha256(message.message_tree_id.encode()).hexdigest()):
        if isinstance(message, Drop):
            yield message
        elif message.lang != lang:
            yield Drop("another language")
        elif message.deleted:
            yield Drop("deleted message")
        elif message.message_id in seen:
            yield Drop("message id repeats")
        else:
            seen.add(message.message_id)
            yield message


def _records(rows: Table[Message], lang: str, both_labels: bool) -> Iterator[Feedback | Drop]:
    messages: dict[str, Message] = {}
    for message in _kept(rows, lang):
        if isinstance(message, Drop):
            yield message
        else:
            messages[message.message_id] = message
    replies: dict[str | None, list[Message]] = defaultdict(list)
    for message in messages.values():
        if message.role == "assistant" and message.rank is not None:
            replies[message.parent_id].append(message)
    for message in messages.values():
        path = _path(message, messages)
        if path is None:
            yield Drop("a message before it is missing")
        elif message.role == "assistant":
            if message.rank is None:
                yield Drop("reply without a rank")
            elif message.parent_id is None or messages[message.parent_id].role == "assistant":
                yield Drop("reply to no prompt")
        elif message.message_id not in replies:
            yield Drop("prompt without ranked replies")
        else:
            yield from _record(path, replies[message.message_id], both_labels)


@SOURCES.register("oasst")
def oasst(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "fdf72ae0827c1cda404aff25b6603abec9e3399b",
    limit: int | None = None,
    lang: str = "en",
    both_labels: bool = False,
) -> Records:
    """OpenAssistant Conversations: ranked replies (Köpf et al. 2023, arXiv:2304.07327).

    From the hub's OpenAssistant/oasst1; its validation split is our test. Each prompter's message with ranked replies
    is a record: the prompt is the path from the root to it, the responses are the replies from best to worst,
    neighbours in this order are the pairs (not those of equal rank), and the best is the target. A rank is no score, so
    there are none. Of a file that holds both splits, whole trees are in one.

    Every message is the end of a prompt, a response or a drop, so these add up to the rows; a dropped message may still
    be an earlier turn of a prompt, unless it is deleted or of another language. The messages of one language are held
    in memory, so that rows may be in any order.

    Args:
        lang: language code; messages of other languages are left out.
        both_labels: list a response that wins one pair and loses another as desirable and as undesirable; without
            this, it has no label.
    """
    files = {"train": "data/train-*", "test": "data/validation-*"}
    rows = table("oasst", Message, split, Hub("OpenAssistant/oasst1", revision, files), path, test_fraction)
    return Records(_records(rows, lang, both_labels), rows.origin, limit)
