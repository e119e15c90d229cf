"""Comparisons: each sample of a cell beside the baseline's response to the same prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from halos.data.feedback import Turn, records_of
from halos.errors import HalosError
from halos.evaluate.judging.baseline import Baseline
from halos.sample.samples import Sample
from halos.scoring.conversations import turn_text
from halos.scoring.sentences import cut_to_sentence


@dataclass(frozen=True)
class Comparison:
    """A response and the baseline's response to the same prompt, as the judge sees them.

    Attributes:
        candidate: the cell's response, cut if the judge sees it cut.
        baseline: the baseline's response, likewise.
        lengths: characters of both whole responses, the candidate's first.
        position: index of the prompt in the baseline's file; None for other baselines.
    """

    prompt_id: str
    sample: int
    prompt: list[Turn]
    candidate: str
    baseline: str
    lengths: tuple[int, int]
    finish_reason: str | None
    position: int | None = None

    @property
    def candidate_first(self) -> bool:
        """Whether a judge that reads both responses sees the candidate's first. A hash of the prompt and the sample's
        number decides, so it depends neither on the texts nor on their place among others."""
        return hashlib.sha256(f"{self.prompt_id}/{self.sample}".encode()).digest()[0] % 2 == 0

    def shown(self, candidate_first: bool) -> tuple[str, str]:
        """Both responses, in the order in which a judge sees them."""
        return (self.candidate, self.baseline) if candidate_first else (self.baseline, self.candidate)

    @property
    def instruction(self) -> str:
        """The prompt as text."""
        return instruction_of(self.prompt)


def lowest(comparisons: Sequence[Comparison], n: int) -> list[Comparison]:
    """A sample of comparisons: those whose hashes are lowest, in no order that means anything."""
    hashed = {id(c): hashlib.sha256(f"again/{c.prompt_id}/{c.sample}".encode()).digest() for c in comparisons}
    return sorted(comparisons, key=lambda c: hashed[id(c)])[:n]


def on_prompts(samples: list[Sample], n: int | None) -> list[Sample]:
    """The samples of `n` of their prompts: those whose ids' hashes are lowest, and so the same for every method that
    answers them. All of them where `n` is None."""
    ids = {sample.prompt_id for sample in samples}
    kept = set(sorted(ids, key=lambda id_: hashlib.sha256(f"pairs/{id_}".encode()).digest())[:n])
    return [sample for sample in samples if sample.prompt_id in kept]


def instruction_of(prompt: list[Turn]) -> str:
    """A prompt as text: a single turn as it is, a longer conversation with the roles of its turns."""
    return str(prompt[0]["content"]) if len(prompt) == 1 else "\n\n".join(map(turn_text, prompt))


def compare(
    samples: list[Sample], feedback: Path, path: Path, baseline: Baseline, whole_sentences: bool = False
) -> list[Comparison]:
    """Each sample beside the baseline's response, in the samples' order; those without one are left out.

    Args:
        samples: the cell's samples.
        feedback: parquet of the dataset that the prompts come from.
        path: the file of the samples, for messages.
        baseline: the responses to compare with.
        whole_sentences: whether both responses are cut after their last full sentence.

    Raises:
        HalosError: a prompt is not in the feedback, or no prompt has a response of the baseline.
    """
    ids = pa.array({sample.prompt_id for sample in samples}, pa.string())
    records = {record.prompt_id: record for record in records_of(feedback, ids)}
    cut = cut_to_sentence if whole_sentences else str
    comparisons = []
    for sample in samples:
        record = records.get(sample.prompt_id)
        if record is None:
            raise HalosError(f"{path}: prompt {sample.prompt_id} is not in {feedback}; sample again from it")
        output = baseline.find(record, sample.sample)
        if output is not None:
            response, position = output
            lengths = len(sample.response), len(response)
            comparisons.append(
                Comparison(record.prompt_id, sample.sample, record.prompt, cut(sample.response), cut(response),
                           lengths, sample.finish_reason, position)
            )  # fmt: skip
    if not comparisons and baseline.name == "target":
        raise HalosError(f"no prompt of {path} has a target in {feedback}; choose a dataset with targets")
    if not comparisons:
        raise HalosError(f"no prompt of {path} has a response of the baseline, {baseline.name}; "
                         "choose the prompt set that it answers")  # fmt: skip
    return comparisons
