"""Quantities of a global batch, brought together over microbatches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sums:
    """Sums and weights of named values over microbatches, brought together over processes in one exchange."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weight: Tensor | None = None) -> None:
        """Add values (any shape); `weight` 0 leaves one out. The name is kept even when there are none."""
        values = values.detach().float()
        weight = torch.ones_like(values) if weight is None else weight.float()
        pair = torch.stack([(values * weight).sum(), weight.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def over(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """name -> (sum, weight) over all processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        total = torch.stack([self._sums[name] for name in names])
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, reduction="sum")
        return {name: (row[0], row[1]) for name, row in zip(names, total.tolist(), strict=True)}


def means(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The mean of each name that has any weight."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


class Gathered:
    """Named values of every example of a global batch, collected over microbatches, then over processes."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._names: list[str] = []

    def add(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Add (B,) values of each name; examples of `weight` 0 are fillers."""
        self._names = sorted(values)
        self._rows.append(torch.stack([(weight > 0).float(), *(values[k].detach().float() for k in self._names)], -1))

    def over(self, accelerator: Any) -> dict[str, Tensor]:
        """name -> (N,) of all N examples of all processes."""
        rows = torch.cat(self._rows)
        if accelerator.num_processes > 1:  # each has another number of examples: padded with rows that do not count
            rows = accelerator.gather(accelerator.pad_across_processes(rows, dim=0, pad_index=0))
        rows = rows[rows[:, 0] > 0, 1:]
        return dict(zip(self._names, rows.unbind(-1), strict=True))
