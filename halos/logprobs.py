"""Token log-probabilities of responses, computed only where there is a response token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halos.data.batches import Microbatch

CHUNK = 2048
"""Tokens whose logits exist at one time: the memory of the output layer is CHUNK x vocabulary."""


class ResponseLogps(nn.Module):
    """A causal language model as a function from sequences to the log-probabilities of their response tokens.

    Wrapping the model, rather than calling its parts from outside, keeps the hooks of DDP and FSDP in play.

    Args:
        model: any `AutoModelForCausalLM`, peft's wrapping included.
        value_head: (N, H) hidden states -> (N, 1) values, or None.
    """

    def __init__(self, model: Any, value_head: nn.Module | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them off what it is given
        self.value_head = value_head
        self.head_is_plain = _head_is_plain(model)

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """`logps`: (S, T) float32 log-probabilities of the response tokens of each sequence, 0 beyond its length; with
        a value head also `values`: (S, T) float32, each of the state before its token.

        Right padding needs no attention mask: in a causal model no token sees what comes after it.
        """
        rows, columns = batch.mask.nonzero(as_tuple=True)
        positions = batch.prompt_lengths[rows] + columns
        labels = batch.input_ids[rows, positions]
        if self.head_is_plain:
            hidden = self.model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            states = hidden[rows, positions - 1]
            logps = self._from_hidden(states, labels)
        else:
            wanted = self.value_head is not None
            out = self.model(input_ids=batch.input_ids, use_cache=False, output_hidden_states=wanted)
            states = out.hidden_states[-1][rows, positions - 1] if wanted else None
            logps = _pick(out.logits[rows, positions - 1], labels)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(batch.mask.shape).index_put((rows, columns), values)

        if self.value_head is None:
            return {"logps": spread(logps)}
        return {"logps": spread(logps), "values": spread(self.value_head(states)[:, 0])}

    def _from_hidden(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(N,) log-probabilities from (N, H) hidden states, CHUNK tokens at a time; the backward pass makes each
        chunk's logits again instead of keeping them."""
        head = self.model.get_output_embeddings()
        chunks = list(zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            return torch.cat([_pick(head(h), y) for h, y in chunks]) if chunks else hidden.new_zeros(0)
        return torch.cat([checkpoint(lambda h, y: _pick(head(h), y), h, y, use_reentrant=False) for h, y in chunks])


def _pick(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 log softmax of (N, V) logits at the labels."""
    return -nn.functional.cross_entropy(logits.float(), labels, reduction="none")


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether logits are just the output layer applied to the last hidden state. Some models scale or cap them
    (Cohere, Gemma 2): those go through their own forward pass.

    Small logits hide a cap, and those of random weights are small: so the layer's output is replaced by large numbers,
    which must come out of the model as they are."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    seen: dict[str, Tensor] = {}

    def probe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["hidden"] = inputs[0]
        seen["logits"] = torch.linspace(-100, 100, output.numel()).to(output).view_as(output)
        return seen["logits"]

    training = model.training
    model.eval()
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    handle = head.register_forward_hook(probe)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    model.train(training)
    pairs = ((hidden, seen.get("hidden")), (logits, seen.get("logits")))
    return all(b is not None and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)
