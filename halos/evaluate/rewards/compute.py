"""Rewards of the responses of a preference set, by a reward model or by a policy and its reference."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from halos.data.feedback import Feedback, read
from halos.errors import HalosError
from halos.evaluate.divergence.compute import log_probabilities
from halos.evaluate.rewards.rewards import RewardedPrompt, Rewards
from halos.manifest import Manifest
from halos.pretrained import read_tokenizer
from halos.reference.compute import check_vocabulary
from halos.reference.settings import ReferenceSlice
from halos.scoring.reward_model import open_reward_model
from halos.tokens.positions import Positions
from halos.tokens.template import Prompt, Template

LONG = "too long for the model"


def rewards(
    config: Path,
    model: Path,
    manifest: Path,
    feedback: Path,
    output: Path,
    reference: Sequence[Path] = (),
    vocabulary: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
) -> None:
    """Compute the rewards of the responses of a preference set: scores of a reward model, or log-ratios of a policy.

    Prompts and responses are read whole, by the model's own chat template; a record of which one does not fit is left
    out and counted. Policy and reference read the same tokens of a response, one model after the other.

    Args:
        config: config.yaml of the cell, for attention and precision of a policy.
        model: model folder.
        manifest: its manifest.
        feedback: feedback records, parquet; those without pairs are passed over.
        output: file to write, JSON.
        reference: of a policy, the model folder of its reference and the manifest of that; none for a reward model.
        vocabulary: the policy's base model, where the reference is another model: their tokenizers must be the same.
        tokens_per_microbatch: tokens of one forward pass, padding included.

    Raises:
        HalosError: a file is missing, no record has pairs, or none of those that have can be read; the model is no
            reward model and has no reference, or the reference has another vocabulary.
    """
    records = [record for record in read(feedback) if record.pairs]
    if not records:
        raise HalosError(f"{feedback} has no pairs, which rewards are compared on: name another preference set")
    of_model = Manifest.read(manifest)
    of_reference = Manifest.read(reference[1]) if reference else None
    if reference:
        for other in vocabulary:
            check_vocabulary(reference[0], other)
        settings = ReferenceSlice.read(config)
        values, problems = _log_ratios(records, model, reference[0], settings, tokens_per_microbatch)
    else:
        values, problems = _scores(records, model, manifest, tokens_per_microbatch)
    known = [(record, of_record) for record, of_record in zip(records, values, strict=True) if of_record is not None]
    if not known:
        raise HalosError(
            f"{model} can read no record of {feedback}: {', '.join(problems)}; name another preference set"
        )
    Rewards(
        kind="log_ratio" if reference else "score",
        weights=of_model.weights,
        reference_weights=of_reference and of_reference.weights,
        left_out=dict(sorted(problems.items())),
        prompts=tuple(
            RewardedPrompt(
                prompt_id=record.prompt_id,
                category=record.source,
                rewards=tuple(of_record),
                lengths=tuple(map(len, record.responses)),
                pairs=tuple(record.pairs),
            )
            for record, of_record in known
        ),
    ).write(output)
    left_out = "".join(f", {number} left out: {why}" for why, number in problems.items())
    print(f"{len(known)} records with {sum(len(record.pairs) for record, _ in known)} pairs{left_out}")


Values = list[list[float] | None]
"""Of each record the rewards of its responses; None where it is left out."""


def _scores(records: Sequence[Feedback], model: Path, manifest: Path, budget: int) -> tuple[Values, Counter[str]]:
    """Scores of a reward model, and why records are left out."""
    scorer = open_reward_model([model, manifest], budget)
    responses = [(record.prompt, text) for record in records for text in record.responses]
    scores = iter(scorer.rewards(*map(list, zip(*responses, strict=True))))
    values: Values = []
    for record in records:
        of_record = [score for score in islice(scores, len(record.responses)) if score is not None]
        values.append(of_record if len(of_record) == len(record.responses) else None)
    missing = values.count(None)
    return values, Counter({"a response without a score": missing} if missing else {})


def _log_ratios(
    records: Sequence[Feedback], model: Path, reference: Path, settings: ReferenceSlice, budget: int
) -> tuple[Values, Counter[str]]:
    """Log-ratios of a policy to its reference, and why records are left out."""
    texts = [text for record in records for text in record.responses]
    fields = [f for record in records for f in record.response_fields or [{}] * len(record.responses)]
    written = iter(Template(read_tokenizer(model)).responses(texts, fields=fields))
    answers = [[*islice(written, len(record.responses))] for record in records]
    asked = [_prompts(records, folder) for folder in (model, reference)]
    problems = []
    for responses, *prompts in zip(answers, *asked, strict=True):
        found = [part.problem for part in (*(prompt for prompt, _ in prompts), *responses) if part.problem]
        longest = max(len(response.ids or ()) for response in responses)
        fits = all(len(prompt.ids or ()) + longest <= limit for prompt, limit in prompts)
        problems.append(found[0] if found else None if fits else LONG)
    kept = [k for k, problem in enumerate(problems) if problem is None]
    sums = [
        log_probabilities(folder, [(prompts[k][0].ids, r.ids) for k in kept for r in answers[k]], settings, budget)
        if kept
        else []
        for folder, prompts in zip((model, reference), asked, strict=True)
    ]
    ratios = iter((np.array(sums[0]) - np.array(sums[1])).tolist())
    values: Values = [None] * len(records)
    for k in kept:
        values[k] = [*islice(ratios, len(answers[k]))]
    return values, Counter(problem for problem in problems if problem is not None)


def _prompts(records: Sequence[Feedback], folder: Path) -> list[tuple[Prompt, int]]:
    """Each record's whole prompt as a model reads it, and the positions that the model has."""
    limit = Positions.read(folder).limit or sys.maxsize
    template = Template(read_tokenizer(folder))
    whole = template.prompts([r.prompt for r in records], sys.maxsize - 1, [r.tools for r in records])
    return [(prompt, limit) for prompt in whole]
