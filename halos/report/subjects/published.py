"""Published win rates beside ours. The files are in ../published, with their sources and licences."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.errors import HalosError
from halos.registry import suggest
from halos.report import statistics
from halos.report.measures import ROW, rows
from halos.report.render import Bold, Table, interval
from halos.report.results import STRICT, Results, cells_of
from halos.report.words import Page, records, row_names
from halos.study.settings import PUBLISHED, PUBLISHED_WINRATES

NO_PUBLISHED = "No run of this grid is among the published ones."


def published_page(results: Results, beside: pd.DataFrame) -> Page:
    if beside.empty:
        return [Table(NO_PUBLISHED, [], ["Method"])]
    page: list[Table | str] = []
    for judge, of_judge in beside.groupby("judge", sort=False):
        shown = [
            row_names(results, row)
            | {"Ours": interval(row["ours"], row["low"], row["high"])}
            | {"Published": interval(row["published"], row["published_low"], row["published_high"])}
            | {"Difference": _apart(row), "On": row["published_dataset"]}
            for row in records(of_judge)
        ]
        caption = (
            f"Win rates beside those published as {results.published} (its source is in halos/report/published), a tie "
            f"for neither in both. Judge of ours: {results.label('judges', str(judge))}. Brackets: of ours 95 %, over "
            "prompts and seeds; of the published ones the 90 % Clopper-Pearson interval that was printed; of the "
            "difference 95 %, bold where it leaves out zero. On: the dataset of the published run."
        )
        page.append(Table(caption, shown))
    return page


def _apart(row: dict[str, Any]) -> str:
    text = interval(row["difference"], row["difference_low"], row["difference_high"], sign=True)
    return Bold(text) if row["difference_low"] > 0 or row["difference_high"] < 0 else text


FOLDER = Path(__file__).parents[1] / "published"
PAPER_LEVEL = 0.9
"""Level of the intervals that Ethayarajh et al. (2024) print."""
LABELS = {"base": "Base", "slic": "SLiC"}
SETTINGS = ["keep_desirable", "keep_undesirable", "desirable_weight", "undesirable_weight", "one_per_prompt"]
"""Columns that a run must agree with beside model and method, where they are not empty."""


def load(name: str) -> pd.DataFrame:
    """A row per published run: model, method (as a chain of losses: sft-kto), dataset and settings, the counts, and
    `win_rate`, `low` and `high` computed from them: wins of all comparisons, a tie for neither, with the
    Clopper-Pearson interval of PAPER_LEVEL.

    Raises:
        HalosError: there is no such file.
    """
    if name not in PUBLISHED:
        raise HalosError(f"there are no published results called {name!r}{suggest(name, PUBLISHED)}")
    runs = pd.read_csv(FOLDER / f"{name}{PUBLISHED_WINRATES}")
    limits = [statistics.clopper_pearson(w, n, PAPER_LEVEL) for w, n in zip(runs["wins"], runs["n"], strict=True)]
    return runs.assign(
        win_rate=runs["wins"] / runs["n"], low=[low for low, _ in limits], high=[high for _, high in limits]
    )


def models(name: str) -> pd.DataFrame:
    """Label, family and parameters of the models of `load`, by model."""
    table: pd.DataFrame = pd.read_csv(FOLDER / f"{name}_models.csv").set_index("model")
    return table


def draw(output: Path, name: str = "archangel") -> None:
    """Draw published win rates against model size, with the figure and the intervals that a grid of one's own has.

    Args:
        name: of the published results: archangel.
        output: the figure without its ending; .svg, .png and .csv are written.

    Raises:
        HalosError: nothing of this name is published, or not of several sizes of a model.
    """
    from halos.report.style import save, styled
    from halos.report.subjects.size import by_size

    runs = load(name).join(models(name), on="model")
    # the study of a paper: every run in the same setting, and families of several sizes
    runs = runs[(runs["dataset"] == name) & runs[["keep_desirable", "keep_undesirable"]].fillna(1).eq(1).all(axis=1)]
    runs = runs[~runs["run"].str.startswith("fracdata")]
    runs = runs[runs.groupby("family")["parameters"].transform("nunique") > 1]
    if runs.empty:
        raise HalosError(f"{name} holds no family of models of several sizes")
    methods = sorted(set(runs["method"]), key=lambda m: (m not in ("base", "sft"), "-" not in m, m))
    frame = runs.rename(columns={"win_rate": "mean", "n": "prompts"}).assign(seeds=1)
    with styled():
        labels = {m: " + ".join(LABELS.get(part, part.upper()) for part in m.split("-")) for m in methods}
        figure = by_size(frame, labels, {}, "90 % Clopper-Pearson interval, 1 seed")
        save(figure, frame.drop(columns=SETTINGS), output)


def match(runs: pd.DataFrame, model: str, losses: list[str], settings: dict[str, Any]) -> dict[str, Any] | None:
    """The published run of a cell, if there is one.

    Args:
        runs: as `load` gives them.
        model: id of the model, or its id on the hub; capitals and the owner do not matter.
        losses: of the stages of the cell's method, in order; none for a base model.
        settings: of its last stage.
    """
    name = model.rsplit("/", 1)[-1].lower()
    found = runs[(runs["model"] == name) & (runs["method"] == ("-".join(losses) or "base"))]
    for key in SETTINGS:
        wanted = settings.get(key)
        found = found[found[key].isna() | np.isclose(found[key], np.nan if wanted is None else float(wanted))]
    return {str(k): v for k, v in found.iloc[0].items()} if len(found) else None


COMPARED = ["judge", *ROW, "ours", "low", "high", "published", "published_low", "published_high", "difference",
             "difference_low", "difference_high", "seeds", "prompts", "published_n", "published_dataset",
             "run"]  # fmt: skip


def published(results: Results) -> pd.DataFrame:
    """Our win rate beside the one that is published of the same model, losses and settings, both with a tie for
    neither, and their difference; ours with its 95 % interval, theirs with the 90 % one that was printed."""
    if results.published is None:
        return pd.DataFrame(columns=COMPARED)
    runs = load(results.published)
    found = []
    for judge, ids in product(results.judges, rows(results)):
        cell = cells_of(results, ids)[0]
        run = match(runs, results.hub(ids[1]), results.losses(cell), results.settings(cell))
        values = results.values(judge, *ids, STRICT)
        if run is None or values.empty:
            continue
        ours = statistics.estimate(values, bounded=True)
        theirs = statistics.Estimate(run["win_rate"], *statistics.wilson(run["wins"], run["n"]), 1, run["n"])
        of_run = (run["win_rate"], run["low"], run["high"], *statistics.gap(ours, theirs))
        counts = (ours.seeds, ours.prompts, run["n"], run["dataset"], run["run"])
        found.append((judge, *ids, ours.mean, ours.low, ours.high, *of_run, *counts))
    return pd.DataFrame(found, columns=COMPARED)
