"""Attention over packed rows (halos/forward/layout.py): each token attends to its own prompt and branch only.

The functions at the end of this file are registered with transformers under names of their own. A model that is set to
one of them calls it in every layer with the queries, keys and values of the row, and with the `Packing` that the model
was called with.

All three compute the same, exact causal attention of each sequence [prompt, branch]:

- sdpa: sequences of similar lengths are gathered into padded blocks, with one call for each block. The queries of a
  prompt, whose outputs are the same for all of its branches, are only in the block of its first branch.
- flash attention: one call with variable lengths. Queries are used where they are in the row; the keys and values of a
  prompt are copied to each of its branches.
- flex attention: one call with a block mask. Nothing is gathered or copied.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from halos.forward.budget import cut
from halos.forward.layout import Gather, Segments
from halos.models.attention import PACKAGES, is_kernel, load_kernel

NAMES = {"sdpa": "packed_sdpa", "flex_attention": "packed_flex"}
"""Attention implementation -> its counterpart for packed rows; those of flash attention are made by `counterpart`."""
VARLEN = "packed_varlen"
"""The beginning of their names. "flash" is not in it, because transformers would look for a kernel of that name."""
HARMLESS = {"position_ids", "use_cache", "is_causal", "cache_position", "output_attentions", "output_hidden_states",
            "return_dict", "logits_to_keep", "use_return_dict"}  # fmt: skip
"""Arguments that models pass on to their attention and that do not change its result."""
BLOCK = 16_384
"""Tokens of one padded block of sequences, padding included."""


class Unsupported(Exception):
    """A model's attention cannot be computed on packed rows. The message is a clause that gives the reason."""


class Packing:
    """A packed row, in the forms in which the attention functions need it. Each form is made when first used.

    Models are called with it as the argument `packing`, which they pass on to the attention of every layer.

    Args:
        segments: places of the S sequences in the row.
        device: device of the model.
        prompts: packing of the row that holds the prompts, if it is another row. That row must be run first, by the
            same model: its layers keep their keys and values for this row.
    """

    def __init__(self, segments: Segments, device: torch.device, prompts: Packing | None = None) -> None:
        self.segments, self.device, self.prompts = segments, device, prompts
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
        if prompts is not None:
            prompts.kept = {}

    def all_keys(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that a layer attends to: those of the prompts' row, if it is another, then this row's.

        They are also kept, without gradient, if another row needs them.

        Args:
            layer: the attention module.
            key, value: (1, H, N, D) of this row.

        Returns:
            (1, H, segments.key_offset + N, D) each.
        """
        if self.kept is not None:
            self.kept[layer] = (key.detach(), value.detach())
        if self.prompts is not None and self.prompts.kept is not None:
            prompt_key, prompt_value = self.prompts.kept[layer]
            return torch.cat([prompt_key, key], 2), torch.cat([prompt_value, value], 2)
        return key, value

    # ---- sdpa --------------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> list[Block]:
        """The padded blocks for sdpa, each with sequences of similar lengths.

        Every position of the row is a query in exactly one block. First branches come with the queries of their prompt:
        their attention is plainly causal. Other branches come without, and need a mask that shows them their prompt.
        """
        s = self.segments
        first, other = np.flatnonzero(s.first), np.flatnonzero(~s.first & (s.length > 0))
        lengths = s.prompt_length + s.length
        return [
            self._block(kind[members]) for kind in (first, other) if len(kind) for members in cut(lengths[kind], BLOCK)
        ]

    def _block(self, sequences: np.ndarray) -> Block:
        """The block of some sequences, all of which are first branches, or none."""
        s = self.segments
        first = bool(s.first[sequences[0]])
        prompts = _ranges(s.prompt_start[sequences], s.prompt_length[sequences])
        branches = _ranges(s.key_offset + s.start[sequences], s.length[sequences])
        keys = [np.concatenate(pair) for pair in zip(prompts, branches, strict=True)]
        queries = _ranges(
            s.prompt_start[sequences] if first else s.start[sequences],
            s.length[sequences] + first * s.prompt_length[sequences],
        )
        most_queries, most_keys = max(map(len, queries)), max(map(len, keys))
        mask = None
        if not first:  # query i of a branch is token prompt_length + i of its sequence, and sees the keys up to there
            last = torch.from_numpy(s.prompt_length[sequences])[:, None, None] + torch.arange(most_queries)[:, None]
            mask = (torch.arange(most_keys) <= last)[:, None].to(self.device)
        positions = _pad(queries, most_queries)
        return Block(
            queries=Gather.of(positions, s.total).to(self.device),
            keys=Gather.of(_pad(keys, most_keys), s.key_offset + s.total).to(self.device),
            shape=(len(sequences), most_queries, most_keys),
            mask=mask,
            positions=positions,
        )

    @cached_property
    def unpad(self) -> Gather:
        """The gather that scatters the blocks' padded outputs, concatenated, back into the packed row."""
        padded_row = np.full(self.segments.total, -1)
        offset = 0
        for block in self.blocks:
            real = block.positions >= 0
            padded_row[block.positions[real]] = offset + np.flatnonzero(real)
            offset += len(real)
        return Gather.of(padded_row, offset).to(self.device)

    # ---- flash attention ---------------------------------------------------------------------------------------

    @cached_property
    def variable_lengths(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """The arguments of flash attention with variable lengths.

        The K sequences with queries are taken in the order in which their queries are in the row, so that these need no
        gathering. A prompt's queries belong to its first branch.

        Returns:
            Positions of all keys, sequence after sequence, int64; (K + 1,) int32 bounds of each sequence's queries;
            (K + 1,) int32 bounds of its keys; the most queries of a sequence; the most keys of one.
        """
        s = self.segments
        query_start = np.where(s.first, s.prompt_start, s.start)
        order = np.lexsort((s.length, query_start))
        order = order[s.first[order] | (s.length[order] > 0)]
        queries = (s.length + s.first * s.prompt_length)[order]
        lengths = (s.prompt_length + s.length)[order]
        prompts = _ranges(s.prompt_start[order], s.prompt_length[order])
        branches = _ranges(s.key_offset + s.start[order], s.length[order])
        keys = np.concatenate([part for pair in zip(prompts, branches, strict=True) for part in pair])
        bounds = [torch.from_numpy(np.concatenate([[0], np.cumsum(n)]).astype(np.int32)) for n in (queries, lengths)]
        moved = [x.to(self.device) for x in (torch.from_numpy(keys), *bounds)]
        return moved[0], moved[1], moved[2], int(queries.max()), int(lengths.max())

    # ---- flex attention ----------------------------------------------------------------------------------------

    @cached_property
    def block_mask(self) -> Any:
        """The block mask of the row for flex attention, (N, segments.key_offset + N)."""
        from torch.nn.attention.flex_attention import create_block_mask

        prompt, branch = (torch.from_numpy(x).to(self.device) for x in self.owners())
        offset = self.segments.key_offset

        def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + offset  # positions of queries begin at this row, those of keys at the prompts' row
            same_branch = (branch[key] == -1) | (branch[key] == branch[query])
            return (key <= query) & (prompt[key] == prompt[query]) & same_branch

        total = self.segments.total
        return create_block_mask(attends, None, None, total, offset + total, device=self.device)

    def owners(self) -> tuple[np.ndarray, np.ndarray]:
        """The prompt and the branch to which each key belongs, two arrays of (key_offset + N,) int64.

        A prompt is named by where it begins, a branch by its sequence; a token of a prompt has the branch -1.
        """
        s = self.segments
        prompt, branch = (np.full(s.key_offset + s.total, -1) for _ in range(2))
        for k, prompt_start in enumerate(s.prompt_start):
            start = s.key_offset + s.start[k]
            prompt[prompt_start : prompt_start + s.prompt_length[k]] = prompt_start
            prompt[start : start + s.length[k]] = prompt_start
            branch[start : start + s.length[k]] = k
        return prompt, branch


@dataclass(frozen=True)
class Block:
    """B sequences side by side, padded to Q queries and K keys each.

    Attributes:
        queries: gathers the block's (B * Q) queries from the row.
        keys: gathers its (B * K) keys, or values, from all keys.
        shape: (B, Q, K).
        mask: (B, 1, Q, K) bool, True where a query attends to a key; None for plainly causal attention.
        positions: (B * Q,) int64, position of each query in the row; -1 for padding.
    """

    queries: Gather
    keys: Gather
    shape: tuple[int, int, int]
    mask: Tensor | None
    positions: np.ndarray


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def _pad(rows: list[np.ndarray], width: int) -> np.ndarray:
    """(len(rows) * width,) rows of different lengths, one after the other, each padded with -1."""
    padded = np.full((len(rows), width), -1)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded.reshape(-1)


def _check(packing: Packing | None, mask: Tensor | None, arguments: dict[str, Any]) -> Packing:
    """Check that a layer asks for causal attention and nothing else, which is all that packed rows have.

    Raises:
        Unsupported: it has a mask, no packing, too short a window, or an argument that may change the result.
    """
    if packing is None or mask is not None:
        raise Unsupported("the model's attention has a mask of its own or does not receive `packing`")
    window = arguments.pop("sliding_window", None)
    if window is not None and window < packing.segments.longest:
        raise Unsupported(window_too_short(window, packing.segments.longest))
    if unknown := sorted(name for name, value in arguments.items() if value is not None and name not in HARMLESS):
        raise Unsupported(f"the model's attention takes {', '.join(unknown)}")
    return packing


def window_too_short(window: int, longest: int) -> str:
    """The reason that a model with an attention window gives for no packing."""
    return f"the model's attention has a window of {window} tokens, and sequences have up to {longest}"


# ---- the functions that transformers calls ---------------------------------------------------------------------------
# query (1, H, N, D); key and value (1, H', N, D), each of the H' heads for H / H' query heads; output (1, N, H, D)


def packed_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None, **arguments: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Packed attention by torch's scaled_dot_product_attention, block by block."""
    packing = _check(packing, attention_mask, arguments)
    key, value = packing.all_keys(module, key, value)
    heads = query.shape[1]
    rows = [x.transpose(1, 2).reshape(x.shape[2], -1) for x in (query, key, value)]  # (N, heads * D)
    outputs = []
    for block in packing.blocks:
        sequences, queries, keys = block.shape
        q = block.queries(rows[0]).view(sequences, queries, heads, -1)
        k, v = (block.keys(x).view(sequences, keys, key.shape[1], -1) for x in rows[1:])
        out = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=block.mask, dropout_p=dropout,
            is_causal=block.mask is None, scale=scaling, enable_gqa=key.shape[1] != heads,
        )  # fmt: skip
        outputs.append(out.transpose(1, 2).reshape(sequences * queries, -1))
    padded = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return packing.unpad(padded).view(1, query.shape[2], heads, -1), None


def packed_varlen(
    function: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Packed attention by flash attention with variable lengths, in half precision.

    Args:
        function: `flash_attn_varlen_func` of the implementation; its versions have their arguments in other orders.
    """
    packing = _check(packing, attention_mask, arguments)
    keys, query_bounds, key_bounds, most_queries, most_keys = packing.variable_lengths
    key, value = (x[0].index_select(1, keys) for x in packing.all_keys(module, key, value))
    half = torch.get_autocast_dtype(query.device.type) if query.dtype == torch.float32 else query.dtype
    q, k, v = (x.transpose(0, 1).to(half) for x in (query[0], key, value))
    out = function(  # with fewer queries than keys, `causal` aligns the last query with the last key
        q, k, v, cu_seqlens_q=query_bounds, cu_seqlens_k=key_bounds, max_seqlen_q=most_queries, max_seqlen_k=most_keys,
        softmax_scale=scaling, causal=True, **({"dropout_p": dropout} if dropout else {}),
    )  # fmt: skip
    out = out[0] if isinstance(out, tuple) else out  # some versions of 3 return what they normalised by as well
    return out[None].to(query.dtype), None


def packed_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, dropout: float = 0.0, scaling: float | None = None, **arguments: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Packed attention by flex attention with a block mask."""
    from transformers.integrations.flex_attention import flex_attention_forward

    packing = _check(packing, attention_mask, arguments)
    key, value = packing.all_keys(module, key, value)
    out, _ = flex_attention_forward(module, query, key, value, packing.block_mask, scaling=scaling, dropout=dropout)
    return out, None


def _register(name: str, function: Callable[..., Any]) -> str:
    """Register a function with transformers. A compiler of layers leaves it as it is: what it does with a row is
    decided by lengths, of which each row has others."""
    AttentionInterface.register(name, torch.compiler.disable(function))
    return name


_register(NAMES["sdpa"], packed_sdpa)
_register(NAMES["flex_attention"], packed_flex)


def counterpart(attention: str) -> str | None:
    """The name of an attention implementation's counterpart for packed rows; None if it has none."""
    if not is_flash(attention):
        return NAMES.get(attention)
    name = f"{VARLEN}_{hashlib.sha256(attention.encode()).hexdigest()[:8]}"
    return _register(name, partial(packed_varlen, varlen(attention)))


def is_flash(attention: str) -> bool:
    """Whether an attention implementation, or counterpart, is flash attention, which computes in half precision."""
    return attention.startswith(("flash_attention", VARLEN)) or is_kernel(attention)


def varlen(attention: str) -> Callable[..., Tensor]:
    """The function for sequences of variable lengths of an implementation of flash attention."""
    module = load_kernel(attention) if is_kernel(attention) else import_module(PACKAGES[attention][1])
    function: Callable[..., Tensor] = module.flash_attn_varlen_func
    return function


def drops(attention: str) -> bool:
    """Whether an attention implementation has dropout."""
    if attention == "flex_attention":
        return False
    return not is_flash(attention) or "dropout_p" in inspect.signature(varlen(attention)).parameters
