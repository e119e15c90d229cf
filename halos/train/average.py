"""`average:` of a stage: a mean of the weights that its training passes through, which is evaluated and published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from halos.settings import Strict


class Ema(Strict):
    """The exponential moving average of the weights w(1), w(2), ... after each step: decay * average + (1 - decay) * w,
    corrected for its beginning as Adam's moments are, sum_i decay^(t-i) w(i) / sum_i decay^(t-i): the weights before
    the first step have no share in it (Polyak & Juditsky 1992; Kingma & Ba 2015, arXiv 1412.6980, section 3)."""

    kind: Literal["ema"]
    decay: float = Field(0.99, gt=0, lt=1, description="ema: share of a step's weights that is left one step later")

    def share(self, step: int, steps: int) -> float:
        """The share of the weights after `step` of all `steps` in the average over those up to them; 0 for none."""
        return (1 - self.decay) / (1 - self.decay**step) if step else 0.0


class Uniform(Strict):
    """The mean of the weights after each step of the last part of a training (stochastic weight averaging, Izmailov et
    al. 2018, arXiv 1803.05407, at every step)."""

    kind: Literal["uniform"]
    start: float = Field(0.5, ge=0, lt=1, description="uniform: share of the steps after which it begins")

    def share(self, step: int, steps: int) -> float:
        """As of `Ema`."""
        counted = step - min(round(self.start * steps), steps - 1)
        return 1 / counted if counted > 0 else 0.0


def _of_a_kind(value: Any) -> Any:
    """Refuses a missing kind in one sentence, where pydantic would speak of tags."""
    if isinstance(value, Ema | Uniform) or (isinstance(value, dict) and value.get("kind") in ("ema", "uniform")):
        return value
    raise ValueError("give its kind, {kind: ema, decay: 0.99} or {kind: uniform, start: 0.5}")


Average = Annotated[Ema | Uniform, Field(discriminator="kind"), BeforeValidator(_of_a_kind)]


class Averaged:
    """The average of the trained weights of a policy, in float32 beside them; of sharded weights each process has its
    shard. It depends on nothing but the weights and the number of the step, so that checkpoints hold no more.

    torch.optim.swa_utils would copy weights that are not trained, too, and gives the first ones of an exponential
    moving average the share of all that are before them.

    Args:
        settings: the kind of average.
        trained: gives name -> this process's values of each trained weight, as they are now.
        steps: the steps of the training.
    """

    def __init__(self, settings: Ema | Uniform, trained: Callable[[], dict[str, Tensor]], steps: int) -> None:
        self.settings, self.steps, self._trained = settings, steps, trained
        self.weights = {name: tensor.float().clone() for name, tensor in trained().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        share = self.settings.share(step, self.steps)
        for name, tensor in self._trained().items() if share else ():
            self.weights[name].lerp_(tensor.float(), share)

    @contextmanager
    def in_force(self, step: int) -> Iterator[None]:
        """A block in which the policy has the averaged weights, if there are any after `step` steps."""
        begun = self.settings.share(step, self.steps) > 0
        if begun:
            self.swap()
        try:
            yield
        finally:
            if begun:
                self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Give the policy the averaged weights, and keep its own in their place."""
        for name, tensor in self._trained().items():
            kept = tensor.clone()
            tensor.copy_(self.weights[name])
            self.weights[name].copy_(kept)
