"""Token log-probabilities from hidden states, without the logits of all tokens in memory at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

CHUNK = 64 * 2**20
"""Bytes of float32 logits in one chunk."""
KEPT = 4
"""Chunks whose log-probabilities over the vocabulary are kept for the backward pass; those of the others are computed
again. CHUNK and KEPT bound the memory of the output layer for any vocabulary and any number of tokens."""


def token_logps(hidden: Tensor, head: nn.Module, labels: Tensor, entropies: Tensor | None = None) -> Tensor:
    """Log-probabilities of tokens given the hidden states before them, computed chunk by chunk.

    A plain, unsharded output layer has a backward pass of its own (`_TokenLogps`). Any other layer (with
    LoRA adapters, sharded by FSDP) is called as it is; several chunks with a gradient are checkpointed.

    Args:
        hidden: (N, H) hidden states.
        head: the output layer, from H to V.
        labels: (N,) int64 token ids.
        entropies: (N,) float32, filled with the entropies of the distributions over the vocabulary, in nats.

    Returns:
        (N,) float32 log-probabilities.
    """
    weight: Any = head.weight
    rows = max(1, CHUNK // (4 * weight.shape[0]))
    if type(head) is nn.Linear and not isinstance(weight, DTensor):
        logps: Tensor = _TokenLogps.apply(hidden, weight, head.bias, labels, rows, torch.is_grad_enabled(), entropies)
        return logps
    chunks = list(zip(hidden.split(rows), labels.split(rows), _split(entropies, rows, len(hidden)), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([pick(head(h), y, e) for h, y, e in chunks])

    def again(h: Tensor, y: Tensor, unfilled: list[Tensor | None]) -> Tensor:
        return pick(head(h), y, unfilled.pop() if unfilled else None)  # not in the backward pass

    return torch.cat([checkpoint(again, h, y, [e], use_reentrant=False) for h, y, e in chunks])


class _TokenLogps(torch.autograd.Function):
    """Output layer, log-softmax and selection of the labels in one function, `rows` tokens at a time and in place.

    With upstream gradient g and z = W h + b, the gradient of g * log softmax(z)[y] is g * (onehot(y) - softmax(z)) with
    respect to z; those of h, W and b follow by the chain rule. Matrix products are in the autocast type, as they would
    be without this function; log-probabilities are float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: int,
        training: bool,
        entropies: Tensor | None,
    ) -> Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.rows, ctx.kept = rows, []
        ctx.save_for_backward(hidden, weight, bias, labels)
        out = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        scratch: Tensor | None = None
        with torch.autocast(device, enabled=False):
            cast = weight.to(ctx.dtype)
            parts = hidden.split(rows), labels.split(rows), out.split(rows), _split(entropies, rows, len(hidden))
            for h, y, chunk, entropy in zip(*parts, strict=True):
                logps = scratch = _log_softmax(h.to(ctx.dtype), cast, bias, scratch)
                chunk.copy_(logps.gather(1, y[:, None])[:, 0])
                if entropy is not None:
                    entropy.copy_(_entropies(logps))
                if training and len(ctx.kept) < KEPT:
                    ctx.kept.append(logps)
                    scratch = None  # the next chunk needs memory of its own
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        rows, kept = ctx.rows, iter(ctx.kept)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        scratch: Tensor | None = None
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(ctx.dtype)
            for k, (h, y, g) in enumerate(zip(*(x.split(rows) for x in (hidden, labels, gradient)), strict=True)):
                h = h.to(ctx.dtype)
                logps = next(kept, None)
                if logps is None:
                    logps = scratch = _log_softmax(h, cast, bias, scratch)
                d_logits = logps.exp_().mul_(-g[:, None])
                d_logits[torch.arange(len(y), device=y.device), y] += g
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(ctx.dtype)
                if d_hidden is not None:
                    d_hidden[k * rows : k * rows + len(y)] = d_logits @ cast
                if d_weight is not None and ctx.dtype == d_weight.dtype:
                    d_weight.addmm_(d_logits.T, h)
                elif d_weight is not None:
                    d_weight += d_logits.T @ h
        del ctx.kept
        return d_hidden, d_weight, d_bias, None, None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor | None) -> Tensor:
    """(n, V) float32 log-probabilities over the vocabulary for (n, H) states, written into `scratch` if it is large
    enough."""
    n = len(hidden)
    if scratch is None or len(scratch) < n:
        scratch = torch.empty(n, weight.shape[0], dtype=torch.float32, device=hidden.device)
    logits = scratch[:n]
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight.T, out=logits)
    else:
        logits.copy_(hidden @ weight.T)
    if bias is not None:
        logits += bias
    return torch.log_softmax(logits, -1, out=logits)


def _split(entropies: Tensor | None, rows: int, n: int) -> Sequence[Tensor | None]:
    """The entropies of each chunk, to be filled; None for each where none are asked for."""
    return [None] * max(1, -(-n // rows)) if entropies is None else entropies.split(rows)


def _entropies(logps: Tensor) -> Tensor:
    """(n,) entropies of (n, V) log-probabilities; a token that cannot come, of -inf, adds nothing."""
    found: Tensor = -torch.linalg.vecdot(logps.exp(), logps.clamp_min(torch.finfo(logps.dtype).min))
    return found


def pick(logits: Tensor, labels: Tensor, entropies: Tensor | None = None) -> Tensor:
    """(N,) float32 log-probabilities of the labels, from (N, V) logits; the entropies are filled, if given."""
    if entropies is not None:
        with torch.no_grad():
            entropies.copy_(_entropies(logits.float().log_softmax(-1)))
    return -nn.functional.cross_entropy(logits.float(), labels, reduction="none")
