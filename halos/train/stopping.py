"""Early ends of a run: its time limit or a signal, agreed on by all processes."""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

from halos.errors import HalosError

MARGIN = 120
"""Seconds kept free before a time limit, for the checkpoint."""


class Stopped(HalosError):
    """The run ended early with a checkpoint; the same command goes on from there."""


class Stopping:
    """When a run has to end early. Its time limit counts from the construction.

    Args:
        time_limit: minutes, or None for no limit. The run stops `MARGIN` seconds before, or at half of a short limit.
    """

    def __init__(self, time_limit: float | None) -> None:
        self._deadline: float | None = None
        if time_limit is not None:
            self._deadline = time.monotonic() + max(60 * time_limit - MARGIN, 30 * time_limit)
        self._signal: int | None = None

    def listen(self) -> None:
        """Take SIGTERM (Slurm, `kill`) and SIGINT (Ctrl-C) as requests to stop after the current step."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def reason(self, accelerator: Accelerator) -> str | None:
        """Why to stop now, the same in every process; None to go on. All processes call it after the same step."""
        out_of_time = self._deadline is not None and time.monotonic() > self._deadline
        flags = torch.tensor([float(out_of_time), float(self._signal is not None)], device=accelerator.device)
        if accelerator.num_processes > 1:
            flags = accelerator.reduce(flags, reduction="sum")
        return "its time limit" if flags[0] else "a signal" if flags[1] else None
