"""Named sources of feedback: published datasets, each by a small function that states its rules.

A source is a function `(split, **options)` that yields the records of "train" or "test", and a `Drop` for each row that
it leaves out. A source of your own is one such function with `@SOURCES.register("name")` in a plugin.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from halos.data.feedback import Feedback, Turn
from halos.data.reading import Drop, in_split, json_rows, limited, locate
from halos.errors import HalosError
from halos.registry import SOURCES

HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"

MARKER = re.compile(r"\n\n+(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


def hh_turns(text: str) -> list[Turn]:
    """The turns of a conversation in HH's layout, each opened by a blank line and "Human:" or "Assistant:".

    Only what separates turns is cut: the blank lines before a marker (or the end), and one space after it. Empty when
    the text does not begin with a marker.
    """
    head, *parts = MARKER.split(text.rstrip("\n"))
    if head.strip():
        return []
    return [{"role": ROLE[name], "content": content} for name, content in zip(parts[::2], parts[1::2], strict=True)]


def hh_record(chosen: str, rejected: str) -> Feedback | Drop:
    """The record of two conversations that are equal up to their last turn."""
    if chosen == rejected:
        return Drop("chosen and rejected are equal")
    winner, loser = hh_turns(chosen), hh_turns(rejected)
    if not winner or not loser:
        return Drop("the text does not begin with a turn")
    if winner[-1]["role"] != "assistant" or loser[-1]["role"] != "assistant":
        return Drop("no assistant turn at the end")
    if winner[:-1] != loser[:-1]:
        return Drop("chosen and rejected have different prompts")
    responses = [winner[-1]["content"], loser[-1]["content"]]
    if responses[0] == responses[1]:
        return Drop("chosen and rejected are equal")
    return Feedback(winner[:-1], responses, "hh", pairs=[(0, 1)], desirable=[True, False], target=0)


@SOURCES.register("hh")
def hh(
    split: str,
    *,
    path: str | dict[str, str] | None = None,
    test_fraction: float = 0.1,
    subset: str | None = None,
    revision: str = HH_REVISION,
    limit: int | None = None,
) -> Iterator[Feedback | Drop]:
    """Anthropic's helpful and harmless comparisons (Bai et al. 2022, arXiv:2204.05862), from the hub or from files.

    Args:
        split: "train" or "test".
        path: a file of Anthropic's own (.jsonl or .jsonl.gz, "chosen" and "rejected" on each line), or one a split;
            without it the dataset is loaded from the hub.
        test_fraction: share of the prompts that are the test split of a single file.
        subset: a folder of the dataset on the hub, such as "helpful-base" or "harmless-base"; by default all.
        revision: commit on the hub.
        limit: the first so many records.

    Raises:
        HalosError: the hub cannot be reached, or a file is missing or not in this layout.
    """
    if path is None:
        pairs = _hh_hub(split, subset, revision)
        return limited((hh_record(*pair) for pair in pairs), limit)
    pairs = _hh_file(locate("hh", path, split, test_fraction))
    fraction = None if isinstance(path, dict) else test_fraction
    return limited(_hh_split(pairs, split, fraction), limit)


def _hh_hub(split: str, subset: str | None, revision: str) -> Iterator[tuple[str, str]]:
    import datasets  # slow to import, and of no use offline

    name = "Anthropic/hh-rlhf"
    try:
        table = datasets.load_dataset(name, data_dir=subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise HalosError(
            f"source hh: {name} cannot be loaded from the hub ({reason}); check the connection, subset and revision, or"
            " download its files elsewhere and name them by `path:`"
        ) from None
    return ((row["chosen"], row["rejected"]) for row in table)


def _hh_file(file: Path) -> Iterator[tuple[str, str]]:
    for number, text in json_rows(file):
        try:
            row = json.loads(text)
            chosen, rejected = row["chosen"], row["rejected"]
        except (ValueError, TypeError, KeyError):
            chosen = rejected = None
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise HalosError(f"source hh: row {number} of {file} lacks the texts chosen and rejected; correct it")
        yield chosen, rejected


def _hh_split(pairs: Iterable[tuple[str, str]], split: str, fraction: float | None) -> Iterator[Feedback | Drop]:
    for pair in pairs:
        record = hh_record(*pair)
        # a dropped row belongs to one split as well, so that rows add up over the splits
        key = record.prompt_id if isinstance(record, Feedback) else hashlib.sha256(pair[0].encode()).hexdigest()
        if fraction is None or in_split(key, split, fraction):
            yield record
