"""Responses cut after their last full sentence, as judges and labellers may read them."""

from __future__ import annotations

import re

SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f\u2026][\"'\u201d\u2019)\]*_]*(?=\s|$)|[\u3002\uff01\uff1f]")
ENUMERATOR = re.compile(r"\s*(\d+|[A-Za-z])\.")


def cut_to_sentence(text: str) -> str:
    """The text up to the end of its last full sentence; the whole text where no sentence ends.

    The full stop after the number of a list's item does not end a sentence.
    """
    for end in reversed(list(SENTENCE_END.finditer(text))):
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.end()]
        if not ENUMERATOR.fullmatch(line):
            return text[: end.end()]
    return text
