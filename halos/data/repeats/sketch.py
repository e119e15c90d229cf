"""MinHash sketches of texts: a few bytes by which texts of nearly the same words are found among a million.

A text is the set of its shingles, three words in a row. The share of bytes in which two sketches agree estimates the
Jaccard similarity of their sets (Broder 1997; the permutations are datasketch's). Bands of a few bytes find the pairs
to compare (Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise

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


@lru_cache(maxsize=4)
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(size,) powers of _BASE, and of its inverse, modulo 2**64."""
    bases = (_BASE, pow(_BASE, -1, 2**64))
    first, second = (np.array([1, *[base] * (size - 1)], np.uint64).cumprod(dtype=np.uint64) for base in bases)
    return first, second


def _spaced(text: str) -> bytes:
    """A text's words with spaces between, without case and the punctuation between them."""
    if not text.isascii():
        text = _UNSPACED.sub(r" \g<0> ", normalised(text))
    return text.encode().translate(_SEPARATED)


def _words(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """(n,) hashes of the words of some texts, in order, and (n,) the number of the text that each is of.

    A word's hash is a polynomial in its bytes, from the differences of one running sum over all texts.
    """
    spaced = [_spaced(text) for text in texts]
    data = np.frombuffer(b" %b " % b" ".join(spaced), np.uint8)
    before, last = np.flatnonzero(np.diff(data != 32)).reshape(-1, 2).T
    powers, inverses = _powers(1 << max(len(data) - 1, 2**18 - 1).bit_length())
    sums = np.cumsum(data * powers[: len(data)])
    hashes = (sums[last] - sums[before]) * inverses[before]
    hashes = (hashes ^ hashes >> np.uint64(32)) * _MIX
    ends = np.cumsum([len(text) + 1 for text in spaced])
    return (hashes >> np.uint64(32)).astype(np.uint32), np.searchsorted(ends, before, side="right")


def _shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """(n,) hashes of the shingles of some texts, in order, and (n,) the number of the text that each is of.

    A text of fewer words than a shingle has one of all its words.
    """
    words, text_of = _words(texts)
    hashes = words * _WEIGHTS[0]
    for ahead in range(1, SHINGLE):
        hashes[:-ahead] += words[ahead:] * _WEIGHTS[ahead] * (text_of[ahead:] == text_of[:-ahead])
    kept = np.ones(len(words), np.bool_)  # the first word of a text, and each with a whole shingle from it on
    kept[1:] = text_of[1:] != text_of[:-1]
    kept[: 1 - SHINGLE] |= text_of[SHINGLE - 1 :] == text_of[: 1 - SHINGLE]
    return hashes[kept], text_of[kept]


def sketch(texts: Sequence[str]) -> Bytes:
    """(PERMUTATIONS,) the sketch of some texts together."""
    kept = Sketches()
    kept.append(texts)
    only: Bytes = kept.of()[0]
    return only


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
        parts: sketches of each thing, each of some texts together.
    """

    STEP = 2**16
    BLOCK = 2**17
    """Characters of texts that are sketched together."""

    def __init__(self, parts: int = 1) -> None:
        self._rows = np.empty((0, parts, PERMUTATIONS), np.uint8)
        self._count = self._size = 0
        self._waiting: list[Sequence[str]] = []

    def append(self, *parts: Sequence[str]) -> None:
        """Add the texts of the next thing, one list for each of its parts."""
        self._waiting += parts
        self._size += sum(map(len, chain.from_iterable(parts)))
        if self._size > self.BLOCK:
            self._sketch()

    def of(self, part: int = 0) -> Bytes:
        """(n, PERMUTATIONS) one sketch of all things. It is to be used before another is added: the array may move."""
        self._sketch()
        return self._rows[: self._count, part]

    def _sketch(self) -> None:
        """Sketch the texts that wait. A list without words has a sketch of zeros."""
        found = np.zeros((len(self._waiting), PERMUTATIONS), np.uint8)
        if self._waiting:
            hashes, text_of = _shingles(list(chain.from_iterable(self._waiting)))
            ends = np.searchsorted(text_of, np.cumsum([len(texts) for texts in self._waiting])).tolist()
            for number, (begin, end) in enumerate(pairwise([0, *ends])):
                if end > begin:
                    smallest = (hashes[begin:end, None] * _SLOPES + _OFFSETS).min(axis=0)
                    found[number] = smallest >> np.uint32(8)  # the lowest bits of a product are the least random
        rows = found.reshape(-1, *self._rows.shape[1:])
        while self._count + len(rows) > len(self._rows):
            self._rows.resize((len(self._rows) + self.STEP, *self._rows.shape[1:]), refcheck=False)
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)
        self._waiting, self._size = [], 0
