"""Size: win rate by the parameters of the model."""

from __future__ import annotations

from itertools import product

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halos.report.measures import ALL
from halos.report.panels import empty, legend, of
from halos.report.results import WIN, Results
from halos.report.style import GUIDE, style
from halos.report.words import interval_kind

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
    legend(figure, drawn, [methods[method] for method in drawn])
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


SIZES = ["judge", "dataset", "family", "model", "parameters", "method", "mean", "low", "high", "seeds", "prompts"]


def sizes(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """Win rate of each method by the parameters of its model, over all seeds, with interval; models of one family
    together, the smallest first. Models whose size nobody knows are left out; one size alone is nothing to compare."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == ALL)]
    of_model = {model: (results.family(model), results.parameters(model)) for model in results.models}
    frame = wins.assign(
        family=[of_model[model][0] for model in wins["model"]],
        parameters=[of_model[model][1] for model in wins["model"]],
    ).dropna(subset="parameters")
    if frame["parameters"].nunique() < 2:
        frame = frame[:0]
    order = [results.methods.index(method) for method in frame["method"]]
    families = list(dict.fromkeys(frame["family"]))
    frame = frame.assign(at=[families.index(family) for family in frame["family"]], order=order)
    frame = frame.sort_values(["judge", "dataset", "at", "order", "parameters"], kind="stable")
    return frame[SIZES].reset_index(drop=True)
