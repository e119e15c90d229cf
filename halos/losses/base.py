"""Base class of losses, their inputs and outputs, and functions that they share. Notation: halos/losses/__init__.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from halos.views import View

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Noise = Annotated[float, Ge(0), Lt(0.5)]
"""The fraction of labels that are assumed to be flipped."""
Logps = Mapping[str, "Tensor"]
"""role -> (B, T) log-probabilities of response tokens."""
LIMIT = 40.0
"""Clamp of an exponent, at which the exponential and its square are still finite float32 numbers."""


@dataclass(frozen=True)
class Batch:
    """Inputs of a loss for a microbatch, beside the log-probabilities.

    Attributes:
        mask: role -> (B, T) bool, True at response tokens.
        desirable: (B,) bool, for the unpaired view.
        scores: (B,) float32 for the unpaired and grouped views, from the data or a reward model; NaN where there is
            none.
        margins: (B,) float32 for the paired view, by how much the chosen response is better in the data, 0 where a pair
            has none; None where no pair has one.
        advantages: (B,) float32 for the grouped view: the score less its group's mean, over its group's deviation.
        unclamped: role -> (B, T) log pi before humanline clamps it, for losses that read no reference; may be empty
            where nothing is clamped.
        values: role -> (B, T) float32 of the value head: the value of the state before each response token.
        entropies: role -> (B, T) float32 with a value head: the entropy of the distribution that each response token is
            drawn from, in nats, without gradient.
        rewards: role -> (B,) float32 of the score head.
        labels: name -> (B,) float32 or bool, the labels that a plugin's view gives beside those above.
        outputs: name -> role -> (B, T), the values that a plugin's forward pass gives beside log-probabilities.
        statistics: name -> (N,) results of `Loss.statistics` for all N examples of the global batch, in any order.
    """

    mask: Mapping[str, Tensor]
    desirable: Tensor | None = None
    scores: Tensor | None = None
    margins: Tensor | None = None
    advantages: Tensor | None = None
    unclamped: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    entropies: Mapping[str, Tensor] = field(default_factory=dict)
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def mean_over_tokens(self, values: Tensor, role: str) -> Tensor:
        """(B,) mean of (B, T) values over the row's response tokens; 0 for a row without any."""
        return (values * self.mask[role]).sum(-1) / self.mask[role].sum(-1).clamp(min=1)


@dataclass(frozen=True)
class Output:
    """Result of a loss for a microbatch.

    Attributes:
        losses: (B,) with gradient; the objective is their mean over the examples of the global batch (or over tokens,
            see `Loss.per_token`), each counted by its weight in the data.
        chosen_rewards: implicit rewards of the chosen (or desirable) responses, any number, without gradient.
        rejected_rewards: implicit rewards of the rejected (or undesirable) responses, likewise.
        metrics: name -> (B,) values, without gradient, averaged over the global batch for the log.
        moments: name -> (B,) values or (B, T) values of response tokens, without gradient, whose mean and variance over
            the global batch are logged.
    """

    losses: Tensor
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss(ABC):
    """Base of all losses: a frozen set of hyperparameters with one method."""

    view: ClassVar[View]
    needs_reference: ClassVar[bool] = True
    prepass: ClassVar[tuple[str, ...]] = ()
    per_token: ClassVar[bool] = False
    head: ClassVar[Literal["value", "score"] | None] = None
    needs_outputs: ClassVar[tuple[str, ...]] = ()

    @property
    def needs_scores(self) -> bool:
        """Whether it reads `batch.scores`."""
        return False

    @property
    def needs_margins(self) -> bool:
        """Whether it reads `batch.margins`."""
        return False

    @property
    def control(self) -> Mapping[str, str]:
        """Role -> a token between that role's prompts and responses."""
        return {}

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        """Name -> (B,) values of the `prepass` roles, gathered over the global batch into `batch.statistics`."""
        return {}

    @abstractmethod
    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        """The losses of a microbatch.

        Args:
            policy: log pi of each role.
            reference: log ref of each role; empty for a loss that needs none.
            batch: masks, labels, values and statistics.
        """


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), without overflow at either end."""
    return -(-x).logaddexp(x.new_zeros(()))


def log_ratio(policy: Logps, reference: Logps, role: str) -> Tensor:
    """(B,) log-ratio r of a role: the sum over tokens of log pi - log ref."""
    return (policy[role] - reference[role]).sum(-1)


def humanline(policy: Logps, reference: Logps, low: float, high: float) -> Logps:
    """The policy's log-probabilities, clamped so that each token's log-ratio to the reference lies in [low, high].

    A token outside the range has no gradient: the perceived distribution would reject it. Liu et al. 2025, Humanline
    (arXiv 2509.24207). Of a mixture, only the losses that read the reference see them so: likelihoods have no ratio.
    """
    return {role: reference[role] + (policy[role] - reference[role]).clamp(low, high) for role in policy}


def less_margin(difference: Tensor, weight: float, batch: Batch) -> Tensor:
    """(B,) differences of rewards, less `weight` times their pairs' margins in the data, if the batch has any."""
    return difference if not weight or batch.margins is None else difference - weight * batch.margins


def preference(losses: Tensor, chosen: Tensor, rejected: Tensor) -> Output:
    """The output of a paired loss, with detached rewards and the accuracy of their ranking."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return Output(losses, chosen, rejected, {"rewards/accuracy": (chosen > rejected).to(chosen.dtype)})
