"""Losses of paired preferences without a reference.

m = s / len is the mean log-probability of a response's tokens; 0 for an empty response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from halos.losses.base import LIMIT, Batch, Logps, Loss, Output, Positive, Weight, log_sigmoid, preference
from halos.registry import LOSSES
from halos.views import VIEWS

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("simpo")
@dataclass(frozen=True)
class SimPO(Loss):
    """-log sigmoid(beta (s_w / len_w - s_l / len_l - gamma_beta_ratio)); no reference.

    Meng et al. 2024, SimPO, equation 6 (arXiv 2405.14734), its gamma written as gamma_beta_ratio * beta.
    """

    beta: Positive = 10.0
    gamma_beta_ratio: Weight = 0.3

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = self.beta * batch.mean_over_tokens(policy["chosen"], "chosen")
        rejected = self.beta * batch.mean_over_tokens(policy["rejected"], "rejected")
        margin = chosen - rejected - self.beta * self.gamma_beta_ratio
        return preference(-log_sigmoid(margin), chosen, rejected)


@LOSSES.register("alphapo")
@dataclass(frozen=True)
class AlphaPO(Loss):
    """-log sigmoid(R_w - R_l - beta gamma_beta_ratio), R = beta (1 - exp(-alpha m)) / alpha; no reference.

    Gupta et al. 2025, AlphaPO (arXiv 2501.03884): the reward R has another shape than SimPO's, beta m, which is that of
    alpha 0. Exponents are clamped at 40.
    """

    beta: Positive = 10.0
    gamma_beta_ratio: Weight = 0.3
    alpha: float = 0.25

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (self._reward(batch.mean_over_tokens(policy[r], r)) for r in ("chosen", "rejected"))
        return preference(-log_sigmoid(chosen - rejected - self.beta * self.gamma_beta_ratio), chosen, rejected)

    def _reward(self, mean: Tensor) -> Tensor:
        shaped = -(-self.alpha * mean).clamp(max=LIMIT).expm1() / self.alpha if self.alpha else mean
        return self.beta * shaped


@LOSSES.register("cpo")
@dataclass(frozen=True)
class CPO(Loss):
    """-log sigmoid(beta (s_w - s_l)) - sft_weight m_w; no reference.

    Xu et al. 2024, Contrastive Preference Optimization, equation 3 (arXiv 2401.08417), its likelihood term divided by
    the length of the response, where TRL has a mean over the tokens of a batch.
    """

    beta: Positive = 0.1
    sft_weight: Weight = 1.0

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (self.beta * policy[role].sum(-1) for role in ("chosen", "rejected"))
        likelihood = batch.mean_over_tokens(policy["chosen"], "chosen")
        return preference(-log_sigmoid(chosen - rejected) - self.sft_weight * likelihood, chosen, rejected)


@LOSSES.register("rrhf")
@dataclass(frozen=True)
class RRHF(Loss):
    """max(0, m_l - m_w) - sft_weight s_w; no reference.

    Yuan et al. 2023, RRHF (arXiv 2304.05302), for two responses: of more, every pair of the data adds
    its hinge. The likelihood of the better response is the sum over tokens, as SLiC's is.
    """

    sft_weight: Weight = 1.0

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (batch.mean_over_tokens(policy[role], role) for role in ("chosen", "rejected"))
        losses = (rejected - chosen).clamp(min=0) - self.sft_weight * policy["chosen"].sum(-1)
        return preference(losses, chosen, rejected)


@LOSSES.register("slic")
@dataclass(frozen=True)
class SLiC(Loss):
    """max(0, delta - s_w + s_l) - sft_weight s_w; no reference.

    Zhao et al. 2023, SLiC-HF, equation 1 (arXiv 2305.10425), its regulariser the likelihood of the chosen response, by
    the sum over tokens: the sft_weight of other paired losses weighs the mean.
    """

    delta: Weight = 1.0
    sft_weight: Weight = 0.1

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = policy["chosen"].sum(-1), policy["rejected"].sum(-1)
        losses = (self.delta - chosen + rejected).clamp(min=0) - self.sft_weight * chosen
        return preference(losses, chosen, rejected)


@LOSSES.register("orpo")
@dataclass(frozen=True)
class ORPO(Loss):
    """-m_w - odds_ratio_weight log sigmoid(log odds(m_w) - log odds(m_l)), with m = s / len; no reference.

    log odds(m) = m - log(1 - exp m). Hong et al. 2024, ORPO, equations 6 and 7 (arXiv 2403.07691). An empty response
    has no odds: its comparison is left out.
    """

    odds_ratio_weight: Weight = 0.1

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = batch.mean_over_tokens(policy["chosen"], "chosen")
        rejected = batch.mean_over_tokens(policy["rejected"], "rejected")
        both = batch.mask["chosen"].any(-1) & batch.mask["rejected"].any(-1)
        ratio = log_sigmoid(_log_odds(chosen) - _log_odds(rejected)) * both
        weight = self.odds_ratio_weight
        return preference(-chosen - weight * ratio, weight * chosen, weight * rejected)


def _log_odds(x: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(x), finite for p = 1."""
    x = x.clamp(max=-1e-6)
    return x - (-x.expm1()).log()
