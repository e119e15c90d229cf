"""`snapshots:` of a stage: models that a training passes through, each as if the training had ended there."""

from __future__ import annotations

from pathlib import Path

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.train.adopt import take
from halos.train.slices import RunSlice

FOLDER = "snapshot"
"""A snapshot's folder in that of its run, before its number from 1: snapshot3 of 8 is the model after 3/8 of the steps;
the last one is the run's own model."""


def step_at(share: float, steps: int) -> int:
    """The step that ends a share of a training of so many."""
    return max(1, round(share * steps))


def snapshot_steps(number: int | None, steps: int) -> dict[int, int]:
    """The steps after which a snapshot is taken, but for the last: step -> number of the snapshot.

    Args:
        number: snapshots of the training; None for none.
        steps: its steps.

    Raises:
        HalosError: there are fewer steps than snapshots.
    """
    if number is not None and number > steps:
        raise HalosError(f"snapshots: {number} are more than the {steps} steps of the training: lower it")
    return {step_at(i / number, steps): i for i in range(1, number)} if number else {}


def kept_snapshot(run: Path, number: int) -> Path:
    """Where a training writes a snapshot, a run's folder."""
    return run / "kept" / f"{FOLDER}{number}"


def snapshot(config: Path, run: Path, output: Path) -> None:
    """Take a snapshot of a finished training out of what it kept, as a run of its own that can be sampled and judged.

    Args:
        config: config.yaml of the snapshot
        run: folder of the training
        output: the snapshot's folder, named snapshotN: model/, train.jsonl and, last, manifest.json are written there

    Raises:
        HalosError: the training did not keep this snapshot.
    """
    settings, manifest = RunSlice.read(config), Manifest.read(run / "manifest.json")
    if manifest.diverged is not None:  # then it has its parent's weights at any step
        take(run, output, manifest.model_copy(update={"config": settings.content}))
        return
    kept = kept_snapshot(run, int(output.name.removeprefix(FOLDER)))
    finished, path = manifest, kept / "manifest.json"
    manifest = Manifest.read(path) if path.is_file() else manifest
    is_ours = RunSlice.model_validate(manifest.config).identity == settings.identity
    if not is_ours or manifest.inputs != finished.inputs:
        raise HalosError(f"{run} was trained without this snapshot: delete {run / 'manifest.json'}, and run snakemake "
                         "again to train it with the `snapshots` that its stage has now")  # fmt: skip
    take(kept, output, manifest)
