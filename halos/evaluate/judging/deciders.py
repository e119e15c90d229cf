"""The judge that config.yaml names: a scorer whose higher score wins, or a model or people that are asked which is
better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judgement import BASELINE_WINS, CANDIDATE_WINS, ROUNDING, TIE, Decision, Question, Usage
from halos.evaluate.judging.local import LocalModel, LocalPairwise
from halos.evaluate.judging.pairwise import PairwiseAnnotator
from halos.evaluate.judging.people import Majority
from halos.evaluate.judging.settings import JudgeSlice
from halos.scoring.api import Calls
from halos.scoring.scorers import open_scorer
from halos.scoring.scores import Score, ScoresResponses


class Decides(Protocol):
    """The interface of every judge.

    Attributes:
        question: of a model that is asked; None for others.
        usage: of a model that is asked, once it has decided; None for others.
    """

    @property
    def question(self) -> Question | None: ...
    @property
    def usage(self) -> Usage | None: ...

    def decide(self, comparisons: list[Comparison]) -> list[Decision]:
        """One decision for each comparison, in their order. Two equal texts are a tie, as in alpaca_eval."""


class ByScores:
    """A judge that scores both responses: the higher score wins, scores at most `tie_margin` apart are a tie."""

    question = None
    usage = None

    def __init__(self, scorer: ScoresResponses, tie_margin: float) -> None:
        self.scorer, self.tie_margin = scorer, tie_margin

    def decide(self, comparisons: list[Comparison]) -> list[Decision]:
        n = len(comparisons)
        texts = [c.candidate for c in comparisons] + [c.baseline for c in comparisons]
        scores = self.scorer.score([c.prompt for c in comparisons] * 2, texts)
        return [self._decision(*sides) for sides in zip(comparisons, scores[:n], scores[n:], strict=True)]

    def _decision(self, comparison: Comparison, candidate: Score, baseline: Score) -> Decision:
        preference = self._preference(candidate, baseline)
        if comparison.candidate == comparison.baseline:
            preference = TIE
        return Decision(
            preference=preference,
            problem=(candidate.problem or baseline.problem) if preference is None else None,
            candidate_score=candidate.value,
            baseline_score=baseline.value,
            criteria=dict(candidate.criteria),
            baseline_criteria=dict(baseline.criteria),
        )

    def _preference(self, candidate: Score, baseline: Score) -> float | None:
        if candidate.value is None or baseline.value is None:
            return None
        lead = candidate.value - baseline.value
        if abs(lead) <= self.tie_margin + ROUNDING:
            return TIE
        return CANDIDATE_WINS if lead > 0 else BASELINE_WINS


def open_judge(
    name: str,
    settings: JudgeSlice,
    reward_model: Sequence[Path],
    tokens_per_microbatch: int,
    calls: Calls,
    votes: Sequence[Path] = (),
) -> Decides:
    """The judge of a slice.

    Args:
        name: of the judge, for messages: `judge x`.
        settings: its slice.
        reward_model: of a reward model, or of a model of the catalogue that is asked, its folder and, where it has one,
            its manifest; otherwise empty.
        tokens_per_microbatch: tokens of one forward pass of the reward model.
        calls: how a model behind a server is called.
        votes: for people, the files of their votes.

    Raises:
        HalosError: the judge's scorer or annotator does not exist or cannot be loaded.
    """
    if settings.human is not None:
        return Majority(settings, votes)
    if settings.model is not None:
        return LocalPairwise(name, settings, LocalModel(settings.model.model, reward_model))
    if settings.openai is not None and not reward_model:
        return PairwiseAnnotator(
            name, settings.openai, settings.max_failures, calls, settings.both_orders, settings.ask_again
        )
    return ByScores(open_scorer(name, settings, reward_model, tokens_per_microbatch, calls), settings.tie_margin)
