"""The baseline's responses: the dataset's targets, a file of outputs, or another cell's samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.evaluate.judging.settings import FromCell, FromFile
from halos.sample.samples import read_samples


@dataclass(frozen=True)
class Baseline:
    """The baseline's responses.

    Attributes:
        name: for people: `target`, a file, or a method.
        find: (record of the prompt, sample's number) -> (response, index in the file or None); None without a response.
        size: responses in a file; None for other baselines.
    """

    name: str
    find: Callable[[Feedback, int], tuple[str, int | None] | None]
    size: int | None = None


def open_baseline(setting: Literal["target"] | FromFile | FromCell, files: Sequence[Path]) -> Baseline:
    """The baseline that a judge names.

    Args:
        setting: the judge's `baseline:`.
        files: the file of outputs or of samples; empty for the dataset's targets.

    Raises:
        HalosError: a file is missing, not wanted or malformed.
    """
    if isinstance(setting, FromFile):
        return _from_file(f"the outputs of {setting.file}", files)
    if isinstance(setting, FromCell):
        return _from_cell(setting.method + ("" if setting.seed == "same" else f" (seed {setting.seed})"), files)
    if files:
        raise HalosError("the baseline is the dataset's target: --baseline takes none")

    def find(record: Feedback, _: int) -> tuple[str, int | None] | None:
        return None if record.target is None else (record.responses[record.target], None)

    return Baseline(setting, find)


def _from_file(name: str, files: Sequence[Path]) -> Baseline:
    outputs = read_outputs(_only(files, name))
    indices = {text: i for i, (text, _) in reversed(list(enumerate(outputs)))}  # of equal instructions, the first

    def find(record: Feedback, _: int) -> tuple[str, int | None] | None:
        if len(record.prompt) != 1:
            return None
        index = indices.get(record.prompt[0]["content"].strip())
        return None if index is None else (outputs[index][1], index)

    return Baseline(name, find, len(outputs))


def _from_cell(name: str, files: Sequence[Path]) -> Baseline:
    responses = {(sample.prompt_id, sample.sample): sample.response for sample in read_samples(_only(files, name))}

    def find(record: Feedback, sample: int) -> tuple[str, int | None] | None:
        response = responses.get((record.prompt_id, sample))
        return None if response is None else (response, None)

    return Baseline(name, find)


def _only(files: Sequence[Path], name: str) -> Path:
    if len(files) != 1:
        raise HalosError(f"the baseline is {name}: --baseline needs its file")
    return files[0]


def read_outputs(path: Path) -> list[tuple[str, str]]:
    """(instruction, output) of a file in AlpacaEval's form: a JSON list of objects, or one object a line.

    Raises:
        HalosError: the file is missing, or not of that form.
    """
    if not path.is_file():
        raise HalosError(f"there is no {path}; put the baseline's outputs there")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        lines = (line for line in text.split("\n") if line.strip())  # str.splitlines also splits at signs within texts
        rows = json.loads(text) if text.startswith("[") else list(map(json.loads, lines))
        outputs = [(row["instruction"].strip(), row["output"]) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise HalosError(f"{path} is not a list of outputs: give each an instruction and an output, in JSON") from None
    if odd := [i for i, (_, output) in enumerate(outputs, 1) if not isinstance(output, str)]:
        raise HalosError(f"{path}: output {odd[0]} of {len(outputs)} is no text: write one, or leave the entry out")
    return outputs
