"""ArmoRM's kind of reward model: rewards of several objectives, weighed by the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from halos.errors import HalosError
from halos.models.attention import AUTO, check_attention, check_here
from halos.models.download import weight_files
from halos.pretrained import read_config
from halos.tokens.template import Template

TEMPERATURE = 10.0
"""Temperature of the softmax where the config names none, as in the published code."""


class Gate(nn.Module):
    """The head of ArmoRM (Wang et al. 2024, "Interpretable Preferences via Multi-Objective Reward Modeling and
    Mixture-of-Experts", arXiv 2406.12845), in the layout in which its weights are published.

    A linear layer gives the rewards r of K objectives from the state of a sequence's last token. A matrix T takes out
    of each what it shares with the length. A perceptron with a softmax gives the weights g of the objectives from the
    state of the token that ends the prompt's last turn: they depend on the prompt alone. The score is the sum of
    g * (r T) over the objectives.

    Args:
        weights: name -> tensor: `regression_layer.weight` (K, H), `reward_transform_matrix` (K, K),
            `gating.logit_scale` (1,), and `gating.layers.N.weight` and `.bias` of the perceptron's layers.
        temperature: of the softmax.

    Raises:
        HalosError: a tensor is missing, or the head is of another kind.
    """

    def __init__(self, weights: Mapping[str, Tensor], temperature: float) -> None:
        super().__init__()
        matrices = sorted(
            (int(layer[1]), name) for name in weights if (layer := re.fullmatch(r"gating\.layers\.(\d+)\.weight", name))
        )
        try:
            if not matrices:
                raise KeyError("gating.layers")
            objectives, width = weights["regression_layer.weight"].shape
            self.regression_layer = nn.Linear(width, objectives, bias=False)
            self.reward_transform_matrix = nn.Parameter(torch.zeros(objectives, objectives))
            self.gating = nn.Module()
            self.gating.logit_scale = nn.Parameter(torch.zeros(1))
            self.gating.layers = nn.ModuleList(
                nn.Linear(weights[name].shape[1], weights[name].shape[0], name.replace("weight", "bias") in weights)
                for _, name in matrices
            )
            self.load_state_dict(dict(weights))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise HalosError(f"its head is not that of ArmoRM ({why}); name another reward model") from error
        self.temperature = temperature

    def forward(self, last: Tensor, prompt: Tensor) -> Tensor:
        """(B,) float32 scores, from the (B, H) states of the last tokens and of those that end the prompts."""
        gates = prompt.float()
        layers: Any = self.gating.layers
        for layer in layers[:-1]:
            gates = layer(gates).relu()
        gates = self.gating.logit_scale * (layers[-1](gates) / self.temperature).softmax(-1)
        rewards = self.regression_layer(last.float()) @ self.reward_transform_matrix
        scores: Tensor = (gates * rewards).sum(-1)
        return scores


class GatedRewardModel(nn.Module):
    """A decoder with ArmoRM's head, called as a classifier with one label is.

    Args:
        decoder: transformers' model without an output layer.
        gate: the head, which computes in float32 under any autocast.
        prompt_end: ids with which every prompt ends, from the token that ends its last turn on.
    """

    def __init__(self, decoder: Any, gate: Gate, prompt_end: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.gate, self.prompt_end = decoder, gate, list(prompt_end)
        self.config = decoder.config

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's."""
        embeddings: nn.Module = self.decoder.get_input_embeddings()
        return embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """`logits`, (B, 1) float32 scores of sequences that are padded on the right; NaN for one without a prompt."""
        states = self.decoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        last, begins = attention_mask.sum(-1) - 1, self._begins(input_ids)
        with torch.autocast(input_ids.device.type, enabled=False):
            scores = self.gate(states[rows, last], states[rows, begins.clamp(min=0)])
        return SimpleNamespace(logits=scores.masked_fill(begins < 0, torch.nan)[:, None])

    def _begins(self, ids: Tensor) -> Tensor:
        """(B,) where the prompt's end begins: at its last occurrence in each row; -1 where there is none."""
        end = torch.tensor(self.prompt_end, device=ids.device)
        if ids.shape[1] < len(end):
            return ids.new_full((len(ids),), -1)
        found = (ids.unfold(1, len(end), 1) == end).all(-1)
        return torch.where(found, torch.arange(found.shape[1], device=ids.device), -1).amax(-1)


def load_gated(folder: Path, attention: str, template: Template) -> GatedRewardModel:
    """A reward model of ArmoRM's kind, in float32. The code that comes with it is not run.

    Args:
        folder: the model's folder, weights as safetensors.
        attention: attention implementation, or `auto`.
        template: the chat template of its tokenizer.

    Raises:
        HalosError: its weights are not all there or are those of another kind, or the template does not end a user's
            turn with a token.
    """
    from transformers import AutoModel

    check_attention(folder, attention)
    check_here(attention)
    config = read_config(folder, trusted=False)
    implementation = None if attention == AUTO else attention
    options: dict[str, Any] = {"attn_implementation": implementation, "trust_remote_code": False}
    decoder, report = AutoModel.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(report["missing_keys"]):
        raise HalosError(f"the weights in {folder} are not all there: {len(missing)} are missing, such as {missing[0]}")
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            heads = [name for name in opened.keys() if not name.startswith(f"{decoder.base_model_prefix}.")]  # noqa: SIM118
            weights |= {name: opened.get_tensor(name).float() for name in heads}
    try:
        gate = Gate(weights, float(getattr(config, "gating_temperature", TEMPERATURE)))
    except HalosError as error:
        raise HalosError(f"the reward model in {folder}: {error}") from None
    return GatedRewardModel(decoder, gate, _prompt_end(folder, template))


def _prompt_end(folder: Path, template: Template) -> list[int]:
    """The ids with which prompts end, from the token that ends a turn on: of Llama 3, `<|eot_id|>` and the header of
    the assistant's turn. ArmoRM reads the prompt at the first of them."""
    [prompt] = template.prompts([[{"role": "user", "content": "Hello."}]], max_length=2**31)
    ids = prompt.ids or []
    if template.end not in ids:
        raise HalosError(
            f"the chat template of the reward model in {folder} does not end a user's turn with the token that ends a "
            "response, at which a model of ArmoRM's kind reads the prompt: put its own there as chat_template.jinja"
        )
    return ids[len(ids) - 1 - ids[::-1].index(template.end) :]
