"""Layout of a microbatch's sequences in the rows of token ids that a model is run on.

A sequence is a prompt and a branch. The branch is all that follows the prompt: control tokens, if there are any, then
the response.

- `padded`: one sequence in each row, padded on the right. No attention mask is needed, because in a causal model no
  token attends to the padding behind it.
- `packed`: all sequences in one row without padding. Each distinct prompt occurs once, followed by its branches:
  prompt A, branch A1, branch A2, prompt B, branch B1, ... The position ids of every branch continue those of its
  prompt, and a branch attends to its prompt and itself, never to another branch (halos/forward/attention.py).
- `follow`: a packed row of branches alone, whose prompts are in another packed row that is run before it. Its layers
  attend to the keys and values that the first row's layers kept; no gradient flows into those.

A model gives each sequence the outputs that it has when run alone, up to rounding; with the first two layouts the
gradients, too.
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
    """One sequence of token ids.

    Attributes:
        key: identifies the prompt; sequences with equal keys must have equal prompts.
        prompt: (P,) ids of the prompt, at least one.
        tail: (K,) ids of the branch: control tokens and response.
        lead: number of control tokens with which the tail begins; they are no part of the response.
    """

    key: int
    prompt: np.ndarray
    tail: np.ndarray
    lead: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tail)


@dataclass(frozen=True)
class Gather:
    """`index_select` of rows with a fast backward pass.

    A row may be selected many times. An output row may be padding: its values are arbitrary (those of row 0), and it
    adds nothing to any gradient.

    Attributes:
        index: (n,) int64, the input row of each output row; 0 for padding.
        order: output rows that are no padding, sorted by their input row.
        offsets: (total + 1,) int64. The gradient of input row i is the sum of the gradients of the output rows
            order[offsets[i] : offsets[i + 1]].
    """

    index: Tensor
    order: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, index: np.ndarray, total: int) -> Gather:
        """The gather of the rows `index`, (n,), from `total` rows; -1 for padding."""
        selected = np.flatnonzero(index >= 0)
        order = selected[np.argsort(index[selected], kind="stable")]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(index[selected], minlength=total))])
        return cls(*(torch.from_numpy(x.astype(np.int64)) for x in (np.maximum(index, 0), order, offsets)))

    def to(self, device: torch.device) -> Gather:
        return Gather(*(x.to(device, non_blocking=True) for x in (self.index, self.order, self.offsets)))

    def __call__(self, rows: Tensor) -> Tensor:
        """(total, W) -> (n, W)."""
        selected: Tensor = _Gathered.apply(rows, self)
        return selected


class _Gathered(torch.autograd.Function):
    """`index_select` with segment sums as its backward pass; torch's own adds row by row, ten times slower on CPUs."""

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
    """The places of S sequences in a packed row.

    Attributes:
        prompt_start: (S,) int64, where each sequence's prompt begins, in the row that holds the prompts.
        prompt_length: (S,) int64, tokens of each prompt.
        start: (S,) int64, where each sequence's branch begins, in this row.
        length: (S,) int64, tokens of each branch.
        first: (S,) bool, whether the branch is the first of its prompt and so directly behind it: prompt and branch are
            then one contiguous, causal run of tokens.
        total: positions of this row.
        longest: tokens of the longest sequence, prompt included.
        key_offset: positions of the other row that holds the prompts (`follow`), whose keys come before this row's in
            the attention; 0 if this row holds its own prompts.
    """

    prompt_start: np.ndarray
    prompt_length: np.ndarray
    start: np.ndarray
    length: np.ndarray
    first: np.ndarray
    total: int
    longest: int
    key_offset: int = 0


@dataclass(frozen=True)
class Layout:
    """S sequences in R rows of L tokens, with M response tokens in total, and how to read the model's outputs.

    Attributes:
        input_ids: (R, L) int64 token ids.
        position_ids: (R, L) int64, the position of each token in its own sequence.
        before: gathers, from the (R * L, H) hidden states, the (M, H) states that predict the response tokens: each is
            the state of the token before.
        targets: (M,) int64, the response tokens.
        slots: (M,) int64, the place of each response token in a flattened (S, T) array.
        width: T, tokens of the longest response.
        ends: gathers the (S, H) states of the sequences' last tokens.
        lengths: (S,) int64 tokens of each sequence, its whole prompt included.
        padding: number of positions that hold no token.
        segments: the places of the sequences in a packed row; None for padded rows.
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

    @property
    def pairs(self) -> int:
        """Pairs of a token and one that it attends to, itself included; of a shared prompt's tokens only once."""
        if self.segments is None:
            return int((self.lengths * (self.lengths + 1) // 2).sum())
        prompt, branch, first = self.segments.prompt_length, self.segments.length, self.segments.first
        return int((branch * prompt + branch * (branch + 1) // 2 + first * (prompt * (prompt + 1) // 2)).sum())

    def to(self, device: torch.device) -> Layout:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | Gather)}
        return replace(self, **moved)

    def of_rows(self, rows: np.ndarray) -> Layout:
        """The layout of some rows of a padded layout, without the padding that these do not need.

        Its `targets` and `slots` are those of its sequences alone; the slots stay places in all S sequences.
        """
        width, length = self.input_ids.shape[1], int(self.lengths[rows].max())
        place = np.full(len(self.lengths), -1)
        place[rows] = np.arange(len(rows))

        def moved(gather: Gather) -> tuple[np.ndarray, Gather]:
            """Which of a gather's positions are in these rows, and the gather of those."""
            row, column = np.divmod(gather.index.cpu().numpy(), width)
            kept = np.flatnonzero(place[row] >= 0)
            index = place[row[kept]] * length + column[kept]
            return kept, Gather.of(index, len(rows) * length).to(gather.index.device)

        device = self.input_ids.device
        chosen = torch.from_numpy(rows).to(device)
        (responses, before), (_, ends) = moved(self.before), moved(self.ends)
        of_responses = torch.from_numpy(responses).to(device)
        return replace(
            self,
            input_ids=self.input_ids[chosen, :length],
            position_ids=self.position_ids[chosen, :length],
            before=before,
            targets=self.targets[of_responses],
            slots=self.slots[of_responses],
            ends=ends,
            lengths=self.lengths[rows],
            padding=len(rows) * length - int(self.lengths[rows].sum()),
        )


def padded(texts: Sequence[Text]) -> Layout:
    """The layout with one sequence in each row, padded on the right with token 0."""
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = np.concatenate([text.prompt, text.tail])
    paths = [np.arange(k * width, k * width + len(text)) for k, text in enumerate(texts)]
    leads = [len(text.prompt) + text.lead for text in texts]
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    return _layout(texts, ids, positions, paths, leads, padding=ids.size - sum(map(len, texts)))


def packed(texts: Sequence[Text]) -> Layout:
    """The layout with all sequences in one row: each distinct prompt once, followed by its branches."""
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
    """The layout with the branches alone in one row; their prompts are in another packed row, which is run first.

    The last token of a prompt is run again as the first token of each branch, because its state predicts the first
    token of the branch.

    Args:
        texts: the sequences; each one's prompt must occur in `before`.
        before: the sequences of the other row.
        row: their places in it.
    """
    prompt_starts = {text.key: start for text, start in zip(before, row.prompt_start, strict=True)}
    shifted = [Text(t.key, t.prompt[:-1], np.concatenate([t.prompt[-1:], t.tail]), t.lead + 1) for t in texts]
    ends = np.cumsum([len(t.tail) for t in shifted])
    start = ends - [len(t.tail) for t in shifted]
    prompt_start = np.array([prompt_starts[t.key] for t in shifted])
    first = np.zeros(len(texts), dtype=bool)
    segments = _segments(shifted, prompt_start, start, first=first, total=int(ends[-1]), key_offset=row.total)
    positions = [np.arange(len(t.prompt), len(t)) for t in shifted]
    return _row(shifted, [t.tail for t in shifted], positions, segments)


def _segments(texts: Sequence[Text], prompt_start: np.ndarray, start: np.ndarray, **fields: Any) -> Segments:
    prompt_length, length = np.array([len(t.prompt) for t in texts]), np.array([len(t.tail) for t in texts])
    return Segments(prompt_start, prompt_length, start, length, longest=max(map(len, texts)), **fields)


def _row(texts: Sequence[Text], ids: list[Any], positions: list[Any], segments: Segments) -> Layout:
    """The layout of a packed row, from the ids and positions of its prompts and branches in order."""
    in_row = np.where(segments.key_offset == 0, segments.prompt_length, 0)  # prompt tokens of each that this row holds
    paths = [
        np.concatenate([np.arange(p, p + n), np.arange(s, s + length)])
        for p, n, s, length in zip(segments.prompt_start, in_row, segments.start, segments.length, strict=True)
    ]
    leads = [int(n) + text.lead for n, text in zip(in_row, texts, strict=True)]
    return _layout(texts, np.concatenate(ids)[None], np.concatenate(positions)[None], paths, leads, segments=segments)


def _layout(
    texts: Sequence[Text],
    ids: np.ndarray,
    positions: np.ndarray,
    paths: list[np.ndarray],
    leads: list[int],
    **fields: Any,
) -> Layout:
    """The layout of sequences in given rows.

    Args:
        texts: the S sequences.
        ids: (R, L) token ids.
        positions: (R, L) position ids.
        paths: for each sequence, the flat positions (of R * L) of its tokens in order.
        leads: for each sequence, the tokens of its path that precede the response.
        fields: the other fields of `Layout`.
    """
    width = max(len(path) - lead for path, lead in zip(paths, leads, strict=True))
    slots = [k * width + np.arange(len(path) - lead) for k, (path, lead) in enumerate(zip(paths, leads, strict=True))]
    before = np.concatenate([path[lead - 1 : -1] for path, lead in zip(paths, leads, strict=True)])
    responses = np.concatenate([path[lead:] for path, lead in zip(paths, leads, strict=True)])
    arrays = (ids, positions, ids.reshape(-1)[responses], np.concatenate(slots))
    input_ids, position_ids, targets, flat_slots = (torch.from_numpy(x.astype(np.int64)) for x in arrays)
    ends = np.array([path[-1] for path in paths])
    lengths = np.array([len(text) for text in texts])
    gathers = Gather.of(before, ids.size), Gather.of(ends, ids.size)
    return Layout(input_ids, position_ids, gathers[0], targets, flat_slots, gathers[1], lengths, width, **fields)
