"""Judging: a cell's responses against a baseline's, pair by pair. The win rate is alpaca_eval's."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from halos.config import read_slice
from halos.data import feedback as F
from halos.errors import HalosError
from halos.provenance import write_json
from halos.registry import suggest
from halos.sample import read_samples
from halos.scores import Score, by_reward_model, by_verifier, open_reward_model

BASELINE_WINS, TIE, CANDIDATE_WINS = 1.0, 1.5, 2.0
"""Preferences, in alpaca_eval's convention."""

KINDS = ("verifier", "reward_model")


@dataclass(frozen=True)
class Comparison:
    """A response and the baseline's response to the same prompt."""

    prompt_id: str
    sample: int
    prompt: list[F.Turn]
    candidate: str
    baseline: str
    finish_reason: str | None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one comparison.

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
    config: Path, samples: Path, feedback: Path, output: Path, reward_model: list[Path], tokens_per_microbatch: int
) -> None:
    """Judge a cell's samples against its dataset's targets.

    Args:
        config: the judge's slice of the config.
        samples: one JSON object a line: prompt_id, sample, response, finish_reason (others are not read).
        feedback: parquet of the dataset that the prompts come from; a record's target is the baseline.
        output: JSON with the win rate and its standard error (both 0 to 1, ties count half), the counts, response
            lengths (characters), scores, and what was decided for each response. Lengths and scores are means over the
            decided comparisons; a prompt without a target is counted in `not_judged`.
        reward_model: for a judge of that kind, the model's folder and, where it has one, its manifest; else nothing.
        tokens_per_microbatch: tokens of one forward pass of the reward model.

    Raises:
        HalosError: samples are missing, malformed or of other prompts, the reward model is missing or none, or nothing
            could be decided.
    """
    content = read_slice(config)
    name, kind = f"judge {content['judge']}", content["kind"]
    if kind not in KINDS:
        raise HalosError(f"{name}: unknown kind {kind!r}{suggest(kind, KINDS)}")
    rows = read_samples(samples)
    comparisons = compare(rows, feedback, samples)
    model = open_reward_model(name, kind, reward_model, tokens_per_microbatch)
    score = by_verifier if model is None else by_reward_model(model)
    texts = [c.candidate for c in comparisons] + [c.baseline for c in comparisons]
    scores = score(content, [c.prompt for c in comparisons] * 2, texts)
    sides = zip(scores[: len(comparisons)], scores[len(comparisons) :], strict=True)
    verdicts = [decide(candidate, baseline, content["tie_margin"]) for candidate, baseline in sides]
    if all(v.preference is None for v in verdicts):
        raise HalosError(f"{name} failed on all {len(verdicts)} responses; see its messages above")
    row, preferences = aggregate(content["judge"], comparisons, [v.preference for v in verdicts])
    decided = [(c, v) for c, v, p in zip(comparisons, verdicts, preferences, strict=True) if p is not None]
    error = row["standard_error"]
    write_json(
        output,
        {
            "judge": content["judge"],
            "kind": content["kind"],
            "baseline": content["baseline"],
            "n": len(decided),
            "wins": row["n_wins"],
            "losses": row["n_wins_base"],
            "ties": row["n_draws"],
            "failures": len(comparisons) - len(decided),
            "not_judged": len(rows) - len(comparisons),
            "win_rate": row["win_rate"] / 100,
            "standard_error": None if error is None else error / 100,
            "mean_length": {
                "candidate": fmean(len(c.candidate) for c, _ in decided),
                "baseline": fmean(len(c.baseline) for c, _ in decided),
            },
            "scores": {
                "candidate": _means([v.candidate for _, v in decided]),
                "baseline": _means([v.baseline for _, v in decided]),
            },
            "leaderboard": row,
            "annotations": [
                {
                    "prompt_id": c.prompt_id,
                    "sample": c.sample,
                    "preference": preference,
                    "candidate_score": v.candidate.value,
                    "baseline_score": v.baseline.value,
                    "criteria": dict(v.candidate.criteria),
                    "finish_reason": c.finish_reason,
                }
                for c, v, preference in zip(comparisons, verdicts, preferences, strict=True)
            ],
        },
    )


def compare(rows: list[dict[str, Any]], feedback: Path, samples: Path) -> list[Comparison]:
    """Each sample beside the target of its prompt, in the samples' order; those without a target are left out.

    Raises:
        HalosError: a prompt that the feedback does not have, or no prompt with a target.
    """
    wanted = pa.array({row["prompt_id"] for row in rows}, pa.string())
    records = {record.prompt_id: record for record in F.records_of(feedback, wanted)}
    comparisons = []
    for row in rows:
        record = records.get(row["prompt_id"])
        if record is None:
            raise HalosError(f"{samples}: prompt {row['prompt_id']} is not in {feedback}; sample again from it")
        if record.target is not None:
            target = record.responses[record.target]
            comparisons.append(
                Comparison(
                    record.prompt_id, row["sample"], record.prompt, row["response"], target, row.get("finish_reason")
                )
            )
    if not comparisons:
        raise HalosError(f"no prompt of {samples} has a target in {feedback}; choose a dataset with targets")
    return comparisons


def aggregate(
    name: str, comparisons: list[Comparison], preferences: list[float | None]
) -> tuple[dict[str, Any], list[float | None]]:
    """alpaca_eval's leaderboard row (win_rate and standard_error in percent), and its annotation of each comparison.

    alpaca_eval calls identical responses a tie, and leaves a preference of None out. It knows a comparison by its row
    number, not by the instruction: it would merge equal texts.
    """
    root = logging.getLogger().level
    import alpaca_eval
    from alpaca_eval.annotators import PairwiseAnnotator

    logging.getLogger().setLevel(root)  # alpaca_eval sets INFO for the whole process

    class Lookup:
        """Stands where alpaca_eval has a prompted model: rows in, rows with their preferences out."""

        processors = ()

        def __call__(self, rows: Any) -> Any:
            return rows.assign(preference=[preferences[int(row)] for row in rows["row"]])

    class Annotator(PairwiseAnnotator):
        def _initialize_annotators(self, **_: Any) -> dict[str, Lookup]:
            return {name: Lookup()}

    leaderboard, annotations = alpaca_eval.evaluate(
        model_outputs=[{"row": str(i), "output": c.candidate} for i, c in enumerate(comparisons)],
        reference_outputs=[{"row": str(i), "output": c.baseline} for i, c in enumerate(comparisons)],
        name=name,
        Annotator=Annotator,
        annotators_config=name,
        input_keys=("row",),
        annotation_kwargs={"chunksize": None},
        fn_metric="get_winrate",
        sort_by="win_rate",
        precomputed_leaderboard=None,
        caching_path=None,
        output_path=None,
        is_return_instead_of_print=True,
    )
    decided = {a["row"]: a["preference"] for a in annotations}
    assert len(annotations) == len(decided) == len(comparisons), "alpaca_eval dropped or merged comparisons"
    return (
        {key: _plain(value) for key, value in leaderboard.loc[name].items()},
        [_plain(decided[str(i)]) for i in range(len(comparisons))],
    )


def _plain(value: Any) -> Any:
    """A numpy number as Python's; None for NaN."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _means(scores: list[Score]) -> dict[str, float | None]:
    """The mean of each criterion, and of the criteria's means, over the responses that have a score."""
    scored = [s.criteria for s in scores if s.criteria]
    criteria = sorted({name for s in scored for name in s})
    overall = fmean(fmean(s.values()) for s in scored) if scored else None
    return {"mean": overall, **{name: fmean(s[name] for s in scored if name in s) for name in criteria}}
