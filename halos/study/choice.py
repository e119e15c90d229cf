"""The choice between the trials of a sweep, as the rule `choose` writes it and the chosen cells' settings are read."""

from __future__ import annotations

from typing import Any

from halos.files import JsonFile, Record
from halos.settings import Slice
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.train.sweep import Select


class Tried(Record):
    """One trial.

    Attributes:
        settings: setting -> value, of those that the sweep varies.
        values: seed -> value by which it is chosen; None where the seed's training diverged.
        value: mean over seeds; None where one diverged, and the trial is not chosen.
        low, high: 95 % interval of the mean, over validation prompts or a task's documents and, of several, over seeds;
            None where a value has no error, as the loss of one seed has none.
        steps: optimiser steps of each seed's training.
        seconds: wall time of the trainings of all seeds.
    """

    settings: dict[str, Any]
    values: dict[int, float | None]
    value: float | None
    low: float | None = None
    high: float | None = None
    steps: int
    seconds: float


class Choice(JsonFile):
    """A sweep's trials, and which of them was chosen.

    Attributes:
        dataset, model, method: of the cells whose settings are chosen.
        select: what decides.
        measure: the same in words: win rate by toy_validation.
        unit_interval: whether values lie between 0 and 1.
        lowest: whether the lowest value is best.
        n: prompts or documents that values are means over; None where they are none.
        trials: id -> trial, or snapshot of one as `Stage.candidates` names it, in the order of the sweep.
        chosen: id of the one with the best value.
    """

    dataset: str
    model: str
    method: str
    select: Select
    measure: str
    unit_interval: bool
    lowest: bool
    n: int | None
    trials: dict[str, Tried]
    chosen: str

    @property
    def winner(self) -> Tried:
        return self.trials[self.chosen]

    @property
    def trainings(self) -> dict[str, list[Tried]]:
        """What each training gave: id of its trial -> its snapshots, its result last; that alone where none was
        chosen from."""
        found: dict[str, list[Tried]] = {}
        for name, trial in self.trials.items():
            found.setdefault(name.partition(".")[0], []).append(trial)
        return found


def chosen_by(paths: Paths, cell: Cell) -> str | None:
    """The trial that the choice of a cell's settings has chosen; None if it has not been made."""
    path = paths.choice(cell).choice
    return Choice.read(path).chosen if path.is_file() else None


class ChoiceSlice(Slice):
    """config.yaml of a choice.

    Attributes:
        trials: (id, {setting: value}) of each, in the order of the sweep.
    """

    dataset: str
    model: str
    method: str
    select: Select
    trials: tuple[tuple[str, dict[str, Any]], ...]
