"""`early_stopping:` of a stage: when its training ends, and which of its weights are published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from halos.errors import HalosError
from halos.registry import suggest
from halos.settings import Positive, Strict


@dataclass(frozen=True)
class Course:
    """What the evaluations of a training have shown so far.

    Attributes:
        best: step after which the best evaluation was made, the first of equals; None before any.
        is_over: whether the training has to end.
    """

    best: int | None = None
    is_over: bool = False


class EarlyStopping(Strict):
    """Training ends after `patience` evaluations on validation prompts in a row that are no better than the best one
    before them by more than `min_delta`, and the weights of the *best* evaluation are published: transformers'
    EarlyStoppingCallback with load_best_model_at_end. The evaluation before the first step counts, too, so that a
    training that makes nothing better publishes the weights that it began with.
    """

    patience: Positive = Field(description="evaluations in a row that may be no better than the best")
    metric: str = Field("loss", description="a quantity of the evaluations in train.jsonl: loss, or rewards/accuracy")
    goal: Literal["highest", "lowest"] | None = Field(
        None, description="which value is best; by default the lowest loss, else the highest"
    )
    min_delta: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="a better value is better than the best by more than this"
    )

    @property
    def lowest(self) -> bool:
        """Whether the lowest value is best."""
        return self.goal == "lowest" or (self.goal is None and "loss" in self.metric)

    def course(self, evaluations: Iterable[Mapping[str, Any]]) -> Course:
        """What the evaluations of a training say, which alone decide: a resumed training ends where any other does.

        Args:
            evaluations: their lines of train.jsonl, in order. A value that is not a number is worse than all others.

        Raises:
            HalosError: they have no such metric.
        """
        step, best, waited = None, -math.inf, 0
        for line in evaluations:
            if not isinstance(line.get(self.metric), float | int):
                known = sorted(key for key, value in line.items() if isinstance(value, float))
                raise HalosError(f"early_stopping.metric: the evaluations of this training have no {self.metric!r}"
                                 f"{suggest(self.metric, known)}")  # fmt: skip
            value = -line[self.metric] if self.lowest else line[self.metric]
            waited = 0 if step is None or value > best + self.min_delta else waited + 1
            if step is None or value > best:
                step, best = line["step"], -math.inf if math.isnan(value) else value
        return Course(step, waited >= self.patience)
