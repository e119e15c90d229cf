"""Win rates that others published, to stand beside those of a grid. The files are in published/, with their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.catalogue import PUBLISHED, PUBLISHED_WINRATES
from halos.errors import HalosError
from halos.registry import suggest
from halos.report import statistics

FOLDER = Path(__file__).parent / "published"
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


def draw(name: str, output: Path) -> None:
    """Draw published win rates against model size, with the figure and the intervals that a grid of one's own has.

    Args:
        name: of the published results: archangel.
        output: the figure without its ending; .svg, .png and .csv are written.

    Raises:
        HalosError: nothing of this name is published, or not of several sizes of a model.
    """
    from halos.report import plots
    from halos.report.style import save, styled

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
        figure = plots.by_size(frame, labels, {}, "90 % Clopper-Pearson interval, 1 seed")
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
