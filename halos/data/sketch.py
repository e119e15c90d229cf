"""MinHash sketches of texts: a few bytes by which texts of nearly the same words are found among a million.

A text is the set of its shingles, three words in a row. The share of bytes in which two sketches agree estimates the
Jaccard similarity of their sets (Broder 1997; the permutations are datasketch's). Bands of a few bytes find the pairs
to compare (Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from datasketch import MinHash  # type: ignore[import-untyped]
from numpy.typing import NDArray

from halos.data.normal import SIMILAR, normalised

SHINGLE = 3
"""Words of a shingle."""
PERMUTATIONS = 64
"""Bytes of a sketch. The standard error of a similarity of 0.8 is 0.05."""
BAND = 5
"""Bytes of a band of one sketch: 12 bands find 99 % of the pairs of similarity 0.8, and 32 % of those of 0.5."""
Bytes = NDArray[np.uint8]

_SLOPES, _OFFSETS = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32").permutations
_WEIGHTS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint32)
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_LOWER = bytes(ord(chr(i).lower()) if i < 128 else i for i in range(256))
_SEPARATED = _LOWER.translate(bytes(32 if i in b"\t\n\r\f\v.,;:!?\"'`()[]{}" else i for i in range(256)))
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Characters of scripts without spaces: each is taken as a word."""


@lru_cache(maxsize=1)
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(size,) powers of _BASE, and of its inverse, modulo 2**64."""
    bases = (_BASE, pow(_BASE, -1, 2**64))
    first, second = (np.array([1, *[base] * (size - 1)], np.uint64).cumprod(dtype=np.uint64) for base in bases)
    return first, second


def words(text: str) -> NDArray[np.uint32]:
    """(n,) hashes of a text's words, in order, without case and the punctuation between them.

    A word's hash is a polynomial in its bytes, from the differences of one running sum over the text.
    """
    if not text.isascii():
        text = _UNSPACED.sub(r" \g<0> ", normalised(text))
    data = np.frombuffer(b" %b " % text.encode().translate(_SEPARATED), np.uint8)
    before, last = np.flatnonzero(np.diff(data != 32)).reshape(-1, 2).T
    powers, inverses = _powers(1 << max(len(data) - 1, 2**14).bit_length())
    sums = np.cumsum(data * powers[: len(data)])
    hashes = (sums[last] - sums[before]) * inverses[before]
    hashes = (hashes ^ hashes >> np.uint64(32)) * _MIX
    return (hashes >> np.uint64(32)).astype(np.uint32)


def shingles(text: str) -> NDArray[np.uint32]:
    """(n,) hashes of a text's shingles; one of all words where these are fewer than a shingle's."""
    found = words(text)
    if len(found) <= SHINGLE:
        return np.array([(found * _WEIGHTS[: len(found)]).sum(dtype=np.uint32)], np.uint32)
    hashes: NDArray[np.uint32] = found[:-2] * _WEIGHTS[0] + found[1:-1] * _WEIGHTS[1] + found[2:] * _WEIGHTS[2]
    return hashes


def sketch(texts: Iterable[str]) -> Bytes:
    """(PERMUTATIONS,) the sketch of some texts' shingles together; all zero without texts."""
    found = [shingles(text) for text in texts]
    if not found:
        return np.zeros(PERMUTATIONS, np.uint8)
    hashes = found[0] if len(found) == 1 else np.concatenate(found)
    smallest: NDArray[np.uint32] = (hashes[:, None] * _SLOPES + _OFFSETS).min(axis=0)
    return (smallest >> np.uint32(8)).astype(np.uint8)  # the lowest bits of a product are the least random


def agreement(first: Bytes, second: Bytes) -> NDArray[np.float64]:
    """(n,) share of equal bytes in the rows of two arrays: the estimate of the similarity."""
    share: NDArray[np.float64] = (first == second).mean(axis=-1)
    return share


def similar(first: Bytes, second: Bytes) -> NDArray[np.bool_]:
    """(n,) whether the rows of two arrays are sketches of nearly equal texts."""
    return agreement(first, second) >= SIMILAR


def bands(*sketches: Bytes) -> Iterator[NDArray[np.uint64]]:
    """(n,) numbers for each band. Rows with an equal number in some band may be nearly equal; few others are.

    Args:
        sketches: one array of (n, PERMUTATIONS), or several, of texts that have to be alike in each.
    """
    width = BAND if len(sketches) == 1 else 6 // len(sketches)
    for start in range(0, PERMUTATIONS - width + 1, width):
        key = np.zeros((len(sketches[0]), 8), np.uint8)
        for at, part in enumerate(sketches):
            key[:, at * width : (at + 1) * width] = part[:, start : start + width]
        yield key.view(np.uint64).ravel()


class Sketches:
    """Sketches of many things, appended one by one to an array that grows in place.

    Args:
        parts: sketches of each thing.
    """

    STEP = 2**16

    def __init__(self, parts: int = 1) -> None:
        self._rows = np.empty((0, parts, PERMUTATIONS), np.uint8)
        self._count = 0

    def append(self, *parts: Bytes) -> None:
        """Add the sketches of the next thing."""
        if self._count == len(self._rows):
            self._rows.resize((self._count + self.STEP, *self._rows.shape[1:]), refcheck=False)
        self._rows[self._count] = parts
        self._count += 1

    def of(self, part: int = 0) -> Bytes:
        """(n, PERMUTATIONS) one sketch of all things. It is to be used before another is added: the array may move."""
        return self._rows[: self._count, part]
