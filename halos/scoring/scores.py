"""Scores of responses, and the kinds of scorer that judges and labellers share: here, a verifier."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Protocol

import halos.data.sources  # noqa: F401  # registers the verifiers
from halos.data.feedback import Turn, prompt_id
from halos.registry import VERIFIERS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """The score of one response.

    Attributes:
        criteria: score for each criterion, higher is better, a verifier's between 0 and 1; empty when scoring failed.
        problem: why scoring failed, in the same words for every such failure, so that failures can be counted.
    """

    criteria: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def value(self) -> float | None:
        """The mean over the criteria; None when scoring failed."""
        return fmean(self.criteria.values()) if self.criteria else None


class ScoresResponses(Protocol):
    """The interface of everything that scores responses: a verifier, a reward model, a model that is asked."""

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        """One score for each prompt and response, in their order."""


class Verifier:
    """A program that scores responses. One that raises, or gives no finite score, has failed on that response.

    Raises:
        HalosError: no verifier has this name.
    """

    def __init__(self, name: str) -> None:
        self.name, self._verify = name, VERIFIERS[name]

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        by_id = {prompt_id(prompt): prompt for prompt in prompts}

        @cache  # several samples of a prompt may be the same text
        def score(prompt: str, response: str) -> Score:
            return self._score(by_id[prompt], response)

        return [score(prompt_id(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]

    def _score(self, prompt: list[Turn], response: str) -> Score:
        try:
            criteria = {name: float(value) for name, value in self._verify(prompt, response).items()}
        except Exception as error:
            log.warning("verifier %s failed: %s: %s", self.name, type(error).__name__, error)
            return Score(problem=f"the verifier failed ({type(error).__name__})")
        if not criteria or not all(map(math.isfinite, criteria.values())):
            return Score(problem="the verifier gave no finite score")
        return Score(criteria)
