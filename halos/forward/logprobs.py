"""Token log-probabilities of responses, computed only where there is a response token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

CHUNK = 64 * 2**20
"""Bytes of logits that are made at one time."""
KEPT = 4
"""Chunks of log-probabilities of all tokens that are kept for the backward pass; those of further ones are made again.
Together with CHUNK it bounds the memory of the output layer, whatever the vocabulary and the number of tokens."""


def token_logps(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Log-probabilities of tokens, without the logits of all of them at one time.

    Args:
        hidden: (N, H) states before the tokens.
        head: the output layer, V tokens wide.
        labels: (N,) int64, the tokens.

    Returns:
        (N,) float32.
    """
    weight: Any = head.weight
    rows = max(1, CHUNK // (4 * weight.shape[0]))
    if type(head) is nn.Linear and not isinstance(weight, DTensor):
        logps: Tensor = _TokenLogps.apply(hidden, weight, head.bias, labels, rows, torch.is_grad_enabled())
        return logps
    chunks = list(zip(hidden.split(rows), labels.split(rows), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([pick(head(h), y) for h, y in chunks])
    return torch.cat([checkpoint(lambda h, y: pick(head(h), y), h, y, use_reentrant=False) for h, y in chunks])


class _TokenLogps(torch.autograd.Function):
    """The output layer and a log-softmax, some rows at a time and in place. The gradient of a log-probability with
    respect to the logits is the one-hot vector of its label less the probabilities."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: int, training: bool
    ) -> Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.rows, ctx.kept = rows, []
        ctx.save_for_backward(hidden, weight, bias, labels)
        out = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        scratch: Tensor | None = None
        with torch.autocast(device, enabled=False):
            cast = weight.to(ctx.dtype)
            for h, y, found in zip(hidden.split(rows), labels.split(rows), out.split(rows), strict=True):
                logps = scratch = _log_softmax(h.to(ctx.dtype), cast, bias, scratch)
                found.copy_(logps.gather(1, y[:, None])[:, 0])
                if training and len(ctx.kept) < KEPT:
                    ctx.kept.append(logps)
                    scratch = None
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
        return d_hidden, d_weight, d_bias, None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor | None) -> Tensor:
    """(n, V) float32 log-probabilities of all tokens, in the memory of `scratch` if there is enough."""
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


def pick(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 log softmax of (N, V) logits at the labels."""
    return -nn.functional.cross_entropy(logits.float(), labels, reduction="none")
