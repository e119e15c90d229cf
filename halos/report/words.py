"""Words and numbers that tables and figures share: captions, intervals, names of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from halos.report.lazy import pd
from halos.report.render import Table
from halos.report.results import SCORE, Results

WHOSE = {"data": "response of the data", "samples": "own response"}  # `kl_on`: whose log-ratio is a distance
NO_JUDGE = "No judge in this grid: give it `judges:` to compare responses."
Page = Sequence[Table | str]


def interval_kind(results: Results, short: bool = False) -> str:
    """The kind of interval that `statistics.bootstrap` gives, in words."""
    seeds = len(results.seeds)
    if short:
        return "95 % interval over prompts" + (f" and {seeds} seeds" if seeds > 1 else ", 1 seed")
    if seeds == 1:
        return "95 % interval over prompts; of one seed, so it says nothing about other seeds"
    if seeds == 2:
        return "95 % interval over prompts and seeds (whose variance is taken to be the same for all methods)"
    return f"95 % interval over prompts and seeds (t, {seeds - 1} df)"


def row_names(results: Results, row: dict[str, Any]) -> dict[str, str]:
    """The columns that name a row; dataset and model only where the grid has more than one."""
    names = {"Dataset": results.label("datasets", row["dataset"])} if len(results.datasets) > 1 else {}
    names |= {"Model": results.label("models", row["model"])} if len(results.models) > 1 else {}
    return names | {"Method": results.method_label(row["method"])}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def metric_title(measure: str) -> str:
    return measure.removeprefix(f"{SCORE}.").replace("_", " ").capitalize()


def range_text(values: pd.Series) -> str:
    known = values.dropna()
    return " to ".join(dict.fromkeys((f"{known.min():.0f}", f"{known.max():.0f}"))) if len(known) else "0"


def seeds_text(results: Results) -> str:
    return "1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"


def number_of(value: float | None) -> float:
    """A number, NaN for None."""
    return np.nan if value is None else float(value)
