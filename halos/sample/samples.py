"""A file of samples: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halos.errors import HalosError


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a samples file.

    Raises:
        HalosError: there is none, one is not a sample, or one occurs twice.
    """
    if not path.is_file():
        raise HalosError(f"there is no samples file {path}; make it with `python -m halos sample`")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(path.open(), 1):
        try:
            row = json.loads(line)
            key = (row["prompt_id"], row["sample"])
            if not isinstance(row["response"], str):
                raise TypeError("response is not text")
        except (ValueError, TypeError, KeyError) as error:
            raise HalosError(
                f"{path}, line {number} is not a sample ({type(error).__name__}: {error}); delete it and sample again"
            ) from None
        if key in seen:
            raise HalosError(f"{path}, line {number}: sample {key[1]} of prompt {key[0]} is there twice; sample again")
        seen.add(key)
        rows.append(row)
    if not rows:
        raise HalosError(f"{path} holds no samples; delete it and sample again")
    return rows
