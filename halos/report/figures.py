"""Figures of a grid: SVG to print, PNG to look at, and the numbers drawn as CSV beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halos.errors import HalosError
from halos.registry import suggest
from halos.report import subjects
from halos.report.results import Results
from halos.report.style import save, styled


def make(config: Path, output: Path, results: Path = Path("results"), only: Sequence[str] = ()) -> None:
    """Draw a grid's figures.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: folder to write to: each figure as .svg and .png, with the numbers that it draws as .csv.
        results: the results folder.
        only: names of the figures to draw, with or without something to show; by default those with something to show.

    Raises:
        HalosError: a file of a cell is missing, or a name is unknown.
    """
    drawn = {subject.figure: subject for subject in subjects.SUBJECTS if subject.figure}
    for name in only:
        if name not in drawn:
            raise HalosError(f"there is no figure called {name!r}{suggest(name, drawn)}")
    grid = Results(config, results)
    with styled():
        for name in only or drawn:
            frame = drawn[name].frame(grid)
            if only or not frame.empty:
                save(drawn[name].draw(grid, frame), frame, output / name)
