"""The judgement of one cell by one judge, as a file: a preference for each prompt, and what each is worth."""

from __future__ import annotations

from typing import Literal

BASELINE_WINS, TIE, CANDIDATE_WINS = 1.0, 1.5, 2.0
"""Preferences, in alpaca_eval's convention; a judge that weighs its answer gives what lies between."""
Ties = Literal["half", "neither"]


def win(preference: float | None, ties: Ties) -> float | None:
    """What a comparison is worth to the candidate, 0 to 1; None where nothing was decided."""
    if preference is None:
        return None
    return 0.0 if preference == TIE and ties == "neither" else preference - 1
