"""DPO's relatives that take account of the lengths of the two responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from halos.losses.base import Batch, Fraction, Logps, Positive, Weight, log_sigmoid
from halos.losses.paired import Logistic
from halos.registry import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("dpo_norm")
@dataclass(frozen=True)
class NormalisedDPO(Logistic):
    """-log sigmoid(beta (r_w / len_w - r_l / len_l)): length-normalised DPO.

    Lambert et al. 2024, Tulu 3 (arXiv 2411.15124), after Meng et al. 2024, SimPO (arXiv 2405.14734). Betas are larger
    than DPO's, as means of log-ratios are smaller than their sums.
    """

    beta: Positive = 5.0

    def ratio(self, policy: Logps, reference: Logps, batch: Batch, role: str) -> Tensor:
        return batch.mean_over_tokens(policy[role] - reference[role], role)


@LOSSES.register("rdpo")
@dataclass(frozen=True)
class RDPO(Logistic):
    """-log sigmoid(w - l + alpha (len_w - len_l)): DPO for a reward that loses alpha with each token.

    Park et al. 2024, Disentangling Length from Quality (arXiv 2403.19159). The longer the chosen response is beside the
    rejected one, the more of the preference is put down to its length, and the less is learned from the pair.
    """

    alpha: Weight = 0.01

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        tokens = batch.mask["chosen"].sum(-1) - batch.mask["rejected"].sum(-1)
        return -log_sigmoid(chosen - rejected + self.alpha * tokens)


@LOSSES.register("ld_dpo")
@dataclass(frozen=True)
class LDDPO(Logistic):
    """DPO in which tokens beyond the length of the shorter response count by alpha: 1 is DPO, 0 leaves them out.

    Liu et al. 2024, Length Desensitization in DPO (arXiv 2409.06411), for policy and reference alike.
    """

    alpha: Fraction = 0.5

    def ratio(self, policy: Logps, reference: Logps, batch: Batch, role: str) -> Tensor:
        shorter = batch.mask["chosen"].sum(-1).minimum(batch.mask["rejected"].sum(-1))
        beyond = batch.mask[role].cumsum(-1) > shorter[:, None]
        difference = policy[role] - reference[role]
        return difference.where(~beyond, self.alpha * difference).sum(-1)
