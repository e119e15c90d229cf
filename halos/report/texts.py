"""Measures of responses as texts: loops, refusals, and how much the responses to one prompt differ from each other.

Words are runs of letters and digits, each sign of punctuation, and each Han, Hiragana or Katakana character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+|[^\w\s]")
TIMES, PERIODS, SPAN = 4, 20, 8
"""A response is repeated if at most PERIODS words occur at least TIMES times in a row, over at least SPAN words."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORDS.findall(text.lower())


def is_repeated(text: str) -> bool:
    """Whether a text is caught in a loop somewhere: see TIMES."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words(text)])
    for period in range(1, min(PERIODS, len(ids) // TIMES) + 1):
        # places whose word is not that of one period before: between two of them lies a loop
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        runs = np.diff(breaks, prepend=-1, append=len(ids) - period) - 1
        if runs.max() + period >= max(TIMES * period, SPAN):
            return True
    return False


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: the share of distinct ones among all n-grams of words of some texts together (Li et al., 2016, arXiv
    1510.03055); NaN where they have none."""
    grams = [tuple(ws[i : i + n]) for ws in map(words, texts) for i in range(len(ws) - n + 1)]
    return len(set(grams)) / len(grams) if grams else np.nan


def self_bleu(texts: Sequence[str]) -> float:
    """The BLEU-4 of each text against all others, 0 to 1, mean over the texts (Zhu et al., 2018, arXiv 1802.01886): 1
    where all are the same.

    Args:
        texts: at least two.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="none", effective_order=True)
    spaced = [" ".join(words(text)) for text in texts]
    scores = [bleu.sentence_score(text, spaced[:i] + spaced[i + 1 :]).score for i, text in enumerate(spaced)]
    return min(1.0, float(np.mean(scores)) / 100)  # a sum of rounded logarithms may be above
