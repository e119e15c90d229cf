"""The loss of a reward model."""

from __future__ import annotations

from dataclasses import dataclass

from halos.losses.base import Batch, Logps, Loss, Output, Weight, less_margin, log_sigmoid, preference
from halos.registry import LOSSES
from halos.views import VIEWS


@LOSSES.register("bradley_terry")
@dataclass(frozen=True)
class BradleyTerry(Loss):
    """A reward model: -log sigmoid(score_w - score_l - margin_weight m) + centre_weight (score_w + score_l)^2.

    One score for each sequence; m is the pair's margin in the data. Bradley and Terry 1952; Ouyang et al. 2022,
    InstructGPT, equation 1 (arXiv 2203.02155); the margin: Touvron et al. 2023, Llama 2, equation 2 (arXiv 2307.09288);
    the term that brings scores to a mean of 0: Eisenstein et al. 2023, Helping or Herding? (arXiv 2312.09244).
    """

    margin_weight: Weight = 0.0
    centre_weight: Weight = 0.0

    view = VIEWS["paired"]
    needs_reference = False
    head = "score"

    @property
    def needs_margins(self) -> bool:
        return self.margin_weight > 0

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = batch.rewards["chosen"], batch.rewards["rejected"]
        losses = -log_sigmoid(less_margin(chosen - rejected, self.margin_weight, batch))
        if self.centre_weight:
            losses = losses + self.centre_weight * (chosen + rejected).square()
        return preference(losses, chosen, rejected)
