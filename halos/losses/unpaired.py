"""Losses of single responses, each with a label or a score: KTO, offline PPO, GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from halos.losses.base import LIMIT, Batch, Fraction, Logps, Loss, Output, Positive, Weight, log_ratio
from halos.registry import LOSSES
from halos.views import VIEWS

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("kto")
@dataclass(frozen=True)
class KTO(Loss):
    """lambda_D (1 - sigmoid(beta (r - z))) if desirable, else lambda_U (1 - sigmoid(beta (z - r))).

    z = max(0, mean of r over the mismatched sequences of the global batch), without gradient: an estimate of the KL
    divergence from the reference. Ethayarajh et al. 2024, KTO, equations 7 and 8 (arXiv 2402.01306).
    """

    beta: Positive = 0.1
    desirable_weight: Weight = 1.0
    undesirable_weight: Weight = 1.0

    view = VIEWS["unpaired"]
    prepass = ("mismatched",)

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        return {"kl": log_ratio(policy, reference, "mismatched")}

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        assert batch.desirable is not None
        reward = self.beta * log_ratio(policy, reference, "response")
        z = self.beta * batch.statistics["kl"].mean().clamp(min=0)
        desirable = self.desirable_weight * (1 - (reward - z).sigmoid())
        undesirable = self.undesirable_weight * (1 - (z - reward).sigmoid())
        return Output(desirable.where(batch.desirable, undesirable), *_split(reward, batch.desirable))


@LOSSES.register("ppo")
@dataclass(frozen=True)
class PPO(Loss):
    """Offline, one-step PPO: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + value and KL terms, a mean over tokens.

    ratio = pi / ref of a token. Its advantage A is the generalised estimate from the value head and a reward at the
    last token, brought to mean 0 and variance 1 over the tokens of the global batch. The value term is half the squared
    error to the discounted return. The KL term is ref / pi - 1 - log(ref / pi): 0 at the reference, positive elsewhere
    (the mean of log(pi / ref) itself would, on responses that the policy did not sample, reward divergence).

    Schulman et al. 2017, PPO, equation 7 (arXiv 1707.06347); 2016, GAE, equation 16 (arXiv 1506.02438); offline with
    rewards of +1 and -1: Ethayarajh et al. 2024, KTO, section 3.2 (arXiv 2402.01306).
    """

    reward: Literal["label", "score"] = "label"
    clip: Positive = 0.5
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    value_weight: Weight = 0.01
    kl_weight: Weight = 0.1

    view = VIEWS["unpaired"]
    prepass = ("response",)
    per_token = True
    head = "value"

    @property
    def needs_scores(self) -> bool:
        return self.reward == "score"

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        advantages = self.advantages(batch)
        tokens = batch.mask["response"].sum(-1).to(advantages.dtype)
        moments = {"advantage": advantages.sum(-1), "advantage_squared": advantages.square().sum(-1)}
        return {"reward": self.rewards(batch), "tokens": tokens, **moments}

    def rewards(self, batch: Batch) -> Tensor:
        """(B,) reward of the whole response: its score, or +1 and -1 for its label."""
        if self.needs_scores:
            assert batch.scores is not None
            return batch.scores
        assert batch.desirable is not None
        return batch.desirable * 2.0 - 1.0

    def advantages(self, batch: Batch) -> Tensor:
        """(B, T) generalized advantage estimates, without gradient, 0 after the response's end."""
        mask = batch.mask["response"]
        values = batch.values["response"].detach() * mask
        last = mask.cumsum(-1) == mask.sum(-1, keepdim=True)
        errors = (last * self.rewards(batch)[:, None] - values) * mask
        errors[:, :-1] += self.gamma * values[:, 1:]
        advantages = errors.clone()
        for t in reversed(range(mask.shape[1] - 1)):
            advantages[:, t] += self.gamma * self.gae_lambda * advantages[:, t + 1]
        return advantages * mask

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        mask, sums = batch.mask["response"], batch.statistics
        tokens = sums["tokens"].sum().clamp(min=1)
        mean = sums["advantage"].sum() / tokens
        variance = (sums["advantage_squared"].sum() / tokens - mean.square()).clamp(min=0)
        advantages = (self.advantages(batch) - mean) * (variance + 1e-8).rsqrt()
        difference, ratio, kl = _ratio_and_kl(policy, reference)
        surrogate = (ratio * advantages).minimum(ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        after = mask.sum(-1, keepdim=True) - mask.cumsum(-1)  # tokens that follow
        reward = self.rewards(batch)
        returns = reward[:, None] * self.gamma**after
        error = (batch.values["response"] - returns).square() / 2
        losses = -surrogate + self.kl_weight * kl + self.value_weight * error
        clipped = batch.mean_over_tokens(((ratio.detach() - 1).abs() > self.clip).to(ratio.dtype), "response")
        metrics = {
            "clipped": clipped,
            "value_error": batch.mean_over_tokens(error.detach(), "response"),
            "sequence_ratio": difference.detach().sum(-1).clamp(-LIMIT, LIMIT).exp(),
        }
        if batch.entropies:
            metrics["entropy"] = batch.mean_over_tokens(batch.entropies["response"], "response")
        moments = {"value": batch.values["response"].detach(), "return": returns}
        middle = sums["reward"].mean() if self.needs_scores else 0.0
        rewards = _split(difference.sum(-1), reward - middle > 1e-6)  # a mean's rounding decides nothing
        return Output((losses * mask).sum(-1), *rewards, metrics, moments)


@LOSSES.register("grpo")
@dataclass(frozen=True)
class GRPO(Loss):
    """mean over tokens of -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta KL; offline, ratio = pi / ref.

    A is the response's score less the mean of its group, over the group's standard deviation; KL = ref / pi - 1 -
    log(ref / pi). A group counts as one example. Shao et al. 2024, DeepSeekMath, equations 3 and 4 (arXiv 2402.03300).
    """

    beta: Weight = 0.01
    epsilon: Positive = 0.01

    view = VIEWS["grouped"]

    @property
    def needs_scores(self) -> bool:
        return True

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        assert batch.advantages is not None
        advantages = batch.advantages[:, None]
        difference, ratio, kl = _ratio_and_kl(policy, reference)
        surrogate = (ratio * advantages).minimum(ratio.clamp(1 - self.epsilon, 1 + self.epsilon) * advantages)
        losses = batch.mean_over_tokens(self.beta * kl - surrogate, "response")
        clipped = ((ratio.detach() - 1).abs() > self.epsilon).to(ratio.dtype)
        rewards = _split(difference.sum(-1), batch.advantages > 0)
        metrics = {
            "clipped": batch.mean_over_tokens(clipped, "response"),
            "advantage/absolute": batch.advantages.abs(),
        }
        return Output(losses, *rewards, metrics, {"advantage": batch.advantages})


def _ratio_and_kl(policy: Logps, reference: Logps) -> tuple[Tensor, Tensor, Tensor]:
    """Three (B, T) tensors: log(pi / ref), pi / ref, and the KL term ref / pi - 1 - log(ref / pi)."""
    difference = policy["response"] - reference["response"]
    bounded = difference.clamp(-LIMIT, LIMIT)
    return difference, bounded.exp(), (-bounded).expm1() + bounded


def _split(rewards: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards of the chosen and of the other responses, without gradient."""
    rewards = rewards.detach()
    return rewards[chosen], rewards[~chosen]
