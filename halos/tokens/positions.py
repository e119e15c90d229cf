"""The positions of a model: how long its sequences can be, whatever a dataset's settings ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from halos.errors import HalosError
from halos.pretrained import read_config


@dataclass(frozen=True)
class Positions:
    """How many tokens a model has positions for.

    Attributes:
        limit: tokens of the longest sequence; None for a model without a limit (relative positions, ALiBi).
        fixed: whether the model fails beyond the limit, as with learned positions. Rotary positions go on, but the
            model was not trained there.
    """

    limit: int | None
    fixed: bool

    @classmethod
    def of(cls, config: Any) -> Self:
        """The positions of a model.

        Args:
            config: the model's transformers config.
        """
        text = config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        limit = limit if limit and limit > 0 else None  # some say -1
        goes_on = getattr(text, "rope_parameters", None) is not None or bool(getattr(text, "alibi", False))
        return cls(limit, fixed=limit is not None and not goes_on)

    @classmethod
    def read(cls, model: Path) -> Self:
        """The positions of the model in a folder."""
        return cls.of(read_config(model))

    def prompt_limit(self, max_prompt_length: int, control: int) -> int:
        """Most tokens of a prompt, in training and in sampling alike: a response needs at least one position.

        Args:
            max_prompt_length: the dataset's limit.
            control: control tokens at the end of prompts, which `max_prompt_length` does not count.
        """
        return max_prompt_length if self.limit is None else min(max_prompt_length, self.limit - control - 1)

    def check(self, model: str, dataset: str, max_length: int) -> str | None:
        """One line of warning about a `max_length` that the model was not trained for; None where it fits.

        Raises:
            HalosError: the model has no positions for it.
        """
        if self.limit is None or max_length <= self.limit:
            return None
        ask = f"datasets.{dataset}.max_length is {max_length}, and the model {model} has {self.limit} positions"
        if self.fixed:
            raise HalosError(f"{ask}, which it cannot go beyond: lower max_length to {self.limit} or less")
        return f"warning: {ask}: it was not trained on longer sequences; {self.limit} or less would be safe"
