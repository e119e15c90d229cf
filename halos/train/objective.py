"""halos.train.objective."""

from __future__ import annotations

from halos.losses.base import Batch, Logps

Given = tuple[Logps, Logps, Batch]
"""What a loss is called with."""
