"""Computation of reference log-probabilities: one pass of the frozen parent over the sequence store, for every loss."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from halos.distributed.accelerator import accelerator_for
from halos.distributed.loading import Weights, build, from_main
from halos.distributed.sharding import name_layers, prepare_frozen
from halos.errors import HalosError
from halos.forward.budget import cut, pack
from halos.forward.microbatch import collate
from halos.forward.networks import ResponseLogps, SequenceScores
from halos.forward.packable import Trial, check_finite, check_side_by_side
from halos.models.fused import apply_liger, check_liger, compile_layers
from halos.models.load import freeze, load
from halos.models.rewards import check_reward_model, is_gated, labels_of
from halos.pretrained import read_config, read_tokenizer
from halos.reference.cache import BOTH, SCORES, expected_hashes, write_values
from halos.reference.settings import ReferenceSlice
from halos.tokens.store import Store

WINDOW = 2048
"""Sequences of one window. A pass that was stopped resumes after its last window; microbatches do not cross windows."""


def reference(
    config: Path,
    parent: Path,
    store: Path,
    part: Literal["responses", "mismatched", "both", "scores"],
    output: Path,
    tokens_per_microbatch: int = 16384,
    vocabulary: Sequence[Path] = (),
) -> None:
    """Cache a model's log-probabilities of a sequence store, or a reward model's scores.

    The output is a safetensors file. `logps` (float32) holds the log-probabilities of all response tokens, or one score
    for each sequence, in the order of the store's rows; `offsets` (int64) says where each row's values begin. Its
    metadata names the hashes of the weights, the store and the template that it was made from. A pass that was stopped
    resumes after its last window. Of several processes each computes a share, or holds one of the weights.

    Args:
        config: config.yaml of the model's cell, for attention and precision.
        parent: folder of the model, with model/ and manifest.json.
        store: sequence store.
        part: sequences to run: real responses, mismatched ones, both, or (for a reward model) scores of real ones.
        output: file to write, safetensors.
        tokens_per_microbatch: tokens of one forward pass on one device, padding included.
        vocabulary: model folder whose tokenizer made the store, where it is another model's.

    Raises:
        HalosError: the parent is not finished, is not the kind of model that `part` needs, or has another vocabulary.
    """
    for other in vocabulary:
        check_vocabulary(parent / "model", other)

    settings = ReferenceSlice.read(config)
    sequences = Store(store)
    n = sequences.n_responses
    first = n if part == "mismatched" else 0
    rows = np.arange(first, len(sequences) if part in ("mismatched", BOTH) else n)
    sizes = np.ones(len(rows), np.int64) if part == SCORES else sequences.lengths[rows, 1].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    made_from = {**expected_hashes(parent, sequences), "first": str(first), "part": part}
    accelerator = accelerator_for(settings.precision)
    if part == SCORES:
        check_reward_model(parent / "model")
        if is_gated(parent / "model") or labels_of(parent / "model") > 1:
            raise HalosError(
                f"the reward model in {parent} is from elsewhere: `python -m halos score` makes its scores"
            )
    quantization = None if part == SCORES else settings.quantization  # a reward model scores as it is published
    if quantization is not None and accelerator.is_fsdp2:
        raise HalosError("quantised weights cannot be sharded: set `parallel: ddp` in the model's resources")
    if settings.liger:
        check_liger(read_config(parent / "model"))

    def begin(found: Trial | None = None) -> tuple[tuple[Any, str | None], Trial]:
        network = load(
            parent / "model", settings.attention, score=part == SCORES, weights=found is None, quantization=quantization
        )
        module = SequenceScores(network) if part == SCORES else ResponseLogps(network)
        if found is None:
            found = Trial.of(module, int(sequences.lengths.sum(-1).max()))
        else:
            found.apply(module)
        freeze(network, settings.precision)
        if settings.liger:
            apply_liger(network)
        return (module, found.unpacked_because), found

    module, not_packable = build(begin, accelerator)
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if not_packable is not None and main:
        print(f"packing is off: {not_packable}", file=sys.stderr)
    weights = None
    if accelerator.is_fsdp2:
        check_side_by_side(module)
        name_layers(module)
        weights = Weights.take(module, accelerator)
    if settings.compile:
        compile_layers(module)
    model = prepare_frozen(module, accelerator).eval()
    if weights is not None:
        weights.hand_out(model)
    depends_on = {**made_from, **settings.model_dump(exclude={"plugins", "local"}), "quantization": quantization}
    done = Done(output, depends_on, offsets, accelerator)
    tokens = sequences.lengths[rows].sum(-1)
    bar = tqdm(total=int(tokens.sum()), initial=int(tokens[: done.rows].sum()), desc=f"reference {part}",
               unit=" tokens", unit_scale=True, mininterval=1, disable=not main)  # fmt: skip
    for start in range(done.rows, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        lengths, budget = sequences.lengths[window], tokens_per_microbatch
        if not_packable is None:
            microbatches = pack(sequences.prompt_of(window), lengths, budget)
        else:
            microbatches = cut(lengths.sum(-1), budget)
        ours: dict[int, np.ndarray] = {}
        for at in range(0, len(microbatches), world):
            turn = microbatches[at : at + world]
            if rank >= len(turn) and not accelerator.is_fsdp2:
                break
            members = turn[min(rank, len(turn) - 1)]  # the others need its shard: it runs one of theirs once more
            batch = collate(sequences, window[members], packed=not_packable is None).to(accelerator.device)
            with torch.no_grad():
                [outputs] = model(batch).values()
            check_finite(module.model, {part: outputs})
            values = outputs.reshape(len(members), -1).float().cpu().numpy()
            ours |= {k: row[: sizes[start + k]] for k, row in zip(members.tolist(), values, strict=True)}
            bar.update(int(lengths[np.concatenate(turn)].sum()))
        shares = {k: row for share in gather_object([ours]) for k, row in share.items()}
        done.add([shares[k] for k in range(len(window))])
    bar.close()
    done.finish(made_from)


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

    The main process has the file; all call every method.

    Args:
        output: the file of the finished pass. That of an unfinished one is beside it, and a JSON file, the label, which
            holds `depends_on`.
        depends_on: everything that the values depend on. A file with another label is started again.
        offsets: (rows + 1,) int64, where each row's values begin.
        processes: the processes that make the pass together.

    Attributes:
        rows: number of rows that an earlier attempt has done.
    """

    def __init__(self, output: Path, depends_on: dict[str, Any], offsets: np.ndarray, processes: Any) -> None:
        self.output, self.offsets, self.processes = output, offsets, processes
        self.path = output.with_name(f".{output.name}.partial")
        self.label = self.path.with_name(f"{self.path.name}.json")
        self.rows = from_main(partial(self._open, json.dumps(depends_on, sort_keys=True)), processes)

    def _open(self, label: str) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.path.is_file() and self.label.is_file() and self.label.read_text() == label):
            self.path.write_bytes(b"")
            self.label.write_text(label)
        starts = [*range(0, len(self.offsets) - 1, WINDOW), len(self.offsets) - 1]
        windows = int(np.searchsorted(self.offsets[starts], self.path.stat().st_size // 4, side="right")) - 1
        rows = int(starts[windows])
        with self.path.open("r+b") as file:
            file.truncate(4 * int(self.offsets[rows]))  # drops a window that was only partly written
        return rows

    def add(self, values: list[np.ndarray]) -> None:
        """Append one window's values."""
        if self.processes.is_main_process:
            with self.path.open("ab") as file:
                file.write(np.concatenate(values).tobytes())

    def finish(self, made_from: Mapping[str, str]) -> None:
        """Write the file of the finished pass; no process returns before it is there."""
        from_main(partial(self._finish, made_from), self.processes)

    def _finish(self, made_from: Mapping[str, str]) -> None:
        write_values(self.output, np.fromfile(self.path, dtype=np.float32), self.offsets, made_from)
        self.path.unlink()
        self.label.unlink()
