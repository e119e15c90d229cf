"""A microbatch, the input of one forward pass on one device: its tokens in rows, and the labels of its responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from halos.forward import layout as layouts
from halos.forward.attention import Packing
from halos.forward.layout import Layout, Text
from halos.tokens.store import Store


class TokenLogps(Protocol):
    """Log-probabilities of response tokens by sequence row, such as those of a reference (halos/reference/cache.py)."""

    def __getitem__(self, row: int) -> np.ndarray:
        """(T,) float32, for the T response tokens of one sequence."""
        ...


@dataclass(frozen=True)
class Microbatch:
    """B responses in each of R roles: S = R * B sequences, role by role. Sequences k * B to (k + 1) * B have role k.

    Attributes:
        roles: the R roles.
        layout: the sequences in rows of tokens.
        mask: (S, T) bool, True for each response token.
        reference: (S, T) float32 log-probabilities under the reference, 0 beyond each response; None without one.
        weight: (B,) float32, weight of each response in the loss: the data's, or 1, over the size of its group.
        tokens: total tokens of the sequences, each counted with its whole prompt; 0 for a filler, a copy of another
            process's example that has no weight and only keeps the processes in step.
        labels: name -> (B,) labels of the responses: desirable, scores, margins, advantages.
        packing: what the attention needs to know about a packed row; None for padded rows, or before `to`.
        following: a second microbatch with the same prompts (KTO's mismatched responses), run after this one to reuse
            its keys and values.
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
        """The (S, ...) values of all sequences as {role: (B, ...)}."""
        return dict(zip(self.roles, values.chunk(len(self.roles)), strict=True))

    def to(self, device: torch.device, prompts: Packing | None = None) -> Microbatch:
        """The microbatch on a device, with the packing that a packed row needs there.

        Args:
            device: the device.
            prompts: the packing of the row that holds the prompts, if it is another row.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | Layout)}
        labels = {k: v.to(device) for k, v in self.labels.items()}
        segments = self.layout.segments
        packing = None if segments is None else Packing(segments, device, prompts)
        following = None if self.following is None else self.following.to(device, packing)
        return replace(self, **moved, labels=labels, packing=packing, following=following)

    def emptied(self) -> Microbatch:
        """The microbatch as a filler: it is run in full, but has no weight."""
        following = None if self.following is None else self.following.emptied()
        return replace(self, weight=torch.zeros_like(self.weight), tokens=0, following=following)

    @property
    def filler(self) -> bool:
        """Whether it only keeps processes in step."""
        return not self.tokens

    @property
    def positions(self) -> int:
        """Token positions that the model computes, padding included."""
        return self.layout.input_ids.numel()

    @property
    def real(self) -> int:
        """Token positions that are neither padding nor of a filler."""
        return 0 if self.filler else self.positions - self.layout.padding


def texts_of(store: Store, rows: np.ndarray, control: np.ndarray | None = None) -> list[Text]:
    """The token ids of sequences of a store.

    Args:
        store: the sequence store.
        rows: (S,) sequence rows.
        control: (S,) id of the control token between prompt and response of each sequence; -1 for none.
    """
    control = np.full(len(rows), -1) if control is None else control
    texts = []
    for row, key, token in zip(rows, store.prompt_of(rows).tolist(), control.tolist(), strict=True):
        prompt, response = store.sequence(row)
        tail = response if token < 0 else np.concatenate([[token], response])
        texts.append(Text(key, prompt, tail, lead=int(token >= 0)))
    return texts


def microbatch(store: Store, rows: np.ndarray, layout: Layout, reference: TokenLogps | None = None) -> Microbatch:
    """A microbatch with the single role `response`.

    Args:
        store: the sequence store.
        rows: (S,) sequence rows.
        layout: the layout of these sequences.
        reference: log-probabilities under the reference.
    """
    lengths = store.lengths[rows, 1]
    values = None
    if reference is not None:
        values = np.zeros((len(rows), lengths.max()), dtype=np.float32)
        for i, row in enumerate(rows):
            values[i, : lengths[i]] = reference[row]
    return _of_responses(layout, lengths, values)


def of_texts(texts: Sequence[Text], packed: bool = False) -> Microbatch:
    """A microbatch of sequences of no store, with the single role `response` and without a reference.

    Args:
        texts: the sequences.
        packed: whether they are packed into one row, or padded in a row each.
    """
    lengths = np.array([len(text.tail) - text.lead for text in texts])
    return _of_responses((layouts.packed if packed else layouts.padded)(list(texts)), lengths)


def _of_responses(layout: Layout, lengths: np.ndarray, reference: np.ndarray | None = None) -> Microbatch:
    return Microbatch(
        roles=("response",),
        layout=layout,
        mask=torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]),
        reference=None if reference is None else torch.from_numpy(reference),
        weight=torch.ones(len(lengths)),
        tokens=int(layout.lengths.sum()),
    )


def collate(store: Store, rows: np.ndarray, packed: bool = False, control: np.ndarray | None = None) -> Microbatch:
    """A microbatch of sequences of a store, with the single role `response` and without a reference.

    Args:
        store: the sequence store.
        rows: (S,) sequence rows.
        packed: whether the sequences are packed into one row, or padded in a row each.
        control: (S,) control token of each sequence, as for `texts_of`.
    """
    layout = (layouts.packed if packed else layouts.padded)(texts_of(store, rows, control))
    return microbatch(store, rows, layout)
