"""How responses are scored: by a verifier, a reward model, or a model that is asked. Judges and labellers share it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

import halos.data.sources  # noqa: F401  # registers the verifiers
from halos.data.feedback import Turn, prompt_id
from halos.registry import VERIFIERS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """What a response is worth.

    Attributes:
        criteria: score for each criterion, higher is better, a verifier's between 0 and 1; empty when scoring failed.
        problem: why it failed, in words that are the same for every such failure.
    """

    criteria: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def value(self) -> float | None:
        """The mean over the criteria; None when scoring failed."""
        return fmean(self.criteria.values()) if self.criteria else None


Means = Callable[[dict[str, Any], list[list[Turn]], list[str]], list[Score]]
"""(config slice of a judge or labeller, prompts, responses) -> their scores, in order."""


def by_verifier(config: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
    """A verifier that raises, or gives no finite score, has failed on that response."""
    verifier = VERIFIERS[config["verifier"]]
    known = {prompt_id(prompt): prompt for prompt in prompts}

    @cache  # one response may be met many times
    def score(prompt: str, response: str) -> Score:
        try:
            criteria = {name: float(value) for name, value in verifier(known[prompt], response).items()}
        except Exception as error:
            log.warning("verifier %s failed: %s: %s", config["verifier"], type(error).__name__, error)
            return Score(problem=f"the verifier failed ({type(error).__name__})")
        if not criteria or not all(map(math.isfinite, criteria.values())):
            return Score(problem="the verifier gave no finite score")
        return Score(criteria)

    return [score(prompt_id(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
