"""Numbering gives what a dictionary gives, across the sorting of its recent keys."""

from __future__ import annotations

import random

import pytest

from halos.tokens import numbering
from halos.tokens.numbering import Numbering


def test_keys_are_numbered_as_they_first_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "RECENT", 7)
    drawn = random.Random(0)
    edges = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16, b"\xff" * 15 + b"\0"]
    keys = [*edges, *(drawn.randbytes(14) + bytes(2) for _ in range(40)), *(drawn.randbytes(16) for _ in range(40))]
    given, numbers = Numbering(), dict[bytes, int]()
    for key in drawn.choices(keys, k=2_000):
        assert given.of(key) == numbers.setdefault(key, len(numbers))
    assert len(given) == len(numbers) == len(keys)
