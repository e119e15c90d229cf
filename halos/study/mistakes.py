"""Mistakes in a config, each in a sentence that names its place."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from halos.registry import suggest
from halos.settings import numbers
from halos.train.settings import Lora
from halos.train.words import lora_meaning


def _owner(root: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The entry whose keys the last part of a place in `root` is one of; None where that is not certain."""
    found, is_id = [root], False
    for part in loc[:-1]:
        fields = [kind.model_fields[str(part)].annotation for kind in found if part in kind.model_fields]
        if fields and not is_id:
            found = list(chain(*map(_entries, fields)))
            is_id = any(get_origin(field) is dict for field in fields)
        else:
            is_id = False
    return found[0] if len(found) == 1 else None


def _entries(annotation: Any) -> list[type[BaseModel]]:
    """The kinds of entries in a type, such as that of the values of a dictionary."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(chain(*map(_entries, get_args(annotation))))


def sentences(error: ValidationError, root: type[BaseModel], within: str = "") -> str:
    """pydantic's errors, a line for each: the place, the mistake, and a similar key that exists.

    Args:
        error: of an entry or of the whole config.
        root: its type.
        within: the place of the entry in the config.
    """
    lines = []
    places = [mistake["loc"] for mistake in error.errors()]
    for mistake in error.errors():
        loc = mistake["loc"]
        if any(len(place) > len(loc) and place[: len(loc)] == loc for place in places):
            continue  # it follows from a mistake within, such as a list with too few valid items
        where = ".".join(map(str, (within, *loc) if within else loc))
        if mistake["type"] == "extra_forbidden":
            owner = _owner(root, loc)
            hint = suggest(str(loc[-1]), owner.model_fields) if owner else "; take it out or correct its name"
            if owner is Lora:
                hint = lora_meaning(str(loc[-1])) or hint
            lines.append(f"{where}: unknown key{hint}")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return "\n".join(lines)


def not_finite(content: Any, where: str = "") -> str | None:
    """The place in a config of a number that no JSON file can hold, such as a manifest; None where there is none."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        places = (not_finite(value, f"{where}.{key}" if where else str(key)) for key, value in items)
        return next(filter(None, places), None)
    number = numbers(content)
    return f"{where}: {content}" if isinstance(number, float) and not math.isfinite(number) else None
