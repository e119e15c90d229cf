"""Figures of a grid: SVG to print, PNG to look at, and the numbers drawn as CSV beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halos.errors import HalosError
from halos.registry import suggest
from halos.report import estimates as E
from halos.report import plots
from halos.report import relations as R
from halos.report.pages import NO_JUDGE, NO_TASK, interval_kind, metric_title
from halos.report.results import SCORE, WIN, Results
from halos.report.style import (
    GUIDE,
    empty,
    limits_of,
    of,
    panel_title,
    save,
    spread,
    style,
    styled,
)
from halos.report.style import STYLE as STYLE  # for figures of other modules

DIRECT_LABELS = 6
"""Curves that a panel can name at their ends; more have a legend."""


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
    measures = E.measures(r)
    with styled():
        for name in only or FIGURES:
            frame, draw = FIGURES[name]
            data = frame(r, measures)
            if only or not data.empty:
                save(draw(r, data), data, output / name)


def win_rate(results: Results, wins: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model; a point with interval per method, seeds as faint dots."""
    if wins.empty:
        return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
    panels = list(product(results.judges, results.datasets, results.models))
    columns = min(len(panels), 4)
    figure, axes = _grid(results, math.ceil(len(panels) / columns), columns, width=2.3 if columns > 1 else 3.4)
    limits = limits_of([*wins["mean"], *wins["low"], *wins["high"], 0.5])
    for ax, ids in zip(axes.flat, panels, strict=False):
        _points(results, ax, of(wins, ("judge", "dataset", "model"), ids), guide=0.5)
        ax.set(xlim=limits, title=panel_title(results, ids))
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    figure.supxlabel(f"win rate against the baseline\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def score(results: Results, scores: pd.DataFrame) -> Figure:
    """A row per judge, dataset and model; a column for the score and one for each criterion; dashed: the baseline."""
    if scores.empty:
        return empty(NO_JUDGE if not results.judges else "No judge of this grid gives scores.")
    panels = list(scores[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    columns = max(len(E.measures_of(results, ids[0])) - 1 for ids in panels)
    figure, axes = _grid(results, len(panels), columns, width=1.9, row=0.19 if len(panels) < 4 else 0.155)
    for row, ids in zip(axes, panels, strict=True):
        mine = of(scores, ("judge", "dataset", "model"), ids)
        limits = limits_of(scores.loc[scores["judge"] == ids[0], ["mean", "low", "high", "baseline"]].to_numpy().flat)
        names = E.measures_of(results, ids[0])[1:]
        for ax, measure in zip(row, names, strict=False):
            part = mine[mine["measure"] == measure]
            _points(results, ax, part, guide=part["baseline"].mean())
            name = results.score_name(ids[0]).capitalize() if measure == SCORE else metric_title(measure)
            ax.set(xlim=limits, title=name)
        for ax in row[len(names) :]:
            ax.remove()
        if len(panels) > 1:
            row[0].set_title(f"{panel_title(results, ids)}: {results.score_name(ids[0])}")
    what = " or ".join(dict.fromkeys(results.score_name(ids[0]) for ids in panels))
    figure.supxlabel(f"{what}; dashed: the baseline's own\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def training(results: Results, curves: pd.DataFrame) -> Figure:
    """A row per dataset and model: reward margin, KL and loss against the examples seen; band: range over seeds."""
    if curves.empty:
        return empty("No training in this grid: its only method is `base`.")
    quantities = [q for q in E.QUANTITIES if q in set(curves["quantity"])]
    panels = [ids for ids in product(results.datasets, results.models) if len(of(curves, ("dataset", "model"), ids))]
    drawn = [m for m in results.methods if m in set(curves["method"])]
    names = 0.065 * max(len(results.method_label(m)) for m in drawn)
    crowded = len(drawn) > DIRECT_LABELS
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(panels), len(quantities), squeeze=False)
    height = max(2.1, 0.13 * len(drawn) + 0.75)
    width = 2.3 * len(quantities) + names * (1 if crowded else len(quantities)) + 0.4 * crowded
    figure.set_size_inches(width, height * len(panels) + 0.3)
    for (i, ids), (j, quantity) in product(enumerate(panels), enumerate(quantities)):
        ax = axes[i, j]
        mine = of(curves, ("dataset", "model", "quantity"), (*ids, quantity))
        for method, line in mine.groupby("method", sort=False):
            s = style(results.methods, str(method))
            ax.plot(line["examples"], line["mean"], color=s["color"], linestyle=s["line"], linewidth=1.3)
            if (line["seeds"] > 1).any():
                ax.fill_between(line["examples"], line["min"], line["max"], color=s["color"], alpha=0.15, linewidth=0)
        ax.grid(axis="y")
        ax.margins(x=0)
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_thousands))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        if j == 0:
            ax.set_title(results.panel_label(*ids), loc="left")
        ax.set_ylabel(_curve_title(mine) if len(mine) else "")
        ax.set_xlabel("examples seen" if i == len(panels) - 1 else "")
        _compress(ax, mine)
        if not crowded:
            _end_labels(results, ax, mine, height)
    if crowded:
        styles = [style(results.methods, m) for m in drawn]
        lines = [Line2D([], [], color=s["color"], linestyle=s["line"], linewidth=1.5) for s in styles]
        names_of = [results.method_label(m) for m in drawn]
        figure.legend(lines, names_of, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
    return figure


def rounds(results: Results, over_rounds: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: the score after each round of the methods that are trained online."""
    if over_rounds.empty:
        return empty("No method of this grid is trained online, in rounds.")
    panels = list(over_rounds[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure = Figure(layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=len(set(over_rounds["measure"])) == 1)[0]
    figure.set_size_inches(2.6 * len(panels) + 1.6, 2.5)
    last = int(over_rounds["round"].max())
    for ax, ids in zip(axes, panels, strict=True):
        mine = of(over_rounds, ("judge", "dataset", "model"), ids)
        methods = list(dict.fromkeys(mine["method"]))
        for k, method in enumerate(methods):
            line = mine[mine["method"] == method]
            s = style(results.methods, method)
            x = line["round"] + 0.05 * (k - (len(methods) - 1) / 2)  # intervals beside each other
            ax.plot(x, line["mean"], "o-", color=s["color"], linewidth=1.3, markersize=4,
                    label=results.method_label(method))  # fmt: skip
            ax.vlines(x, line["low"], line["high"], color=s["color"], linewidth=1.1)
        ax.grid(axis="y")
        ax.set_xticks(range(last + 1))
        ax.set_xlabel("rounds done")
        ax.set_title(panel_title(results, ids), loc="left")
        name = "win rate" if mine["measure"].iloc[0] == WIN else results.score_name(ids[0])
        ax.set_ylabel(f"{name}\n({interval_kind(results, short=True)})")
    names = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(names.values()), list(names), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def benchmark(results: Results, benchmarks: pd.DataFrame) -> Figure:
    """Methods x tasks, a panel per dataset and model: the value as text, its change from the reference as colour."""
    if benchmarks.empty:
        return empty(NO_TASK)
    panels = list(product(results.datasets, results.models))
    columns = min(len(panels), 4 if len(results.tasks) <= 4 else 2)
    shape = math.ceil(len(panels) / columns), columns
    figure, axes = _grid(results, *shape, width=0.52 * len(results.tasks) + 0.1, row=0.22, extra=1.1)
    most = max(0.02, benchmarks["change"].abs().max())
    image = None
    for index, (ax, ids) in enumerate(zip(axes.flat, panels, strict=False)):
        mine = of(benchmarks, ("dataset", "model"), ids)
        values, change, clear = (
            mine.pivot(index="method", columns="task", values=key).loc[results.methods, results.tasks].to_numpy()
            for key in ("value", "change", "clear")
        )
        image = ax.imshow(change, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for i, j in np.ndindex(values.shape):
            text = f"{values[i, j]:.3f}".replace("0.", ".", 1) if abs(values[i, j]) < 1 else f"{values[i, j]:.3g}"
            colour = "white" if abs(change[i, j]) > 0.65 * most else "#222222"
            weight = "bold" if clear[i, j] else "normal"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
        ax.set_xticks(
            range(len(results.tasks)), [results.label("tasks", t) for t in results.tasks], rotation=40, ha="right"
        )
        ax.set_xticks(np.arange(len(results.tasks) + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(len(results.methods) + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.2)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(results.panel_label(*ids))
        if index + columns < len(panels):
            ax.tick_params(labelbottom=False)
        _method_axis(results, ax, first=index % columns == 0)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    assert image is not None
    bar = figure.colorbar(image, ax=list(axes.flat[: len(panels)]), shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(f"change from {results.method_label(benchmarks['reference'].iloc[0])}")
    bar.outline.set_visible(False)
    return figure


def _points(results: Results, ax: Axes, part: pd.DataFrame, guide: float) -> None:
    if not math.isnan(guide):
        ax.axvline(guide, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
    for y, method in enumerate(results.methods):
        mine = part[part["method"] == method]
        s = style(results.methods, method)
        seeds = mine[mine["seed"] != E.ALL]
        if len(seeds) > 1:
            ax.plot(seeds["mean"], [y + 0.27] * len(seeds), "o", color=s["color"], alpha=0.4, markersize=2.4, mew=0)
        for mean, low, high in mine.loc[mine["seed"] == E.ALL, ["mean", "low", "high"]].to_numpy(dtype=float):
            ax.plot([low, high], [y, y], color=s["color"], linewidth=1.3, solid_capstyle="butt")
            face = s["color"] if s["filled"] else "white"
            ax.plot([mean], [y], "o", color=s["color"], markerfacecolor=face, markersize=4.6, markeredgewidth=1.1)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(results.methods) - 0.4, -0.6)


def _method_axis(results: Results, ax: Axes, first: bool) -> None:
    labels = [results.method_label(m) for m in results.methods]
    ax.set_yticks(range(len(labels)), labels if first else [""] * len(labels))


def _grid(
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
            _method_axis(results, ax, first=column == 0)
    return figure, axes


def _curve_title(mine: pd.DataFrame) -> str:
    quantity, split, unit = mine[["quantity", "split", "unit"]].iloc[0]
    name = {"rewards/margin": "reward margin", "kl": "log-ratio to the reference", "loss": "loss"}[quantity]
    where = "evaluation" if split == "eval" else "training"
    return f"{name}\n({where})" if unit in name or unit == "reward" else f"{name}\n({unit}; {where})"


def _compress(ax: Axes, mine: pd.DataFrame) -> None:
    """A scale that is linear about 0 and logarithmic beyond, where one method would flatten the others: the sum of
    log-probabilities that SLiC has for a reward is a hundred times the odds of ORPO."""
    largest = mine.assign(mean=mine["mean"].abs()).groupby("method")["mean"].max()
    usual = largest[largest > 0].median()
    if largest.max() > 5 * usual:
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(usual)), linscale=0.6)
        ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(f"{ax.get_ylabel().removesuffix(')')}; log scale)")


def _end_labels(results: Results, ax: Axes, mine: pd.DataFrame, height: float) -> None:
    """Each line's name right of its end, moved up or down where names would overlap."""
    if mine.empty:
        return
    last = mine.groupby("method", sort=False).last().sort_values("mean", kind="stable")
    ax.set(xlim=(0, mine["examples"].max()), ylim=ax.get_ylim())
    ends = (ax.transScale + ax.transLimits).transform(last[["examples", "mean"]].to_numpy(dtype=float))
    places = spread(ends[:, 1], gap=0.125 / (height - 0.7))
    for (method, end), place in zip(last.iterrows(), places, strict=True):
        colour = style(results.methods, str(method))["color"]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 1, "shrinkB": 0}
        ax.annotate(
            results.method_label(str(method)),
            (end["examples"], end["mean"]),
            (1.07, place),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={**arrow, "relpos": (0, 0.5)},
            color=colour,
            fontsize=7,
            va="center",
        )


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


Frame = Callable[[Results, pd.DataFrame], pd.DataFrame]
FIGURES: dict[str, tuple[Frame, Callable[[Results, pd.DataFrame], Figure]]] = {
    "win_rate": (lambda r, measures: measures[measures["measure"] == WIN], win_rate),
    "score": (lambda r, measures: measures[measures["measure"] != WIN], score),
    "size": (R.sizes, plots.size),
    "training": (lambda r, _: E.curves(r), training),
    "rounds": (lambda r, _: E.rounds(r), rounds),
    "frontier": (R.frontier, plots.frontier),
    "imbalance": (R.imbalance, plots.imbalance),
    "length": (R.lengths, plots.length),
    "benchmarks": (lambda r, _: E.benchmarks(r), benchmark),
    "cost": (lambda r, _: R.costs(r), plots.cost),
}
"""Every figure: the numbers it draws, from the results and the measures of its judges, and how it draws them."""
