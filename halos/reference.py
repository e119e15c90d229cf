"""Reference log-probabilities: one pass over the sequence store by the frozen parent, shared by every loss.

`responses` holds those of real responses, `mismatched` those of the mismatched sequences; `scores` holds what a reward
model gives to real responses. A file knows the weights, the store and the template it was made from, and a training
that would use it with others is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from halos.config import read_slice
from halos.errors import HalosError

if TYPE_CHECKING:
    from halos.data.store import Store

PARTS = ("responses", "mismatched")
SCORES = "scores"


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
        made_from = opened.metadata()
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
    return _open(file, {"part": SCORES, "store": store.hash, "template": store.meta["template"]})[2]


def parts_for(loss: Any, live: bool = False) -> tuple[str, ...]:
    """The parts that a loss reads, by its traits; none when its reference is live."""
    if live or not loss.needs_reference:
        return ()
    return PARTS if "mismatched" in loss.prepass else PARTS[:1]


def reference(config: Path, parent: Path, store: Path, part: str, output: Path, tokens_per_microbatch: int) -> None:
    """The verb: one pass of `parent` over a part of the store.

    Args:
        config: slice of the parent's cell (`attention`, `precision`).
        parent: folder with `model/` and `manifest.json`.
        store: sequence store.
        part: `responses` or `mismatched`; `scores` when the parent is a reward model.
        output: safetensors file: `logps` (float32, all response tokens, or one score each, in the order of their rows),
            `offsets` (int64).
        tokens_per_microbatch: padded tokens of one forward pass.
    """
    import torch

    from halos.data.batches import collate, cut
    from halos.data.store import Store
    from halos.heads import SequenceScores
    from halos.logprobs import ResponseLogps
    from halos.models import accelerator_for, load
    from halos.rewards import check

    settings = read_slice(config)
    opened: Store = Store(store)
    first, last = (opened.n_responses, len(opened)) if part == "mismatched" else (0, opened.n_responses)
    lengths = opened.lengths[first:last]
    kept = np.ones(len(lengths), np.int64) if part == SCORES else lengths[:, 1]
    offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    values = np.zeros(offsets[-1], dtype=np.float32)
    accelerator = accelerator_for(settings["precision"])
    if part == SCORES:
        check(parent / "model")
    network = load(parent / "model", settings["attention"], score=part == SCORES)
    model = accelerator.prepare(SequenceScores(network) if part == SCORES else ResponseLogps(network)).eval()
    batches = cut(lengths.sum(-1), tokens_per_microbatch) if len(lengths) else []
    bar = tqdm(total=int(lengths.sum()), desc=f"reference {part}", unit=" tokens", unit_scale=True, mininterval=1)
    with torch.inference_mode():
        for batch in batches:
            [found] = model(collate(opened, batch + first).to(accelerator.device)).values()
            found = found.reshape(len(batch), -1).float().cpu().numpy()
            for i, row in enumerate(batch):
                values[offsets[row] : offsets[row + 1]] = found[i, : kept[row]]
            bar.update(int(lengths[batch].sum()))
    bar.close()
    made_from = {**expected_hashes(parent, opened), "first": str(first), "part": part}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.partial")
    save_file({"logps": values, "offsets": offsets}, temporary, metadata=made_from)
    temporary.replace(output)


def expected_hashes(parent: Path, store: Store) -> dict[str, str]:
    """The hashes that tie a reference file to its parent's weights, the store and the chat template."""
    manifest = parent / "manifest.json"
    if not manifest.is_file():
        raise HalosError(f"there is no {manifest}; the parent model is not finished")
    weights = json.loads(manifest.read_text())["weights"]
    return {"weights": weights, "store": store.hash, "template": store.meta["template"]}
