"""What all entries of config.yaml share: strictness, identity, and how the slice of one is written and read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from halos.errors import HalosError
from halos.registry import load_plugins

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def numbers(content: Any) -> Any:
    """Numbers such as 1e-5, which YAML reads as text for want of a dot, as numbers."""
    if isinstance(content, dict):
        return {key: numbers(value) for key, value in content.items()}
    if isinstance(content, list):
        return [numbers(value) for value in content]
    if isinstance(content, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", content):
        return float(content)
    return content


Settings = Annotated[dict[str, Any], BeforeValidator(numbers)]
"""Arguments of something that is not of this package."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def read_slice(path: str | Path) -> dict[str, Any]:
    """A config.yaml of the results tree: the part of the catalogue that made one folder. Its plugins are loaded.

    Raises:
        HalosError: the file is missing.
    """
    if not Path(path).is_file():
        raise HalosError(f"there is no {path}; write one with `python -m halos config FOLDER`")
    content: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    load_plugins(content.get("plugins", ()))
    return content


def dump(content: Any) -> str:
    """YAML text, the same for equal content."""
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110)


INCIDENTAL = {"label", "resources", "size", "stages", "concurrency", "requests_per_minute"}


def identity(entry: BaseModel) -> dict[str, Any]:
    """What of an entry makes a result: all but its label, its resources, a model's published figures, and its settings
    for stages (which are the runs' own)."""
    return entry.model_dump(mode="json", exclude=INCIDENTAL)
