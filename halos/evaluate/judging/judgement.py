"""The judgement of one cell by one judge, as a file: a preference for each prompt, and what each is worth."""

from __future__ import annotations

from typing import Literal

from halos.files import JsonFile, Record

BASELINE_WINS, TIE, CANDIDATE_WINS = 1.0, 1.5, 2.0
"""Preferences, in alpaca_eval's convention; a judge that weighs its answer gives what lies between."""
Ties = Literal["half", "neither"]
"""What a tie is worth to the candidate: half a win, or nothing."""


def win(preference: float | None, ties: Ties) -> float | None:
    """What a comparison is worth to the candidate, 0 to 1; None where nothing was decided."""
    if preference is None:
        return None
    return 0.0 if preference == TIE and ties == "neither" else preference - 1


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
    """What a judge that is asked is asked with."""

    model: str
    server: str
    temperature: float
    max_tokens: int
    seed: int | None
    top_logprobs: int | None
    prompt: str


class Annotation(Record):
    """What was decided for one response.

    Attributes:
        preference: from 1 (the baseline is better) to 2 (the candidate is better), 1.5 for a tie; None when the judge
            failed.
        win: what that is worth to the candidate, 0 to 1, with ties as the judge counts them.
        candidate_score, baseline_score: of a judge that scores.
        criteria: the candidate's score for each criterion.
        shown_first: of a judge that is asked, whose response it saw first.
        answer: its answer.
        problem: why there is no answer.
        candidate_length, baseline_length: characters, as judged.
    """

    prompt_id: str
    sample: int
    preference: float | None
    win: float | None
    candidate_score: float | None = None
    baseline_score: float | None = None
    criteria: dict[str, float] = {}
    shown_first: Literal["candidate", "baseline"] | None = None
    answer: str | None = None
    problem: str | None = None
    candidate_length: int
    baseline_length: int
    finish_reason: str | None


class Judgement(JsonFile):
    """judged/{judge}.json of a run.

    Attributes:
        baseline: for people: `target`, a file, or a method.
        n: decided comparisons.
        failures: comparisons that the judge did not decide.
        not_judged: samples whose prompt has no response of the baseline.
        win_rate, standard_error: 0 to 1; the error is None for one comparison.
        length_controlled_win_rate: at equal lengths; None where it cannot be fitted.
        mean_length: characters of whole responses.
        mean_judged_length: characters as judged, cut to whole sentences where the judge says so.
        scores: of a judge that scores.
        question: of a judge that is asked, what it is asked with.
        failed: reasons of failures, with how often each occurred.
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
        """What each annotation is worth to the candidate, 0 to 1, in their order; None where nothing was decided.

        Args:
            ties: how a tie counts; by default as the judge says.
        """
        return [win(a.preference, ties or self.ties_as) for a in self.annotations]
