"""Panels that several figures share: axes of methods, places of labels, titles, legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halos.report.measures import ALL
from halos.report.results import Results
from halos.report.statistics import Array
from halos.report.style import GUIDE, style


def draw_points(results: Results, ax: Axes, part: pd.DataFrame, guide: float) -> None:
    if not math.isnan(guide):
        ax.axvline(guide, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
    for y, method in enumerate(results.methods):
        mine = part[part["method"] == method]
        s = style(results.methods, method)
        seeds = mine[mine["seed"] != ALL]
        if len(seeds) > 1:
            ax.plot(seeds["mean"], [y + 0.27] * len(seeds), "o", color=s["color"], alpha=0.4, markersize=2.4, mew=0)
        for mean, low, high in mine.loc[mine["seed"] == ALL, ["mean", "low", "high"]].to_numpy(dtype=float):
            ax.plot([low, high], [y, y], color=s["color"], linewidth=1.3, solid_capstyle="butt")
            face = s["color"] if s["filled"] else "white"
            ax.plot([mean], [y], "o", color=s["color"], markerfacecolor=face, markersize=4.6, markeredgewidth=1.1)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(results.methods) - 0.4, -0.6)


def method_axis(results: Results, ax: Axes, first: bool) -> None:
    labels = [results.method_label(m) for m in results.methods]
    ax.set_yticks(range(len(labels)), labels if first else [""] * len(labels))


def panel_grid(
    results: Results, rows: int, columns: int, width: float, row: float = 0.19, extra: float = 0.55
) -> tuple[Figure, Any]:
    """Axes with a line for each method, whose names stand at the left column only."""
    figure = Figure(layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    names = 0.075 * max(len(results.method_label(m)) for m in results.methods)
    figure.set_size_inches(
        width * columns + names + extra, max(1.6, rows * (row * len(results.methods) + 0.45) + extra)
    )
    for row_of_axes in axes:
        for column, ax in enumerate(row_of_axes):
            method_axis(results, ax, first=column == 0)
    return figure, axes


COLUMNS = 3
MARKERS = "osD^v"


def marker_turn(methods: Sequence[str], method: str) -> int:
    """Which of the methods of its hue a method is."""
    hue = style(methods, method)["hue"]
    return [m for m in methods if style(methods, m)["hue"] == hue].index(method)


def row_of(panels: Sequence[Any], entries: int, width: float) -> tuple[Figure, list[Axes]]:
    """At most COLUMNS panels side by side, and room for a legend of so many entries."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.set_size_inches(width * columns + (1.7 if entries else 0.3), max(2.6 * rows, 0.16 * entries + 0.4))
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure, axes[: len(panels)]


def legend(figure: Figure, methods: Sequence[str], labels: Sequence[str], markers: Sequence[str] | None = None) -> None:
    handles = []
    for k, method in enumerate(methods):
        s = style(methods, method)
        face = s["color"] if s["filled"] else "white"
        handles.append(
            Line2D([], [], color=s["color"], linestyle="" if markers else s["line"], linewidth=1.2, markeredgewidth=1,
                   marker=markers[k] if markers else "o", markersize=4, markerfacecolor=face)
        )  # fmt: skip
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.8)


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


def limits_of(values: Iterable[float]) -> tuple[float, float]:
    known = [v for v in values if not math.isnan(v)]
    pad = 0.04 * (max(known) - min(known)) or 0.05
    return min(known) - pad, max(known) + pad


def panel_title(results: Results, ids: tuple[str, ...]) -> str:
    judge, dataset, model = ids
    name = results.panel_label(dataset, model)
    return f"{name}, {results.label('judges', judge)}" if len(results.judges) > 1 else name


def of(frame: pd.DataFrame, keys: tuple[str, ...], ids: tuple[str, ...]) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[key] == value for key, value in zip(keys, ids, strict=True)])]


def empty(text: str) -> Figure:
    figure = Figure(figsize=(4.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", wrap=True)
    return figure
