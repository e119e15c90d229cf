"""Rows with every column, and of the types, that published datasets have on the hub; files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from halos.data.feedback import Feedback, Turn
from halos.data.rows import Drop, Records

Row = dict[str, Any]

CODE = "Like this:\n\n```python\ndef f(x):\n    if x:\n\treturn  1\n```\n"


def user(text: str) -> Turn:
    return {"role": "user", "content": text}


def assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def without(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}


def write_parquet(path: Path, rows: list[Row]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def split_up(records: Records) -> tuple[list[Feedback], list[str]]:
    """The records, and the reasons of the drops in order."""
    rows = list(records)
    return [r for r in rows if isinstance(r, Feedback)], sorted(r.reason for r in rows if isinstance(r, Drop))


def shp_row(post: str, a: str, b: str, scores: tuple[int, int], **fields: Any) -> Row:
    return {
        "post_id": post,
        "domain": "askculinary_train",
        "upvote_ratio": 0.99,
        "history": f"Question {post}?",
        "c_root_id_A": f"{post}{a}",
        "c_root_id_B": f"{post}{b}",
        "created_at_utc_A": 1593535113,
        "created_at_utc_B": 1593535824,
        "score_A": scores[0],
        "score_B": scores[1],
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": int(scores[0] > scores[1]),
        "seconds_difference": 711.0,
        "score_ratio": max(scores) / min(scores),
        **fields,
    }


def message(id: str, parent: str | None, text: str, rank: int | None = None, **fields: Any) -> Row:
    """A row of oasst1; ids are paths such as "a.1.2", whose length gives the role."""
    return {
        "message_id": id,
        "parent_id": parent,
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": "assistant" if id.count(".") % 2 else "prompter",
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.00044, "insult": 0.00018},
        "message_tree_id": id.split(".")[0],
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]},
        "labels": {"name": ["spam", "quality"], "value": [0.0, 0.9], "count": [3, 3]},
        **fields,
    }


def ultrabin_row(prompt: str, good: str, bad: str, scores: tuple[float, float] = (8.0, 5.5), **fields: Any) -> Row:
    return {
        "prompt": prompt,
        "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
        "chosen": [user(prompt), assistant(good)],
        "rejected": [user(prompt), assistant(bad)],
        "messages": [user(prompt), assistant(good)],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
        **fields,
    }


def ultrachat_row(*turns: str, **fields: Any) -> Row:
    messages = [(user, assistant)[i % 2](text) for i, text in enumerate(turns)]
    return {"prompt": turns[0], "prompt_id": "f0e37e9f", "messages": messages, **fields}


def armorm_row(prompt: str, responses: list[str], scores: list[float], **fields: Any) -> Row:
    best, worst = responses[scores.index(max(scores))], responses[scores.index(min(scores))]
    return {
        "prompt_id": "f0e37e9f",
        "prompt": prompt,
        "all_generated_responses": responses,
        "all_rm_scores": scores,
        "chosen": [user(prompt), assistant(best)],
        "rejected": [user(prompt), assistant(worst)],
        **fields,
    }


def s1k_row(question: str, reasoning: str, answer: str, **fields: Any) -> Row:
    return {
        "solution": "128",
        "question": question,
        "cot_type": "math",
        "source_type": "AI-MO/NuminaMath-CoT/aops_forum",
        "metadata": "{}",
        "gemini_thinking_trajectory": "other",
        "gemini_attempt": "other",
        "deepseek_thinking_trajectory": reasoning,
        "deepseek_attempt": answer,
        "gemini_grade": "Yes",
        "gemini_grade_reason": "",
        "deepseek_grade": "Yes",
        "deepseek_grade_reason": "",
        **fields,
    }


def safe_row(prompt: str, first: str, second: str, better: int, **fields: Any) -> Row:
    return {
        "prompt": prompt,
        "response_0": first,
        "response_1": second,
        "prompt_source": "safe_rlhf",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "better_response_id": better,
        "response_0_sha256": "0",
        "response_1_sha256": "1",
        **fields,
    }


def wildbench_row(turns: list[Turn], reference: str | None, **fields: Any) -> Row:
    extra = {"language": "English", "redacted": False, "timestamp": None, "toxic": False}
    return {
        "session_id": "0",
        "conversation_input": [{**turn, **extra} for turn in turns],
        "references": {"gpt-4": reference},
        "length": 3,
        "checklist": ["Is it right?"],
        "intent": "code",
        "primary_tag": "Coding & Debugging",
        "secondary_tags": ["Math"],
        **fields,
    }


def alpacaeval_row(instruction: str, output: str, **fields: Any) -> Row:
    row = {"instruction": instruction, "output": output, "generator": "text_davinci_003", "dataset": "helpful_base"}
    return {**row, **fields}
