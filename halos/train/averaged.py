"""The average of the weights that a training passes through, held beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from halos.train.average import Ema, Uniform


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
