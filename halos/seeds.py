"""Seeds: every random draw of a study has a seed of its own, derived in one way from the seed of its cell."""

from __future__ import annotations

import hashlib
import json

RECIPE = "sha256 of [seed, *purpose] as JSON, first 48 bits"
"""How `derive` makes a seed. Manifests record it, so that a result says by which recipe it was made."""


def derive(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, independent of the seeds for all others.

    Args:
        seed: the cell's seed.
        purpose: what is drawn and for which item, such as `"order", epoch`.

    Returns:
        A number below 2**48, which torch, numpy and vLLM all take. It is the same on every machine.
    """
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()[:6])
