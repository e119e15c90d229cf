"""Judging: a cell's responses against a baseline's, pair by pair. The win rate is alpaca_eval's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.alpaca import aggregate, length_controlled, length_controlled_on_alpaca_eval, win_rate
from halos.evaluate.judging.asker import Asker, Opinion, check_failures
from halos.evaluate.judging.baseline import open_baseline
from halos.evaluate.judging.comparisons import Comparison, compare
from halos.evaluate.judging.judgement import BASELINE_WINS, CANDIDATE_WINS, TIE, win
from halos.files import write_json
from halos.registry import suggest
from halos.sample.samples import read_samples
from halos.scoring.reward_model import by_reward_model, open_reward_model
from halos.scoring.scores import Means, Score, by_verifier
from halos.settings import read_slice

KINDS = ("verifier", "reward_model", "openai")


@dataclass(frozen=True)
class Verdict:
    """What a judge that scores says of one comparison.

    Attributes:
        preference: 1 the baseline wins, 2 the candidate wins, 1.5 a tie; None when the judge failed.
        candidate, baseline: the scores of both.
    """

    preference: float | None
    candidate: Score
    baseline: Score


def decide(candidate: Score, baseline: Score, tie_margin: float) -> Verdict:
    """The higher score wins, scores at most `tie_margin` apart are a tie; nothing is decided where one is missing."""
    if candidate.value is None or baseline.value is None:
        return Verdict(None, candidate, baseline)
    lead = candidate.value - baseline.value
    if abs(lead) <= tie_margin + 1e-9:  # .4 - .3 is above .1 in floating point
        return Verdict(TIE, candidate, baseline)
    return Verdict(CANDIDATE_WINS if lead > 0 else BASELINE_WINS, candidate, baseline)


def judge(
    config: Path,
    samples: Path,
    feedback: Path,
    output: Path,
    reward_model: Sequence[Path] = (),
    baseline: Sequence[Path] = (),
    difficulties: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    concurrency: int = 16,
    requests_per_minute: int | None = None,
) -> None:
    """Judge a cell's samples against a baseline.

    Args:
        config: the judge's slice of the config.
        samples: one JSON object a line: prompt_id, sample, response, finish_reason (others are not read).
        feedback: parquet of the dataset that the prompts come from; a record's target may be the baseline.
        output: JSON with the win rate, as it is and length-controlled, and its standard error (0 to 1), the counts,
            mean lengths (characters) and scores, and what was decided for each response. `ties_as` says whether a tie
            is `half` a win or a win for `neither`. Lengths and scores are means over the decided comparisons; a prompt
            without a baseline is counted in `not_judged`. Answers of a model that was asked are kept beside it, in
            {judge}.answers.jsonl, and not asked for again.
        reward_model: for a judge of that kind, the model's folder and, where it has one, its manifest; else nothing.
        baseline: the file of the baseline's outputs or samples; nothing for the dataset's targets.
        difficulties: AlpacaEval's df_gamed.csv, for its length control; nothing for that of the hub's cache.
        tokens_per_microbatch: tokens of one forward pass of the reward model.
        concurrency: calls at one time, for a model that is asked.
        requests_per_minute: the most there may be; None for no limit.

    Raises:
        HalosError: samples or the baseline are missing, malformed or of other prompts, the reward model is missing or
            none, nothing could be decided, or the model that is asked cannot be or left too many without an answer.
    """
    content = read_slice(config)
    name, kind = f"judge {content['judge']}", content["kind"]
    if kind not in KINDS:
        raise HalosError(f"{name}: unknown kind {kind!r}{suggest(kind, KINDS)}")
    rows = read_samples(samples)
    against = open_baseline(content["baseline"], list(baseline))
    comparisons = compare(rows, feedback, samples, against, content["whole_sentences"])
    model = open_reward_model(name, kind, list(reward_model), tokens_per_microbatch)
    details: list[dict[str, Any]]
    if kind == "openai":
        cache = output.with_name(f"{content['judge']}.answers.jsonl")
        asker = Asker(name, content["openai"], cache, concurrency, requests_per_minute)
        opinions = asker.judge(comparisons)
        check_failures(name, opinions, content["max_failures"])
        found = [o.preference for o in opinions]
        summary = {"question": asker.question, "usage": asker.usage(), "failed": _reasons(opinions)}
        details = list(_said(comparisons, opinions))
    else:
        score = by_verifier if model is None else by_reward_model(model)
        verdicts = _by_scores(content, comparisons, score)
        found = [v.preference for v in verdicts]
        decided = [v for v in verdicts if v.preference is not None]
        summary = {"scores": {"candidate": _means([v.candidate for v in decided]),
                              "baseline": _means([v.baseline for v in decided])}}  # fmt: skip
        details = [
            {"candidate_score": v.candidate.value, "baseline_score": v.baseline.value,
             "criteria": dict(v.candidate.criteria)}
            for v in verdicts
        ]  # fmt: skip
    if all(preference is None for preference in found):
        raise HalosError(f"{name} failed on all {len(found)} responses; see its messages above")
    row, preferences = aggregate(content["judge"], comparisons, found)
    wins = [win(preference, content["ties"]) for preference in preferences]
    rate, error = win_rate(wins)
    if content["length_control"] == "alpaca_eval":
        file = difficulties[0] if difficulties else None
        controlled, controlled_error = length_controlled_on_alpaca_eval(comparisons, wins, against.size, file)
    else:
        controlled, controlled_error = length_controlled(comparisons, wins)
    judged = [c for c, value in zip(comparisons, wins, strict=True) if value is not None]
    write_json(
        output,
        {
            "judge": content["judge"],
            "kind": kind,
            "baseline": against.name,
            "n": len(judged),
            "wins": row["n_wins"],
            "losses": row["n_wins_base"],
            "ties": row["n_draws"],
            "ties_as": content["ties"],
            "failures": len(comparisons) - len(judged),
            "not_judged": len(rows) - len(comparisons),
            "win_rate": rate,
            "standard_error": error,
            "length_controlled_win_rate": controlled,
            "length_controlled_standard_error": controlled_error,
            "length_control": content["length_control"],
            "mean_length": {
                "candidate": fmean(c.lengths[0] for c in judged),
                "baseline": fmean(c.lengths[1] for c in judged),
            },
            "mean_judged_length": {
                "candidate": fmean(len(c.candidate) for c in judged),
                "baseline": fmean(len(c.baseline) for c in judged),
            },
            **summary,
            "leaderboard": row,
            "annotations": [
                {
                    "prompt_id": c.prompt_id,
                    "sample": c.sample,
                    "preference": preference,
                    "win": value,
                    **detail,
                    "candidate_length": len(c.candidate),
                    "baseline_length": len(c.baseline),
                    "finish_reason": c.finish_reason,
                }
                for c, preference, value, detail in zip(comparisons, preferences, wins, details, strict=True)
            ],
        },
    )


def _by_scores(content: dict[str, Any], comparisons: list[Comparison], score: Means) -> list[Verdict]:
    texts = [c.candidate for c in comparisons] + [c.baseline for c in comparisons]
    scores = score(content, [c.prompt for c in comparisons] * 2, texts)
    sides = zip(scores[: len(comparisons)], scores[len(comparisons) :], strict=True)
    return [decide(candidate, baseline, content["tie_margin"]) for candidate, baseline in sides]


def _said(comparisons: list[Comparison], opinions: list[Opinion]) -> Iterator[dict[str, Any]]:
    """Of each comparison which response the model was shown first, what it answered, and why it failed where it did;
    of two equal texts it was not asked."""
    for c, opinion in zip(comparisons, opinions, strict=True):
        answer = opinion.answer
        yield {
            "shown_first": None if answer is None else "candidate" if c.candidate_first else "baseline",
            "answer": None if answer is None else answer.text,
            "problem": None if answer is None else answer.problem,
        }


def _reasons(opinions: list[Opinion]) -> dict[str, int]:
    return dict(sorted(Counter(o.answer.problem for o in opinions if o.answer and o.answer.problem).items()))


def _means(scores: list[Score]) -> dict[str, float | None]:
    """The mean of each criterion, and of the criteria's means, over the responses that have a score."""
    scored = [s.criteria for s in scores if s.criteria]
    criteria = sorted({name for s in scored for name in s})
    overall = fmean(fmean(s.values()) for s in scored) if scored else None
    return {"mean": overall, **{name: fmean(s[name] for s in scored if name in s) for name in criteria}}
