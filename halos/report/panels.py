"""Parts that several figures share: axes of methods, points, titles, legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from halos.report.lazy import mpl, pd
from halos.report.measures import ALL
from halos.report.results import Results
from halos.report.statistics import Array
from halos.report.style import GUIDE, Look, looks_of

COLUMNS = 3
PANEL = ("judge", "dataset", "model")


def panels_of(frame: pd.DataFrame, keys: Sequence[str] = PANEL) -> list[tuple[str, ...]]:
    """The values of some columns that occur together, in their order."""
    return list(frame[list(keys)].drop_duplicates().itertuples(index=False, name=None))


def part_of(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """The rows that have one value in each of some columns."""
    return frame[np.logical_and.reduce([frame[key] == value for key, value in zip(keys, values, strict=True)])]


def methods_of(results: Results, frame: pd.DataFrame) -> list[str]:
    """The methods of a frame, in the grid's order."""
    return [method for method in results.methods if method in set(frame["method"])]


def panel_title(results: Results, ids: Sequence[str]) -> str:
    """Dataset and model, and the judge where the grid has several."""
    judge, dataset, model = ids
    name = results.panel_label(dataset, model)
    return f"{name}, {results.label('judges', judge)}" if len(results.judges) > 1 else name


def empty(text: str) -> mpl.figure.Figure:
    """A figure without data: a sentence that says why."""
    figure = mpl.figure.Figure(figsize=(4.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", wrap=True)
    return figure


def guide(ax: mpl.axes.Axes, x: float | None = None, y: float | None = None) -> None:
    """Dashed lines behind the data, at x and at y."""
    looks: dict[str, Any] = {"color": GUIDE, "linestyle": (0, (4, 3)), "linewidth": 0.8, "zorder": 1}
    if x is not None:
        ax.axvline(x, **looks)
    if y is not None:
        ax.axhline(y, **looks)


# ---- points of methods, one below the other ----------------------------------------------------------------------


def method_grid(
    results: Results, rows: int, columns: int, width: float, row: float = 0.19, extra: float = 0.55
) -> tuple[mpl.figure.Figure, Any]:
    """Axes with a line for each method, whose names are at the left column only.

    Args:
        width: of a panel, in inches.
        row: height of a method's line, in inches.
        extra: room for labels, in inches.
    """
    figure = mpl.figure.Figure(layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    names = 0.075 * max(len(results.method_label(m)) for m in results.methods)
    figure.set_size_inches(
        width * columns + names + extra, max(1.6, rows * (row * len(results.methods) + 0.45) + extra)
    )
    for row_of_axes in axes:
        for column, ax in enumerate(row_of_axes):
            method_axis(results, ax, first=column == 0)
    return figure, axes


def method_axis(results: Results, ax: mpl.axes.Axes, first: bool) -> None:
    labels = [results.method_label(m) for m in results.methods]
    ax.set_yticks(range(len(labels)), labels if first else [""] * len(labels))


def draw_points(results: Results, ax: mpl.axes.Axes, part: pd.DataFrame, at: float) -> None:
    """A point with its interval for each method, its seeds as faint dots, and a guide unless `at` is NaN."""
    if not math.isnan(at):
        guide(ax, x=at)
    looks = looks_of(results)
    for y, method in enumerate(results.methods):
        of_method = part[part["method"] == method]
        look = looks[method]
        seeds = of_method[of_method["seed"] != ALL]
        if len(seeds) > 1:
            ax.plot(seeds["mean"], [y + 0.27] * len(seeds), "o", color=look.colour, alpha=0.4, markersize=2.4, mew=0)
        estimates = of_method.loc[of_method["seed"] == ALL, ["mean", "low", "high"]]
        for mean, low, high in estimates.to_numpy(dtype=float):
            ax.plot([low, high], [y, y], color=look.colour, linewidth=1.3, solid_capstyle="butt")
            ax.plot([mean], [y], "o", color=look.colour, markerfacecolor=look.face, markersize=4.6, markeredgewidth=1.1)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(results.methods) - 0.4, -0.6)


def limits_of(values: Iterable[float]) -> tuple[float, float]:
    """Limits of an axis that holds all values, with some room at both ends."""
    known = [v for v in values if not math.isnan(v)]
    pad = 0.04 * (max(known) - min(known)) or 0.05
    return min(known) - pad, max(known) + pad


# ---- panels side by side with a legend ---------------------------------------------------------------------------


def row_of_panels(panels: Sequence[Any], entries: int, width: float) -> tuple[mpl.figure.Figure, list[mpl.axes.Axes]]:
    """At most COLUMNS panels side by side, and room for a legend of `entries` lines.

    Args:
        width: of a panel, in inches.
    """
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = mpl.figure.Figure(layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.set_size_inches(width * columns + (1.7 if entries else 0.3), max(2.6 * rows, 0.16 * entries + 0.4))
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure, axes[: len(panels)]


def draw_marker(ax: mpl.axes.Axes, look: Look, x: float, y: float) -> None:
    ax.plot(x, y, look.marker, color=look.colour, markerfacecolor=look.face, markersize=4.6, markeredgewidth=1)


def legend(
    figure: mpl.figure.Figure, looks: Mapping[str, Look], labels: Mapping[str, str], lines: bool = False
) -> None:
    """A legend beside the panels: the marker of each method.

    Args:
        labels: method -> its name; the methods that are drawn.
        lines: whether methods are drawn as lines, too.
    """
    handles = [
        mpl.lines.Line2D([], [], color=look.colour, linestyle=look.line if lines else "", linewidth=1.2,
                         marker=look.marker, markersize=4, markerfacecolor=look.face, markeredgewidth=1)
        for look in (looks[method] for method in labels)
    ]  # fmt: skip
    figure.legend(
        handles, list(labels.values()), loc="outside right upper", fontsize=7, frameon=False, handlelength=2.8
    )


def spread(places: Array, gap: float) -> Array:
    """Ascending places between 0 and 1, moved as little as possible (least squares) to be at least `gap` apart."""
    blocks: list[list[float]] = []
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    steps = gap * np.arange(len(places))
    apart = np.concatenate([np.full(int(n), value) for value, n in blocks]) + steps
    within: Array = np.maximum(np.minimum(apart, 1 - steps[::-1]), steps)
    return within


def thousands(value: float, _: int) -> str:
    """A label of an axis: 1500 as 1.5k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
