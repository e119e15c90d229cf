"""People as a judge: the majority of their votes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from halos.errors import HalosError
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judgement import BASELINE_WINS, CANDIDATE_WINS, TIE, Asked, Decision
from halos.evaluate.judging.settings import JudgeSlice
from halos.evaluate.judging.votes import Vote, candidate_first, key_of, missing, read_votes

SKIPPED = "skipped by all who saw it"
"""The problem of a comparison of which nobody had an opinion."""
WORDS = {"1": "the first", "2": "the second", "tie": "a tie", "skip": "skipped"}


class Majority:
    """A judge whose verdict is that of most votes; where no verdict has most, it is a tie. A skip is no vote.

    Args:
        settings: the judge's slice.
        files: of votes, one for each annotator, by whose name it is called.
    """

    question = None
    usage = None

    def __init__(self, settings: JudgeSlice, files: Sequence[Path]) -> None:
        assert settings.human is not None
        self.judge, self.people = settings.judge, settings.human
        self.votes = {file.stem: read_votes(file) for file in sorted(files)}

    def decide(self, comparisons: list[Comparison]) -> list[Decision]:
        """One decision for each comparison, in their order. Two equal texts are a tie without a vote.

        Raises:
            HalosError: votes are missing.
        """
        keys = [key_of(c) for c in comparisons if c.candidate != c.baseline]
        if left := missing(self.people, [*dict.fromkeys(keys)], self.votes):
            who = " and ".join(f"{number} by {name}" for name, number in left.items()) if left.keys() - {""} else ""
            raise HalosError(
                f"judge {self.judge} waits for votes on {who or left['']} of {len({*keys})} comparisons here: run "
                f"`python -m halos annotate --judge {self.judge}`, and then the same command again"
            )
        others = sum(len(votes.keys() - {*keys}) for votes in self.votes.values())
        print(f"judge {self.judge}: {len(self.votes)} annotators; {others} of their votes are on other comparisons",
              file=sys.stderr)  # fmt: skip
        return [self._decision(c) if c.candidate != c.baseline else Decision(preference=TIE) for c in comparisons]

    def _decision(self, comparison: Comparison) -> Decision:
        key, first = key_of(comparison), candidate_first(comparison)
        votes = {name: of[key] for name, of in self.votes.items() if key in of}
        shown = "candidate" if first else "baseline"
        asked = tuple(
            Asked(shown_first=shown, preference=preference(vote, first), answer=vote.note or None, by=name)
            for name, vote in votes.items()
        )
        decided = majority([question.preference for question in asked])
        return Decision(
            preference=decided,
            problem=SKIPPED if decided is None else None,
            shown_first=shown,
            answer="; ".join(f"{name}: {WORDS[v.vote]}{f' ({v.note})' * bool(v.note)}" for name, v in votes.items()),
            asked=asked,
        )


def preference(vote: Vote, candidate_first: bool) -> float | None:
    """A vote as a preference between the baseline and the candidate; None for a skip."""
    if vote.vote in ("tie", "skip"):
        return TIE if vote.vote == "tie" else None
    return CANDIDATE_WINS if (vote.vote == "1") == candidate_first else BASELINE_WINS


def majority(preferences: Sequence[float | None]) -> float | None:
    """The most frequent of several preferences, a tie where several are equally frequent, None where there is none."""
    counts = Counter(p for p in preferences if p is not None).most_common(2)
    if not counts:
        return None
    return TIE if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]
