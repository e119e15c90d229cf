"""What all entries of config.yaml share: strictness, identity, and how the slice of one is written and read."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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


INCIDENTAL = "incidental"
"""Marks a field that is no part of an entry's identity: changing it reruns nothing. `Annotated[int, INCIDENTAL]`."""

Label = Annotated[str | None, INCIDENTAL]
"""The name of an entry in tables and figures."""

Settings = Annotated[dict[str, Any], BeforeValidator(numbers)]
"""Arguments of something that is not of this package."""


class Strict(BaseModel):
    """An entry that refuses keys it does not know, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def incidental(kind: type[BaseModel]) -> set[str]:
    """Names of the fields of a kind of entry that are marked INCIDENTAL."""
    return {name for name, field in kind.model_fields.items() if INCIDENTAL in field.metadata}


def identity(entry: BaseModel) -> dict[str, Any]:
    """The fields of an entry that make a result: all but those marked INCIDENTAL."""
    return entry.model_dump(mode="json", exclude=incidental(type(entry)))


class Slice(Strict):
    """A config.yaml of the results tree: the part of the catalogue that makes one folder.

    Attributes:
        plugins: sha256 of each plugin file that the folder depends on; reading the slice loads them.
        local: sha256 of each local file, model or folder of adapters that the folder is made from.
    """

    plugins: dict[str, str] = {}
    local: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            HalosError: the file is missing, or is no slice of this kind.
        """
        content = read_slice(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HalosError(
                f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}; write it again with "
                f"`python -m halos config {path.parent}`"
            ) from None


class AnySlice(Slice):
    """A slice of any kind, taken as a whole."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def content(self) -> dict[str, Any]:
        """The slice as the file holds it."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_one_of(path: Path, *kinds: type[Slice]) -> Slice | None:
    """The slice in a file, of whichever kind it is; None if it is of none of them.

    Raises:
        HalosError: the file is missing.
    """
    content = read_slice(path)
    for kind in kinds:
        with suppress(ValidationError):
            return kind.model_validate(content)
    return None


def read_slice(path: str | Path) -> dict[str, Any]:
    """The content of a slice. Its plugins are loaded.

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
    options: dict[str, Any] = {"sort_keys": True, "allow_unicode": True, "width": 110}
    if yaml.__with_libyaml__:  # four times as fast, and the same text but for some signs, which it escapes
        text: str = yaml.dump(content, Dumper=yaml.CSafeDumper, **options)
        if "\\" not in text:
            return text
    return str(yaml.safe_dump(content, **options))
