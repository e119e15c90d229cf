"""PKU-SafeRLHF (Ji et al. 2024, arXiv:2406.15513): two responses a prompt, compared by helpfulness or by safety."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from halos.data.feedback import Feedback
from halos.data.hub import Hub
from halos.data.pairs import compared, joined, with_labels
from halos.data.rows import Drop, Paths, Records, asked, table
from halos.registry import SOURCES


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
    rows = table("safe_rlhf", SafeColumns, split, hub, path, test_fraction)
    return Records(with_labels(joined(rows.records(_safe_record))), rows.origin, limit)
