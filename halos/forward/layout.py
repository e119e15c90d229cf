"""How the sequences of a microbatch lie in the rows of tokens that a model runs.

`padded`: one sequence to a row, padded on the right. Right padding needs no attention mask: in a causal model no token
sees what comes after it.

`packed`: all in one row without padding, each prompt once however many responses it has. A response continues its
prompt: its positions go on where the prompt ends, and it sees the prompt and itself, not its siblings. This makes every
matrix product that of real, different tokens; `halos.attention` sees to it that the attention is the same as that of
each sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Text:
    """A sequence: ids of its prompt, and of what follows, of which the first `lead` (control tokens) are no response.

    `key` tells prompts apart: sequences with the same have the same prompt.
    """

    key: int
    prompt: np.ndarray
    tail: np.ndarray
    lead: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tail)


@dataclass(frozen=True)
class Gather:
    """Rows picked by `index` from others, some more than once. Backwards, each gets the sum over where it was picked:
    those are order[offsets[i] : offsets[i + 1]], and rows that only pad are not among them."""

    index: Tensor
    order: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, index: np.ndarray, total: int) -> Gather:
        """Pick from `total` rows; -1 for padding."""
        picked = np.flatnonzero(index >= 0)
        order = picked[np.argsort(index[picked], kind="stable")]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(index[picked], minlength=total))])
        return cls(*(torch.from_numpy(x.astype(np.int64)) for x in (np.maximum(index, 0), order, offsets)))

    def to(self, device: torch.device) -> Gather:
        return Gather(*(x.to(device, non_blocking=True) for x in (self.index, self.order, self.offsets)))

    def __call__(self, rows: Tensor) -> Tensor:
        """(total, W) -> (n, W)."""
        picked: Tensor = _Gathered.apply(rows, self)
        return picked


class _Gathered(torch.autograd.Function):
    """`index_select`, whose own backward pass adds row by row and is ten times as slow on CPUs."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return rows.index_select(0, gather.index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gather: Gather = ctx.gather
        summed = embedding_bag(gather.order, gradient, gather.offsets, mode="sum", include_last_offset=True)
        return summed, None


@dataclass(frozen=True)
class Segments:
    """Where S sequences lie in a packed row: (S,) int64 arrays.

    Attributes:
        prompt_start, prompt_length: of the sequence's prompt.
        start, length: of its branch, which is what follows the prompt.
        first: (S,) bool, whether the branch is its prompt's first, which stands right behind it.
        total: positions of the row.
        elsewhere: positions of the row that holds the prompts, when it is another one (`follow`); None when it is this.
        longest: tokens of the longest sequence, prompt included.
    """

    prompt_start: np.ndarray
    prompt_length: np.ndarray
    start: np.ndarray
    length: np.ndarray
    first: np.ndarray
    total: int
    longest: int
    elsewhere: int | None = None


@dataclass(frozen=True)
class Layout:
    """S sequences in R rows of L tokens, with M response tokens in all.

    Attributes:
        input_ids, position_ids: (R, L) int64.
        before: picks, from the flat (R * L) states, the one that predicts each response token.
        targets: (M,) int64, the response tokens.
        slots: (M,) int64, flat position of each in an (S, T) array.
        width: T, the tokens of the longest response.
        ends: picks the state of each sequence's last token.
        lengths: (S,) tokens of each sequence, each with the whole of its prompt.
        padding: positions that hold nothing.
        segments: of a packed row; None for padded ones.
    """

    input_ids: Tensor
    position_ids: Tensor
    before: Gather
    targets: Tensor
    slots: Tensor
    ends: Gather
    lengths: np.ndarray
    width: int
    padding: int = 0
    segments: Segments | None = None

    def to(self, device: torch.device) -> Layout:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | Gather)}
        return replace(self, **moved)


def padded(texts: Sequence[Text]) -> Layout:
    """One sequence to a row, padded with token 0 on the right."""
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = np.concatenate([text.prompt, text.tail])
    paths = [np.arange(k * width, k * width + len(text)) for k, text in enumerate(texts)]
    leads = [len(text.prompt) + text.lead for text in texts]
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    return _layout(texts, ids, positions, paths, leads, padding=ids.size - sum(map(len, texts)))


def packed(texts: Sequence[Text]) -> Layout:
    """All in one row, each different prompt once, followed by its branches."""
    siblings: dict[int, list[int]] = {}
    for k, text in enumerate(texts):
        siblings.setdefault(text.key, []).append(k)
    prompt_start, start = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    ids, positions, total = [], [], 0
    for members in siblings.values():
        prompt = texts[members[0]].prompt
        prompt_start[members] = total
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        total += len(prompt)
        for k in members:
            start[k] = total
            ids.append(texts[k].tail)
            positions.append(np.arange(len(prompt), len(texts[k])))
            total += len(texts[k].tail)
    first = np.isin(np.arange(len(texts)), [members[0] for members in siblings.values()])
    segments = _segments(texts, prompt_start, start, first=first, total=total)
    return _row(texts, ids, positions, segments)


def follow(texts: Sequence[Text], before: Sequence[Text], row: Segments) -> Layout:
    """A row of branches alone, whose prompts stand in the packed `row` of the sequences `before`, which is run first.

    The prompt's last token is run again as the first of each branch: its state predicts the branch's first token.
    """
    where = {text.key: prompt_start for text, prompt_start in zip(before, row.prompt_start, strict=True)}
    moved = [Text(t.key, t.prompt[:-1], np.concatenate([t.prompt[-1:], t.tail]), t.lead + 1) for t in texts]
    ends = np.cumsum([len(t.tail) for t in moved])
    start = ends - [len(t.tail) for t in moved]
    prompt_start = np.array([where[t.key] for t in moved])
    none_first = np.zeros(len(texts), dtype=bool)
    segments = _segments(moved, prompt_start, start, first=none_first, total=int(ends[-1]), elsewhere=row.total)
    positions = [np.arange(len(t.prompt), len(t)) for t in moved]
    return _row(moved, [t.tail for t in moved], positions, segments)


def _segments(texts: Sequence[Text], prompt_start: np.ndarray, start: np.ndarray, **more: Any) -> Segments:
    prompt, branch = np.array([len(t.prompt) for t in texts]), np.array([len(t.tail) for t in texts])
    return Segments(prompt_start, prompt, start, branch, longest=max(map(len, texts)), **more)


def _row(texts: Sequence[Text], ids: list[Any], positions: list[Any], segments: Segments) -> Layout:
    own = np.where(segments.elsewhere is None, segments.prompt_length, 0)  # prompt tokens in the row itself
    paths = [
        np.concatenate([np.arange(p, p + n), np.arange(s, s + length)])
        for p, n, s, length in zip(segments.prompt_start, own, segments.start, segments.length, strict=True)
    ]
    leads = [int(n) + text.lead for n, text in zip(own, texts, strict=True)]
    return _layout(texts, np.concatenate(ids)[None], np.concatenate(positions)[None], paths, leads, segments=segments)


def _layout(
    texts: Sequence[Text],
    ids: np.ndarray,
    positions: np.ndarray,
    paths: list[np.ndarray],
    leads: list[int],
    **more: Any,
) -> Layout:
    """The layout of sequences whose tokens lie at `paths`, and whose responses begin after `leads` tokens of them."""
    width = max(len(path) - lead for path, lead in zip(paths, leads, strict=True))
    slots = [k * width + np.arange(len(path) - lead) for k, (path, lead) in enumerate(zip(paths, leads, strict=True))]
    before = np.concatenate([path[lead - 1 : -1] for path, lead in zip(paths, leads, strict=True)])
    responses = np.concatenate([path[lead:] for path, lead in zip(paths, leads, strict=True)])
    arrays = (ids, positions, ids.reshape(-1)[responses], np.concatenate(slots))
    input_ids, position_ids, targets, places = (torch.from_numpy(x.astype(np.int64)) for x in arrays)
    ends = np.array([path[-1] for path in paths])
    states = Gather.of(before, ids.size), Gather.of(ends, ids.size)
    lengths = np.array([len(text) for text in texts])
    return Layout(input_ids, position_ids, states[0], targets, places, states[1], lengths, width, **more)
