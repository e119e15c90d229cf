"""Labelling: feedback records from scored samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

from halos.data import feedback
from halos.data.feedback import Feedback, labels_of_pairs
from halos.errors import HalosError
from halos.files import write_json
from halos.sample.samples import Sample, read_samples
from halos.scoring.asking import by_asking
from halos.scoring.reward_model import by_reward_model, open_reward_model
from halos.scoring.scores import Score, by_verifier
from halos.settings import read_slice

EMPTY = Score(problem="the response is empty")


@dataclass
class Samples:
    """The scored responses to one prompt."""

    prompt: list[feedback.Turn]
    responses: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)

    def record(self, content: dict[str, Any], threshold: float | None) -> Feedback:
        """What the labeller makes of them. The best one is the target."""
        pairs: list[tuple[int, int]] = []
        desirable: list[bool | None] = []
        if content["feedback"] == "pairwise":
            pairs = pair(self.scores, content["pairs"], content["min_margin"], feedback.prompt_id(self.prompt))
            desirable = labels_of_pairs(len(self.scores), pairs)
        elif threshold is not None:
            desirable = [score > threshold for score in self.scores]
        best = self.scores.index(max(self.scores))
        name, cut = content["labeller"], self.cut if any(self.cut) else []
        return Feedback(self.prompt, self.responses, name, self.scores, pairs, desirable, best, cut)


def pair(scores: list[float], mode: str, min_margin: float, key: str) -> list[tuple[int, int]]:
    """(winner, loser) of responses whose scores differ by more than `min_margin`.

    Args:
        scores: of the responses to one prompt.
        mode: `max`, the best with the worst; `min`, the two that are closest; `random`, disjoint pairs of all of them,
            drawn by `key` alone.
        min_margin: what a pair's scores have to differ by, and more.
        key: the prompt's id.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # of equals, the earlier is the better
    if mode == "random":
        Random(key).shuffle(drawn := list(range(len(scores))))
        couples = [sorted(two, key=order.index) for two in zip(drawn[::2], drawn[1::2], strict=False)]
    else:
        couples = [list(two) for two in combinations(order, 2)]
    found = [(w, lo) for w, lo in couples if scores[w] - scores[lo] > min_margin]
    if mode == "random" or not found:
        return found
    choose = max if mode == "max" else min
    return [choose(found, key=lambda two: scores[two[0]] - scores[two[1]])]


def label(
    config: Path,
    samples: list[Path],
    output: list[Path],
    report: Path,
    reward_model: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    concurrency: int = 16,
    requests_per_minute: int | None = None,
) -> None:
    """The verb: score samples and make feedback records of them, one for each prompt.

    A response that could not be scored is counted, by reason, and left out; so is a prompt without any. A threshold
    that is the mean or median is that of the first file's scores.

    Args:
        config: the labeller's slice of the config.
        samples: files of samples, JSON lines; of the processes that `accelerate` launched, each scores a share.
        output: for each of them the records to write, .parquet or .jsonl.
        report: JSON to write: what was scored, failed and made, for each file. Answers of a model that was asked are
            kept beside it, in answers.jsonl, and not asked for again.
        reward_model: for a labeller of that kind, the model's folder and, where it has one, its manifest; else nothing.
        tokens_per_microbatch: tokens of one forward pass of the reward model.
        concurrency: calls at one time, for a model that is asked.
        requests_per_minute: the most there may be; None for no limit.

    Raises:
        HalosError: samples are missing or malformed, the reward model is missing or none, or a file is left without
            records.
    """
    if len(samples) != len(output):
        raise HalosError("give as many --output as --samples")
    content = read_slice(config)
    name, kind = f"labeller {content['labeller']}", content["kind"]
    rows = [read_samples(path) for path in samples]
    model = open_reward_model(name, kind, list(reward_model), tokens_per_microbatch)
    if model is not None:
        score = by_reward_model(model)
    elif kind == "openai":
        score = by_asking(report.with_name("answers.jsonl"), concurrency, requests_per_minute)
    else:
        score = by_verifier
    every = [row for part in rows for row in part]
    said = [row for row in every if row.response.strip()]
    given = iter(score(content, [row.prompt or [] for row in said], [row.response for row in said]))
    scores = [[next(given) if row.response.strip() else EMPTY for row in part] for part in rows]
    if os.environ.get("RANK", "0") != "0":
        return
    threshold = _threshold(content, [s.value for s in scores[0] if s.value is not None])
    summary: dict[str, Any] = {"labeller": content["labeller"], "kind": kind, "feedback": content["feedback"]}
    summary |= {"threshold": threshold, "files": []}
    made: list[list[Feedback]] = []
    for path, part, found in zip(samples, rows, scores, strict=True):
        made.append([scored.record(content, threshold) for scored in _by_prompt(part, found)])
        summary["files"].append({"samples": str(path), **_counts(part, found, made[-1])})
        _say(name, summary["files"][-1])
    for path, records in zip(output, made, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".partial.{path.name}")
        feedback.write(iter(records), temporary)
        temporary.replace(path)
    write_json(report, summary)


def _threshold(content: dict[str, Any], scores: list[float]) -> float | None:
    if content["feedback"] != "binary" or not scores:
        return None
    given = content["threshold"]
    if given == "mean":
        return fmean(scores)
    return float(median(scores) if given == "median" else given)


def _by_prompt(rows: list[Sample], scores: list[Score]) -> list[Samples]:
    """The scored samples of each prompt, in the order of the file."""
    found: list[Samples] = []
    for _, both in groupby(zip(rows, scores, strict=True), key=lambda both: both[0].prompt_id):
        kept = [(row, score.value) for row, score in both if score.value is not None]
        if kept:
            texts = [row.response for row, _ in kept]
            cut = [row.finish_reason == "length" for row, _ in kept]
            found.append(Samples(kept[0][0].prompt or [], texts, [value for _, value in kept], cut))
    return found


def _counts(rows: list[Sample], scores: list[Score], records: list[Feedback]) -> dict[str, Any]:
    values = [s.value for s in scores if s.value is not None]
    labels = Counter(label for record in records for label in record.desirable)
    return {
        "responses": len(rows),
        "scored": len(values),
        "failed": dict(sorted(Counter(s.problem for s in scores if s.value is None).items())),
        "mean_score": fmean(values) if values else None,
        "cut": sum(row.finish_reason == "length" for row in rows),
        "prompts": len({row.prompt_id for row in rows}),
        "records": len(records),
        "desirable": labels[True],
        "undesirable": labels[False],
        "pairs": sum(len(record.pairs) for record in records),
    }


def _say(name: str, counts: dict[str, Any]) -> None:
    """One line of what became of a file.

    Raises:
        HalosError: nothing could be scored.
    """
    failed = ", ".join(f"{n} {reason}" for reason, n in counts["failed"].items()) or "none"
    if not counts["scored"]:
        raise HalosError(f"{name} scored none of the {counts['responses']} responses of {counts['samples']}: {failed}")
    what = ", ".join(f"{counts[key]} {key}" for key in ("records", "desirable", "undesirable", "pairs"))
    print(f"{counts['samples']}: {counts['scored']} of {counts['responses']} responses scored, "
          f"{counts['mean_score']:.3f} on average: {what}; failed: {failed}")  # fmt: skip
