"""The files that a grid asks for, by the phase that makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from halos.report import subject, subjects  # noqa: F401  # the subjects register themselves
from halos.report.subject import Outline
from halos.study.cells import Cell
from halos.study.paths import Paths, RunPaths
from halos.study.settings import overlaps
from halos.study.study import Study


class Targets:
    """The targets of a study. Each takes wildcards, as Snakemake passes them, and reads none."""

    def __init__(self, study: Study, paths: Paths | None = None) -> None:
        self.study, self.paths = study, paths or Paths()

    def _runs(self, path: Callable[[RunPaths], Path]) -> list[Path]:
        """One file of the run of every trained cell of the grid, reward models included."""
        trained = [cell for cell in (*self.study.cells, *self.study.reward_models) if cell.stage]
        return [path(self.paths.run(cell)) for cell in trained]

    def trained(self, *_: Any) -> list[Path]:
        return self._runs(lambda run: run.manifest)

    def logged(self, *_: Any) -> list[Path]:
        return self._runs(lambda run: run.log)

    def sampled(self, *_: Any) -> list[Path]:
        pairs = product(self.study.cells, self.study.prompts)
        return [self.paths.run(cell).samples(prompts) for cell, prompts in pairs]

    def judged(self, *_: Any) -> list[Path]:
        """Judgements of every cell, of the rounds of online stages but the last, which is the cell's own, of pairs of
        cells that a judge is asked about, and of snapshots with what a training begins and ends with."""
        rounds = [r for cell in self.study.cells for r in self.study.rounds(cell)[:-1]]
        pairs = [
            *product([*self.study.cells, *rounds], self.study.judges),
            *product(self.study.watched, self.study.settings.snapshots),
        ]
        compared = [(judge, *cells) for judge in self.study.pairs for cells in self.study.compared(judge)]
        return [
            *(self.paths.run(cell).judged(judge) for cell, judge in pairs),
            *(self.paths.run(cell).judged_against(judge, other.method) for judge, cell, other in compared),
        ]

    def diverged(self, *_: Any) -> list[Path]:
        """The log-probabilities of trained policies' samples, if the grid asks for them."""
        number = self.study.settings.divergence
        return [self.paths.run(cell).divergence(prompts, number) for cell, prompts in self.study.diverging]

    def rewarded(self, *_: Any) -> list[Path]:
        """The rewards that policies and reward models give to preference sets, if the grid names some."""
        pairs = product(self.study.rewarded, self.study.settings.preference_sets)
        return [self.paths.run(cell).rewards(dataset) for cell, dataset in pairs]

    def benchmarked(self, *_: Any) -> list[Path]:
        return [self.paths.run(cell).task(task) for cell, task in product(self.study.cells, self.study.tasks)]

    def asked(self, *_: Any) -> list[Path]:
        """The settings of the prompt sets and tasks, which the methods in words are written from."""
        folders = [*map(self.paths.prompts, self.study.prompts), *map(self.paths.task, self.study.tasks)]
        return [folder.config for folder in folders]

    def prompted(self, *_: Any) -> list[Path]:
        """The feedback records that the prompts come from, of each dataset and prompt set."""
        sets = product(self.study.settings.datasets, self.study.prompts.values())
        return [
            *dict.fromkeys(
                self.paths.data(prompts.dataset or dataset).split(prompts.split) for dataset, prompts in sets
            )
        ]

    def chosen(self, *_: Any) -> list[Path]:
        """The choices between trials that the grid's methods are made by."""
        return [self.paths.choice(Cell(*ids, 0)).choice for ids in self.study.config.sweeps(self.study.grid)]

    def counted(self, *_: Any) -> list[Path]:
        """What was counted in each dataset, before and after it was tokenized."""
        g = self.study.settings
        stores = [self.paths.store(dataset, model).report for dataset, model in product(g.datasets, g.models)]
        return [self.paths.data(dataset).report for dataset in g.datasets] + stores

    def compared(self, *_: Any) -> list[Path]:
        """What recurs of each dataset's train split among the prompts of other datasets that the grid answers."""
        settings = self.study.settings
        pairs = overlaps(settings.datasets, self.study.config.prompt_data(self.study.grid))
        return [self.paths.data(dataset).overlap(*prompts) for dataset, *prompts in pairs]

    def described(self, *_: Any) -> list[Path]:
        """The report on each dataset as each model sees it."""
        g = self.study.settings
        return [
            self.paths.description(dataset, model) / "report.json" for dataset, model in product(g.datasets, g.models)
        ]

    @property
    def tables(self) -> list[str]:
        """The tables of the grid that have a page: CSV, Markdown and LaTeX."""
        return subject.tables(self._outline)

    @property
    def plain_tables(self) -> list[str]:
        """The tables of the grid that are a CSV alone."""
        return subject.plain_tables(self._outline)

    @property
    def figures(self) -> list[str]:
        """The main figure, and those that have something to show for the grid."""
        return subject.figures(self._outline)

    @cached_property
    def _outline(self) -> Outline:
        return Outline.of(self.study.config)
