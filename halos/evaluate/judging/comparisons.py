"""What a judge compares: each sample of a cell beside the baseline's response to the same prompt."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from halos.data.feedback import Turn, records_of
from halos.errors import HalosError
from halos.evaluate.judging.baseline import Baseline
from halos.sample.samples import Sample

SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f\u2026][\"'\u201d\u2019)\]*_]*(?=\s|$)|[\u3002\uff01\uff1f]")
ENUMERATOR = re.compile(r"\s*(\d+|[A-Za-z])\.")


@dataclass(frozen=True)
class Comparison:
    """A response and the baseline's response to the same prompt, as the judge sees them.

    Attributes:
        lengths: characters of both whole responses, the candidate's first.
        position: the prompt's place in the baseline's file; None for other baselines.
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
        """Which response a judge that reads both is shown first: by a hash of the prompt and the sample's number, so
        neither the texts nor their place among others have a say."""
        return hashlib.sha256(f"{self.prompt_id}/{self.sample}".encode()).digest()[0] % 2 == 0

    @property
    def instruction(self) -> str:
        """The prompt as text: a single question as it is, a longer conversation with the roles of its turns."""
        if len(self.prompt) == 1:
            return self.prompt[0]["content"]
        return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in self.prompt)


def compare(
    rows: list[Sample], feedback: Path, samples: Path, baseline: Baseline, whole_sentences: bool = False
) -> list[Comparison]:
    """Each sample beside the baseline's response, in the samples' order; those without one are left out.

    Args:
        rows: the samples.
        feedback: parquet of the dataset that the prompts come from.
        samples: where the samples are from, for messages.
        whole_sentences: both responses are cut after their last full sentence.

    Raises:
        HalosError: a prompt that the feedback does not have, or no prompt with a response of the baseline.
    """
    wanted = pa.array({row.prompt_id for row in rows}, pa.string())
    records = {record.prompt_id: record for record in records_of(feedback, wanted)}
    cut = cut_to_sentence if whole_sentences else str
    comparisons = []
    for row in rows:
        record = records.get(row.prompt_id)
        if record is None:
            raise HalosError(f"{samples}: prompt {row.prompt_id} is not in {feedback}; sample again from it")
        found = baseline.find(record, row.sample)
        if found is not None:
            candidate, (other, position) = row.response, found
            comparisons.append(
                Comparison(
                    record.prompt_id, row.sample, record.prompt, cut(candidate), cut(other),
                    (len(candidate), len(other)), row.finish_reason, position,
                )
            )  # fmt: skip
    if not comparisons and baseline.name == "target":
        raise HalosError(f"no prompt of {samples} has a target in {feedback}; choose a dataset with targets")
    if not comparisons:
        raise HalosError(f"no prompt of {samples} has a response of the baseline, {baseline.name}; "
                         "choose the prompt set that it answers")  # fmt: skip
    return comparisons


def cut_to_sentence(text: str) -> str:
    """The text up to the end of its last full sentence; all of it where no sentence ends.

    The number before an item of a list ends no sentence.
    """
    for end in reversed(list(SENTENCE_END.finditer(text))):
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.end()]
        if not ENUMERATOR.fullmatch(line):
            return text[: end.end()]
    return text
