"""The verb: train the last stage of a cell."""

from __future__ import annotations

from typing import Any

from halos.distributed import slurm
from halos.train.trainer import Trainer


def train(**options: Any) -> None:
    """The verb: train one cell's last stage. The options are those of `Trainer`."""
    Trainer(**{**options, "time_limit": slurm.time_limit(options["time_limit"])}).run()
