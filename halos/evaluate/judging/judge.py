"""Judging: a cell's responses against a baseline's, one comparison at a time. The win rate is alpaca_eval's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from halos.errors import HalosError
from halos.evaluate.judging.alpaca import length_controlled, length_controlled_on_alpaca_eval, win_rate
from halos.evaluate.judging.baseline import Baseline, open_baseline
from halos.evaluate.judging.comparisons import Comparison, compare, on_prompts
from halos.evaluate.judging.deciders import Decides, open_judge
from halos.evaluate.judging.judgement import TIE, Annotation, Decision, Judgement, Scores, Sides, win
from halos.evaluate.judging.settings import JudgeSlice
from halos.sample.samples import read_samples
from halos.scoring.api import Calls


def judge(
    config: Path,
    samples: Path,
    feedback: Path,
    output: Path,
    reward_model: Sequence[Path] = (),
    baseline: Sequence[Path] = (),
    difficulties: Sequence[Path] = (),
    votes: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    concurrency: int = 16,
    requests_per_minute: int | None = None,
) -> None:
    """Judge samples against a baseline.

    The answers of a model that is asked are kept beside the output, in OUTPUT.answers.jsonl, and not asked for again.

    Args:
        config: the judge's config.yaml; `python -m halos config FOLDER` writes one.
        samples: samples, JSON lines.
        feedback: feedback records that the prompts come from, parquet; their targets may be the baseline.
        output: judgement to write, JSON.
        reward_model: a reward model's folder and its manifest, if it has one, for a judge of that kind.
        baseline: the baseline's outputs or samples, unless the targets are the baseline.
        difficulties: AlpacaEval's df_gamed.csv, for its length control; by default the one in the hub's cache.
        votes: the files of votes, for a judge of kind human: one for each annotator.
        tokens_per_microbatch: tokens of one forward pass of the reward model, padding included.
        concurrency: calls at one time, for a model that is asked.
        requests_per_minute: limit on requests, for a model that is asked; by default none.

    Raises:
        HalosError: a file is missing or malformed, the samples are of other prompts than the feedback, the judge fails
            on all comparisons, a model that is asked leaves too many without an answer, or votes are missing.
    """
    settings = JudgeSlice.read(config)
    calls = Calls(answers_of(output), concurrency, requests_per_minute)

    def opened() -> Decides:
        return open_judge(f"judge {settings.judge}", settings, reward_model, tokens_per_microbatch, calls, votes)

    judgement_of(settings, samples, feedback, baseline, difficulties, opened).write(output)


def answers_of(output: Path) -> Path:
    """The file in which the answers of a model that is asked are kept, beside a judgement's."""
    return output.with_name(f"{output.stem}.answers.jsonl")


def judgement_of(
    settings: JudgeSlice,
    samples: Path,
    feedback: Path,
    baseline: Sequence[Path],
    difficulties: Sequence[Path],
    opened: Callable[[], Decides],
) -> Judgement:
    """A judge's judgement of samples.

    Args:
        settings: the judge's slice.
        samples: samples, JSON lines.
        feedback: feedback records that the prompts come from, parquet.
        baseline: the baseline's outputs or samples, unless the targets are the baseline.
        difficulties: AlpacaEval's df_gamed.csv, or none.
        opened: gives what decides; called once all files are read, as it may take long.

    Raises:
        HalosError: as `judge`.
    """
    opponent = open_baseline(settings.baseline, baseline)
    comparisons, not_judged = comparisons_of(settings, samples, feedback, opponent)
    decider = opened()
    decisions = decider.decide(comparisons)
    if all(decision.preference is None for decision in decisions):
        raise HalosError(f"judge {settings.judge} failed on all {len(decisions)} responses; see its messages above")
    wins = [win(decision.preference, settings.ties) for decision in decisions]
    rate, error = win_rate(wins)
    if settings.length_control == "alpaca_eval":
        file = difficulties[0] if difficulties else None
        controlled, controlled_error = length_controlled_on_alpaca_eval(comparisons, wins, opponent.size, file)
    else:
        controlled, controlled_error = length_controlled(comparisons, wins)
    decided = [c for c, value in zip(comparisons, wins, strict=True) if value is not None]
    preferences = [decision.preference for decision in decisions if decision.preference is not None]
    return Judgement(
        judge=settings.judge,
        kind=settings.kind,
        baseline=opponent.name,
        n=len(decided),
        wins=sum(preference > TIE for preference in preferences),
        losses=sum(preference < TIE for preference in preferences),
        ties=preferences.count(TIE),
        ties_as=settings.ties,
        failures=len(comparisons) - len(decided),
        not_judged=not_judged,
        win_rate=rate,
        standard_error=error,
        length_controlled_win_rate=controlled,
        length_controlled_standard_error=controlled_error,
        length_control=settings.length_control,
        mean_length=Sides(
            candidate=fmean(c.lengths[0] for c in decided), baseline=fmean(c.lengths[1] for c in decided)
        ),
        mean_judged_length=Sides(
            candidate=fmean(len(c.candidate) for c in decided), baseline=fmean(len(c.baseline) for c in decided)
        ),
        scores=_mean_scores(decisions),
        question=decider.question,
        usage=decider.usage,
        failed=dict(sorted(Counter(d.problem for d in decisions if d.problem is not None).items())),
        annotations=tuple(map(_annotation, comparisons, decisions, wins)),
    )


def comparisons_of(
    settings: JudgeSlice, samples: Path, feedback: Path, opponent: Baseline
) -> tuple[list[Comparison], int]:
    """The comparisons of a judge, and the number of samples to which the baseline has no response.

    Args:
        settings: the judge's slice.
        samples: samples, JSON lines.
        feedback: feedback records that the prompts come from, parquet.
        opponent: the baseline.

    Raises:
        HalosError: a file is missing or malformed, or the samples are of other prompts than the feedback.
    """
    rows = on_prompts(read_samples(samples), settings.most_prompts)
    comparisons = compare(rows, feedback, samples, opponent, settings.whole_sentences)
    return comparisons, len(rows) - len(comparisons)


def _annotation(comparison: Comparison, decision: Decision, value: float | None) -> Annotation:
    return Annotation(
        prompt_id=comparison.prompt_id,
        sample=comparison.sample,
        win=value,
        candidate_length=len(comparison.candidate),
        baseline_length=len(comparison.baseline),
        finish_reason=comparison.finish_reason,
        **decision.model_dump(),
    )


def _mean_scores(decisions: list[Decision]) -> Scores | None:
    """Mean scores over the decided comparisons; None for a judge that does not score."""
    decided = [decision for decision in decisions if decision.preference is not None]
    if not any(decision.criteria or decision.baseline_criteria for decision in decided):
        return None
    return Scores(
        candidate=_means([decision.criteria for decision in decided]),
        baseline=_means([decision.baseline_criteria for decision in decided]),
    )


def _means(scores: list[dict[str, float]]) -> dict[str, float | None]:
    """The mean of each criterion, and under `mean` that of the responses' mean scores, over the scored responses."""
    scored = [criteria for criteria in scores if criteria]
    names = sorted({name for criteria in scored for name in criteria})
    overall = fmean(fmean(criteria.values()) for criteria in scored) if scored else None
    return {"mean": overall, **{name: fmean(c[name] for c in scored if name in c) for name in names}}
