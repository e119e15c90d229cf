"""Networks that run a microbatch: log-probabilities and values of response tokens, or scores of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from halos.forward.logprobs import pick, token_logps
from halos.forward.microbatch import Microbatch


class ValueHead(nn.Module):
    """The value head of PPO: a perceptron of three layers from (N, H) hidden states to (N, 1) values.

    It computes in float32 under any autocast, and on detached states: the value loss does not train the policy.

    Args:
        size: H.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        layers = (nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.layers(hidden.detach().float())
            return values


class SequenceScores(nn.Module):
    """The scores of a microbatch's sequences under a reward model.

    Args:
        model: an `AutoModelForSequenceClassification` with one label. Its padding token must not be the last token of
            any sequence, because transformers reads the score at the last token that is not padding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them from the outermost module

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """{"scores": (S,) float32}, one for each sequence, read at its last token."""
        layout, inputs = batch.layout, model_inputs(batch)
        if batch.packing is None:
            columns = torch.arange(layout.input_ids.shape[1], device=layout.input_ids.device)
            padding = columns > layout.ends.index[:, None] % layout.input_ids.shape[1]
            inputs["input_ids"] = layout.input_ids.masked_fill(padding, self.model.config.pad_token_id)
            return {"scores": self.model(**inputs).logits[:, 0].float()}
        network = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = getattr(network, network.base_model_prefix)(**inputs).last_hidden_state
        return {"scores": network.score(layout.ends(hidden.flatten(0, 1)))[:, 0].float()}


class ResponseLogps(nn.Module):
    """The log-probabilities of a microbatch's response tokens under a causal language model, and their values.

    It is a module of its own so that the hooks of DDP and FSDP on it are run.

    Args:
        model: any `AutoModelForCausalLM`, also within a peft model.
        value_head: module from (N, H) hidden states to (N, 1) values, or None.
    """

    def __init__(self, model: Any, value_head: nn.Module | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them from the outermost module
        self.value_head = value_head
        self.head_is_plain = _head_is_plain(model)

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """The outputs for each response token, 0 beyond each response.

        Returns:
            {"logps": (S, T) float32 log-probabilities}; with a value head also {"values": (S, T) float32}, each the
            value of the state from which its token is predicted.
        """
        layout, inputs = batch.layout, model_inputs(batch)
        if self.head_is_plain:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            states = layout.before(hidden.flatten(0, 1))
            logps = token_logps(states, self.model.get_output_embeddings(), layout.targets)
        else:
            out = self.model(**inputs, output_hidden_states=self.value_head is not None)
            logps = pick(layout.before(out.logits.flatten(0, 1)), layout.targets)
            if self.value_head is not None:
                states = layout.before(out.hidden_states[-1].flatten(0, 1))

        def scatter(values: Tensor) -> Tensor:
            """(M,) values of all response tokens -> (S, T)."""
            zeros = values.new_zeros(batch.mask.numel())
            return zeros.index_copy(0, layout.slots, values).view(batch.mask.shape)

        if self.value_head is None:
            return {"logps": scatter(logps)}
        return {"logps": scatter(logps), "values": scatter(self.value_head(states)[:, 0])}


def model_inputs(batch: Microbatch) -> dict[str, Any]:
    """The arguments with which a transformers model is called.

    Raises:
        ValueError: a packed microbatch has no packing yet.
    """
    inputs: dict[str, Any] = {"input_ids": batch.layout.input_ids, "use_cache": False}
    if batch.layout.segments is not None:
        if batch.packing is None:
            raise ValueError("a packed microbatch has no packing yet: move it to its device with `to` first")
        inputs |= {"position_ids": batch.layout.position_ids, "packing": batch.packing}
    return inputs


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether a model's logits are its output layer applied to its last hidden state, and nothing more.

    Some models scale or cap logits (Cohere, Gemma 2); those have to be run through their own forward pass. A cap does
    not show on small logits, such as those of random weights. So the layer's output is replaced by large numbers, which
    must come out of the model unchanged.
    """
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
