"""Mixtures: weighted sums of losses of one view, on the same batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from halos.losses.base import Batch, Logps, Loss, Output
from halos.losses.imitation import SFT
from halos.views import VIEWS, View

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChosenNLL(Loss):
    """-s_w / len_w: what `sft` and `sft_weight` are beside a loss of pairs, the mean over the chosen response's tokens.

    The regulariser of RPO (Pang et al. 2024, Iterative Reasoning Preference Optimization, equation 1, arXiv 2404.19733,
    where DPO has the weight instead) and of MPO (Wang et al. 2024, Mixed Preference Optimization, arXiv 2411.10442).
    """

    view = VIEWS["paired"]
    needs_reference = False

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        return Output(-batch.mean_over_tokens(policy["chosen"], "chosen"))


@dataclass(frozen=True)
class Part:
    """A loss of a mixture, and its weight in the sum."""

    weight: float
    loss: Loss


@dataclass(frozen=True)
class Mixture(Loss):
    """The sum of weight * loss over its parts, by name: a loss like any other, which needs what any of them needs.

    Rewards and metrics are those of the leading part (`leading`); those of the others have their name before them, and
    so do statistics. `NAME/loss` is the loss of each part, without its weight. Under humanline, a part that reads no
    reference sees log-probabilities that are not clamped.
    """

    parts: Mapping[str, Part]

    @property
    def _losses(self) -> list[Loss]:
        return [part.loss for part in self.parts.values()]

    @property
    def view(self) -> View:  # type: ignore[override]
        return self._losses[0].view

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return any(loss.needs_reference for loss in self._losses)

    @property
    def needs_scores(self) -> bool:
        return any(loss.needs_scores for loss in self._losses)

    @property
    def needs_margins(self) -> bool:
        return any(loss.needs_margins for loss in self._losses)

    @property
    def prepass(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(role for loss in self._losses for role in loss.prepass))

    @property
    def needs_outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for loss in self._losses for name in loss.needs_outputs))

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        return self._losses[0].per_token

    @property
    def head(self) -> Literal["value", "score"] | None:  # type: ignore[override]
        return next((loss.head for loss in self._losses if loss.head), None)

    @property
    def control(self) -> Mapping[str, str]:
        return self._losses[0].control

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": values
            for name, part in self.parts.items()
            for key, values in part.loss.statistics(_seen(part, policy, batch), reference, batch).items()
        }

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        outputs = {}
        for name, part in self.parts.items():
            own = {k.removeprefix(f"{name}/"): v for k, v in batch.statistics.items() if k.startswith(f"{name}/")}
            outputs[name] = part.loss(_seen(part, policy, batch), reference, replace(batch, statistics=own))
        lead = leading({name: part.weight for name, part in self.parts.items()})
        metrics, moments = dict(outputs[lead].metrics), dict(outputs[lead].moments)
        for name, output in outputs.items():
            metrics[f"{name}/loss"] = output.losses.detach()
            if name != lead:
                metrics |= {f"{name}/{key}": values for key, values in output.metrics.items()}
                moments |= {f"{name}/{key}": values for key, values in output.moments.items()}
        first, *others = (part.weight * outputs[name].losses for name, part in self.parts.items())
        return replace(outputs[lead], losses=sum(others, first), metrics=metrics, moments=moments)


def _seen(part: Part, policy: Logps, batch: Batch) -> Logps:
    """The policy's log-probabilities as a part sees them: humanline clamps ratios to a reference alone."""
    return policy if part.loss.needs_reference else {**policy, **batch.unclamped}


def mix(parts: Mapping[str, Part]) -> Mixture:
    """The mixture of losses; `sft` beside losses of pairs is the likelihood of the chosen response.

    Raises:
        ValueError: they cannot be computed on one batch.
    """
    if any(part.loss.view.paired for part in parts.values()):
        parts = {n: replace(p, loss=ChosenNLL()) if type(p.loss) is SFT else p for n, p in parts.items()}
    (first, *_), losses = parts, {name: part.loss for name, part in parts.items()}
    for name, loss in losses.items():
        for differ, why in (
            (
                loss.view is not losses[first].view,
                f"reads the {loss.view.name} view, not the {losses[first].view.name}",
            ),
            (loss.per_token != losses[first].per_token, "only one of them is a mean over tokens, not over examples"),
            ((loss.head == "score") != (losses[first].head == "score"), "only one of them trains a reward model"),
            (dict(loss.control) != dict(losses[first].control), "they have other control tokens"),
        ):
            if differ:
                raise ValueError(f"{name!r} cannot be mixed with {first!r}: {why}")
    return Mixture(parts)


def has_chosen(loss: Loss | type[Loss]) -> bool:
    """Whether a loss sees the likelihood of a chosen response, so that `sft_weight` may weigh it."""
    return loss.view.paired and loss.head != "score"


def leading(weights: Mapping[str, Any]) -> str:
    """The name of a mixture's heaviest part but `sft`; of equals, the first in the alphabet.

    Args:
        weights: name -> weight, or the settings of the part with its `weight`.
    """
    heavy = {name: part["weight"] if isinstance(part, Mapping) else part for name, part in weights.items()}
    return max(sorted(heavy), key=lambda name: (name != "sft", heavy[name]))
