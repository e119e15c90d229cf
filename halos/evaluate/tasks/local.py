"""Local tasks, multiple choice for lm-eval, made from held-out feedback: preferences and best_response."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback, read
from halos.errors import HalosError
from halos.tokens.template import Template

Document = dict[str, Any]
"""{prompt, choices, gold}: turns (a text once rendered), texts, and the index of the right choice."""


def preferences(records: Iterator[Feedback]) -> Iterator[Document]:
    """One document for each pair: is the chosen response likelier than the rejected one?

    A hash of the prompt's id and the pair's indices draws which is shown first, the same on every machine.
    """
    for record in records:
        for winner, loser in record.pairs:
            digest = hashlib.sha256(f"{record.prompt_id} {winner} {loser}".encode()).digest()
            gold = digest[0] & 1
            pair = [record.responses[winner], record.responses[loser]]
            yield {"prompt": record.prompt, "choices": pair[::-1] if gold else pair, "gold": gold}


def best_response(records: Iterator[Feedback]) -> Iterator[Document]:
    """One document for each record with a single best score: is that response the likeliest of the record's?"""
    for record in records:
        if len(record.scores) > 1 and record.scores.count(best := max(record.scores)) == 1:
            yield {"prompt": record.prompt, "choices": record.responses, "gold": record.scores.index(best)}


LOCAL: dict[str, Callable[[Iterator[Feedback]], Iterator[Document]]] = {
    "preferences": preferences,
    "best_response": best_response,
}


def make_documents(local: str, num_fewshot: int | None, limit: int | None, feedback: Path | None) -> list[Document]:
    """The first `limit` documents of a local task.

    Raises:
        HalosError: there is no feedback, it has no document, or few-shot examples are wanted.
    """
    if feedback is None:
        raise HalosError(
            f"the local task {local} needs feedback: give a split of the dataset, such as test.parquet, as --feedback"
        )
    if num_fewshot:
        raise HalosError(f"the local task {local} has no examples to show first; take num_fewshot out of its entry")
    documents = list(islice(LOCAL[local](read(feedback)), limit))
    if not documents:
        wanted = "pairs" if local == "preferences" else "scores with a single best"
        raise HalosError(f"no record of {feedback} has {wanted}, so there is no {local} task; choose another dataset")
    return documents


def render_documents(documents: list[Document], tokenizer: Any, max_length: int) -> list[Document]:
    """Render prompts and choices to the text that the model reads.

    Left out are documents that are too long, or that the chat template cannot show. Special tokens that a text spells
    are marked, as Template.encode reads them.

    Args:
        max_length: most tokens of a prompt with its longest choice.
    """
    template = Template(tokenizer)
    prompts, responses = template.texts([d["prompt"] for d in documents], [c for d in documents for c in d["choices"]])
    prompt_ids = template.encode([text or "" for text in prompts])
    pairs = zip(responses, template.encode([text or "" for text in responses]), strict=True)
    rendered = []
    for document, prompt, ids in zip(documents, prompts, prompt_ids, strict=True):
        choices = list(islice(pairs, len(document["choices"])))
        texts, longest = [text for text, _ in choices], max(len(tokens) for _, tokens in choices)
        if prompt is not None and None not in texts and len(ids) + longest <= max_length:
            rendered.append({"prompt": prompt, "choices": texts, "gold": document["gold"]})
    return rendered


def task_config(name: str, documents: list[Document], folder: Path) -> dict[str, Any]:
    """lm-eval's config of a multiple-choice task. Its documents are written to `folder`."""
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
