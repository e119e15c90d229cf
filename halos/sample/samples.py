"""A file of samples: one JSON object per line."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.files import Record


class Sample(Record):
    """One response of a model to a prompt.

    Attributes:
        sample: its number among the prompt's samples, from 0.
        finish_reason: `stop` at an end-of-sequence token, `length` at the limit of tokens; None where nobody knows.
        seed: of the cell; the sample's own is derived from it.
    """

    prompt_id: str
    prompt: list[Turn] | None = None
    response: str
    sample: int
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, in order.

    Raises:
        HalosError: there is none, one is not a sample, or one occurs twice.
    """
    if not path.is_file():
        raise HalosError(f"there is no samples file {path}; make it with `python -m halos sample`")
    samples: list[Sample] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(path.open(), 1):
        try:
            sample = Sample.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HalosError(
                f"{path}, line {number} is not a sample ({where}: {first['msg']}); delete it and sample again"
            ) from None
        key = (sample.prompt_id, sample.sample)
        if key in seen:
            raise HalosError(f"{path}, line {number}: sample {key[1]} of prompt {key[0]} is there twice; sample again")
        seen.add(key)
        samples.append(sample)
    if not samples:
        raise HalosError(f"{path} holds no samples; delete it and sample again")
    return samples
