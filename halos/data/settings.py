"""`datasets:` of config.yaml: named sources with their options, and how their text is cut to tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

import halos.data.sources  # noqa: F401  # registers them
from halos.errors import HalosError
from halos.registry import SOURCES, suggest
from halos.settings import Label, Positive, Share, Strict


class Source(Strict):
    """A named source, with the options of its function."""

    name: str
    options: dict[str, Any] = Field({}, description="arguments of the source: `python -m halos list sources`")

    @model_validator(mode="after")
    def known(self) -> Source:
        try:
            function = SOURCES[self.name]
        except HalosError as error:
            raise ValueError(str(error)) from None
        accepted = [p for p in inspect.signature(function).parameters if p != "split"]
        for option in self.options:
            if option not in accepted:
                raise ValueError(f"source {self.name} has no option {option!r}{suggest(option, accepted)}")
        return self

    @property
    def files(self) -> list[str]:
        """The local files it reads: its `path` option, one file or one a split."""
        path = self.options.get("path")
        return [] if path is None else list(path.values()) if isinstance(path, dict) else [path]


class Dataset(Strict):
    """One or more sources mixed, and how their text is cut to tokens."""

    sources: tuple[Source, ...] = Field(min_length=1)
    max_length: Positive = Field(1250, description="tokens of prompt and response together")
    max_prompt_length: Positive = Field(625, description="tokens of the prompt; oldest turns are dropped first")
    eval_examples: Positive = Field(256, description="test prompts in the fixed evaluation subset of training")
    keep_desirable: Share = Field(1.0, description="share of the desirable responses kept, of train")
    keep_undesirable: Share = Field(1.0, description="share of the undesirable responses kept, of train")
    label: Label = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def room_for_a_response(self) -> Dataset:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no token is left for a response")
        return self


def on_hub(source: Mapping[str, Any]) -> bool:
    """Whether a source reads the hub: it takes a `revision`, and no file is named to read instead."""
    takes = inspect.signature(SOURCES[source["name"]]).parameters
    return "revision" in takes and source["options"].get("path") is None


def pinned(source: Mapping[str, Any], found: Mapping[str, str] | None) -> dict[str, Any]:
    """The options of a source, its revision the commit that was found."""
    return {**source["options"], **({"revision": found["commit"]} if found else {})}
