"""Reference log-probabilities: one pass over the sequence store by the frozen parent, shared by every loss.

`responses` holds those of real responses, `mismatched` those of the mismatched sequences; `scores` holds what a reward
model gives to real responses. A file knows the weights, the store and the template it was made from, and a training
that would use it with others is refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from halos.reference.cache import MADE_FROM, SCORES, expected_hashes
from halos.settings import read_slice

if TYPE_CHECKING:
    from halos.tokens.store import Store


WINDOW = 2048
"""Sequences after which a pass that was stopped can go on; microbatches are cut within them."""


def reference(
    config: Path,
    parent: Path,
    store: Path,
    part: Literal["responses", "mismatched", "scores"],
    output: Path,
    tokens_per_microbatch: int = 16384,
) -> None:
    """The verb: one pass of `parent` over a part of the store. A pass that was stopped goes on after its last window.

    Args:
        config: slice of the parent's cell (`attention`, `precision`).
        parent: folder with `model/` and `manifest.json`.
        store: sequence store.
        part: `responses` or `mismatched`; `scores` when the parent is a reward model.
        output: safetensors file: `logps` (float32, all response tokens, or one score each, in the order of their rows),
            `offsets` (int64).
        tokens_per_microbatch: tokens of one forward pass, padding included.
    """
    import torch

    from halos.distributed.accelerator import accelerator_for
    from halos.forward.budget import cut, pack
    from halos.forward.microbatch import collate
    from halos.forward.networks import ResponseLogps, SequenceScores
    from halos.forward.packable import pack_rows
    from halos.models.load import check, freeze, load
    from halos.tokens.store import Store

    settings = read_slice(config)
    opened: Store = Store(store)
    rows = np.arange(opened.n_responses, len(opened)) if part == "mismatched" else np.arange(opened.n_responses)
    kept = np.ones(len(rows), np.int64) if part == SCORES else opened.lengths[rows, 1].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(kept)])
    first = opened.n_responses if part == "mismatched" else 0
    made_from = {**expected_hashes(parent, opened), "first": str(first), "part": part}
    accelerator = accelerator_for(settings["precision"])
    if part == SCORES:
        check(parent / "model")
    network = load(parent / "model", settings["attention"], score=part == SCORES)
    module = SequenceScores(network) if part == SCORES else ResponseLogps(network)
    padded = pack_rows(module, int(opened.lengths.sum(-1).max()))
    if padded is not None:
        print(f"sequences are padded and prompts not shared, because {padded}", file=sys.stderr)
    freeze(network, settings["precision"])
    model = accelerator.prepare(module).eval()
    done = _Done(output.with_name(f".{output.name}.partial"), {**made_from, **settings}, offsets)
    tokens = opened.lengths[rows].sum(-1)
    bar = tqdm(total=int(tokens.sum()), initial=int(tokens[: done.rows].sum()), desc=f"reference {part}",
               unit=" tokens", unit_scale=True, mininterval=1)  # fmt: skip
    for start in range(done.rows, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        lengths, budget = opened.lengths[window], tokens_per_microbatch
        parts = pack(opened.prompt_of(window), lengths, budget) if padded is None else cut(lengths.sum(-1), budget)
        values = [np.zeros(0, np.float32)] * len(window)
        for chosen in parts:
            batch = collate(opened, window[chosen], packed=padded is None).to(accelerator.device)
            with torch.inference_mode():
                [found] = model(batch).values()
            for k, row in zip(chosen, found.reshape(len(chosen), -1).float().cpu().numpy(), strict=True):
                values[k] = row[: kept[start + k]]
            bar.update(batch.tokens)
        done.add(values)
    bar.close()
    temporary = output.with_name(f".{output.name}.whole")
    save_file(
        {"logps": done.values(), "offsets": offsets},
        temporary,
        metadata={MADE_FROM: json.dumps(made_from, sort_keys=True)},
    )
    temporary.replace(output)
    done.remove()


class _Done:
    """What a pass has computed so far: float32 values in the order of their rows, in a file that grows by windows.

    Args:
        path: the file; what its values depend on stands beside it.
        belongs_to: all that they depend on. A file that belongs to something else is begun anew.
        offsets: (rows + 1,) where each row's values begin.

    Attributes:
        rows: how many an earlier attempt has done.
    """

    def __init__(self, path: Path, belongs_to: dict[str, Any], offsets: np.ndarray) -> None:
        self.path, self.label = path, path.with_name(f"{path.name}.json")
        label = json.dumps(belongs_to, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.path.is_file() and self.label.is_file() and self.label.read_text() == label):
            self.path.write_bytes(b"")
            self.label.write_text(label)
        starts = [*range(0, len(offsets) - 1, WINDOW), len(offsets) - 1]
        whole = int(np.searchsorted(offsets[starts], self.path.stat().st_size // 4, side="right")) - 1
        self.rows = starts[whole]
        with self.path.open("r+b") as file:
            file.truncate(4 * int(offsets[self.rows]))  # a window that was cut off in writing is done again

    def add(self, values: list[np.ndarray]) -> None:
        with self.path.open("ab") as file:
            file.write(np.concatenate(values).tobytes())

    def values(self) -> np.ndarray:
        return np.fromfile(self.path, dtype=np.float32)

    def remove(self) -> None:
        self.path.unlink()
        self.label.unlink()
