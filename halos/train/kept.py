"""The state that a finished run kept, from which another run goes on."""

from __future__ import annotations

from pathlib import Path

from halos.errors import HalosError
from halos.manifest import KEPT, Manifest
from halos.train.checkpoints import fingerprint, read_meta
from halos.train.slices import RunSlice


def kept_state(run: Path, again: Path | None = None) -> Path:
    """The folder of the state at the end of a run, see `Checkpoints.write`.

    Args:
        run: folder of the finished run.
        again: folder to delete, so that it is made again, where it is not there; by default the run's.

    Raises:
        HalosError: it is not there, or is that of another run.
    """
    manifest, path = Manifest.read(run / "manifest.json"), run / KEPT
    then = fingerprint(RunSlice.model_validate(manifest.config).identity, manifest.inputs)
    now = read_meta(path).get("fingerprint")
    if now != then:
        what = "is not there" if now is None else "is of another run"
        raise HalosError(
            f"{path}, the optimiser's state at the end of that run, {what}: delete {again or run} and run snakemake "
            f"again"
        )
    return path
