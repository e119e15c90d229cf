"""Attention over packed rows (halos.forward.layout): each token sees its own prompt and branch, and nothing else.

The functions are registered with transformers under names of their own; a model that is set to one passes its queries,
keys and values, and whatever `segments` its caller gave it, to that function in every layer.

- sdpa: sequences are gathered into padded blocks of similar lengths, one call for each block. A prompt's queries are
  in the block of its first branch only.
- flash attention: one call with variable lengths. Queries need no gathering, a prompt's keys are repeated.
- flex attention: one call with a block mask. Nothing is gathered or repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from halos.forward.budget import cut
from halos.forward.layout import Gather, Segments

NAMES = {"sdpa": "packed_sdpa", "flash_attention_2": "packed_varlen", "flex_attention": "packed_flex"}
"""attention implementation -> the one that does the same on packed rows."""
HARMLESS = {"position_ids", "use_cache", "is_causal", "cache_position", "output_attentions", "output_hidden_states",
            "return_dict", "logits_to_keep", "use_return_dict"}  # fmt: skip
"""What models pass on to their attention that changes nothing in it."""
BLOCK = 16_384
"""Padded tokens of a block of sequences."""


class Unsupported(Exception):
    """A model asks for an attention that packed rows do not have."""


class Packing:
    """A packed row for the layers of a model, which get it as the argument `packing`.

    Args:
        segments: where the sequences lie.
        device: of the model.
        prompts: the row that holds the prompts, if it is another; its layers keep their keys and values for this one.
    """

    def __init__(self, segments: Segments, device: torch.device, prompts: Packing | None = None) -> None:
        self.segments, self.device, self.prompts = segments, device, prompts
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
        if prompts is not None:
            prompts.kept = {}

    def all_keys(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(1, H, N, D) of this row, behind those of the row that holds the prompts, if it is another."""
        if self.kept is not None:
            self.kept[layer] = (key.detach(), value.detach())
        if self.prompts is not None and self.prompts.kept is not None:
            before = self.prompts.kept[layer]
            return torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        return key, value

    @cached_property
    def blocks(self) -> list[Block]:
        """For sdpa: sequences of similar lengths side by side. First branches come with their prompt's queries, and are
        plainly causal; of the others only the branch asks, and a mask lets it see the prompt."""
        s = self.segments
        kinds = [rows for rows in (np.flatnonzero(s.first), np.flatnonzero(~s.first & (s.length > 0))) if len(rows)]
        whole = s.prompt_length + s.length
        return [self._block(rows[part]) for rows in kinds for part in cut(whole[rows], BLOCK)]

    def _block(self, rows: np.ndarray) -> Block:
        s = self.segments
        first = bool(s.first[rows[0]])
        queries = _ranges(
            s.prompt_start[rows] if first else s.start[rows], s.length[rows] + first * s.prompt_length[rows]
        )
        prompt = _ranges(s.prompt_start[rows], s.prompt_length[rows])
        own = _ranges((s.elsewhere or 0) + s.start[rows], s.length[rows])
        keys = [np.concatenate(pair) for pair in zip(prompt, own, strict=True)]
        width, length = max(map(len, queries)), max(map(len, keys))
        total = s.total + (s.elsewhere or 0)
        mask = None
        if not first:
            last = torch.from_numpy(s.prompt_length[rows])[:, None, None] + torch.arange(width)[:, None]
            mask = (torch.arange(length) <= last)[:, None].to(self.device)
        places = _pad(queries, width)
        asked, seen = (
            Gather.of(index, n).to(self.device) for index, n in ((places, s.total), (_pad(keys, length), total))
        )
        return Block(asked, seen, (len(rows), width, length), mask, places)

    @cached_property
    def back(self) -> Gather:
        """From the padded rows of all blocks, one below the other, to the packed row."""
        place = np.full(self.segments.total, -1)
        offset = 0
        for block in self.blocks:
            real = block.places >= 0
            place[block.places[real]] = offset + np.flatnonzero(real)
            offset += len(real)
        return Gather.of(place, offset).to(self.device)

    @cached_property
    def variable_lengths(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For flash attention: which keys each sequence has, one sequence after the other, (K + 1,) int32 where its
        queries and its keys begin, and the most of either."""
        s = self.segments
        begin = np.where(s.first, s.prompt_start, s.start)
        rows = np.lexsort((s.length, begin))
        rows = rows[s.first[rows] | (s.length[rows] > 0)]
        queries = (s.length + s.first * s.prompt_length)[rows]
        prompt = _ranges(s.prompt_start[rows], s.prompt_length[rows])
        own = _ranges((s.elsewhere or 0) + s.start[rows], s.length[rows])
        keys = np.concatenate([part for pair in zip(prompt, own, strict=True) for part in pair])
        lengths = (s.prompt_length + s.length)[rows]
        begins = [torch.from_numpy(np.concatenate([[0], np.cumsum(n)]).astype(np.int32)) for n in (queries, lengths)]
        moved = [x.to(self.device) for x in (torch.from_numpy(keys), *begins)]
        return moved[0], moved[1], moved[2], int(queries.max()), int(lengths.max())

    @cached_property
    def block_mask(self) -> Any:
        """For flex attention: the mask of the row as it is."""
        from torch.nn.attention.flex_attention import create_block_mask

        prompt, branch = (torch.from_numpy(x).to(self.device) for x in self.owners())
        shift = self.segments.elsewhere or 0

        def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + shift
            own = (branch[key] == -1) | (branch[key] == branch[query])
            return (key <= query) & (prompt[key] == prompt[query]) & own

        total = self.segments.total
        return create_block_mask(sees, None, None, total, total + shift, device=self.device)

    def owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each key: where its prompt begins, and the sequence whose branch it is of, -1 for a prompt's own."""
        s = self.segments
        shift = s.elsewhere or 0
        prompt, branch = (np.full(shift + s.total, -1) for _ in range(2))
        for k, begin in enumerate(s.prompt_start):
            prompt[begin : begin + s.prompt_length[k]] = begin
            prompt[shift + s.start[k] : shift + s.start[k] + s.length[k]] = begin
            branch[shift + s.start[k] : shift + s.start[k] + s.length[k]] = k
        return prompt, branch


@dataclass(frozen=True)
class Block:
    """Sequences side by side: their queries and keys, (sequences, queries, keys) of the padded block, a mask, and where
    each query stands in the row, -1 for padding."""

    queries: Gather
    keys: Gather
    shape: tuple[int, int, int]
    mask: Tensor | None
    places: np.ndarray


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def _pad(rows: list[np.ndarray], width: int) -> np.ndarray:
    """All rows one after the other, each filled up to `width` with -1."""
    found = np.full((len(rows), width), -1)
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = values
    return found.reshape(-1)


def _check(packing: Packing | None, mask: Tensor | None, more: dict[str, Any]) -> Packing:
    """Refuse what would silently be another attention than the model's."""
    if packing is None or mask is not None:
        raise Unsupported("it makes a mask of its own, or does not pass `packing` on to its attention")
    window = more.pop("sliding_window", None)
    if window is not None and window < packing.segments.longest:
        raise Unsupported(
            f"its attention slides over {window} tokens, and sequences have up to {packing.segments.longest}"
        )
    if unknown := sorted(name for name, value in more.items() if value is not None and name not in HARMLESS):
        raise Unsupported(f"its attention takes {', '.join(unknown)}")
    return packing


# ---- the functions that transformers calls: (1, H, N, D) queries, (1, H', N, D) keys and values ----------------------


def packed_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    packing = _check(packing, attention_mask, more)
    key, value = packing.all_keys(module, key, value)
    heads = query.shape[1]
    rows = [x.transpose(1, 2).reshape(x.shape[2], -1) for x in (query, key, value)]
    found = []
    for block in packing.blocks:
        sequences, width, length = block.shape
        q = block.queries(rows[0]).view(sequences, width, heads, -1)
        k, v = (block.keys(x).view(sequences, length, key.shape[1], -1) for x in rows[1:])
        out = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=block.mask, dropout_p=dropout,
            is_causal=block.mask is None, scale=scaling, enable_gqa=key.shape[1] != heads,
        )  # fmt: skip
        found.append(out.transpose(1, 2).reshape(sequences * width, -1))
    padded = found[0] if len(found) == 1 else torch.cat(found)
    return packing.back(padded).view(1, query.shape[2], heads, -1), None


def packed_varlen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    from flash_attn import flash_attn_varlen_func

    packing = _check(packing, attention_mask, more)
    keys, query_begins, key_begins, most_queries, most_keys = packing.variable_lengths
    key, value = (x[0].index_select(1, keys) for x in packing.all_keys(module, key, value))
    half = torch.get_autocast_dtype(query.device.type) if query.dtype == torch.float32 else query.dtype
    q, k, v = (x.transpose(0, 1).to(half) for x in (query[0], key, value))
    out = flash_attn_varlen_func(  # of fewer queries than keys, the last query sees the last key
        q, k, v, query_begins, key_begins, most_queries, most_keys, dropout_p=dropout, softmax_scale=scaling,
        causal=True,
    )  # fmt: skip
    return out[None].to(query.dtype), None


def packed_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    from transformers.integrations.flex_attention import flex_attention_forward

    packing = _check(packing, attention_mask, more)
    key, value = packing.all_keys(module, key, value)
    out, _ = flex_attention_forward(module, query, key, value, packing.block_mask, scaling=scaling, dropout=dropout)
    return out, None


for _name, _function in (("packed_sdpa", packed_sdpa), ("packed_varlen", packed_varlen), ("packed_flex", packed_flex)):
    AttentionInterface.register(_name, _function)
