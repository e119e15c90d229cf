"""The samples of a model for one prompt set: a file with one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.files import Record


class Sample(Record):
    """One response of a model to a prompt.

    A file made elsewhere needs `prompt_id`, `response` and `sample` alone, and may hold fields of its own.

    Attributes:
        prompt_id: hash of the prompt (halos.data.feedback.prompt_id).
        tools: functions that the model may call, as JSON documents, where the prompt has any.
        sample: index among the prompt's samples, from 0.
        finish_reason: `stop` at an end-of-sequence token or a stop string, `length` at the token limit; None where it
            is not known.
        prompt_tokens: length of the prompt.
        response_tokens: length of the response, with its end-of-sequence token.
        seed: seed of the cell, from which that of the sample is derived.
        response_ids: token ids of the response as they were generated, the id that ended it last. In place of a stop
            string stands the token that ends a turn. None where they are not known, or a stop string began within one.
        template: hash of the tokenizer and chat template that the response_ids are of (halos.tokens.template.Template).
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt_id: str
    prompt: list[Turn] | None = None
    tools: list[dict[str, Any]] = []
    response: str
    sample: int
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    response_ids: list[int] | None = None
    template: str | None = None

    def line(self) -> str:
        """The sample as a line of its file, with the line's end."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False) + "\n"


def write_samples(samples: list[Sample], path: Path, as_list: bool = False) -> None:
    """Write samples as JSON lines, or as one JSON list."""
    lines = [sample.line() for sample in samples]
    text = "[\n" + ",".join(lines) + "]\n" if as_list else "".join(lines)
    path.write_text(text, encoding="utf-8")


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, in order.

    Raises:
        HalosError: the file is missing or empty, a line is not a sample, or a sample occurs twice.
    """
    if not path.is_file():
        raise HalosError(f"there is no samples file {path}; make it with `python -m halos sample`")
    samples: list[Sample] = []
    seen: set[tuple[str, int]] = set()
    with path.open() as file:
        lines = list(file)
    for number, line in enumerate(lines, 1):
        try:
            sample = Sample.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise HalosError(
                f"{path}, line {number} is not a sample ({where}: {first['msg']}); delete the file and sample again"
            ) from None
        key = (sample.prompt_id, sample.sample)
        if key in seen:
            raise HalosError(
                f"{path}, line {number}: sample {sample.sample} of prompt {sample.prompt_id} occurs twice; delete the "
                "file and sample again"
            )
        seen.add(key)
        samples.append(sample)
    if not samples:
        raise HalosError(f"{path} holds no samples; delete it and sample again")
    return samples
