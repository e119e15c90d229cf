"""The verb: train the last stage of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halos.distributed import slurm
from halos.train.trainer import Trainer


def train(
    config: Path,
    parent: Path,
    store: Path,
    output: Path,
    reference: Sequence[Path] = (),
    reference_of: Path | None = None,
    scores: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    gradient_checkpointing: bool = False,
    time_limit: float | None = None,
) -> None:
    """Train the last stage of a cell.

    Args:
        config: config.yaml of the run.
        parent: folder of the parent model, with model/ and manifest.json.
        store: sequence store.
        output: folder of the run.
        reference: files of the reference's log-probabilities, one for each part that the loss reads.
        reference_of: folder of the reference model, with manifest.json; by default the parent's.
        scores: a reward model's scores of the store, for a stage with a reward model.
        tokens_per_microbatch: tokens of one forward pass on one device, padding included.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        time_limit: minutes after which to stop with a checkpoint.
    """
    limit = slurm.time_limit(time_limit)
    Trainer(config, parent, store, output, list(reference), reference_of, list(scores), tokens_per_microbatch,
            gradient_checkpointing, limit).run()  # fmt: skip
