"""Size: win rate by the number of parameters of the model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from halos.report.lazy import mpl, pd
from halos.report.measures import pooled
from halos.report.panels import empty, guide, legend, methods_of, panels_of, part_of
from halos.report.results import WIN, Results
from halos.report.style import Look, looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import interval_kind

SIZES = ["judge", "dataset", "family", "model", "parameters", "method", "mean", "low", "high", "seeds", "prompts"]
DODGE = 1.014
"""Factor by which points of one model are apart."""


@subject
class Size(Subject):
    figure = "size"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.judges) and len(grid.models) > 1

    def frame(self, results: Results) -> pd.DataFrame:
        """Win rate of each method by the parameters of its model, over all seeds, with interval: by family of models,
        the smallest first. Models of unknown size are left out; empty unless there are two sizes to compare."""
        wins = pooled(results, WIN)
        parameters = {model: results.parameters(model) for model in results.models}
        frame = wins.assign(
            family=[results.family(model) for model in wins["model"]],
            parameters=[parameters[model] for model in wins["model"]],
        ).dropna(subset="parameters")
        if frame["parameters"].nunique() < 2:
            frame = frame[:0]
        order = [results.methods.index(method) for method in frame["method"]]
        families = list(dict.fromkeys(frame["family"]))
        frame = frame.assign(at=[families.index(family) for family in frame["family"]], order=order)
        frame = frame.sort_values(["judge", "dataset", "at", "order", "parameters"], kind="stable")
        return frame[SIZES].reset_index(drop=True)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        if frame.empty:
            return empty("No judged model whose size is known.")
        methods = {method: results.method_label(method) for method in methods_of(results, frame)}
        titles = {judge: results.label("judges", judge) for judge in results.judges}
        titles |= {dataset: results.label("datasets", dataset) for dataset in results.datasets}
        return by_size(frame, methods, looks_of(results), titles, interval_kind(results, short=True))


def by_size(
    sizes: pd.DataFrame, methods: Mapping[str, str], looks: Mapping[str, Look], titles: Mapping[str, str], kind: str
) -> mpl.figure.Figure:
    """A panel per family of models (a row per judge and dataset), a line per method, parameters on a log axis.

    Args:
        sizes: as `Size.frame` gives them.
        methods: the label of each method that is drawn, in order.
        looks: of each method.
        titles: labels of judges and datasets; they are written where there are several.
        kind: of the intervals, in words.
    """
    keys = ("judge", "dataset")
    rows, families = panels_of(sizes, keys), list(dict.fromkeys(sizes["family"]))
    figure = mpl.figure.Figure(layout="constrained")
    axes = figure.subplots(len(rows), len(families), squeeze=False, sharey=True)
    figure.set_size_inches(2.7 * len(families) + 1.4, max(2.6 * len(rows), 0.16 * len(methods) + 0.6) + 0.3)
    for (i, ids), (j, family) in product(enumerate(rows), enumerate(families)):
        ax = axes[i, j]
        part = part_of(sizes, (*keys, "family"), (*ids, family))
        for number, method in enumerate(methods):
            line = part[part["method"] == method].sort_values("parameters")
            x = line["parameters"] * DODGE ** (number - (len(methods) - 1) / 2)
            look = looks[method]
            ax.plot(x, line["mean"], color=look.colour, linestyle=look.line, linewidth=1.2)
            ax.plot(x, line["mean"], look.marker, color=look.colour, markerfacecolor=look.face, markersize=3.8,
                    markeredgewidth=1)  # fmt: skip
            ax.vlines(x, line["low"], line["high"], color=look.colour, linewidth=0.7, alpha=0.55)
        _sizes_axis(ax, part["parameters"])
        guide(ax, y=0.5)
        ax.grid(axis="y")
        several = [titles.get(name, name) for key, name in zip(keys, ids, strict=True) if sizes[key].nunique() > 1]
        ax.set_title(", ".join([family, *several]), loc="left")
    figure.supylabel("win rate against the baseline", fontsize=8)
    figure.supxlabel(f"parameters ({kind})", fontsize=8)
    legend(figure, looks, methods, lines=True)
    return figure


def _sizes_axis(ax: mpl.axes.Axes, parameters: pd.Series) -> None:
    """A logarithmic axis with a tick for each model."""
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
