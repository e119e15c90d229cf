"""Numbering: keys in the order in which they first come, in a fifth of the memory of a dictionary."""

from __future__ import annotations

import numpy as np

RECENT = 1 << 16
"""Keys that are in a dictionary, before they are sorted into the arrays."""


class Numbering:
    """Numbers keys of 16 bytes from 0 in the order in which they first come.

    A dictionary holds the recent keys, and two arrays, sorted by key, all others: 20 bytes for each, where a dictionary
    takes more than 100.
    """

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._keys = np.empty(0, "S16")
        self._numbers = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent)

    def of(self, key: bytes) -> int:
        """The number of a key, which is the next one if the key is new."""
        number = self._recent.get(key)
        if number is not None:
            return number
        at = int(np.searchsorted(self._keys, np.bytes_(key)))
        if at < len(self._keys) and self._keys[at] == key.rstrip(b"\0"):  # numpy leaves out zeros at the end
            return int(self._numbers[at])
        number = self._recent[key] = len(self)
        if len(self._recent) == RECENT:
            self._sort()
        return number

    def _sort(self) -> None:
        keys = np.concatenate([self._keys, np.array([*self._recent], "S16")])
        numbers = np.concatenate([self._numbers, np.fromiter(self._recent.values(), np.int32)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]
        self._recent.clear()
