"""What a judge compares: each sample of a cell beside the baseline's response to the same prompt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from halos.data import feedback as F
from halos.errors import HalosError
from halos.sample import read_samples

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
    prompt: list[F.Turn]
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


@dataclass(frozen=True)
class Baseline:
    """The baseline's responses.

    Attributes:
        name: for people: `target`, a file, or a method.
        find: (record of the prompt, sample's number) -> (response, place in the file), or None where there is none.
        size: responses of a file; None for other baselines.
    """

    name: str
    find: Callable[[F.Feedback, int], tuple[str, int | None] | None]
    size: int | None = None


def open_baseline(setting: str | dict[str, Any], files: list[Path]) -> Baseline:
    """The baseline that a judge names.

    Args:
        setting: `target`, {file} or {method, seed}, as in the config.
        files: the file of outputs or of samples; nothing for the dataset's targets.

    Raises:
        HalosError: a file is missing, not wanted or malformed.
    """
    if isinstance(setting, str):
        if files:
            raise HalosError("the baseline is the dataset's target: --baseline takes none")
        return Baseline(setting, _target)
    if len(files) != 1:
        raise HalosError(f"the baseline is {_name(setting)}: --baseline needs its file")
    if "file" in setting:
        outputs = read_outputs(files[0])
        places = {text: place for place, (text, _) in reversed(list(enumerate(outputs)))}  # of equals, the first

        def from_file(record: F.Feedback, _: int) -> tuple[str, int | None] | None:
            text = record.prompt[0]["content"].strip() if len(record.prompt) == 1 else None
            place = places.get(text) if text is not None else None
            return None if place is None else (outputs[place][1], place)

        return Baseline(_name(setting), from_file, len(outputs))
    samples = {(row["prompt_id"], row["sample"]): str(row["response"]) for row in read_samples(files[0])}

    def from_cell(record: F.Feedback, sample: int) -> tuple[str, int | None] | None:
        response = samples.get((record.prompt_id, sample))
        return None if response is None else (response, None)

    return Baseline(_name(setting), from_cell)


def _target(record: F.Feedback, _: int) -> tuple[str, int | None] | None:
    return None if record.target is None else (record.responses[record.target], None)


def _name(setting: dict[str, Any]) -> str:
    if "file" in setting:
        return f"the outputs of {setting['file']}"
    return str(setting["method"]) + ("" if setting["seed"] == "same" else f" (seed {setting['seed']})")


def read_outputs(path: Path) -> list[tuple[str, str]]:
    """(instruction, output) of a file in AlpacaEval's form: a JSON list of objects, or one object a line.

    Raises:
        HalosError: the file is missing, or not of that form.
    """
    if not path.is_file():
        raise HalosError(f"there is no {path}; put the baseline's outputs there")
    text = path.read_text()
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        return [(str(row["instruction"]).strip(), str(row["output"])) for row in rows]
    except (ValueError, TypeError, KeyError):
        raise HalosError(f"{path} is no list of outputs: each wants an instruction and an output, in JSON") from None


def compare(
    rows: list[dict[str, Any]], feedback: Path, samples: Path, baseline: Baseline, whole_sentences: bool = False
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
    wanted = pa.array({row["prompt_id"] for row in rows}, pa.string())
    records = {record.prompt_id: record for record in F.records_of(feedback, wanted)}
    cut = cut_to_sentence if whole_sentences else str
    comparisons = []
    for row in rows:
        record = records.get(row["prompt_id"])
        if record is None:
            raise HalosError(f"{samples}: prompt {row['prompt_id']} is not in {feedback}; sample again from it")
        found = baseline.find(record, row["sample"])
        if found is not None:
            candidate, (other, position) = row["response"], found
            comparisons.append(
                Comparison(
                    record.prompt_id, row["sample"], record.prompt, cut(candidate), cut(other),
                    (len(candidate), len(other)), row.get("finish_reason"), position,
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
