"""Why a training stops early: its time limit, or a signal."""

from __future__ import annotations

from halos.errors import HalosError

MARGIN = 120
"""Seconds kept free before a time limit, for the checkpoint."""


class Stopped(HalosError):
    """The run ended early with a checkpoint; the same command goes on from there."""
