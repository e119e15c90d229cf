"""Reductions over the microbatches and processes of a global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sums:
    """Weighted sums of named values over microbatches, then over processes in one all-reduce."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weight: Tensor | None = None) -> None:
        """Add one microbatch's values.

        Args:
            name: name of the values; each process must add the same names, with empty values if it has none.
            values: values of any shape.
            weight: weight of each value, of the same shape; 0 leaves it out. All 1 by default.
        """
        values = values.detach().float()
        weight = torch.ones_like(values) if weight is None else weight.float()
        pair = torch.stack([(values * weight).sum(), weight.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def over(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """{name: (weighted sum, total weight)} over all processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        total = torch.stack([self._sums[name] for name in names])
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, reduction="sum")
        return {name: (row[0], row[1]) for name, row in zip(names, total.tolist(), strict=True)}


def means(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """{name: mean}, without the names whose total weight is 0."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


class Gathered:
    """Named values of every example of a global batch, gathered over microbatches, then over processes."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._names: list[str] = []

    def add(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Add one microbatch's values.

        Args:
            values: name -> (B,) values of its examples.
            weight: (B,) weight of the examples; those with 0 are fillers and are left out.
        """
        self._names = sorted(values)
        self._rows.append(torch.stack([(weight > 0).float(), *(values[k].detach().float() for k in self._names)], -1))

    def over(self, accelerator: Any) -> dict[str, Tensor]:
        """{name: (N,)} of the N examples of all processes, without fillers."""
        rows = torch.cat(self._rows)
        if accelerator.num_processes > 1:  # they differ in their number of examples: padded with rows of weight 0
            rows = accelerator.gather(accelerator.pad_across_processes(rows, dim=0, pad_index=0))
        rows = rows[rows[:, 0] > 0, 1:]
        return dict(zip(self._names, rows.unbind(-1), strict=True))
