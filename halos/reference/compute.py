"""Computation of reference log-probabilities: one pass of the frozen parent over the sequence store, for every loss."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from halos.errors import HalosError
from halos.forward.budget import cut, pack
from halos.models.load import freeze, load
from halos.models.rewards import check_reward_model, is_gated, labels_of
from halos.pretrained import read_tokenizer
from halos.reference.cache import SCORES, expected_hashes, write_values
from halos.reference.settings import ReferenceSlice
from halos.tokens.store import Store

WINDOW = 2048
"""Sequences of one window. A pass that was stopped resumes after its last window; microbatches do not cross windows."""


def reference(
    config: Path,
    parent: Path,
    store: Path,
    part: Literal["responses", "mismatched", "scores"],
    output: Path,
    tokens_per_microbatch: int = 16384,
    vocabulary: Sequence[Path] = (),
) -> None:
    """Cache a model's log-probabilities of a sequence store, or a reward model's scores.

    The output is a safetensors file. `logps` (float32) holds the log-probabilities of all response tokens, or one score
    for each sequence, in the order of the store's rows; `offsets` (int64) says where each row's values begin. Its
    metadata names the hashes of the weights, the store and the template that it was made from. A pass that was stopped
    resumes after its last window.

    Args:
        config: config.yaml of the model's cell, for attention and precision.
        parent: folder of the model, with model/ and manifest.json.
        store: sequence store.
        part: sequences to run: real responses, mismatched ones, or (for a reward model) scores of real ones.
        output: file to write, safetensors.
        tokens_per_microbatch: tokens of one forward pass on one device, padding included.
        vocabulary: model folder whose tokenizer made the store, where it is another model's.

    Raises:
        HalosError: the parent is not finished, is not the kind of model that `part` needs, or has another vocabulary.
    """
    for other in vocabulary:
        check_vocabulary(parent / "model", other)

    import torch

    from halos.distributed.accelerator import accelerator_for
    from halos.forward.microbatch import collate
    from halos.forward.networks import ResponseLogps, SequenceScores
    from halos.forward.packable import check_finite, enable_packing

    settings = ReferenceSlice.read(config)
    sequences = Store(store)
    n = sequences.n_responses
    rows = np.arange(n, len(sequences)) if part == "mismatched" else np.arange(n)
    sizes = np.ones(len(rows), np.int64) if part == SCORES else sequences.lengths[rows, 1].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first = n if part == "mismatched" else 0
    made_from = {**expected_hashes(parent, sequences), "first": str(first), "part": part}
    accelerator = accelerator_for(settings.precision)
    if part == SCORES:
        check_reward_model(parent / "model")
        if is_gated(parent / "model") or labels_of(parent / "model") > 1:
            raise HalosError(
                f"the reward model in {parent} is from elsewhere: `python -m halos score` makes its scores"
            )
    quantization = None if part == SCORES else settings.quantization  # a reward model scores as it is published
    network = load(parent / "model", settings.attention, score=part == SCORES, quantization=quantization)
    module = SequenceScores(network) if part == SCORES else ResponseLogps(network)
    not_packable = enable_packing(module, int(sequences.lengths.sum(-1).max()))
    if not_packable is not None:
        print(f"packing is off: {not_packable}", file=sys.stderr)
    freeze(network, settings.precision)
    model = accelerator.prepare(module).eval()
    depends_on = {**made_from, "attention": settings.attention, "precision": settings.precision}
    depends_on |= {} if quantization is None else {"quantization": quantization}
    done = Done(output.with_name(f".{output.name}.partial"), depends_on, offsets)
    tokens = sequences.lengths[rows].sum(-1)
    bar = tqdm(total=int(tokens.sum()), initial=int(tokens[: done.rows].sum()), desc=f"reference {part}",
               unit=" tokens", unit_scale=True, mininterval=1)  # fmt: skip
    for start in range(done.rows, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        lengths, budget = sequences.lengths[window], tokens_per_microbatch
        if not_packable is None:
            microbatches = pack(sequences.prompt_of(window), lengths, budget)
        else:
            microbatches = cut(lengths.sum(-1), budget)
        values = [np.zeros(0, np.float32)] * len(window)
        for members in microbatches:
            batch = collate(sequences, window[members], packed=not_packable is None).to(accelerator.device)
            with torch.inference_mode():
                [outputs] = model(batch).values()
            check_finite(network, {part: outputs})
            for k, row in zip(members, outputs.reshape(len(members), -1).float().cpu().numpy(), strict=True):
                values[k] = row[: sizes[start + k]]
            bar.update(batch.tokens)
        done.add(values)
    bar.close()
    write_values(output, done.values(), offsets, made_from)
    done.remove()


def check_vocabulary(model: Path, other: Path) -> None:
    """Check that a token id means the same to two models.

    Args:
        model: folder of the model that is a reference.
        other: folder of the policy's base model.

    Raises:
        HalosError: their tokenizers have other tokens or ids.
    """
    ours, theirs = (read_tokenizer(folder).get_vocab() for folder in (model, other))
    differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    if differing:
        ids = [vocab.get(differing[0], "none") for vocab in (ours, theirs)]
        raise HalosError(
            f"{model.parent} cannot be the reference of {other.parent}: {len(differing)} of their tokens differ (the "
            f"first: {differing[0]!r} has the id {ids[0]} in it and {ids[1]} in the other); name a model with the same "
            f"tokenizer in `reference`"
        )


class Done:
    """The values that a pass has computed so far: float32 in the order of their rows, in a file that grows by windows.

    Args:
        path: the file; a JSON file beside it, the label, holds `depends_on`.
        depends_on: everything that the values depend on. A file with another label is started again.
        offsets: (rows + 1,) int64, where each row's values begin.

    Attributes:
        rows: number of rows that an earlier attempt has done.
    """

    def __init__(self, path: Path, depends_on: dict[str, Any], offsets: np.ndarray) -> None:
        self.path, self.label = path, path.with_name(f"{path.name}.json")
        label = json.dumps(depends_on, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.path.is_file() and self.label.is_file() and self.label.read_text() == label):
            self.path.write_bytes(b"")
            self.label.write_text(label)
        starts = [*range(0, len(offsets) - 1, WINDOW), len(offsets) - 1]
        windows = int(np.searchsorted(offsets[starts], self.path.stat().st_size // 4, side="right")) - 1
        self.rows = starts[windows]
        with self.path.open("r+b") as file:
            file.truncate(4 * int(offsets[self.rows]))  # drops a window that was only partly written

    def add(self, values: list[np.ndarray]) -> None:
        """Append one window's values."""
        with self.path.open("ab") as file:
            file.write(np.concatenate(values).tobytes())

    def values(self) -> np.ndarray:
        """(offsets[-1],) float32, all values of a finished pass."""
        return np.fromfile(self.path, dtype=np.float32)

    def remove(self) -> None:
        self.path.unlink()
        self.label.unlink()
