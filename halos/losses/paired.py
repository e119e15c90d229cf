"""Losses of paired preferences with a reference.

Implicit rewards: `chosen` is beta r_w and `rejected` is beta r_l; the docstrings call them w and l.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log, log1p
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Le, Lt

from halos.losses.base import (
    LIMIT,
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


@dataclass(frozen=True)
class Implicit(Loss):
    """Base class of losses that are a function of the implicit rewards."""

    beta: Positive = 0.1

    view = VIEWS["paired"]

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (self.beta * self.ratio(policy, reference, batch, role) for role in ("chosen", "rejected"))
        return preference(self.of(chosen, rejected, batch), chosen, rejected)

    def ratio(self, policy: Logps, reference: Logps, batch: Batch, role: str) -> Tensor:
        """(B,) the log-ratio of a role, or what a loss has in its place: beta times it is the implicit reward."""
        return log_ratio(policy, reference, role)

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
class Logistic(Implicit):
    """Base class of DPO's relatives with the logistic loss of the difference of their implicit rewards."""

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return -log_sigmoid(chosen - rejected)


@LOSSES.register("f_dpo")
@dataclass(frozen=True)
class FDPO(Logistic):
    """-log sigmoid(beta (f'(u_w) - f'(u_l))), u = exp r, with an f-divergence from the reference in place of DPO's.

    f'(u), up to a constant: log u for reverse_kl, which is DPO; -1 / u for forward_kl; log(u / (1 + u)) for js
    (Jensen-Shannon); (1 - u^-alpha) / alpha for alpha, from reverse_kl at 0 to forward_kl at 1. Wang et al. 2023,
    Beyond Reverse KL (arXiv 2309.16240). TRL's f_alpha_divergence_coef is 1 - alpha.

    Implicit rewards are beta f'(u), 0 at the reference.
    """

    divergence: Literal["alpha", "reverse_kl", "forward_kl", "js"] = "alpha"
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.5

    def __post_init__(self) -> None:
        if self.divergence != "alpha" and self.alpha != type(self).alpha:
            raise ValueError(
                f"alpha: the divergence {self.divergence} reads none: set divergence: alpha, or take it out"
            )

    def ratio(self, policy: Logps, reference: Logps, batch: Batch, role: str) -> Tensor:
        ratio = log_ratio(policy, reference, role)
        if self.divergence == "js":
            return log(2) + log_sigmoid(ratio)
        alpha = {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": self.alpha}[self.divergence]
        return -(-alpha * ratio).clamp(max=LIMIT).expm1() / alpha if alpha else ratio


@LOSSES.register("wpo")
@dataclass(frozen=True)
class WPO(Logistic):
    """w dpo, w = exp(s_w / len_w + s_l / len_l) of the policy, without gradient: pairs that it would write count more.

    Zhou et al. 2024, WPO, equation 2 (arXiv 2406.11827), its weights without alignment: TRL's use_weighting divides
    each token's probability by the vocabulary's sum of squared probabilities, too, which log-probabilities do not tell.
    """

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen, rejected = (batch.mean_over_tokens(policy[role].detach(), role) for role in ("chosen", "rejected"))
        weight = (chosen + rejected).exp()
        output = super().__call__(policy, reference, batch)
        return replace(output, losses=weight * output.losses, metrics={**output.metrics, "pair_weight": weight})


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
        return _smoothed(chosen - rejected, self.epsilon)


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

        def smoothed(reference_margins: Tensor) -> Tensor:
            return _smoothed(self.beta * (margin[:, None] - reference_margins), self.epsilon)

        losses = _by_rank(smoothed, margin, batch.statistics["policy"], batch.statistics["reference"])
        rewards = (self.beta * log_ratio(policy, reference, role) for role in ("chosen", "rejected"))
        return preference(losses, *rewards)


@LOSSES.register("aot_unpaired")
@dataclass(frozen=True)
class UnpairedAOT(Implicit):
    """(1 - epsilon) dpo(m) + epsilon dpo(-m), m = w_i - l_j: w_i and l_j have the same rank in the global batch.

    The distributions of chosen and of rejected rewards are compared, whatever the pairs. Of each such comparison half
    the loss is in the row of w_i and half in that of l_j. Melnyk et al. 2024, Distributional
    Preference Alignment, unpaired (arXiv 2406.05882).
    """

    epsilon: Noise = 0.0

    prepass = ("chosen", "rejected")

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        return {role: self.beta * log_ratio(policy, reference, role) for role in self.prepass}

    def of(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        all_chosen, all_rejected = batch.statistics["chosen"], batch.statistics["rejected"]

        def of_chosen(others: Tensor) -> Tensor:
            return _smoothed(chosen[:, None] - others, self.epsilon)

        def of_rejected(others: Tensor) -> Tensor:
            return _smoothed(others - rejected[:, None], self.epsilon)

        halves = _by_rank(of_chosen, chosen, all_chosen, all_rejected)
        halves = halves + _by_rank(of_rejected, rejected, all_rejected, all_chosen)
        return halves - halves.detach() / 2  # each row has half the value, and the whole gradient, of its comparisons


def _smoothed(margin: Tensor, epsilon: float) -> Tensor:
    """The logistic loss of margins whose signs are wrong in a fraction `epsilon`."""
    return -(1 - epsilon) * log_sigmoid(margin) - epsilon * log_sigmoid(-margin)


def _by_rank(losses: Callable[[Tensor], Tensor], values: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """(B,) losses of values with those of `others` that have their rank; their mean for values that occur repeatedly.

    Args:
        losses: (N,) sorted others -> (B, N) losses of each value with each of them.
        values: (B,) values.
        own: (N,) all values of the global batch, among which a value's rank is found.
        others: (N,) the values that are compared with them.
    """
    own, others = own.sort().values, others.sort().values
    nearest = own[(values.detach()[:, None] - own).abs().argmin(-1)]  # dropout may have moved it since
    ranks = own == nearest[:, None]
    return (losses(others) * ranks).sum(-1) / ranks.sum(-1)


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
