"""One forward pass on one device: responses by role, the tokens in rows, and what is known of each response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halos.forward import layout as layouts
from halos.forward.attention import Packing
from halos.forward.layout import Layout, Text
from halos.reference.cache import Reference
from halos.tokens.store import Store


@dataclass(frozen=True)
class Microbatch:
    """B responses of R roles each, role-major: sequences k*B .. (k+1)*B hold role k. S = R * B.

    Attributes:
        roles: the R roles.
        layout: the tokens in rows.
        mask: (S, T) bool, True for each response token.
        reference: (S, T) float32 log-probabilities under the reference, or None.
        weight: (B,) float32, the share of its example: 1, or 1 / the size of its group.
        tokens: of its sequences, each with the whole of its prompt; 0 for a filler, a copy of another's example that
            only keeps processes in step.
        labels: name -> (B,) what is known of the responses: desirable, scores, advantages.
        packing: of a packed row, what the attention needs to know; else None.
        following: the same responses in other roles, whose prompts are those of this row, to be run after it.
    """

    roles: tuple[str, ...]
    layout: Layout
    mask: Tensor
    reference: Tensor | None
    weight: Tensor
    tokens: int
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    packing: Packing | None = None
    following: Microbatch | None = None

    def by_role(self, values: Tensor) -> dict[str, Tensor]:
        """(S, ...) -> {role: (B, ...)}."""
        return dict(zip(self.roles, values.chunk(len(self.roles)), strict=True))

    def to(self, device: torch.device, prompts: Packing | None = None) -> Microbatch:
        """The same on a device; `prompts` is the packing of the row that holds the prompts, if it is another."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | Layout)}
        labels = {k: v.to(device) for k, v in self.labels.items()}
        segments = self.layout.segments
        packing = None if segments is None else Packing(segments, device, prompts)
        following = None if self.following is None else self.following.to(device, packing)
        return replace(self, **moved, labels=labels, packing=packing, following=following)

    def emptied(self) -> Microbatch:
        """A filler made of this: all is run, and nothing counts."""
        following = None if self.following is None else self.following.emptied()
        return replace(self, weight=torch.zeros_like(self.weight), tokens=0, following=following)

    @property
    def filler(self) -> bool:
        return not self.tokens

    @property
    def positions(self) -> int:
        """What the model computes, padding included."""
        return self.layout.input_ids.numel()

    @property
    def real(self) -> int:
        """Positions that hold a token of an example, and no filler's or padding."""
        return 0 if self.filler else self.positions - self.layout.padding


def texts_of(store: Store, rows: np.ndarray, control: np.ndarray | None = None) -> list[Text]:
    """Sequences of a store, with a token between prompt and response where `control`, (S,), is not -1."""
    before = np.full(len(rows), -1) if control is None else control
    keys = store.prompt_of(rows)
    found = []
    for row, key, token in zip(rows, keys.tolist(), before.tolist(), strict=True):
        prompt, response = store.sequence(row)
        tail = response if token < 0 else np.concatenate([[token], response])
        found.append(Text(key, prompt, tail, lead=int(token >= 0)))
    return found


def microbatch(store: Store, rows: np.ndarray, layout: Layout, reference: Reference | None = None) -> Microbatch:
    """The sequences `rows`, laid out, as a microbatch with a single role."""
    lengths = store.lengths[rows, 1]
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros(mask.shape, dtype=np.float32)
    if reference is not None:
        for i, row in enumerate(rows):
            values[i, : lengths[i]] = reference[row]
    return Microbatch(
        roles=("response",),
        layout=layout,
        mask=torch.from_numpy(mask),
        reference=None if reference is None else torch.from_numpy(values),
        weight=torch.ones(len(rows)),
        tokens=int(layout.lengths.sum()),
    )


def collate(store: Store, rows: np.ndarray, packed: bool = False, control: np.ndarray | None = None) -> Microbatch:
    """The sequences `rows` as a microbatch with a single role, packed into one row or with a row for each."""
    layout = (layouts.packed if packed else layouts.padded)(texts_of(store, rows, control))
    return microbatch(store, rows, layout)
