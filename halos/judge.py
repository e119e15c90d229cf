"""Judging: a cell's responses against a baseline's, pair by pair. The win rate is alpaca_eval's."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import halos.data  # noqa: F401  (registers the verifiers of the package)
from halos.config import read_slice
from halos.data import feedback as F
from halos.errors import HalosError
from halos.provenance import write_json
from halos.registry import VERIFIERS, suggest

if TYPE_CHECKING:
    from halos.rewards import RewardModel

BASELINE_WINS, TIE, CANDIDATE_WINS = 1.0, 1.5, 2.0
"""Preferences, in alpaca_eval's convention."""

log = logging.getLogger(__name__)
Scores = dict[str, float]


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
        candidate: score for each criterion, a verifier's between 0 and 1; empty when there is none.
        baseline: the same.
    """

    preference: float | None
    candidate: Scores = field(default_factory=dict)
    baseline: Scores = field(default_factory=dict)


def by_verifier(config: dict[str, Any], comparisons: list[Comparison], _: RewardModel | None) -> list[Verdict]:
    """The response with the higher mean over the verifier's criteria wins.

    A verifier that raises, or gives no finite score, has failed on that response: the comparison is counted as a
    failure and decides nothing.
    """
    verifier = VERIFIERS[config["verifier"]]
    prompts = {c.prompt_id: c.prompt for c in comparisons}

    @cache  # the baseline's response is met once for each sample of its prompt
    def score(prompt_id: str, response: str) -> Scores:
        try:
            scores = {name: float(value) for name, value in verifier(prompts[prompt_id], response).items()}
        except Exception as error:
            log.warning("verifier %s failed: %s: %s", config["verifier"], type(error).__name__, error)
            return {}
        return scores if all(map(math.isfinite, scores.values())) else {}

    margin = config["tie_margin"]
    return [decide(score(c.prompt_id, c.candidate), score(c.prompt_id, c.baseline), margin) for c in comparisons]


def by_reward_model(config: dict[str, Any], comparisons: list[Comparison], model: RewardModel | None) -> list[Verdict]:
    """The response with the higher score wins; where either has none, the comparison is counted as a failure."""
    assert model is not None
    texts = [c.candidate for c in comparisons] + [c.baseline for c in comparisons]
    scores = model.score([c.prompt for c in comparisons] * 2, texts)
    named: list[Scores] = [{} if score is None else {"reward": score} for score in scores]
    n = len(comparisons)
    return [decide(ours, its, config["tie_margin"]) for ours, its in zip(named[:n], named[n:], strict=True)]


def decide(candidate: Scores, baseline: Scores, tie_margin: float) -> Verdict:
    """The higher mean wins, and means at most `tie_margin` apart are a tie; nothing is decided where one is missing."""
    if not candidate or not baseline:
        return Verdict(None, candidate, baseline)
    lead = fmean(candidate.values()) - fmean(baseline.values())
    if abs(lead) <= tie_margin + 1e-9:  # .4 - .3 is above .1 in floating point
        return Verdict(TIE, candidate, baseline)
    return Verdict(CANDIDATE_WINS if lead > 0 else BASELINE_WINS, candidate, baseline)


KINDS: dict[str, Callable[[dict[str, Any], list[Comparison], RewardModel | None], list[Verdict]]] = {
    "verifier": by_verifier,
    "reward_model": by_reward_model,
}
"""kind of judge -> function(config slice, comparisons, its reward model) that gives a verdict for each comparison."""


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
        tokens_per_microbatch: padded tokens of one forward pass of the reward model.

    Raises:
        HalosError: samples are missing, malformed or of other prompts, the reward model is missing or none, or nothing
            could be decided.
    """
    content = read_slice(config)
    if content["kind"] not in KINDS:
        raise HalosError(f"judge {content['judge']}: unknown kind {content['kind']!r}{suggest(content['kind'], KINDS)}")
    rows = read_samples(samples)
    comparisons = compare(rows, feedback, samples)
    model = _reward_model(content, reward_model, tokens_per_microbatch)
    verdicts = KINDS[content["kind"]](content, comparisons, model)
    if all(v.preference is None for v in verdicts):
        raise HalosError(f"judge {content['judge']} failed on all {len(verdicts)} responses; see its messages above")
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
                    "candidate_score": _mean(v.candidate),
                    "baseline_score": _mean(v.baseline),
                    "criteria": v.candidate,
                    "finish_reason": c.finish_reason,
                }
                for c, v, preference in zip(comparisons, verdicts, preferences, strict=True)
            ],
        },
    )


def _reward_model(content: dict[str, Any], files: list[Path], tokens: int) -> RewardModel | None:
    """The reward model that a judge scores with, as its own run computed: the manifest tells how."""
    if bool(files) != (content["kind"] == "reward_model"):
        says = "takes none" if files else "needs its model's folder"
        raise HalosError(f"judge {content['judge']} is of kind {content['kind']}: --reward-model {says}")
    if not files:
        return None
    from halos.rewards import RewardModel

    folder, *manifest = files
    run = json.loads(manifest[0].read_text())["config"] if manifest else {}
    how = {key: run[key] for key in ("precision", "attention") if key in run}
    return RewardModel(folder, tokens_per_microbatch=tokens, **how)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a samples file.

    Raises:
        HalosError: there is none, one is not a sample, or one occurs twice.
    """
    if not path.is_file():
        raise HalosError(f"there is no samples file {path}; make it with `python -m halos sample`")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(path.open(), 1):
        try:
            row = json.loads(line)
            key = (row["prompt_id"], row["sample"])
            if not isinstance(row["response"], str):
                raise TypeError("response is not text")
        except (ValueError, TypeError, KeyError) as error:
            raise HalosError(
                f"{path}, line {number} is not a sample ({type(error).__name__}: {error}); delete it and sample again"
            ) from None
        if key in seen:
            raise HalosError(f"{path}, line {number}: sample {key[1]} of prompt {key[0]} is there twice; sample again")
        seen.add(key)
        rows.append(row)
    if not rows:
        raise HalosError(f"{path} holds no samples; delete it and sample again")
    return rows


def compare(rows: list[dict[str, Any]], feedback: Path, samples: Path) -> list[Comparison]:
    """Each sample beside the target of its prompt, in the samples' order; those without a target are left out.

    Raises:
        HalosError: a prompt that the feedback does not have, or no prompt with a target.
    """
    records = {record.prompt_id: record for record in F.read(feedback)}
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


def _mean(scores: Scores) -> float | None:
    return fmean(scores.values()) if scores else None


def _means(scores: list[Scores]) -> dict[str, float | None]:
    """The mean of each criterion, and of the criteria's means, over the responses that have a score."""
    scored = [s for s in scores if s]
    criteria = sorted({name for s in scored for name in s})
    overall = fmean(fmean(s.values()) for s in scored) if scored else None
    return {"mean": overall, **{name: fmean(s[name] for s in scored if name in s) for name in criteria}}
