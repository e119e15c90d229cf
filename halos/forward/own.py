"""Forward passes of one's own: what a plugin computes from a microbatch, in place of `ResponseLogps`'s own pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from halos.forward.microbatch import Microbatch


class Forward(ABC):
    """Base of all forward passes of plugins: a frozen dataclass of options with one method.

    Attributes:
        packed: whether the pass may be given packed rows, in which sequences with equal prompts share them. It is then
            tried out on some, and they are left off if the values differ. False leaves them off without a trial.
    """

    packed: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, network: Any, batch: Microbatch) -> dict[str, Tensor]:
        """The values that a loss reads, one for each response token.

        Args:
            network: a `ResponseLogps`. `network.of_tokens(batch)` is the pass of the package, `network.logits(batch)`
                gives the (M, V) logits of the M response tokens, `network.model` is the model of transformers, and
                `network.training` says whether it trains: in evaluation, equal sequences must have equal values.
            batch: `batch.layout.targets` are the (M,) response tokens, `batch.layout.input_ids` the (R, L) tokens of
                the rows that the model is run on.

        Returns:
            name -> (M,) values. `logps`, the log-probabilities of the response tokens, must be among them; with a value
            head also `values`. Any other is found by a loss as `batch.outputs[name][role]`, (B, T).
        """
