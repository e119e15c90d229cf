"""The baseline's responses: the dataset's targets, a file of outputs, or another cell's samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.sample.samples import read_samples


@dataclass(frozen=True)
class Baseline:
    """The baseline's responses.

    Attributes:
        name: for people: `target`, a file, or a method.
        find: (record of the prompt, sample's number) -> (response, place in the file), or None where there is none.
        size: responses of a file; None for other baselines.
    """

    name: str
    find: Callable[[Feedback, int], tuple[str, int | None] | None]
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

        def from_file(record: Feedback, _: int) -> tuple[str, int | None] | None:
            text = record.prompt[0]["content"].strip() if len(record.prompt) == 1 else None
            place = places.get(text) if text is not None else None
            return None if place is None else (outputs[place][1], place)

        return Baseline(_name(setting), from_file, len(outputs))
    samples = {(row.prompt_id, row.sample): row.response for row in read_samples(files[0])}

    def from_cell(record: Feedback, sample: int) -> tuple[str, int | None] | None:
        response = samples.get((record.prompt_id, sample))
        return None if response is None else (response, None)

    return Baseline(_name(setting), from_cell)


def _target(record: Feedback, _: int) -> tuple[str, int | None] | None:
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
