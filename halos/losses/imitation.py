"""Losses that imitate responses: supervised fine-tuning, plain and conditional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from halos.losses.base import Batch, Logps, Loss, Output, preference
from halos.registry import LOSSES
from halos.views import VIEWS


@LOSSES.register("sft")
@dataclass(frozen=True)
class SFT(Loss):
    """Maximum likelihood of the target response: the mean over the tokens of the global batch of -log pi."""

    view = VIEWS["sft"]
    needs_reference = False
    per_token = True

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        return Output(-policy["response"].sum(-1))


@LOSSES.register("csft")
@dataclass(frozen=True)
class CSFT(Loss):
    """Maximum likelihood of both responses, each after a control token; sampling uses the chosen response's token.

    Conditional training of Korbak et al. 2023, Pretraining Language Models with Human Preferences (arXiv 2302.08582).
    """

    chosen_token: str = "<|good|>"
    rejected_token: str = "<|bad|>"

    view = VIEWS["paired"]
    needs_reference = False
    per_token = True

    @property
    def control(self) -> Mapping[str, str]:
        return {"chosen": self.chosen_token, "rejected": self.rejected_token}

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (batch.mean_over_tokens(policy[role], role) for role in ("chosen", "rejected"))
        return preference(-policy["chosen"].sum(-1) - policy["rejected"].sum(-1), chosen, rejected)
