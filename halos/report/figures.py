"""Figures of a grid: SVG to print, PNG to look at, and the numbers drawn as CSV beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from halos.errors import HalosError
from halos.registry import suggest
from halos.report.measures import measures
from halos.report.results import WIN, Results
from halos.report.style import save, styled
from halos.report.subjects.benchmarks import benchmark, benchmarks
from halos.report.subjects.cost import cost, costs
from halos.report.subjects.frontier import draw_frontier, frontier_frame
from halos.report.subjects.imbalance import draw_imbalance, imbalance_frame
from halos.report.subjects.lengths import length, lengths
from halos.report.subjects.main import score, win_rate
from halos.report.subjects.rounds import draw_rounds, rounds_frame
from halos.report.subjects.size import size, sizes
from halos.report.subjects.training import curves, training


def make(config: Path, results: Path, output: Path, only: Sequence[str] = ()) -> None:
    """Draw a grid's figures, each as .svg and .png, with what it draws as .csv.

    Args:
        config: the grid's slice of the config.
        results: the results folder.
        output: the folder for the files.
        only: names of FIGURES to draw; one with nothing to show says so. Without any, those with something to show.

    Raises:
        HalosError: a file of a cell is missing, or a name is unknown.
    """
    for name in only:
        if name not in FIGURES:
            raise HalosError(f"there is no figure called {name!r}{suggest(name, FIGURES)}")
    r = Results(config, results)
    measured = measures(r)
    with styled():
        for name in only or FIGURES:
            frame, draw = FIGURES[name]
            data = frame(r, measured)
            if only or not data.empty:
                save(draw(r, data), data, output / name)


Frame = Callable[[Results, pd.DataFrame], pd.DataFrame]
FIGURES: dict[str, tuple[Frame, Callable[[Results, pd.DataFrame], Figure]]] = {
    "win_rate": (lambda r, measures: measures[measures["measure"] == WIN], win_rate),
    "score": (lambda r, measures: measures[measures["measure"] != WIN], score),
    "size": (sizes, size),
    "training": (lambda r, _: curves(r), training),
    "rounds": (lambda r, _: rounds_frame(r), draw_rounds),
    "frontier": (frontier_frame, draw_frontier),
    "imbalance": (imbalance_frame, draw_imbalance),
    "length": (lengths, length),
    "benchmarks": (lambda r, _: benchmarks(r), benchmark),
    "cost": (lambda r, _: costs(r), cost),
}
"""Every figure: the numbers it draws, from the results and the measures of its judges, and how it draws them."""
