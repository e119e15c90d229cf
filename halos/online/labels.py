"""labels.json: the report of a labeller on the samples that it scored."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Literal

from halos.data.feedback import Feedback
from halos.files import JsonFile, Record
from halos.sample.samples import Sample
from halos.scoring.scores import Score


class LabelledFile(Record):
    """Counts of one file of samples, and of the feedback made of it.

    Attributes:
        samples: the file.
        responses: samples in it.
        scored: responses that have a score.
        failed: {reason: responses without a score}.
        mean_score: over the scored responses; None without any.
        cut: responses that ended at the token limit.
        prompts: different prompts.
        records: feedback records, one for each prompt with a scored response.
        desirable: responses.
        undesirable: responses.
        pairs: of responses, the better one first.
    """

    samples: str
    responses: int
    scored: int
    failed: dict[str, int]
    mean_score: float | None
    cut: int
    prompts: int
    records: int
    desirable: int
    undesirable: int
    pairs: int

    @classmethod
    def of(cls, path: str, samples: list[Sample], scores: list[Score], records: list[Feedback]) -> LabelledFile:
        """The counts of a file's samples, their scores, and the records made of them."""
        values = [score.value for score in scores if score.value is not None]
        labels = Counter(label for record in records for label in record.desirable)
        return cls(
            samples=path,
            responses=len(samples),
            scored=len(values),
            failed=dict(sorted(Counter(str(score.problem) for score in scores if score.value is None).items())),
            mean_score=fmean(values) if values else None,
            cut=sum(sample.finish_reason == "length" for sample in samples),
            prompts=len({sample.prompt_id for sample in samples}),
            records=len(records),
            desirable=labels[True],
            undesirable=labels[False],
            pairs=sum(len(record.pairs) for record in records),
        )


class Labels(JsonFile):
    """The report of a labeller.

    Attributes:
        threshold: of binary feedback: the score that tells desirable responses from others; None otherwise.
        files: one entry for each file of samples.
    """

    labeller: str
    kind: Literal["verifier", "reward_model", "openai"]
    feedback: Literal["binary", "pairwise", "scalar"]
    threshold: float | None
    files: tuple[LabelledFile, ...]
