"""Every loss, as a pure function of token log-probabilities, and the registry.

Notation, for a response y to a prompt x:  log pi = policy[role], log ref = reference[role], both (B, T) float32, 0
where a row has no token;  r = sum over tokens of (log pi - log ref);  s = sum over tokens of log pi.

A loss sees no model, no config and no accelerator. What it needs is declared on its class, and the trainer and the
workflow read only that:

    view              which index table its examples come from: sft, paired, unpaired
    needs_reference   whether it wants log ref
    prepass           roles that are run once, without gradient, over the whole global batch, for `statistics`
    per_token         whether the objective is a mean over tokens of the global batch, not over its examples
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from halos.registry import LOSSES

if TYPE_CHECKING:  # losses need only methods of tensors, so reading the catalogue does not import torch
    from torch import Tensor

    Logps = Mapping[str, Tensor]

ROLES = {"sft": ("response",), "paired": ("chosen", "rejected"), "unpaired": ("response",)}
"""The sequences of one example of each view. An unpaired example also has a `mismatched` one: its prompt with the
response of another."""


@dataclass(frozen=True)
class Batch:
    """What a loss sees of a microbatch beside log-probabilities.

    Attributes:
        mask: role -> (B, T) bool, True where there is a response token.
        desirable: (B,) bool in the unpaired view.
        statistics: what `Loss.statistics` returned, averaged over the whole global batch: scalars without gradient.
    """

    mask: Mapping[str, Tensor]
    desirable: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def mean_over_tokens(self, logps: Logps, role: str) -> Tensor:
        """(B,) sum of the row's log-probabilities over its number of tokens; 0 for a row without any."""
        return logps[role].sum(-1) / self.mask[role].sum(-1).clamp(min=1)


@dataclass(frozen=True)
class Output:
    """What a loss returns of a microbatch.

    Attributes:
        losses: (B,) with gradient; the objective is their sum over the global batch by its number of examples (or of
            tokens, see `Loss.per_token`).
        chosen_rewards, rejected_rewards: any number of values, without gradient.
        metrics: name -> (B,) values, without gradient, averaged over the global batch for the log.
    """

    losses: Tensor
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss(ABC):
    """Base of all losses: a frozen set of hyperparameters with one method."""

    view: ClassVar[str]
    needs_reference: ClassVar[bool] = True
    prepass: ClassVar[tuple[str, ...]] = ()
    per_token: ClassVar[bool] = False

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        """(B,) values of the `prepass` roles whose means over the global batch the loss wants as `batch.statistics`."""
        return {}

    @abstractmethod
    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        """The loss of a microbatch; `reference` is empty for a loss that needs none."""


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), without overflow at either end."""
    return -(-x).logaddexp(x.new_zeros(()))


def log_ratio(policy: Logps, reference: Logps, role: str) -> Tensor:
    """r: (B,) sum over tokens of log pi - log ref."""
    return (policy[role] - reference[role]).sum(-1)


def preference(losses: Tensor, chosen: Tensor, rejected: Tensor) -> Output:
    """The output of a paired loss, its rewards detached and their ranking counted."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return Output(losses, chosen, rejected, {"rewards/accuracy": (chosen > rejected).to(chosen.dtype)})


@LOSSES.register("sft")
@dataclass(frozen=True)
class SFT(Loss):
    """Maximum likelihood of the target response: the mean over the tokens of the global batch of -log pi."""

    view = "sft"
    needs_reference = False
    per_token = True

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        return Output(-policy["response"].sum(-1))


@LOSSES.register("dpo")
@dataclass(frozen=True)
class DPO(Loss):
    """-log sigmoid(beta (r_w - r_l)).

    Rafailov et al. 2023, Direct Preference Optimization, equation 7 (arXiv 2305.18290).
    """

    beta: float = 0.1

    view = "paired"

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = self.beta * log_ratio(policy, reference, "chosen")
        rejected = self.beta * log_ratio(policy, reference, "rejected")
        return preference(-log_sigmoid(chosen - rejected), chosen, rejected)


@LOSSES.register("simpo")
@dataclass(frozen=True)
class SimPO(Loss):
    """-log sigmoid(beta (s_w / len_w - s_l / len_l - gamma_beta_ratio)); no reference.

    Meng et al. 2024, SimPO, equation 6 (arXiv 2405.14734), its gamma written as gamma_beta_ratio * beta.
    """

    beta: float = 10.0
    gamma_beta_ratio: float = 0.3

    view = "paired"
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        chosen = self.beta * batch.mean_over_tokens(policy, "chosen")
        rejected = self.beta * batch.mean_over_tokens(policy, "rejected")
        margin = chosen - rejected - self.beta * self.gamma_beta_ratio
        return preference(-log_sigmoid(margin), chosen, rejected)


@LOSSES.register("kto")
@dataclass(frozen=True)
class KTO(Loss):
    """lambda_D (1 - sigmoid(beta (r - z))) if desirable, else lambda_U (1 - sigmoid(beta (z - r))).

    z = max(0, mean of r over the mismatched sequences of the global batch), without gradient: an estimate of the KL
    divergence from the reference. Ethayarajh et al. 2024, KTO, equations 7 and 8 (arXiv 2402.01306).
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    view = "unpaired"
    prepass = ("mismatched",)

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        return {"kl": log_ratio(policy, reference, "mismatched")}

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        assert batch.desirable is not None
        reward = self.beta * log_ratio(policy, reference, "response")
        z = self.beta * batch.statistics["kl"].clamp(min=0).detach()
        desirable = self.desirable_weight * (1 - (reward - z).sigmoid())
        undesirable = self.undesirable_weight * (1 - (z - reward).sigmoid())
        rewards = reward.detach()
        return Output(
            desirable.where(batch.desirable, undesirable), rewards[batch.desirable], rewards[~batch.desirable]
        )
