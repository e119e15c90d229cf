"""`prompts:` of config.yaml: prompt sets, and how responses to them are sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from halos.settings import Positive, Strict


class Prompts(Strict):
    """A prompt set and how responses to it are sampled."""

    dataset: str | None = Field(None, description="whose prompts; by default those of the cell's own dataset")
    split: Literal["train", "test"] = "test"
    skip: int = Field(0, ge=0, description="leave out so many prompts first")
    limit: Positive | None = Field(512, description="so many prompts: a fixed choice that mixes the sources")
    samples: Positive = Field(1, description="responses to each prompt")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: Positive = 2048
