"""Figures of what stands in relation to a win rate (`relations`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halos.report.pages import NO_JUDGE, interval_kind
from halos.report.results import SCORE, Results
from halos.report.style import GUIDE, empty, of, panel_title, style

COLUMNS = 3
DODGE = 1.014
"""Points of one model beside each other, on a scale of factors."""


def size(results: Results, sizes: pd.DataFrame) -> Figure:
    """Win rate against model size: see `by_size`."""
    if sizes.empty:
        return empty("No judged model whose size is known.")
    names = {method: results.method_label(method) for method in results.methods}
    titles = {judge: results.label("judges", judge) for judge in results.judges}
    titles |= {dataset: results.label("datasets", dataset) for dataset in results.datasets}
    return by_size(sizes, names, titles, interval_kind(results, short=True))


def by_size(sizes: pd.DataFrame, methods: dict[str, str], titles: dict[str, str], kind: str) -> Figure:
    """A panel per family of models (a row per judge and dataset), a line per method, parameters on a log axis.

    Args:
        sizes: as of `relations.sizes`.
        methods: the label of each method, in order.
        titles: labels of judges and datasets; they are written where there are several.
        kind: what an interval is, in words.
    """
    rows = list(sizes[["judge", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
    families = list(dict.fromkeys(sizes["family"]))
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(rows), len(families), squeeze=False, sharey=True)
    drawn = [method for method in methods if method in set(sizes["method"])]
    figure.set_size_inches(2.7 * len(families) + 1.4, max(2.6 * len(rows), 0.16 * len(drawn) + 0.6) + 0.3)
    for (i, ids), (j, family) in product(enumerate(rows), enumerate(families)):
        ax = axes[i, j]
        mine = of(sizes, ("judge", "dataset", "family"), (*ids, family))
        for number, method in enumerate(drawn):
            line = mine[mine["method"] == method].sort_values("parameters")
            x = line["parameters"] * DODGE ** (number - (len(drawn) - 1) / 2)
            s = style(drawn, method)
            ax.plot(x, line["mean"], color=s["color"], linestyle=s["line"], linewidth=1.2)
            face = s["color"] if s["filled"] else "white"
            ax.plot(x, line["mean"], "o", color=s["color"], markerfacecolor=face, markersize=3.8, markeredgewidth=1)
            ax.vlines(x, line["low"], line["high"], color=s["color"], linewidth=0.7, alpha=0.55)
        _sizes_axis(ax, mine["parameters"])
        ax.axhline(0.5, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        ax.grid(axis="y")
        said = [titles.get(name, name) for k, name in enumerate(ids) if sizes[["judge", "dataset"][k]].nunique() > 1]
        ax.set_title(", ".join([family, *said]), loc="left")
    figure.supylabel("win rate against the baseline", fontsize=8)
    figure.supxlabel(f"parameters ({kind})", fontsize=8)
    _legend(figure, drawn, [methods[method] for method in drawn])
    return figure


def _sizes_axis(ax: Axes, parameters: pd.Series) -> None:
    """A logarithmic axis whose ticks are the models themselves."""
    ticks = sorted(set(parameters))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(ticks))
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set_xticklabels([_short(value) for value in ticks])
    if ticks:
        room = max(1.25, (ticks[-1] / ticks[0]) ** 0.08)
        ax.set_xlim(ticks[0] / room, ticks[-1] * room)


def _short(parameters: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{float(f'{parameters / size:.2g}'):g}{letter}"
    return f"{parameters:g}"


def frontier(results: Results, points: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: reward against the distance from the reference; a point per method, with a
    line through the methods of one loss."""
    if points.empty:
        return empty("No method of this grid is trained against a reference.")
    panels = list(points[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = _row_of(panels, len(set(points["method"])), 3.4)
    methods = [method for method in results.methods if method in set(points["method"])]
    for ax, ids in zip(axes, panels, strict=True):
        mine = of(points, ("judge", "dataset", "model"), ids)
        for _, of_loss in mine.groupby("loss", sort=False):
            line = of_loss.sort_values("kl")
            ax.plot(line["kl"], line["reward"], color=style(methods, line["method"].iloc[0])["hue"], linewidth=0.9,
                    alpha=0.6, zorder=1.5)  # fmt: skip
        for row in mine.to_dict("records"):
            s = style(methods, row["method"])
            ax.vlines(row["kl"], row["low"], row["high"], color=s["color"], linewidth=0.7, alpha=0.55)
            ax.hlines(row["reward"], row["kl_min"], row["kl_max"], color=s["color"], linewidth=0.7, alpha=0.55)
            marker = MARKERS[_turn(methods, row["method"]) % len(MARKERS)]
            face = s["color"] if s["filled"] else "white"
            ax.plot(row["kl"], row["reward"], marker, color=s["color"], markerfacecolor=face, markersize=4.6,
                    markeredgewidth=1)  # fmt: skip
        ax.grid()
        measure = mine["measure"].iloc[0]
        name = {SCORE: results.score_name(ids[0]) if ids[0] else "", "margin": "reward margin"}.get(measure, "win rate")
        ax.set_ylabel(f"{name}\n({interval_kind(results, short=True) if ids[0] else 'range over seeds'})")
        ax.set_title(panel_title(results, ids) if ids[0] else results.panel_label(*ids[1:]), loc="left")
    figure.supxlabel(
        "log-ratio to the reference at the end (nats per response of the data; range over seeds)", fontsize=8
    )
    labels = [results.method_label(method) for method in methods]
    _legend(figure, methods, labels, [MARKERS[_turn(methods, m) % len(MARKERS)] for m in methods])
    return figure


MARKERS = "osD^v"


def _turn(methods: Sequence[str], method: str) -> int:
    """Which of the methods of its hue a method is."""
    hue = style(methods, method)["hue"]
    return [m for m in methods if style(methods, m)["hue"] == hue].index(method)


def imbalance(results: Results, curves: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: win rate against the share of desirable, or undesirable, responses kept."""
    if curves.empty:
        return empty("No stage of this grid keeps a share of its data alone.")
    panels = list(curves[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = _row_of(panels, 0, 3.0)
    looks = {"desirable": ("#d55e00", "o", "-"), "undesirable": ("#0072b2", "s", (0, (5, 1.5)))}
    for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
        mine = of(curves, ("judge", "dataset", "model"), ids)
        for kept, (colour, marker, line) in looks.items():
            part = mine[mine["kept"] == kept]
            ax.plot(part["share"], part["mean"], marker=marker, linestyle=line, color=colour, linewidth=1.3,
                    markersize=4, label=f"{kept} kept")  # fmt: skip
            ax.fill_between(part["share"], part["low"], part["high"], color=colour, alpha=0.13, linewidth=0)
        ax.set_xscale("log")
        ticks = sorted(set(mine["share"]))
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_xticklabels([f"{100 * tick:g} %" for tick in ticks])
        ax.grid(axis="y")
        ax.set_title(panel_title(results, ids), loc="left")
        if index % COLUMNS == 0:
            ax.set_ylabel(f"win rate\n({interval_kind(results, short=True)})")
    axes[-1].legend(frameon=False, fontsize=7, loc="lower right")
    figure.supxlabel("share of one label kept, all of the other", fontsize=8)
    return figure


def length(results: Results, lengths: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: win rate against the mean length of responses; dashed: the baseline's."""
    shown = lengths.dropna(subset=["length", "win_rate"])
    if shown.empty:
        return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
    panels = list(shown[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    methods = [method for method in results.methods if method in set(shown["method"])]
    figure, axes = _row_of(panels, len(methods), 3.0)
    for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
        mine = of(shown, ("judge", "dataset", "model"), ids)
        for row in mine.to_dict("records"):
            s = style(methods, row["method"])
            ax.vlines(row["length"], row["low"], row["high"], color=s["color"], linewidth=0.8, alpha=0.6)
            face = s["color"] if s["filled"] else "white"
            marker = MARKERS[_turn(methods, row["method"]) % len(MARKERS)]
            ax.plot(row["length"], row["win_rate"], marker, color=s["color"], markerfacecolor=face, markersize=4.6,
                    markeredgewidth=1)  # fmt: skip
        ax.axvline(mine["baseline_length"].mean(), color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        ax.axhline(0.5, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.grid()
        ax.set_title(panel_title(results, ids), loc="left")
        if index % COLUMNS == 0:
            ax.set_ylabel(f"win rate\n({interval_kind(results, short=True)})")
    figure.supxlabel("mean characters of a response; dashed: the baseline's", fontsize=8)
    labels = [results.method_label(method) for method in methods]
    _legend(figure, methods, labels, [MARKERS[_turn(methods, m) % len(MARKERS)] for m in methods])
    return figure


def cost(results: Results, costs: pd.DataFrame) -> Figure:
    """A row per dataset and model; bars of wall time, memory and tokens per second of each method's training."""
    if costs.empty:
        return empty("No training in this grid: its only method is `base`.")
    panels = list(costs[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    quantities = {
        "seconds": "wall time (minutes)",
        "peak_memory_gb": "peak memory (GB)",
        "tokens_per_second": "tokens/s",
    }
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(panels), len(quantities), squeeze=False)
    methods = list(dict.fromkeys(costs["method"]))
    names = 0.075 * max(len(results.method_label(m)) for m in methods)
    figure.set_size_inches(1.8 * len(quantities) + names, len(panels) * (0.19 * len(methods) + 0.5) + 0.3)
    for (i, ids), (j, (key, title)) in product(enumerate(panels), enumerate(quantities.items())):
        ax = axes[i, j]
        mine = of(costs, ("dataset", "model"), ids).reset_index(drop=True)
        values = mine[key] / (60 if key == "seconds" else 1)
        ax.barh(mine.index, values, color=[style(methods, m)["color"] for m in mine["method"]], height=0.66)
        labels = [results.method_label(m) for m in mine["method"]] if j == 0 else [""] * len(mine)
        ax.set_yticks(mine.index, labels)
        ax.set_ylim(len(mine) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
        if i == len(panels) - 1:
            ax.set_xlabel(title)
        if j == 0:
            ax.set_title(results.panel_label(*ids), loc="left")
    return figure


def _row_of(panels: Sequence[Any], entries: int, width: float) -> tuple[Figure, list[Axes]]:
    """At most COLUMNS panels side by side, and room for a legend of so many entries."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.set_size_inches(width * columns + (1.7 if entries else 0.3), max(2.6 * rows, 0.16 * entries + 0.4))
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure, axes[: len(panels)]


def _legend(
    figure: Figure, methods: Sequence[str], labels: Sequence[str], markers: Sequence[str] | None = None
) -> None:
    handles = []
    for k, method in enumerate(methods):
        s = style(methods, method)
        face = s["color"] if s["filled"] else "white"
        handles.append(
            Line2D([], [], color=s["color"], linestyle="" if markers else s["line"], linewidth=1.2, markeredgewidth=1,
                   marker=markers[k] if markers else "o", markersize=4, markerfacecolor=face)
        )  # fmt: skip
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.8)
