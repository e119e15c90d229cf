"""A subject of the report: its numbers, the table and the figure that show them, and which grids have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from halos.evaluate.judging.settings import Judge, pairs_of
from halos.report.lazy import mpl, pd
from halos.report.results import Results
from halos.report.words import Page
from halos.study.catalogue import Config
from halos.study.cells import BASE
from halos.train.stage import Stage


@dataclass(frozen=True)
class Outline:
    """A grid by its settings alone, which are known before anything is made.

    Attributes:
        models, tasks, reward_models: ids.
        judges: settings of the judges.
        samples: responses to each prompt of the judges' prompt sets, by their ids.
        stages: settings of the last stage of each trained method, for each model.
        divergence: prompts of each prompt set on whose responses KL divergences are estimated.
        preference_sets: ids of the datasets on whose pairs rewards are compared.
        published: name of the published results to compare with, if any.
        sweeps: (dataset, model, method) of each choice between trials.
        courses: (dataset, model, method, number of snapshots) of the methods whose snapshots are judged.
        pairs: the pairs of methods that each judge compares, if it does, by the judge's id.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    reward_models: tuple[str, ...]
    judges: tuple[Judge, ...]
    samples: Mapping[str, int]
    stages: tuple[Stage, ...]
    divergence: int
    preference_sets: tuple[str, ...]
    published: str | None
    sweeps: tuple[tuple[str, str, str], ...]
    courses: tuple[tuple[str, str, str, int], ...]
    pairs: Mapping[str, list[tuple[str, str]]]

    @property
    def kinds(self) -> list[str]:
        """The kind of each judge."""
        return [judge.kind for judge in self.judges]

    @classmethod
    def of(cls, config: Config) -> Outline:
        """The outline of the grid that a catalogue makes."""
        grid = config.grids[config.grid]
        trained = [method for method in grid.methods if method != BASE]
        judges = [config.judges[name] for name in grid.judges]
        return cls(
            grid.models,
            grid.tasks,
            grid.reward_models,
            tuple(judges),
            {judge.prompts: config.prompts[judge.prompts].samples for judge in judges},
            tuple(config.stage(method.rsplit("-", 1)[-1], model) for method, model in product(trained, grid.models)),
            grid.divergence,
            grid.preference_sets,
            grid.published,
            tuple(config.sweeps(config.grid)),
            tuple(config.courses(config.grid)),
            {name: pairs for name in grid.judges if (pairs := pairs_of(config.judges[name].compares, grid.methods))},
        )


class Subject(ABC):
    """One file of subjects/, registered by `@subject`: tables, figures and the workflow's targets are loops over them.

    Attributes:
        table: name of the table, {table}.csv; None without one.
        title: heading of the page, {table}.md and {table}.tex; empty for a table that is a CSV alone.
        figure: name of the figure, {figure}.svg, .png and .csv; None without one. Its caption in Snakemake's report is
            rules/captions/{figure}_figure.rst, a page's is rules/captions/{table}.rst.
    """

    table: str | None = None
    title = ""
    figure: str | None = None

    def shows(self, grid: Outline) -> bool:
        """Whether the figure would show something of a grid."""
        return True

    def tabulates(self, grid: Outline | Results) -> bool:
        """Whether a grid has the table. Most grids have all of them; a table without rows says why it has none."""
        return True

    @abstractmethod
    def frame(self, results: Results) -> pd.DataFrame:
        """The numbers: those that are drawn, and by default those of the table."""

    def tabulate(self, results: Results, frame: pd.DataFrame) -> pd.DataFrame:
        """The table's CSV."""
        return frame

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        """The table as a reader sees it."""
        raise NotImplementedError  # nobody asks for it where there is no title

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """The figure; of an empty frame, a sentence that says why there is nothing to show."""
        raise NotImplementedError  # nobody asks for it where `figure` is None


SUBJECTS: list[Subject] = []
"""All subjects, by name, once halos.report.subjects is imported."""


def subject(kind: type[Subject]) -> type[Subject]:
    """Register a subject."""
    insort(SUBJECTS, kind(), key=lambda subject: type(subject).__name__)
    return kind


def tables(grid: Outline) -> list[str]:
    """Names of a grid's tables that have a page, and so .csv, .md and .tex."""
    return [s.table for s in SUBJECTS if s.table and s.title and s.tabulates(grid)]


def plain_tables(grid: Outline) -> list[str]:
    """Names of a grid's tables that are a .csv alone."""
    return [s.table for s in SUBJECTS if s.table and not s.title and s.tabulates(grid)]


def figures(grid: Outline) -> list[str]:
    """Names of the figures that show something of a grid."""
    return [s.figure for s in SUBJECTS if s.figure and s.shows(grid)]
