"""Networks that run a microbatch: log-probabilities and values of response tokens, or scores of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halos.errors import HalosError
from halos.forward.grouping import Grouping, forget_lengths
from halos.forward.logprobs import pick, token_logps
from halos.forward.microbatch import Microbatch
from halos.forward.own import Forward

OUTPUTS = ("logps", "values", "scores")
"""The outputs of forward passes that a batch has fields of its own for; losses read others as `batch.outputs`."""


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

    Attributes:
        grouping: which sequences are run side by side.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them from the outermost module
        self.grouping = Grouping()

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """{"scores": (S,) float32}, one for each sequence, read at its last token."""
        groups = self.grouping.groups(batch.layout.lengths) if batch.layout.segments is None else []
        if len(groups) < 2:
            return {"scores": self._scores(batch)}
        scores = torch.cat([self._scores(part) for part in _parts(self, batch)])
        return {"scores": scores[torch.from_numpy(np.argsort(np.concatenate(groups))).to(scores.device)]}

    def _scores(self, batch: Microbatch) -> Tensor:
        """(S,) float32 scores."""
        layout, inputs = batch.layout, model_inputs(batch)
        if batch.packing is None:
            columns = torch.arange(layout.input_ids.shape[1], device=layout.input_ids.device)
            padding = columns > layout.ends.index[:, None] % layout.input_ids.shape[1]
            inputs["input_ids"] = layout.input_ids.masked_fill(padding, self.model.config.pad_token_id)
            scores: Tensor = self.model(**inputs).logits[:, 0].float()
            return scores
        network = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = getattr(network, network.base_model_prefix)(**inputs).last_hidden_state
        ends: Tensor = network.score(layout.ends(hidden.flatten(0, 1)))
        return ends[:, 0].float()


class ResponseLogps(nn.Module):
    """The log-probabilities of a microbatch's response tokens under a causal language model, and their values.

    It is a module of its own so that the hooks of DDP and FSDP on it are run.

    Args:
        model: any `AutoModelForCausalLM`, also within a peft model.
        value_head: module from (N, H) hidden states to (N, 1) values, or None; H is `states_size(model)`.
        own: a plugin's forward pass, run in place of `of_tokens`.

    Attributes:
        grouping: which sequences are run side by side.
        head_is_plain: whether the model's logits are its output layer applied to its decoder's last hidden state.
    """

    def __init__(self, model: Any, value_head: nn.Module | None = None, own: Forward | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.own = own
        self._no_split_modules = list(model._no_split_modules or [])  # FSDP reads them from the outermost module
        self.value_head = value_head
        self.head_is_plain = not is_empty(model) and _head_is_plain(model)
        self.grouping = Grouping()

    def forward(self, batch: Microbatch) -> dict[str, Tensor]:
        """The outputs for each response token, 0 beyond each response.

        Returns:
            {"logps": (S, T) float32 log-probabilities}; with a value head also {"values": (S, T) float32}, each the
            value of the state from which its token is predicted, and {"entropies": (S, T) float32} of the distributions
            that it is drawn from; those of a plugin's pass likewise.
        """
        parts = list(_parts(self, batch))
        outputs = [self.of_tokens(part) if self.own is None else self._of_own(self.own, part) for part in parts]
        slots = torch.cat([part.layout.slots for part in parts])

        def scatter(values: list[Tensor]) -> Tensor:
            """(M,) values of all response tokens, part by part -> (S, T)."""
            zeros = values[0].new_zeros(batch.mask.numel())
            return zeros.index_copy(0, slots, torch.cat(values)).view(batch.mask.shape)

        return {name: scatter([values[name] for values in outputs]) for name in outputs[0]}

    def of_tokens(self, batch: Microbatch, **changes: Any) -> dict[str, Tensor]:
        """{"logps": (M,)} of the response tokens, with a value head also "values" and "entropies" of them; float32.

        Args:
            batch: the microbatch.
            changes: arguments of the model, in place of or beside its own; `inputs_embeds` in place of `input_ids`.
        """
        layout, inputs = batch.layout, model_inputs(batch, **changes)
        head, entropies = self.model.get_output_embeddings(), None
        if self.value_head is not None:
            entropies = torch.empty(layout.targets.shape, dtype=torch.float32, device=layout.targets.device)
        if self.head_is_plain:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            states = layout.before(hidden.flatten(0, 1))
            outputs = {"logps": token_logps(states, head, layout.targets, entropies)}
        else:
            with _inputs_of(head if self.value_head is not None else None) as seen:
                logits = self.model(**inputs).logits
            outputs = {"logps": pick(layout.before(logits.flatten(0, 1)), layout.targets, entropies)}
            if self.value_head is not None:
                states = layout.before(seen[0].flatten(0, 1))
        if self.value_head is not None and entropies is not None:
            outputs |= {"values": self.value_head(states)[:, 0], "entropies": entropies}
        return outputs

    def logits(self, batch: Microbatch, **changes: Any) -> Tensor:
        """(M, V) logits from which the response tokens are predicted; arguments as for `of_tokens`."""
        layout, inputs = batch.layout, model_inputs(batch, **changes)
        if self.head_is_plain:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            logits: Tensor = self.model.get_output_embeddings()(layout.before(hidden.flatten(0, 1)))
            return logits
        return layout.before(self.model(**inputs).logits.flatten(0, 1))

    def _of_own(self, own: Forward, batch: Microbatch) -> dict[str, Tensor]:
        """The outputs of a plugin's forward pass.

        Raises:
            HalosError: they are not what it has to give.
        """
        outputs, name = own(self, batch), type(own).__name__
        needed = {"logps"} if self.value_head is None else {"logps", "values"}
        if not isinstance(outputs, dict) or not needed <= outputs.keys():
            raise HalosError(f"the forward pass {name} must return a dictionary with {' and '.join(sorted(needed))}")
        for key, values in outputs.items():
            if not isinstance(values, Tensor) or values.shape != batch.layout.targets.shape:
                what = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"{values!r:.60}"
                tokens = len(batch.layout.targets)
                raise HalosError(f"the forward pass {name} gives {what} as {key}, and not one value for each of the "
                                 f"{tokens} response tokens")  # fmt: skip
        return {key: values.float() for key, values in outputs.items()}


@contextmanager
def plain(network: nn.Module) -> Iterator[None]:
    """With the package's own forward pass in the meantime, in place of a plugin's."""
    wrapped: Any = network
    own = getattr(wrapped, "own", None)
    if own is None:
        yield
        return
    wrapped.own = None
    try:
        yield
    finally:
        wrapped.own = own


def _parts(network: ResponseLogps | SequenceScores, batch: Microbatch) -> Iterator[Microbatch]:
    """The microbatches that a microbatch is run in, one after the other, by the network's grouping."""
    for layout in network.grouping.parts(batch.layout):
        if network.grouping.equal_above is not None:
            forget_lengths(network.model)
        yield replace(batch, layout=layout)


def model_inputs(batch: Microbatch, **changes: Any) -> dict[str, Any]:
    """The arguments with which a transformers model is called, `changes` in place of or beside them.

    Raises:
        ValueError: a packed microbatch has no packing yet.
    """
    inputs: dict[str, Any] = {"input_ids": batch.layout.input_ids, "use_cache": False}
    if batch.layout.segments is not None:
        if batch.packing is None:
            raise ValueError("a packed microbatch has no packing yet: move it to its device with `to` first")
        inputs |= {"position_ids": batch.layout.position_ids, "packing": batch.packing}
    if "inputs_embeds" in changes:
        del inputs["input_ids"]
    return inputs | changes


@contextmanager
def _inputs_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """The first input of each call of a module in the meantime; none of None."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def states_size(model: Any) -> int:
    """The width of the hidden states that a language model's output layer reads.

    It is the width of the layers in most models; not where the states are projected before the output layer (OPT 350M).

    Raises:
        HalosError: the model has no output layer of its own, or that does not read one state for each token.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise HalosError(
            f"{type(model).__name__} has no output layer whose states could have values: take another loss"
        )
    if is_empty(model):  # another process, which has the weights, tries it
        return int(head.weight.shape[1])
    ids = _probe_ids(model)
    with _evaluating(model), _inputs_of(head) as seen:
        model(input_ids=ids, use_cache=False)
    if len(seen) != 1 or seen[0].shape[:-1] != ids.shape:
        raise HalosError(
            f"the output layer of {type(model).__name__} reads several states for each token, so that none can have a "
            "value: take another loss"
        )
    return int(seen[0].shape[-1])


def is_empty(module: nn.Module) -> bool:
    """Whether a module was built without memory for its weights, on the meta device, so that it cannot be run."""
    return any(parameter.is_meta for parameter in module.parameters())


def _probe_ids(model: Any) -> Tensor:
    return torch.arange(8, device=next(model.parameters()).device)[None]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and without a gradient in the meantime."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _head_is_plain(model: Any) -> bool:
    """Whether a model's logits are its output layer applied to its decoder's last hidden state, and nothing more.

    Some models scale or cap logits (Cohere, Gemma 2), have layers before the output layer, or name something else their
    decoder (ModernBERT's, Llama 4); those have to be run through their own forward pass. A cap does not show on small
    logits, such as those of random weights. So the layer's output is replaced by large numbers, which must come out of
    the model unchanged.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    seen: dict[str, Tensor] = {}

    def probe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["hidden"] = inputs[0]
        seen["logits"] = torch.linspace(-100, 100, output.numel()).to(output).view_as(output)
        return seen["logits"]

    ids = _probe_ids(model)
    with _evaluating(model):
        handle = head.register_forward_hook(probe)
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        except Exception as error:  # any error that a model's own code raises
            raise HalosError(cannot_run(model, error)) from error
        finally:
            handle.remove()
        try:
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        except Exception:  # whatever a part raises that is called as if it were the decoder
            return False
    pairs = ((hidden, seen.get("hidden")), (logits, seen.get("logits")))
    return all(
        b is not None and a.shape == b.shape and float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())
        for a, b in pairs
    )


def cannot_run(model: nn.Module, error: Exception) -> str:
    """One sentence about an error that a model's own code raised when it was tried out."""
    why = " ".join(str(error).split()) or type(error).__name__
    return f"{type(model).__name__} cannot be run on token ids alone: {why}; take another model"
