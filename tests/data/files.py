"""Small files for the tests of sources, and `prepare` over them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import yaml

from halos.data.paths import SPLITS
from halos.data.prepare import prepare

PROMPT = "\n\nHuman: How do I sort a list?\n\nAssistant: In which language?\n\nHuman: Python, please."
CHOSEN = PROMPT + "\n\nAssistant: Like this:\n\n    def sort(x):\n        return sorted(x)\n\nIt gives a new list."
REJECTED = PROMPT + "\n\nAssistant: I don't know."


def write_lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def conversation(i: int, answer: str) -> str:
    return f"\n\nHuman: Question {i}?\n\nAssistant: {answer}"


def comparisons(n: int) -> list[dict[str, str]]:
    return [{"chosen": conversation(i, f"good {i}"), "rejected": conversation(i, f"bad {i}")} for i in range(n)]


def record(i: int, **fields: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Question {i}?"}]
    return {
        "prompt": prompt,
        "responses": ["yes", "no"],
        "scores": [1.0, 0.0],
        "pairs": [[0, 1]],
        "target": 0,
        **fields,
    }


def dialogue(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """The prompt of turns by the user and the assistant in turn."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def local(folder: Path, train: list[Any], test: list[Any]) -> dict[str, Any]:
    """A source of these rows for the two splits."""
    paths = {
        name: write_lines(folder / f"{name}_rows.jsonl", rows) for name, rows in (("train", train), ("test", test))
    }
    return {"name": "local", "options": {"path": {name: str(path) for name, path in paths.items()}}}


def run_prepare(folder: Path, *sources: dict[str, Any], **settings: Any) -> dict[str, Any]:
    config = folder / "config.yaml"
    entries = [{"options": {}, **source} for source in sources]
    config.write_text(
        yaml.safe_dump({"dataset": "d", "sources": entries, "plugins": {}, "validation_prompts": 0, **settings})
    )
    prepare(config, *(folder / f"out/{split}.parquet" for split in SPLITS), folder / "out/report.json")
    report: dict[str, Any] = json.loads((folder / "out/report.json").read_text())
    return report
