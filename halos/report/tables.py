"""Tables of a grid: CSV with every number, Markdown to read, and LaTeX to put into a paper."""

from __future__ import annotations

from pathlib import Path

from halos.report import subjects
from halos.report.measures import write_csv
from halos.report.render import latex_page, markdown_page
from halos.report.results import Results


def make(config: Path, output: Path, results: Path = Path("results")) -> None:
    """Write a grid's tables.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: folder to write to: each table as .csv, most as .md and .tex, too.
        results: the results folder.

    Raises:
        HalosError: a file of a cell is missing.
    """
    grid = Results(config, results)
    for subject in subjects.SUBJECTS:
        if subject.table is None or not subject.tabulates(grid):
            continue
        frame = subject.frame(grid)
        write_csv(subject.tabulate(grid, frame), output / f"{subject.table}.csv")
        if subject.title:
            page = subject.page(grid, frame)
            title = f"{subject.title}: {grid.label('grids', grid.grid)}"
            (output / f"{subject.table}.md").write_text(markdown_page(title, page))
            (output / f"{subject.table}.tex").write_text(latex_page(subject.table, page))
