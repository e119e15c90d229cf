"""Losses of paired preferences: with implicit rewards, without a reference, and the reward model's.

Implicit rewards: `chosen` is beta r_w and `rejected` is beta r_l; the docstrings call them w and l.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import log, log1p
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le, Lt

from halos.losses.base import (
    Batch,
    Logps,
    Loss,
    Noise,
    Output,
    Positive,
    Weight,
    less_margin,
    log_ratio,
    log_sigmoid,
    preference,
)
from halos.registry import LOSSES
from halos.views import VIEWS

if TYPE_CHECKING:
    from torch import Tensor

# ---- with a reference ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Implicit(Loss):
    """Base class of losses that are a function of the implicit rewards."""

    beta: Positive = 0.1

    view = VIEWS["paired"]

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = self.beta * log_ratio(policy, reference, "chosen")
        rejected = self.beta * log_ratio(policy, reference, "rejected")
        return preference(self.of(chosen, rejected, batch), chosen, rejected)

    @abstractmethod
    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        """(B,) losses of (B,) implicit rewards."""


@LOSSES.register("dpo")
@dataclass(frozen=True)
class DPO(Implicit):
    """-log sigmoid(beta (r_w - r_l) - margin_weight m), with m the pair's margin in the data.

    Rafailov et al. 2023, Direct Preference Optimization, equation 7 (arXiv 2305.18290). With a margin: Amini et al.
    2024, Direct Preference Optimization with an Offset (arXiv 2402.10571), whose alpha is the margin_weight.
    """

    margin_weight: Weight = 0.0

    @property
    def needs_margins(self) -> bool:
        return self.margin_weight > 0

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return -log_sigmoid(less_margin(chosen - rejected, self.margin_weight, batch))


@dataclass(frozen=True)
class Noisy(Implicit):
    """Base class of losses that assume a fraction `epsilon` of the preferences to be flipped."""

    epsilon: Noise = 0.2


@LOSSES.register("cdpo")
@dataclass(frozen=True)
class CDPO(Noisy):
    """(1 - epsilon) dpo(w, l) + epsilon dpo(l, w).

    Mitchell 2023, A note on DPO with noisy preferences, equation 3 (https://ericmitchell.ai/cdpo.pdf).
    """

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        margin = chosen - rejected
        return -(1 - self.epsilon) * log_sigmoid(margin) - self.epsilon * log_sigmoid(-margin)


@LOSSES.register("robust")
@dataclass(frozen=True)
class RobustDPO(Noisy):
    """((1 - epsilon) dpo(w, l) - epsilon dpo(l, w)) / (1 - 2 epsilon): unbiased under noisy labels.

    Chowdhury et al. 2024, Provably Robust DPO, equation 12 (arXiv 2403.00409).
    """

    epsilon: Noise = 0.1

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        margin = chosen - rejected
        unbiased = -(1 - self.epsilon) * log_sigmoid(margin) + self.epsilon * log_sigmoid(-margin)
        return unbiased / (1 - 2 * self.epsilon)


@LOSSES.register("exo")
@dataclass(frozen=True)
class EXO(Noisy):
    """KL(q || p) of q = (sigmoid(w - l), sigmoid(l - w)) from the labels p = (1 - epsilon, epsilon).

    Ji et al. 2024, Efficient Exact Optimization, equation 16 (arXiv 2402.00856).
    """

    epsilon: Annotated[float, Gt(0), Lt(0.5)] = 1e-3  # at 0 the divergence is infinite

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        margin = chosen - rejected
        right = margin.sigmoid() * (log_sigmoid(margin) - log1p(-self.epsilon))
        return right + (-margin).sigmoid() * (log_sigmoid(-margin) - log(self.epsilon))


@LOSSES.register("ipo")
@dataclass(frozen=True)
class IPO(Loss):
    """(r_w / len_w - r_l / len_l - 1 / (2 tau))^2.

    Azar et al. 2023, A General Theoretical Paradigm, equation 17 (arXiv 2310.12036), each log-ratio divided by its
    length, as its authors ran it. The length is the mask's, because a token's log-ratio may be 0.
    """

    tau: Positive = 0.1

    view = VIEWS["paired"]

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = batch.mean_over_tokens(policy["chosen"] - reference["chosen"], "chosen")
        rejected = batch.mean_over_tokens(policy["rejected"] - reference["rejected"], "rejected")
        losses = (chosen - rejected - 1 / (2 * self.tau)).square()
        return preference(losses, self.tau * chosen, self.tau * rejected)


@LOSSES.register("hinge")
@dataclass(frozen=True)
class Hinge(Implicit):
    """max(0, 1 - (w - l)).

    Liu et al. 2023, Statistical Rejection Sampling, table 1, the normalised hinge of SLiC (arXiv 2309.06657).
    """

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return (1 - (chosen - rejected)).clamp(min=0)


@LOSSES.register("nca")
@dataclass(frozen=True)
class NCA(Implicit):
    """-log sigmoid(w) - (log sigmoid(-w) + log sigmoid(-l)) / 2.

    Chen et al. 2024, Noise Contrastive Alignment, table 1 for two responses (arXiv 2402.05369).
    """

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return -log_sigmoid(chosen) - log_sigmoid(-chosen) / 2 - log_sigmoid(-rejected) / 2


@LOSSES.register("bco")
@dataclass(frozen=True)
class BCO(Implicit):
    """-log sigmoid(w - z) - log sigmoid(z - l), with z the mean of all w and l of the global batch, without gradient.

    Jung et al. 2024, Binary Classifier Optimization, equation 9 (arXiv 2404.04656), its reward shift z the mean of each
    global batch, not a moving average.
    """

    prepass = ("chosen", "rejected")

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        ratios = [log_ratio(policy, reference, role) for role in ("chosen", "rejected")]
        return {"reward": self.beta * (ratios[0] + ratios[1]) / 2}

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        shift = batch.statistics["reward"].mean()
        return -log_sigmoid(chosen - shift) - log_sigmoid(shift - rejected)


@LOSSES.register("sppo")
@dataclass(frozen=True)
class SPPO(Loss):
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2.

    Wu et al. 2024, SPPO, equation 4.7 (arXiv 2405.00675), the winner preferred with probability 1.
    """

    beta: Positive = 0.1

    view = VIEWS["paired"]

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = log_ratio(policy, reference, "chosen"), log_ratio(policy, reference, "rejected")
        half = 1 / (2 * self.beta)
        losses = (chosen - half).square() + (rejected + half).square()
        return preference(losses, self.beta * chosen, self.beta * rejected)


@LOSSES.register("aot")
@dataclass(frozen=True)
class AOT(Loss):
    """(1 - epsilon) dpo(m) + epsilon dpo(-m), m = beta (u_i - v_j), u = s_w - s_l of the policy, v of the reference.

    v_j has the rank among the v of the global batch that u_i has among its u: distributions are compared, not pairs.
    Melnyk et al. 2024, Distributional Preference Alignment, paired (arXiv 2406.05882).
    """

    beta: Positive = 0.1
    epsilon: Noise = 0.0

    view = VIEWS["paired"]
    prepass = ("chosen", "rejected")

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        models = {"policy": policy, "reference": reference}
        return {name: (m["chosen"].sum(-1) - m["rejected"].sum(-1)) for name, m in models.items()}

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        margin = policy["chosen"].sum(-1) - policy["rejected"].sum(-1)
        margins, reference_margins = (batch.statistics[name].sort().values for name in ("policy", "reference"))
        rank = (margin.detach()[:, None] - margins).abs().argmin(-1)  # nearest: dropout may have moved it since
        excess = self.beta * (margin - reference_margins[rank])
        losses = -(1 - self.epsilon) * log_sigmoid(excess) - self.epsilon * log_sigmoid(-excess)
        rewards = (self.beta * log_ratio(policy, reference, role) for role in ("chosen", "rejected"))
        return preference(losses, *rewards)


@LOSSES.register("apo_zero")
@dataclass(frozen=True)
class APOZero(Implicit):
    """1 - sigmoid(w) + sigmoid(l): for winners that are better than the model's samples.

    D'Oosterlinck et al. 2024, Anchored Preference Optimization, equation 7 (arXiv 2408.06266).
    """

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return 1 - chosen.sigmoid() + rejected.sigmoid()


@LOSSES.register("apo_down")
@dataclass(frozen=True)
class APODown(Implicit):
    """sigmoid(w) + 1 - sigmoid(w - l): for winners that are worse than the model's samples.

    D'Oosterlinck et al. 2024, Anchored Preference Optimization, equation 8 (arXiv 2408.06266).
    """

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


@LOSSES.register("discopop")
@dataclass(frozen=True)
class DiscoPOP(Implicit):
    """(1 - m) dpo + m exp(-(w - l)), with m = sigmoid((w - l) / tau).

    Lu et al. 2024, Discovering Preference Optimization Algorithms, equation 5 (arXiv 2406.08414). It is not convex: it
    rises around a margin of 0, so that from the reference margins fall at first.
    """

    tau: Annotated[float, Gt(0), Le(1)] = 0.05

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        margin = chosen - rejected
        logistic = -log_sigmoid(margin) * (-margin / self.tau).sigmoid()
        return logistic + (log_sigmoid(margin / self.tau) - margin).exp()  # m exp(-margin), without overflow


# ---- without a reference ---------------------------------------------------------------------------------------


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


@LOSSES.register("slic")
@dataclass(frozen=True)
class SLiC(Loss):
    """max(0, delta - s_w + s_l) - sft_weight s_w; no reference.

    Zhao et al. 2023, SLiC-HF, equation 1 (arXiv 2305.10425), its regulariser the likelihood of the chosen response.
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


# ---- the reward model ------------------------------------------------------------------------------------------


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
