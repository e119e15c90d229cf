"""Judgements: the decision of a judge on each comparison, and the file that holds those of one cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from halos.data.feedback import Turn
from halos.files import JsonFile, Record

BASELINE_WINS, TIE, CANDIDATE_WINS = 1.0, 1.5, 2.0
"""Preferences, in alpaca_eval's convention; a judge that weighs its answer gives what lies between."""
ROUNDING = 1e-9
"""Scores that differ by this much more than a margin are within it: .4 - .3 is above .1 in floating point."""
ASKED = ("openai", "model", "human")
"""Kinds of judges that are asked about each comparison; the others score each response."""
Ties = Literal["half", "neither"]
"""The worth of a tie to the candidate: half a win, or nothing."""


def win(preference: float | None, ties: Ties) -> float | None:
    """The worth of a preference to the candidate, 0 to 1; None where nothing was decided."""
    if preference is None:
        return None
    return 0.0 if preference == TIE and ties == "neither" else preference - 1


def agreed(preferences: Sequence[float | None]) -> float | None:
    """The preference of a judge that was asked about a comparison in both orders: the mean where both answers prefer
    the same side, a tie where they do not, None where one is missing."""
    known = [preference for preference in preferences if preference is not None]
    if len(known) < len(preferences):
        return None
    same = len({(preference > TIE) - (preference < TIE) for preference in known}) == 1
    return sum(known) / len(known) if same else TIE


class Asked(Record):
    """One question to a judge that is asked, and what it said.

    Of people, each who saw the comparison was asked once.

    Attributes:
        shown_first: whose response it saw first.
        again: whether it is the second time that it was asked in this order, which counts for nothing but to see
            whether the answer is the same.
        preference: as that of a `Decision`; None where there is no answer.
        answer: as the judge wrote it; of people, the note beside the vote.
        by: of people: who voted.
    """

    shown_first: Literal["candidate", "baseline"]
    again: bool = False
    preference: float | None
    answer: str | None
    by: str | None = Field(None, exclude_if=lambda by: by is None)


class Decision(Record):
    """The decision of a judge on one comparison, and its grounds.

    Attributes:
        preference: from 1 (the baseline is better) to 2 (the candidate is better), 1.5 for a tie; None when the judge
            failed.
        problem: why it failed, in the same words for all such failures.
        candidate_score: of a judge that scores.
        baseline_score: of a judge that scores.
        criteria: of a judge that scores: the candidate's score for each criterion.
        baseline_criteria: of a judge that scores: the baseline's score for each criterion.
        shown_first: of a judge that is asked: whose response it saw first; None where it was not asked.
        answer: of a judge that is asked: its answer; of people, all their votes and notes.
        asked: of a judge that is asked more than once about a comparison: every question, the first of which has
            `shown_first` and `answer`; of people, every vote.
    """

    preference: float | None
    problem: str | None = None
    candidate_score: float | None = None
    baseline_score: float | None = None
    criteria: dict[str, float] = {}
    baseline_criteria: dict[str, float] = {}
    shown_first: Literal["candidate", "baseline"] | None = None
    answer: str | None = None
    asked: tuple[Asked, ...] = ()

    @property
    def questions(self) -> tuple[Asked, ...]:
        """Every question of a judge that is asked; none where it was not, because both responses are equal."""
        if self.asked or self.shown_first is None:
            return self.asked
        return (Asked(shown_first=self.shown_first, preference=self.preference, answer=self.answer),)


class Annotation(Decision):
    """A decision as the file keeps it, with the response that it is about.

    Attributes:
        win: the preference's worth to the candidate, 0 to 1, with ties as the judge counts them.
        candidate_length: characters, as judged.
        baseline_length: characters, as judged.
    """

    prompt_id: str
    sample: int
    win: float | None
    candidate_length: int
    baseline_length: int
    finish_reason: str | None


class Sides(Record):
    """A mean over the decided comparisons, for both responses."""

    candidate: float
    baseline: float


class Scores(Record):
    """Mean score for each criterion, and under `mean` the mean over all criteria, for both responses."""

    candidate: dict[str, float | None]
    baseline: dict[str, float | None]


class Usage(Record):
    """Tokens of a judge's answers by the server's count, and dollars where prices are known."""

    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


class Question(Record):
    """The request of a judge that is asked: the model with its settings, the prompt as turns, and whether each
    comparison is asked about in both orders.

    Attributes:
        answered_by: the model that the server says has answered; None where it does not say, and in older files.
    """

    model: str
    server: str
    temperature: float | None
    max_tokens: int
    seed: int | None
    extra_body: dict[str, Any] = {}
    top_logprobs: int | None
    prompt: list[Turn]
    both_orders: bool = False
    answered_by: str | None = Field(None, exclude_if=lambda name: name is None)


class Judgement(JsonFile):
    """judged/{judge}.json of a run.

    Attributes:
        baseline: its name for people: `target`, a file, or a method.
        n: decided comparisons.
        wins: decided comparisons in which the candidate is better.
        losses: decided comparisons in which the baseline is better.
        ties: decided comparisons in which neither is better.
        ties_as: the worth of a tie in `win_rate` and in each annotation's `win`.
        failures: comparisons that the judge did not decide.
        not_judged: samples whose prompt has no response of the baseline.
        win_rate: 0 to 1.
        standard_error: of the win rate; None for one comparison.
        length_controlled_win_rate: win rate at equal lengths; None where it cannot be fitted.
        mean_length: characters of whole responses.
        mean_judged_length: characters as judged, cut to whole sentences where the judge says so.
        scores: of a judge that scores.
        question: of a judge that is asked.
        usage: of a judge that is asked.
        failed: {problem: how often it occurred}.
    """

    judge: str
    kind: str
    baseline: str
    n: int
    wins: int
    losses: int
    ties: int
    ties_as: Ties
    failures: int
    not_judged: int
    win_rate: float
    standard_error: float | None
    length_controlled_win_rate: float | None
    length_controlled_standard_error: float | None
    length_control: str
    mean_length: Sides
    mean_judged_length: Sides
    scores: Scores | None = None
    question: Question | None = None
    usage: Usage | None = None
    failed: dict[str, int] = {}
    annotations: tuple[Annotation, ...]

    def values(self, ties: Ties | None = None) -> list[float | None]:
        """The worth of each annotation to the candidate, 0 to 1, in their order; None where nothing was decided.

        Args:
            ties: how a tie counts; by default as the judge says.
        """
        return [win(a.preference, ties or self.ties_as) for a in self.annotations]
