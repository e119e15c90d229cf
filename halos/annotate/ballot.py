"""The comparisons that people vote on for a judge, and their votes so far."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from halos.errors import HalosError
from halos.evaluate.judging.baseline import open_baseline
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judge import comparisons_of
from halos.evaluate.judging.settings import NAME, JudgeSlice, People
from halos.evaluate.judging.votes import Vote, add_vote, candidate_first, key_of, missing, read_votes, sees
from halos.registry import suggest
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.workflow.batches import Batches
from halos.workflow.judging import Judging, Pair


class Ballot:
    """What is voted on for one judge. Threads may share it.

    Args:
        judge: the judge's id.
        people: its settings.
        comparisons: by their keys.

    Attributes:
        votes: of each annotator, by the keys of comparisons.

    Raises:
        HalosError: a file of votes holds what is none.
    """

    def __init__(self, judge: str, people: People, comparisons: Mapping[str, Comparison]) -> None:
        self.judge, self.people, self.comparisons = judge, people, dict(sorted(comparisons.items()))
        self.votes = {file.stem: read_votes(file) for file in people.files(judge)}
        self._lock = threading.Lock()

    def check_name(self, annotator: str) -> None:
        """Refuse a name that is none, or is not among those of the settings.

        Raises:
            HalosError: saying what a name is, or which there are.
        """
        if not re.fullmatch(NAME, annotator):
            raise HalosError(f"{annotator!r} cannot be an annotator's name: use letters, digits, _, . and -")
        if self.people.annotators and annotator not in self.people.annotators:
            names = self.people.annotators
            raise HalosError(f"judges.{self.judge}.human.annotators names no {annotator!r}{suggest(annotator, names)}")

    def keys(self, annotator: str) -> list[str]:
        """The comparisons that an annotator votes on, in the order in which they are shown, which a hash draws."""
        return [key for key in self.comparisons if sees(self.people, annotator, key)]

    def shown(self, key: str) -> tuple[str, str]:
        """The two responses of a comparison, in the order in which they are shown."""
        comparison = self.comparisons[key]
        return comparison.shown(candidate_first(comparison))

    def given(self, annotator: str) -> dict[str, Vote]:
        """An annotator's votes on these comparisons."""
        return {key: vote for key, vote in self.votes.get(annotator, {}).items() if key in self.comparisons}

    def add(self, annotator: str, vote: Vote) -> None:
        """Save a vote.

        Raises:
            HalosError: the disk takes no more.
        """
        with self._lock:
            add_vote(self.people.file(self.judge, annotator), vote)
            self.votes.setdefault(annotator, {})[vote.comparison] = vote

    @property
    def left(self) -> dict[str, int]:
        """As `missing`, of all comparisons."""
        return missing(self.people, [*self.comparisons], self.votes)


def open_ballot(study: Study, paths: Paths, judge: str) -> Ballot:
    """The ballot of a judge of a study. Equal comparisons are one, and those of two equal texts are left out.

    Args:
        study: the study.
        paths: the results tree.
        judge: the judge's id.

    Raises:
        HalosError: the grid has no such judge, it is not of kind human, or samples are not there yet.
    """
    judges = {**study.judges, **study.apart}
    if judge not in judges:
        raise HalosError(
            f"the grid {study.grid} has no judge {judge!r}{suggest(judge, judges)}: name one of its judges"
        )
    people = judges[judge].human
    if people is None:
        raise HalosError(f"judge {judge} is of kind {judges[judge].kind}: people vote for one of `kind: human`")
    judging = Judging(Batches(study, paths))
    asked = [(pair, judging.files(pair)) for pair in _pairs(study, judge)]
    wanted = dict.fromkeys(file for _, files in asked for file in (files.samples, *files.baseline))
    if absent := [file for file in wanted if not Path(file).is_file()]:
        raise HalosError(
            f"{len(absent)} of {len(wanted)} files of responses to vote on are not there yet, such as {absent[0]}: run "
            "`snakemake samples` first"
        )
    found: dict[str, Comparison] = {}
    for pair, files in asked:
        folder = f"judges/{judge}" + (f"/against/{pair.opponent}" if pair.opponent else "")
        settings = JudgeSlice.model_validate(config_slice(study.config, folder))
        opponent = open_baseline(settings.baseline, [*map(Path, files.baseline)])
        comparisons, _ = comparisons_of(settings, Path(files.samples), Path(files.feedback), opponent)
        found |= {key_of(c): c for c in comparisons if c.candidate != c.baseline}
    return Ballot(judge, people, found)


def _pairs(study: Study, judge: str) -> Iterator[Pair]:
    """The judgements of a grid by one judge: of its cells and rounds, pairs of them, trials, and snapshots."""
    if judge in study.judges:
        for cell in study.cells:
            yield from (Pair(made, judge) for made in (cell, *study.rounds(cell)[:-1]))
        for cell, other in study.compared(judge):
            yield Pair(cell, judge, other.method)
    for swept in study.sweeps:
        if study.decided_by(swept).judge == judge:
            yield from (Pair(trial, judge) for trial in study.candidates(swept))
    if judge in study.settings.snapshots:
        yield from (Pair(cell, judge) for cell in study.watched)
