"""Cells (dataset, model, method, seed), their parents and their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from halos.errors import HalosError
from halos.train.sweep import TRIAL

BASE = "base"
RESULTS = "results"
RUN = re.compile(
    r"runs/(?P<dataset>[^/]+)/(?P<model>[^/]+)/(?P<method>[^/]+)/seed(?P<seed>\d+)(/round(?P<round>\d+)|/snapshot(?P<snapshot>\d+))?"
    r"(?=/|$)"
)


@dataclass(frozen=True, order=True)
class Cell:
    """One unit of a study, which is trained, judged, rerun and tabulated; or one round of a cell whose stage is online,
    or a snapshot of the training of one whose stage is not.

    Attributes:
        method: `base`, or stages joined by -; of a trial of a swept stage with ~ and the trial's id behind, as in
            sft-dpo~3fa2c1.
        round: number of the round, from 1; 0 for the cell itself, whose model is that of its last round.
        snapshot: number of the snapshot, from 1; 0 for the cell itself, whose model is that of the last one.
    """

    dataset: str
    model: str
    method: str
    seed: int
    round: int = 0
    snapshot: int = 0

    @property
    def stage(self) -> str | None:
        """Id of the stage that the cell trains, the last of its method; None for `base`."""
        return None if self.method == BASE else self.method.rsplit("-", 1)[-1].partition(TRIAL)[0]

    @property
    def trial(self) -> str | None:
        """Id of the trial of its stage's sweep that the cell is; None where it is none."""
        return self.method.partition(TRIAL)[2] or None

    @property
    def parent(self) -> Cell | None:
        """The cell whose weights this one starts from; a round starts from the round before. A base model has no
        training and so no seed: as a parent it always has seed 0, so that one reference pass serves all seeds."""
        if self.stage is None:
            return None
        if self.round > 1:
            return replace(self, round=self.round - 1)
        if "-" not in self.method:
            return Cell(self.dataset, self.model, BASE, 0)
        return Cell(self.dataset, self.model, self.method.rsplit("-", 1)[0], self.seed)

    def rounds(self, number: int) -> list[Cell]:
        """The first rounds of the cell, in order."""
        return [replace(self, round=i) for i in range(1, number + 1)]

    def candidate(self, name: str, seed: int) -> Cell:
        """The cell of a trial, or of a snapshot of one, which the settings of this cell may be chosen from.

        Args:
            name: id of the candidate, see `Stage.candidates`: 3fa2c1, or 3fa2c1.3.
            seed: of its training.
        """
        trial, _, snapshot = name.partition(".")
        return Cell(self.dataset, self.model, f"{self.method}{TRIAL}{trial}", seed, snapshot=int(snapshot or 0))

    @property
    def ids(self) -> dict[str, str | int]:
        """The ids that name the cell, as in config slices and tables; a round or snapshot has its number, too."""
        return {k: v for k, v in self.__dict__.items() if v or k not in ("round", "snapshot")}

    @property
    def folder(self) -> str:
        """The cell's folder, below the results folder."""
        folder = f"runs/{self.dataset}/{self.model}/{self.method}/seed{self.seed}"
        if self.snapshot:
            return f"{folder}/snapshot{self.snapshot}"
        return f"{folder}/round{self.round}" if self.round else folder

    def lineage(self) -> Iterator[Cell]:
        """The cell, its parent, and so on to the base model."""
        cell: Cell | None = self
        while cell is not None:
            yield cell
            cell = cell.parent

    @classmethod
    def of(cls, folder: str | Path) -> Cell:
        """The cell, or round or snapshot of one, whose folder a path names or lies in.

        Raises:
            HalosError: the path names none.
        """
        match = RUN.search(str(folder))
        if match is None:
            raise HalosError(f"{folder} is no cell; a cell is runs/DATASET/MODEL/METHOD/seedN")
        return cls(match["dataset"], match["model"], match["method"], int(match["seed"]), int(match["round"] or 0),
                   int(match["snapshot"] or 0))  # fmt: skip
