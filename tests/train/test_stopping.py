"""Early ends of a run: when its time limit counts, and that all processes agree."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from halos.train.stopping import Stopping


class Processes:
    """This process beside others that want to stop for a reason, or do not."""

    device = torch.device("cpu")

    def __init__(self, *flags: tuple[float, float]) -> None:
        self.others, self.num_processes = torch.tensor([(0.0, 0.0), *flags]).sum(0), 1 + len(flags)

    def reduce(self, flags: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return flags + self.others


@pytest.mark.parametrize(("minutes", "seconds"), [(60, 3480), (4, 120), (3, 90), (0.5, 15), (0, 0)])
def test_a_time_limit_leaves_two_minutes_or_half_of_a_short_one(
    minutes: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stopping, alone = Stopping(minutes), Processes()
    now = 1000.0 + seconds
    assert stopping.reason(alone) is None
    now += 1
    assert stopping.reason(alone) == "its time limit"


@pytest.mark.parametrize(
    ("flags", "reason"), [((0.0, 0.0), None), ((1.0, 0.0), "its time limit"), ((0.0, 1.0), "a signal")]
)
def test_what_one_process_stops_for_stops_all(flags: Any, reason: str | None) -> None:
    assert Stopping(None).reason(Processes((0.0, 0.0), flags)) == reason
