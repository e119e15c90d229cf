"""Reading of cached reference log-probabilities and reward model scores.

A file records the hashes of the weights, the store and the chat template that it was made from, and is refused for any
others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from halos.errors import HalosError
from halos.files import whole
from halos.losses.base import Loss
from halos.manifest import Manifest
from halos.tokens.store import Store

PARTS = ("responses", "mismatched")
BOTH = "both"
"""The name of a file that holds both parts."""
SCORES = "scores"
MADE_FROM = "made_from"
"""The one key of a file's metadata. safetensors writes several keys in any order: equal passes would make unequal
files."""


def write_values(output: Path, values: np.ndarray, offsets: np.ndarray, made_from: Mapping[str, str]) -> None:
    """Write a file of log-probabilities or scores, whole or not at all.

    Args:
        output: the file, safetensors.
        values: float32, those of all rows, one after the other.
        offsets: (rows + 1,) int64, where each row's values begin.
        made_from: hashes of what they were made from; `first`, the first row, and `part`.
    """
    with whole(output) as temporary:
        metadata = {MADE_FROM: json.dumps(made_from, sort_keys=True)}
        save_file({"logps": values, "offsets": offsets}, temporary, metadata=metadata)


class Reference:
    """Cached token log-probabilities under a reference, looked up by sequence row.

    Args:
        files: the file of each part.
        expected: hashes of the `weights`, `store` and `template` that the files must have been made from.

    Raises:
        HalosError: a file is missing or was made from something else; the message names what differs.
    """

    def __init__(self, files: list[Path], expected: Mapping[str, str]) -> None:
        self._parts: list[tuple[int, np.ndarray, np.ndarray]] = [_open(file, expected) for file in files]
        self._parts.sort(key=lambda part: part[0])

    def __getitem__(self, row: int) -> np.ndarray:
        """(T,) float32 log-probabilities of the T response tokens of one sequence.

        Raises:
            HalosError: no file holds the sequence.
        """
        for first, offsets, values in self._parts:
            if first <= row < first + len(offsets) - 1:
                return values[offsets[row - first] : offsets[row - first + 1]]
        raise HalosError(f"sequence {row} is in no part of the reference: pass --reference for its part, too")


def parts_in(file: Path) -> tuple[str, ...]:
    """The parts that a file holds.

    Raises:
        HalosError: it is missing.
    """
    part = _made_from(file).get("part", "")
    return PARTS if part == BOTH else (part,)


def _made_from(file: Path) -> dict[str, str]:
    """What a file was made from, its first row and its part."""
    if not file.is_file():
        raise HalosError(f"there is no {file}; make it with `python -m halos reference`")
    with safe_open(file, framework="np") as opened:
        content: dict[str, str] = json.loads((opened.metadata() or {}).get(MADE_FROM, "{}"))
    return content


def _open(file: Path, expected: Mapping[str, str]) -> tuple[int, np.ndarray, np.ndarray]:
    """(first row, offsets, values) of a file, memory-mapped."""
    made_from = _made_from(file)
    with safe_open(file, framework="pt") as opened:  # torch maps the file instead of reading it
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
        HalosError: the file is missing, or belongs to another store.
    """
    return _open(file, {"part": SCORES, "store": store.hash, "template": store.meta.template})[2]


def parts_for(loss: Loss, live: bool = False) -> tuple[str, ...]:
    """The parts of the reference that a loss reads: none if it needs no reference.

    Args:
        loss: the loss; `needs_reference` and `prepass` decide.
        live: whether the reference is a copy of the policy that is updated during training, so that nothing is cached.
    """
    if live or not loss.needs_reference:
        return ()
    return PARTS if "mismatched" in loss.prepass else PARTS[:1]


def expected_hashes(parent: Path, store: Store) -> dict[str, str]:
    """The hashes that tie a reference file to the parent's weights, the store and the chat template.

    Raises:
        HalosError: the parent has no manifest: it is not finished; or the weights that it links to were replaced.
    """
    manifest = Manifest.read(parent / "manifest.json")
    manifest.check_links(parent / "model")
    return {"weights": manifest.weights, "store": store.hash, "template": store.meta.template}
