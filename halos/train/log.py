"""train.jsonl: a JSON line for each step and each evaluation of a run; and what is beside it while it grows."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from halos.files import JsonFile, Record, write_text, writing

TRAINING = "training.json"
"""The name of the file that is beside a log that grows."""

PREVIEWS = "previews.jsonl"
"""The name of the file of previews, beside the log."""


class Training(JsonFile):
    """training.json, beside the log of a run that is trained: what tells more of it than its lines.

    Attributes:
        fingerprint: hash of the run's config and inputs.
        key: a random name of this training, the same in all of its attempts, by which trackers know it.
        steps: optimiser steps of the whole training.
    """

    fingerprint: str
    key: str
    steps: int

    @classmethod
    def begin(cls, path: Path, fingerprint: str, steps: int) -> Training:
        """Write the file at the start of an attempt; the key is that of the attempt before, if there was one."""
        before = cls.read(path) if path.is_file() else None
        key = before.key if before is not None and before.fingerprint == fingerprint else secrets.token_hex(8)
        training = cls(fingerprint=fingerprint, key=key, steps=steps)
        training.write(path)
        return training


class Preview(Record):
    """A line of previews.jsonl: the greedy response of the policy to a validation prompt, after `step` steps.

    Attributes:
        prompt_row: the prompt's row in the sequence store.
        prompt: as the model reads it, with its chat template.
        tokens: of the response, the one that ends it included.
    """

    step: int
    prompt_row: int
    prompt: str
    response: str
    tokens: int


class Log:
    """The log of a run while it is written, or another file of lines by step; the main process alone writes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self) -> None:
        """Begin an empty log."""
        write_text(self.path, "")

    def cut(self, step: int) -> None:
        """Drop the lines after a step, and one that was not written to its end."""
        lines = [line for line in self.path.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
        write_text(self.path, "".join(line + "\n" for line in lines))

    def lines(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from a byte on, and the byte after the last of them; none where there is no file."""
        if not self.path.is_file():
            return [], start
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.split(b"\n")[:-1]], start + len(whole)

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the evaluations."""
        return [line for line in self.lines()[0] if line["split"] == "eval"]

    def add(self, record: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
