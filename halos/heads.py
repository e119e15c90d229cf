"""What a model may get beside or instead of its output layer: a value for each token, a score for each sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from halos.data.batches import Microbatch
from halos.logprobs import rows_of


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
