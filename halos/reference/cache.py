"""Read cached log-probabilities of a reference.

A file knows the weights, the store and the template that it was made from, and is refused for any others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from halos.errors import HalosError

if TYPE_CHECKING:
    from halos.tokens.store import Store


PARTS = ("responses", "mismatched")
SCORES = "scores"
MADE_FROM = "made_from"
"""One key for all: safetensors writes several in any order, and equal passes would make unequal files."""


class Reference:
    """Cached token log-probabilities, looked up by sequence row.

    Args:
        files: one file for each part that is wanted.
        expected: what the files must have been made from: `weights`, `store` and `template` hashes.

    Raises:
        HalosError: a file was made from something else; the message names what differs.
    """

    def __init__(self, files: list[Path], expected: dict[str, str]) -> None:
        self._parts: list[tuple[int, np.ndarray, np.ndarray]] = [_open(file, expected) for file in files]
        self._parts.sort(key=lambda part: part[0])

    def __getitem__(self, row: int) -> np.ndarray:
        """(T,) float32 log-probabilities of the response tokens of one sequence."""
        for first, offsets, values in self._parts:
            if first <= row < first + len(offsets) - 1:
                return values[offsets[row - first] : offsets[row - first + 1]]
        raise HalosError(f"sequence {row} is in no part of the reference; give the file of its part, too")


def _open(file: Path, expected: dict[str, str]) -> tuple[int, np.ndarray, np.ndarray]:
    """(first row, offsets, values) of a file, mapped."""
    if not file.is_file():
        raise HalosError(f"there is no {file}; make it with `python -m halos reference`")
    with safe_open(file, framework="pt") as opened:  # torch maps the file instead of reading it
        made_from = json.loads((opened.metadata() or {}).get(MADE_FROM, "{}"))
        differs = [name for name, value in expected.items() if made_from.get(name) != value]
        if differs:
            raise HalosError(
                f"{file} was made from other {' and '.join(differs)} than this training uses; delete it and run "
                f"snakemake again"
            )
        return int(made_from["first"]), opened.get_tensor("offsets").numpy(), opened.get_tensor("logps").numpy()


def read_scores(file: Path, store: Store) -> np.ndarray:
    """(responses,) float32 scores of a reward model, by sequence row.

    Raises:
        HalosError: the file is missing, or of another store.
    """
    return _open(file, {"part": SCORES, "store": store.hash, "template": store.meta.template})[2]


def parts_for(loss: Any, live: bool = False) -> tuple[str, ...]:
    """The parts that a loss reads, by its traits; none when its reference is live."""
    if live or not loss.needs_reference:
        return ()
    return PARTS if "mismatched" in loss.prepass else PARTS[:1]


def expected_hashes(parent: Path, store: Store) -> dict[str, str]:
    """The hashes that tie a reference file to its parent's weights, the store and the chat template."""
    manifest = parent / "manifest.json"
    if not manifest.is_file():
        raise HalosError(f"there is no {manifest}; the parent model is not finished")
    weights = json.loads(manifest.read_text())["weights"]
    return {"weights": weights, "store": store.hash, "template": store.meta.template}
