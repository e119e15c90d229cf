"""Texts as they are compared: what differs in case, white space or punctuation at the ends is equal."""

from __future__ import annotations

import unicodedata

SIMILAR = 0.8
"""Jaccard similarity of their shingles from which two texts are nearly equal (halos.data.repeats.sketch)."""
PUNCTUATION = " .,;:!?¿¡…\"'`´“”„‘’‚«»‹›()[]{}<>*_~-–—、。·"
"""What is taken off the ends of a text. Signs with a meaning stay: C++, C#, 5 %."""


def normalised(text: str) -> str:
    """A text in Unicode's form NFKC, without case, with single spaces, and without punctuation at its ends.

    A text of punctuation alone keeps it.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    words = " ".join(text.casefold().split())
    return words.strip(PUNCTUATION) or words
