"""train.jsonl: a JSON line for each step and each evaluation of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halos.files import write_text, writing


class Log:
    """The log of a run while it is written; the main process alone does.

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

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the evaluations."""
        lines = map(json.loads, self.path.read_text().splitlines())
        return [line for line in lines if line["split"] == "eval"]

    def add(self, record: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
