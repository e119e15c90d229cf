"""One job of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from halos.plan.memory import Memory
from halos.study.cells import Cell


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        kind: id of a stage, `reference`, `sample` or `divergence`.
        devices: number of GPUs, or of processes on the CPU.
        memory: peak memory of one device.
        main: bytes of main memory on one node.
        seconds: wall time.
        disk: bytes that stay on disk.
        origin: where the time comes from: `estimate`, `measured`, or `corrected` by the model's finished cells.
    """

    kind: str
    cell: Cell
    devices: int
    memory: Memory
    main: float
    seconds: float
    disk: float = 0
    origin: str = "estimate"
