"""Labelling: feedback records from scored samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations, groupby
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Literal

from pydantic import ValidationError

from halos.data.feedback import Feedback, Turn, labels_of_pairs
from halos.data.feedback import write as write_records
from halos.errors import HalosError
from halos.files import whole
from halos.online.labels import LabelledFile, Labels
from halos.online.settings import LabellerSlice
from halos.registry import load_plugins
from halos.sample.by_hand import samples_of
from halos.sample.samples import Sample, read_samples
from halos.scoring.api import Calls
from halos.scoring.scorers import open_scorer
from halos.scoring.scores import Score, ScoresResponses
from halos.scoring.sentences import cut_to_sentence
from halos.seeds import derive

EMPTY = Score(problem="the response is empty")


def pair(
    scores: list[float], mode: Literal["max", "min", "random"], min_margin: float, seed: int
) -> list[tuple[int, int]]:
    """(winner, loser) of responses to one prompt whose scores differ by more than `min_margin`.

    Args:
        scores: of the responses to one prompt.
        mode: `max`, the best with the worst; `min`, the two that are closest; `random`, disjoint pairs of all.
        min_margin: scores of a pair differ by more than this.
        seed: of random pairs.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # of equals, the earlier is the better
    if mode == "random":
        Random(seed).shuffle(drawn := list(range(len(scores))))
        couples = [sorted(two, key=order.index) for two in zip(drawn[::2], drawn[1::2], strict=False)]
    else:
        couples = [list(two) for two in combinations(order, 2)]
    pairs = [(winner, loser) for winner, loser in couples if scores[winner] - scores[loser] > min_margin]
    if mode == "random" or not pairs:
        return pairs
    choose = max if mode == "max" else min
    return [choose(pairs, key=lambda two: scores[two[0]] - scores[two[1]])]


def label(
    config: Path | None,
    samples: Sequence[Path],
    output: Sequence[Path],
    report: Path | None,
    reward_model: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    concurrency: int = 16,
    requests_per_minute: int | None = None,
    verifier: str | None = None,
    plugins: Sequence[Path] = (),
    feedback: Literal["binary", "pairwise", "scalar"] | None = None,
    threshold: str | None = None,
    pairs: Literal["max", "min", "random"] | None = None,
) -> None:
    """Make feedback records from samples that a labeller scores, one for each prompt.

    By hand, `--samples FILE --reward-model FOLDER --output FILE`, or `--verifier NAME`: samples are then a file of any
    origin, of objects with a prompt and a response. A rule gives a labeller's config in place of the last options.

    A response that could not be scored is counted, by reason, and left out; so is a prompt without any scored response.
    A threshold that is a mean or median is that of the first file's scores. The answers of a model that is asked are
    kept beside the report, in answers.jsonl, and not asked for again. Each process that `accelerate` launched scores a
    share, and the first one writes.

    Args:
        config: the labeller's config.yaml; `python -m halos config FOLDER` writes one. By hand none.
        samples: files of samples, JSON lines; by hand also a JSON list, CSV or parquet.
        output: feedback records to write, .parquet or .jsonl, for each file of samples.
        report: report to write, JSON: counts of responses scored, failed and labelled; by hand, by default none.
        reward_model: a reward model's folder and its manifest, if it has one, for a labeller of that kind.
        tokens_per_microbatch: tokens of one forward pass of the reward model, padding included.
        concurrency: calls at one time, for a model that is asked.
        requests_per_minute: limit on requests, for a model that is asked; by default none.
        verifier: verifier that scores (by hand).
        plugins: Python files with verifiers of your own (by hand).
        feedback: desirable or undesirable, pairs, or scores alone (by hand; default scalar).
        threshold: of binary feedback, mean, median or a number (by hand; default mean).
        pairs: of pairwise feedback, the best and the worst of a prompt, the closest, or random (by hand; default max).

    Raises:
        HalosError: a file is missing or malformed, the labeller's scorer does not exist or cannot be loaded, or no
            response of a file could be scored.
    """
    if len(samples) != len(output):
        raise HalosError("give as many --output as --samples")
    how = {"verifier": verifier, "feedback": feedback, "threshold": threshold, "pairs": pairs}
    given = {option: value for option, value in how.items() if value is not None}
    if config is None:
        if wrong := [path for path in output if path.suffix not in (".parquet", ".jsonl")]:
            raise HalosError(f"--output {wrong[0]}: feedback is written as .jsonl or .parquet: name it so")
        settings = _by_hand(given, reward_model, plugins)
        files = [samples_of(path) for path in samples]
    else:
        if given or plugins or report is None:
            taken = ", ".join(f"--{option}" for option in given) or "--plugins"
            raise HalosError("with --config, give a --report" if report is None else
                             f"{taken}: with --config, the labeller's entry says this: leave it out")  # fmt: skip
        settings = LabellerSlice.read(config)
        files = [read_samples(path) for path in samples]
    name = f"labeller {settings.labeller}"
    calls = Calls((report or output[0]).with_name("answers.jsonl"), concurrency, requests_per_minute)
    scorer = open_scorer(name, settings, reward_model, tokens_per_microbatch, calls)
    scored = iter(_scores(scorer, [sample for part in files for sample in part], settings.whole_sentences))
    scores = [[next(scored) for _ in part] for part in files]
    if os.environ.get("RANK", "0") != "0":
        return
    bound = _threshold(settings, [score.value for score in scores[0] if score.value is not None])
    records = [_records(settings, bound, part, of_part) for part, of_part in zip(files, scores, strict=True)]
    counts = [
        LabelledFile.of(str(path), part, of_part, made)
        for path, part, of_part, made in zip(samples, files, scores, records, strict=True)
    ]
    for of_file in counts:
        _print(name, of_file)
    for path, made in zip(output, records, strict=True):
        with whole(path) as temporary:
            write_records(made, temporary)
    if report is not None:
        Labels(
            labeller=settings.labeller,
            kind=settings.kind,
            feedback=settings.feedback,
            threshold=bound,
            files=tuple(counts),
        ).write(report)


def _by_hand(given: dict[str, str], reward_model: Sequence[Path], plugins: Sequence[Path]) -> LabellerSlice:
    """A labeller of options of the command line.

    Raises:
        HalosError: they do not say what scores, or do not go together.
    """
    load_plugins(plugins)
    if ("verifier" in given) == bool(reward_model):
        raise HalosError("say what scores: --reward-model FOLDER or --verifier NAME (or --config, of a labeller)")
    folder = reward_model[0].absolute() if reward_model else None
    scorer = {"kind": "verifier"} if folder is None else {"kind": "reward_model", "reward_model": str(folder)}
    try:
        number = float(given["threshold"])
    except (KeyError, ValueError):
        number = None
    content = {"feedback": "scalar", **scorer, **given, **({} if number is None else {"threshold": number})}
    try:
        return LabellerSlice.model_validate({"labeller": given.get("verifier") or str(reward_model[0]), **content})
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]}: " if first["loc"] else ""
        raise HalosError(f"{option}{first['msg'].removeprefix('Value error, ')}") from None


def _scores(scorer: ScoresResponses, samples: list[Sample], whole_sentences: bool) -> list[Score]:
    """The score of each sample, in their order; empty responses are not scored."""
    texts = [sample for sample in samples if sample.response.strip()]
    cut = cut_to_sentence if whole_sentences else str
    scores = iter(scorer.score([_prompt(sample) for sample in texts], [cut(sample.response) for sample in texts]))
    return [next(scores) if sample.response.strip() else EMPTY for sample in samples]


def _prompt(sample: Sample) -> list[Turn]:
    if sample.prompt is None:
        raise HalosError(f"the sample of prompt {sample.prompt_id} does not hold its prompt; sample again")
    return sample.prompt


def _threshold(settings: LabellerSlice, scores: list[float]) -> float | None:
    """The score that tells desirable responses from others; None for feedback without a threshold."""
    if settings.feedback != "binary" or not scores:
        return None
    if settings.threshold == "mean":
        return fmean(scores)
    return float(median(scores) if settings.threshold == "median" else settings.threshold)


def _records(
    settings: LabellerSlice, threshold: float | None, samples: list[Sample], scores: list[Score]
) -> list[Feedback]:
    """A record for each prompt that has a scored response, in the order of the file."""
    records: list[Feedback] = []
    for _, of_prompt in groupby(zip(samples, scores, strict=True), key=lambda both: both[0].prompt_id):
        kept = [(sample, score.value) for sample, score in of_prompt if score.value is not None]
        if kept:
            records.append(_record(settings, threshold, [s for s, _ in kept], [value for _, value in kept]))
    return records


def _record(settings: LabellerSlice, threshold: float | None, samples: list[Sample], scores: list[float]) -> Feedback:
    """The feedback on the scored responses to one prompt. The best one is the target, if it is good enough."""
    prompt = _prompt(samples[0])
    pairs: list[tuple[int, int]] = []
    desirable: list[bool | None] = []
    if settings.feedback == "pairwise":
        seed = derive(samples[0].seed or 0, "pairs", samples[0].prompt_id)  # samples made elsewhere may have no seed
        pairs = pair(scores, settings.pairs, settings.min_margin, seed)
        desirable = labels_of_pairs(len(scores), pairs)
    elif threshold is not None:
        at = settings.at_threshold == "desirable"
        desirable = [score > threshold or (score == threshold and at) for score in scores]
    best = max(scores)
    is_target = settings.target_above is None or best > settings.target_above
    cut = [sample.finish_reason == "length" for sample in samples]
    template = next((sample.template for sample in samples if sample.template and sample.response_ids), None)
    ids = [sample.response_ids if sample.template == template else None for sample in samples]
    return Feedback(
        prompt,
        [sample.response for sample in samples],
        settings.labeller,
        scores,
        pairs,
        desirable,
        target=scores.index(best) if is_target else None,
        cut=cut if any(cut) else [],
        tools=samples[0].tools,
        response_ids=ids if template is not None else [],
        template=template,
    )


def _print(name: str, counts: LabelledFile) -> None:
    """One line about a file.

    Raises:
        HalosError: nothing could be scored.
    """
    failed = ", ".join(f"{n} {reason}" for reason, n in counts.failed.items()) or "none"
    if not counts.scored:
        raise HalosError(f"{name} scored none of the {counts.responses} responses of {counts.samples}: {failed}")
    print(
        f"{counts.samples}: {counts.scored} of {counts.responses} responses scored, {counts.mean_score:.3f} on "
        f"average: {counts.records} records, {counts.desirable} desirable, {counts.undesirable} undesirable, "
        f"{counts.pairs} pairs; failed: {failed}"
    )
