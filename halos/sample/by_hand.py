"""Prompts and samples from files of any origin, for `sample` and `label` by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback, Turn, prompt_id
from halos.data.layouts.turns import Invalid, TurnReader, documents
from halos.data.readers import Malformed, read_rows
from halos.errors import HalosError
from halos.sample.samples import Sample

PROMPTS = ("prompt", "messages", "conversations", "instruction", "question")
"""Fields of a row that may hold a prompt, as a text or turns; `input` goes on with an instruction."""
RESPONSES = ("response", "output", "completion")


def read_prompts(path: Path, limit: int | None = None) -> list[Feedback]:
    """The different prompts of a file, in its order, as records without responses.

    A row is a text, turns, or an object with one of the fields PROMPTS; a response at the end of turns is left out.

    Args:
        path: JSON, JSON Lines, CSV, parquet or Arrow.
        limit: the most prompts; None for all.

    Raises:
        HalosError: the file is missing, or has a row without a prompt, or none at all.
    """
    found: dict[str, Feedback] = {}
    for where, row in _rows(path, "prompts"):
        turns, tools = _prompt(where, row)
        if turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        if not turns or not turns[-1]["content"].strip():
            raise HalosError(f"{where}: its prompt is empty: take it out")
        record = Feedback(turns, [], path.name, tools=tools)
        found.setdefault(record.prompt_id, record)
        if len(found) == limit:
            break
    if not found:
        raise HalosError(f"{path} holds no prompts: give it some")
    return list(found.values())


def samples_of(path: Path) -> list[Sample]:
    """The samples of a file, those of a prompt one after the other, numbered in their order.

    A row is a sample of this workflow, or an object with a prompt and its response in one of the fields RESPONSES.

    Raises:
        HalosError: the file is missing, or has a row without a prompt or a response, or none at all.
    """
    samples: dict[str, list[Sample]] = {}
    for where, row in _rows(path, "samples"):
        turns, tools = _prompt(where, row)
        response = next((row[name] for name in RESPONSES if row.get(name) is not None), None)
        if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
            response = response[0].get("content")
        if not isinstance(response, str):
            raise HalosError(f"{where} has no response: name it {', '.join(RESPONSES[:-1])} or {RESPONSES[-1]}")
        of_prompt = samples.setdefault(prompt_id(turns, tools), [])
        known = {name: row[name] for name in ("finish_reason", "seed", "response_ids", "template") if name in row}
        content = {"prompt": turns, "tools": tools, "response": response, "sample": len(of_prompt), **known}
        try:
            of_prompt.append(Sample.model_validate({"prompt_id": prompt_id(turns, tools), **content}))
        except ValueError as error:
            raise HalosError(f"{where} is no sample: {' '.join(str(error).split())}") from None
    if not samples:
        raise HalosError(f"{path} holds no samples: give it some")
    return [sample for of_prompt in samples.values() for sample in of_prompt]


def _rows(path: Path, what: str) -> Iterator[tuple[str, Any]]:
    """(where it is, content) of the rows of a file."""
    if not path.is_file():
        raise HalosError(f"there is no file {path}: name a file of {what}")
    for number, row in read_rows(path):
        where = f"{path}, row {number}"
        if isinstance(row, Malformed):
            raise HalosError(f"{where}: {row.detail}")
        yield where, row


def _prompt(where: str, row: Any) -> tuple[list[Turn], list[dict[str, Any]]]:
    """The turns of a row's prompt, and the functions that the model may call."""
    content = row if isinstance(row, dict) else {"prompt": row}
    counted = Counter(name for name in PROMPTS if content.get(name) not in (None, [], ""))
    if len(counted) != 1:
        several = f"several prompts ({', '.join(counted)}): leave one" if counted else "no prompt: name it prompt"
        raise HalosError(f"{where} has {several}")
    [name] = counted
    value = content[name]
    if name == "instruction" and isinstance(more := content.get("input"), str) and more.strip():
        value = f"{value}\n\n{more}"
    try:
        turns = TurnReader().turns(value, "user", name)
        return turns, documents(content["tools"], "tools") if content.get("tools") else []
    except Invalid as error:
        raise HalosError(f"{where}: {error}") from None
