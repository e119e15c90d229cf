"""Measures of responses as texts: loops, languages, and how much the responses to one prompt differ from each other.

Words are runs of letters and digits, each sign of punctuation, and each Han, Hiragana or Katakana character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

WORDS = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+|[^\w\s]")
TIMES, PERIODS, SPAN = 4, 20, 8
"""A response is repeated if at most PERIODS words occur at least TIMES times in a row, over at least SPAN words."""

CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
CERTAIN, BEGINNING = 0.7, 1000
"""A text has the language that its first BEGINNING characters have with at least this probability."""
VARIETIES = {"ary", "arz", "bs", "hr", "nn", "pcm", "wuu", "yue"}
"""Languages that are told apart too seldom from Arabic, Serbian, Norwegian, English and Chinese: texts in them count as
texts in these."""


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


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_modelpath(MODEL_DIR / MODEL_FILE, norm_probs=True, min_confidence=CERTAIN)
    identifier.set_languages([language for language in identifier.nb_classes if language not in VARIETIES])
    return identifier


@cache
def language(text: str) -> str | None:
    """The ISO 639 code of a text's language, by py3langid; None for one that is too short to tell, or no language.
    Blocks of code are left out."""
    found, _ = _identifier().classify(CODE.sub(" ", text)[:BEGINNING])
    return None if found in ("und", "zxx") else str(found)  # undetermined, and no linguistic content


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
