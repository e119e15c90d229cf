"""The networks of a training: log-probabilities of response tokens, a value for each token, a score per sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from halos.forward.logprobs import pick, token_logps
from halos.forward.microbatch import Microbatch


class ValueHead(nn.Module):
    """(N, H) hidden states -> (N, 1) values: three layers in float32 whatever the compute type, on a detached trunk, so
    that the error of the value never moves the policy."""

    def __init__(self, size: int) -> None:
        super().__init__()
        layers = (nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.layers(hidden.detach().float())
            return values


class SequenceScores(nn.Module):
    """A reward model as a function from sequences to their scores.

    Args:
        model: an `AutoModelForSequenceClassification` with one label, whose padding token ends no sequence: it reads
            the score off the last token that is not padding, as any program that loads it later will.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them off what it is given

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """`scores`: (S,) float32."""
        layout, rows = batch.layout, rows_of(batch)
        if batch.packing is None:
            columns = torch.arange(layout.input_ids.shape[1], device=layout.input_ids.device)
            padding = columns > layout.ends.index[:, None] % layout.input_ids.shape[1]
            rows["input_ids"] = layout.input_ids.masked_fill(padding, self.model.config.pad_token_id)
            return {"scores": self.model(**rows).logits[:, 0].float()}
        network = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = getattr(network, network.base_model_prefix)(**rows).last_hidden_state
        return {"scores": network.score(layout.ends(hidden.flatten(0, 1)))[:, 0].float()}


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
        a value head also `values`: (S, T) float32, each of the state before its token."""
        layout, rows = batch.layout, rows_of(batch)
        if self.head_is_plain:
            hidden = self.model.get_decoder()(**rows).last_hidden_state
            states = layout.before(hidden.flatten(0, 1))
            logps = token_logps(states, self.model.get_output_embeddings(), layout.targets)
        else:
            wanted = self.value_head is not None
            out = self.model(**rows, output_hidden_states=wanted)
            logps = pick(layout.before(out.logits.flatten(0, 1)), layout.targets)
            if wanted:
                states = layout.before(out.hidden_states[-1].flatten(0, 1))

        def spread(values: Tensor) -> Tensor:
            everywhere = values.new_zeros(batch.mask.numel())
            return everywhere.index_copy(0, layout.slots, values).view(batch.mask.shape)

        if self.value_head is None:
            return {"logps": spread(logps)}
        return {"logps": spread(logps), "values": spread(self.value_head(states)[:, 0])}


def rows_of(batch: Microbatch) -> dict[str, Any]:
    """What a model is called with."""
    found: dict[str, Any] = {"input_ids": batch.layout.input_ids, "use_cache": False}
    if batch.layout.segments is not None:
        if batch.packing is None:
            raise ValueError("a packed microbatch has to be moved `to` its device, which makes its packing")
        found |= {"position_ids": batch.layout.position_ids, "packing": batch.packing}
    return found


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
