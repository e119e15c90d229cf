"""`prompts:` of config.yaml, and the slices that sampling reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from halos.models.settings import Attention
from halos.settings import Positive, Slice, Strict


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_listed),
    Field(
        exclude_if=lambda strings: not strings,
        description="texts that end a response, which is kept up to the first; in double quotes, \\n is a line's end",
    ),
]


class Prompts(Strict):
    """A prompt set and how responses to it are sampled."""

    dataset: str | None = Field(None, description="dataset of the prompts; by default the cell's own")
    split: Literal["train", "validation", "test"] = "test"
    skip: int = Field(0, ge=0, description="number of prompts to pass over first")
    limit: Positive | None = Field(512, description="number of prompts: a fixed choice that mixes the sources")
    samples: Positive = Field(1, description="responses to each prompt")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass of the tokens that are drawn from")
    max_new_tokens: Positive = Field(2048, description="token limit of a response")
    stop: StopStrings = ()


class PromptsSlice(Slice, Prompts):
    """The config.yaml of a prompt set, or of the fresh prompts of an online stage's round.

    Attributes:
        prompts: id of the prompt set; None for a round.
        shuffle: seed of the order in which a round takes its prompts; None takes them by their ids.
    """

    prompts: str | None = None
    shuffle: int | None = None


class SamplerSlice(Slice, extra="ignore"):
    """Seed, attention and precision of a cell, from its config.yaml; the training settings beside them are not read."""

    seed: int
    attention: Attention
    precision: Literal["bf16", "fp32"]
