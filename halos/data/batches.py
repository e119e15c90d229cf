"""Global batches, and how they are cut into microbatches.

A global batch is defined by (seed, epoch, step) alone. How it is cut, by a budget of tokens, sorted by length, over
processes, is a matter of memory and speed and does not change its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halos.data.store import Store
from halos.reference import Reference


@dataclass(frozen=True)
class Microbatch:
    """B examples of R sequences each (R roles), role-major: sequences k*B .. (k+1)*B hold role k. S = R * B.

    Attributes:
        roles: the R roles.
        input_ids: (S, L) int64, prompt then response, padded on the right.
        prompt_lengths: (S,) int64.
        mask: (S, T) bool, True for each response token.
        reference: (S, T) float32 log-probabilities under the reference, or None.
        weight: (B,) float32, 1; 0 for a filler that only keeps processes in step.
        desirable: (B,) bool, in the unpaired view.
    """

    roles: tuple[str, ...]
    input_ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor
    reference: Tensor | None
    weight: Tensor
    desirable: Tensor | None

    def by_role(self, values: Tensor) -> dict[str, Tensor]:
        """(S, ...) -> {role: (B, ...)}."""
        return dict(zip(self.roles, values.chunk(len(self.roles)), strict=True))

    def to(self, device: torch.device) -> Microbatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens of its sequences, padding not counted."""
        return int((self.prompt_lengths.sum() + self.mask.sum()).item())


COLUMNS = {
    "sft": {"response": "sequence"},
    "paired": {"chosen": "chosen", "rejected": "rejected"},
    "unpaired": {"response": "sequence", "mismatched": "mismatched"},
}
"""view -> {role: the column of its sequences}."""


class Examples:
    """The examples of a view.

    Args:
        store: the sequence store.
        split: train or test.
        view: sft, paired or unpaired.
        reference: log-probabilities of the reference model, by sequence row, if the loss wants them.

    Attributes:
        rows: role -> (N,) sequence rows.
        desirable: (N,) bool in the unpaired view.
    """

    def __init__(self, store: Store, split: str, view: str, reference: Reference | None = None) -> None:
        table = store.view(split, view)
        self.store, self.reference = store, reference
        self.rows = {role: table[column].to_numpy() for role, column in COLUMNS[view].items()}
        self.desirable = table["desirable"].to_numpy() if view == "unpaired" else None

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def response_tokens(self, indices: np.ndarray, role: str) -> int:
        return int(self.store.lengths[self.rows[role][indices], 1].sum())

    def lengths(self, indices: np.ndarray, roles: Sequence[str]) -> np.ndarray:
        """(n,) tokens of the longest sequence of each example."""
        per_role = [self.store.lengths[self.rows[role][indices]].sum(-1) for role in roles]
        longest: np.ndarray = np.max(per_role, axis=0)
        return longest

    def microbatches(
        self, indices: np.ndarray, roles: tuple[str, ...], budget: int, rank: int = 0, world: int = 1
    ) -> Iterator[Microbatch]:
        """This process's share of a global batch, the same number of microbatches in every process."""
        parts = cut(self.lengths(indices, roles), budget // len(roles), world)
        for part in parts[rank::world]:
            chosen = indices[part] if len(part) else indices[:1]
            yield self._collate(chosen, roles, weight=1.0 if len(part) else 0.0)

    def _collate(self, indices: np.ndarray, roles: tuple[str, ...], weight: float) -> Microbatch:
        rows = np.concatenate([self.rows[role][indices] for role in roles])
        desirable = None if self.desirable is None else torch.from_numpy(self.desirable[indices])
        batch = collate(self.store, rows, self.reference)
        return replace(batch, roles=roles, weight=torch.full((len(indices),), weight), desirable=desirable)


def collate(store: Store, rows: np.ndarray, reference: Reference | None = None) -> Microbatch:
    """The sequences `rows` as one microbatch with a single role."""
    lengths = store.lengths[rows].astype(np.int64)
    ids = np.zeros((len(rows), lengths.sum(-1).max()), dtype=np.int64)
    values = np.zeros((len(rows), lengths[:, 1].max()), dtype=np.float32)
    for i, row in enumerate(rows):
        prompt, response = store.sequence(row)
        ids[i, : len(prompt)] = prompt
        ids[i, len(prompt) : len(prompt) + len(response)] = response
        if reference is not None:
            values[i, : len(response)] = reference[row]
    mask = np.arange(values.shape[1]) < lengths[:, 1:]
    return Microbatch(
        roles=("response",),
        input_ids=torch.from_numpy(ids),
        prompt_lengths=torch.from_numpy(lengths[:, 0]),
        mask=torch.from_numpy(mask),
        reference=None if reference is None else torch.from_numpy(values),
        weight=torch.ones(len(rows)),
        desirable=None,
    )


OVERHEAD = 128
"""What one more microbatch costs, in tokens: it keeps `cut` from cutting finer than is worth it."""


def cut(lengths: np.ndarray, budget: int, world: int = 1) -> list[np.ndarray]:
    """Cut examples into microbatches of at most `budget` padded tokens, similar lengths together, least padding.

    Args:
        lengths: (n,) tokens of each example.
        budget: tokens of a microbatch, padding counted; an example longer than it gets one of its own.
        world: the number of microbatches is made a multiple of it, the largest first, so that each process, taking
            every world-th, has about as much to do as the others.

    Returns:
        Positions into `lengths`; empty arrays where there are fewer examples than processes.
    """
    order = np.argsort(-lengths, kind="stable")
    parts: list[np.ndarray] = []
    for start in range(0, len(order), 512):
        window = order[start : start + 512]
        bounds = _best_cuts(lengths[window], budget)
        parts += [window[i:j] for i, j in pairwise(bounds)]
    while len(parts) % world:
        widest = max(range(len(parts)), key=lambda k: len(parts[k]))
        half = len(parts[widest]) // 2
        if half:
            parts[widest : widest + 1] = [parts[widest][:half], parts[widest][half:]]
        else:
            parts.append(order[:0])
    return sorted(parts, key=lambda part: -len(part) * int(lengths[part].max(initial=0)))


def _best_cuts(lengths: np.ndarray, budget: int) -> list[int]:
    """Bounds of consecutive parts of descending `lengths` with the least padded tokens and overhead in all: cheapest[j]
    is the cost of the first j, and its last part begins at begins[j]."""
    n = len(lengths)
    cheapest, begins = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for j in range(1, n + 1):
        first = np.arange(j)
        padded = lengths[first] * (j - first)
        cost = np.where((padded <= budget) | (first == j - 1), cheapest[:j] + padded + OVERHEAD, np.inf)
        begins[j] = np.argmin(cost)
        cheapest[j] = cost[begins[j]]
    bounds = [n]
    while bounds[-1]:
        bounds.append(int(begins[bounds[-1]]))
    return bounds[::-1]


class GlobalBatches:
    """Which examples make up each global batch.

    Args:
        n: number of examples.
        batch_size: examples of a global batch; the last one of an epoch may be smaller.
        epochs: passes over the examples.
        examples: stop with the first step by which so many were seen, whatever the epochs.
        seed: of the shuffling.
    """

    def __init__(self, n: int, batch_size: int, epochs: int, examples: int | None, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.per_epoch = -(-n // batch_size)
        epochs, rest = (epochs, 0) if examples is None else divmod(examples, n)
        self.steps = self.per_epoch * epochs + -(-rest // batch_size)
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the examples of one step, counted from 0."""
        epoch, within = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n))
        return self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]

    def examples_until(self, step: int) -> int:
        """Examples seen in the first `step` steps."""
        epochs, within = divmod(step, self.per_epoch)
        return epochs * self.n + min(within * self.batch_size, self.n)
