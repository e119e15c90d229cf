"""Tables of a grid: CSV with every number, Markdown to read, and LaTeX to put into a paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from halos.report.measures import measures, write_csv
from halos.report.render import latex_page, markdown_page
from halos.report.results import Results
from halos.report.subjects.benchmarks import benchmarks, benchmarks_page, benchmarks_table
from halos.report.subjects.cells import cells_table
from halos.report.subjects.comparisons import comparisons, comparisons_page
from halos.report.subjects.cost import cost_page, costs
from halos.report.subjects.datasets import data_page, data_table
from halos.report.subjects.lengths import lengths, lengths_page
from halos.report.subjects.main import main_page, main_table
from halos.report.subjects.published import published, published_page
from halos.report.subjects.reward_models import reward_models_page, reward_models_table
from halos.report.subjects.training import training_table
from halos.report.words import Page


def make(config: Path, results: Path, output: Path) -> None:
    """Write all tables of a grid.

    Args:
        config: the grid's slice of the config.
        results: the results folder.
        output: folder for main, comparisons, benchmarks, lengths, cost, data and, in a grid with `published:`,
            published, each as .csv, .md and .tex; and for cells.csv, training.csv and reward_models.csv. Reward models
            are a table of main, where there are any.

    Raises:
        HalosError: a file of a cell is missing.
    """
    r = Results(config, results)
    training = training_table(r)
    measured, compared, benchmarked = measures(r), comparisons(r), benchmarks(r)
    main, rewards = main_table(r, measured, training), reward_models_table(r, training)
    long, cost, data = lengths(r, measured), costs(r), data_table(r)
    write_csv(cells_table(r, training), output / "cells.csv")
    write_csv(training, output / "training.csv")
    write_csv(rewards, output / "reward_models.csv")
    pages: dict[str, tuple[str, pd.DataFrame, Page]] = {
        "main": ("Main results", main, [*main_page(r, main), *reward_models_page(r, rewards)]),
        "comparisons": ("Comparisons", compared, comparisons_page(r, compared)),
        "benchmarks": ("Benchmarks", benchmarks_table(r, benchmarked), benchmarks_page(r, benchmarked)),
        "lengths": ("Responses", long, lengths_page(r, long)),
        "cost": ("Cost", cost, cost_page(r, cost)),
        "data": ("Data", data, data_page(r, data)),
    }
    if r.published is not None:
        beside = published(r)
        pages["published"] = ("Published results", beside, published_page(r, beside))
    for name, (title, frame, page) in pages.items():
        write_csv(frame, output / f"{name}.csv")
        (output / f"{name}.md").write_text(markdown_page(f"{title}: {r.label('grids', r.grid)}", page))
        (output / f"{name}.tex").write_text(latex_page(name, page))
