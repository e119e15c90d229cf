"""Global batches, and how they are cut into microbatches.

A global batch is defined by (seed, epoch, step) alone. How it is cut, by a budget of tokens, sorted by length, over
processes, is a matter of memory and speed and does not change its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from halos.data.store import Store
from halos.reference import Reference


@dataclass(frozen=True)
class Microbatch:
    """B responses of R roles each, role-major: sequences k*B .. (k+1)*B hold role k. S = R * B.

    Attributes:
        roles: the R roles.
        input_ids: (S, L) int64, prompt then response, padded on the right.
        prompt_lengths: (S,) int64.
        mask: (S, T) bool, True for each response token.
        reference: (S, T) float32 log-probabilities under the reference, or None.
        weight: (B,) float32, the share of its example: 1, or 1 / the size of its group; 0 for a filler that only keeps
            processes in step.
        labels: name -> (B,) what is known of the responses: desirable, scores, advantages.
    """

    roles: tuple[str, ...]
    input_ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor
    reference: Tensor | None
    weight: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def by_role(self, values: Tensor) -> dict[str, Tensor]:
        """(S, ...) -> {role: (B, ...)}."""
        return dict(zip(self.roles, values.chunk(len(self.roles)), strict=True))

    def to(self, device: torch.device) -> Microbatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved, labels={k: v.to(device) for k, v in self.labels.items()})

    @property
    def lengths(self) -> Tensor:
        """(S,) tokens of each sequence."""
        return self.prompt_lengths + self.mask.sum(-1)

    @property
    def filler(self) -> bool:
        """Whether its only example is another one's, to keep processes in step."""
        return not bool(self.weight[0])


COLUMNS = {
    "sft": {"response": "sequence"},
    "paired": {"chosen": "chosen", "rejected": "rejected"},
    "unpaired": {"response": "sequence", "mismatched": "mismatched"},
    "grouped": {"response": "sequences"},
}
"""view -> {role: the column of its sequences}."""


class Examples:
    """The examples of a view.

    An example of the grouped view holds several responses, any other one; a global batch is of whole examples, and its
    microbatches are of responses.

    Args:
        store: the sequence store.
        table: the index table, or a part of it.
        view: sft, paired, unpaired or grouped.
        reference: log-probabilities of the reference model, by sequence row, if the loss wants them.
        scores: (sequences,) of a reward model, by sequence row, instead of the data's own.
        control: role -> a token that stands between that role's prompts and responses.

    Attributes:
        rows: role -> (M,) sequence rows of the M responses.
        labels: name -> (M,) in the unpaired view `desirable` (bool, unless some have no label) and `scores` (float32,
            NaN where there is none), in the grouped view `scores` and `advantages` (float32).
    """

    def __init__(
        self,
        store: Store,
        table: pa.Table,
        view: str,
        reference: Reference | None = None,
        scores: np.ndarray | None = None,
        control: Mapping[str, int] | None = None,
    ) -> None:
        self.store, self.reference, self.control = store, reference, control or {}
        columns = {role: table[column] for role, column in COLUMNS[view].items()}
        sizes = np.ones(table.num_rows, dtype=np.int64)
        if view == "grouped":
            sizes = pc.list_value_length(columns["response"]).to_numpy().astype(np.int64)
            columns = {role: pc.list_flatten(column) for role, column in columns.items()}
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.rows = {role: column.to_numpy() for role, column in columns.items()}
        self.weight = np.repeat(1 / sizes, sizes).astype(np.float32)
        self.labels: dict[str, np.ndarray] = {}
        if view in ("unpaired", "grouped"):
            own = table["score"] if view == "unpaired" else pc.list_flatten(table["scores"])
            found = scores[self.rows["response"]] if scores is not None else own.to_numpy()
            self.labels["scores"] = found.astype(np.float32)
        if view == "unpaired" and not table["desirable"].null_count:  # scores alone may do
            self.labels["desirable"] = table["desirable"].to_numpy()
        if view == "grouped":
            self.labels["advantages"] = advantages(self.labels["scores"], self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> dict[str, int]:
        """How many examples and responses there are, and of which label."""
        found = {"examples": len(self), "responses": len(self.weight)}
        if "desirable" in self.labels:
            desirable = int(self.labels["desirable"].sum())
            found |= {"desirable": desirable, "undesirable": len(self) - desirable}
        return found

    def responses(self, indices: np.ndarray) -> np.ndarray:
        """The responses of some examples, as indices into `rows` and `labels`."""
        return np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices])

    def response_tokens(self, indices: np.ndarray, roles: Sequence[str]) -> int:
        """Response tokens of some examples, in all roles."""
        found = self.responses(indices)
        return sum(int(self.store.lengths[self.rows[role][found], 1].sum()) for role in roles)

    def lengths(self, responses: np.ndarray, roles: Sequence[str]) -> np.ndarray:
        """(n,) tokens of the longest of each response's sequences."""
        per_role = [self.store.lengths[self.rows[role][responses]].sum(-1) + (role in self.control) for role in roles]
        longest: np.ndarray = np.max(per_role, axis=0)
        return longest

    def microbatches(
        self, indices: np.ndarray, roles: tuple[str, ...], budget: int, rank: int = 0, world: int = 1
    ) -> Iterator[Microbatch]:
        """This process's share of a global batch of examples, the same number of microbatches in every process."""
        responses = self.responses(indices)
        parts = cut(self.lengths(responses, roles), budget // len(roles), world)
        for part in parts[rank::world]:
            yield self._collate(responses[part], roles) if len(part) else self._filler(responses[:1], roles)

    def _collate(self, responses: np.ndarray, roles: tuple[str, ...]) -> Microbatch:
        rows = np.concatenate([self.rows[role][responses] for role in roles])
        control = np.repeat([self.control.get(role, -1) for role in roles], len(responses))
        labels = {name: torch.from_numpy(values[responses]) for name, values in self.labels.items()}
        batch = collate(self.store, rows, self.reference, control)
        return replace(batch, roles=roles, weight=torch.from_numpy(self.weight[responses]), labels=labels)

    def _filler(self, responses: np.ndarray, roles: tuple[str, ...]) -> Microbatch:
        return replace(self._collate(responses, roles), weight=torch.zeros(1))


def advantages(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(M,) float32, each score less the mean of its group, over the group's standard deviation; 0 in a group of equals.

    Args:
        scores: (M,) of all groups, one after the other.
        offsets: (N + 1,) where each group begins, and the end.
    """
    sizes = np.diff(offsets)
    mean = np.add.reduceat(scores.astype(np.float64), offsets[:-1]) / sizes
    difference = scores - np.repeat(mean, sizes)
    deviation = np.sqrt(np.add.reduceat(difference**2, offsets[:-1]) / sizes)
    found: np.ndarray = (difference / np.maximum(np.repeat(deviation, sizes), 1e-6)).astype(np.float32)
    return found


def collate(
    store: Store, rows: np.ndarray, reference: Reference | None = None, control: np.ndarray | None = None
) -> Microbatch:
    """The sequences `rows` as one microbatch with a single role.

    Args:
        control: (S,) the token between prompt and response, -1 for none.
    """
    lengths = store.lengths[rows].astype(np.int64)
    before = np.full(len(rows), -1) if control is None else control
    lengths[:, 0] += before >= 0
    ids = np.zeros((len(rows), lengths.sum(-1).max()), dtype=np.int64)
    values = np.zeros((len(rows), lengths[:, 1].max()), dtype=np.float32)
    for i, row in enumerate(rows):
        prompt, response = store.sequence(row)
        start = lengths[i, 0]
        ids[i, : len(prompt)] = prompt
        if before[i] >= 0:
            ids[i, start - 1] = before[i]
        ids[i, start : start + len(response)] = response
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
        inner_epochs: steps on each global batch, one after the other.
    """

    def __init__(
        self, n: int, batch_size: int, epochs: int, examples: int | None, seed: int, inner_epochs: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed, self.inner_epochs = n, batch_size, seed, inner_epochs
        self.per_epoch = -(-n // batch_size)
        epochs, rest = (epochs, 0) if examples is None else divmod(examples, n)
        self.steps = (self.per_epoch * epochs + -(-rest // batch_size)) * inner_epochs
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the examples of one step, counted from 0."""
        epoch, within = divmod(step // self.inner_epochs, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n))
        return self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]

    def examples_until(self, step: int) -> int:
        """Examples seen in the first `step` steps."""
        epochs, within = divmod(-(-step // self.inner_epochs), self.per_epoch)
        return epochs * self.n + min(within * self.batch_size, self.n)
