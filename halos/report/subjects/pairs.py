"""Pairs: every pair of methods on the same prompts, as a matrix of win rates, and Bradley-Terry strengths from them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, product
from typing import Any

import numpy as np

from halos.report import statistics, strengths
from halos.report.lazy import mpl, pd
from halos.report.measures import ALL, ROW
from halos.report.panels import PANEL, empty, guide, panel_title, panels_of, part_of
from halos.report.render import NOTHING, Bold, Table, interval, number
from halos.report.results import WIN, Results
from halos.report.statistics import Estimate
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, interval_kind, range_text, records, row_names, seeds_text

PAIRS = ["judge", *ROW, "against", "measure", "mean", "low", "high", "seeds", "prompts"]
STRENGTH = "strength"
LEGIBLE = 16
"""Methods from which on a matrix has no numbers in its cells, and is no table."""
NOT_LINKED = "The compared pairs do not link all of these methods, so that their strengths have no common scale."


@subject
class Pairs(Subject):
    table = figure = "pairs"
    title = "Every pair of methods"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.pairs)

    def tabulates(self, grid: Outline | Results) -> bool:
        return bool(grid.pairs)

    def frame(self, results: Results) -> pd.DataFrame:
        """The win rate of each pair's first method against its second, and the strength of each method: against `all`.

        A tie counts half, whatever it is worth against the baseline.
        """
        estimates: list[tuple[Any, ...]] = []
        for judge, dataset, model in product(results.pairs, results.datasets, results.models):
            pairs, values = results.pairs[judge], results.pair_values(judge, dataset, model)
            decided = [k for k, table in enumerate(values) if not np.isnan(table).all()]
            if not decided:
                continue
            pairs, values = [pairs[k] for k in decided], values[decided]
            methods = [method for method in results.methods if method in chain(*pairs)]
            for (method, against), e in zip(pairs, win_rates(values, len(methods)), strict=True):
                ids = (judge, dataset, model, method, against, WIN)
                estimates.append((*ids, e.mean, e.low, e.high, e.seeds, e.prompts))
            indices = [(methods.index(method), methods.index(against)) for method, against in pairs]
            if strengths.linked(indices, len(methods)):
                for method, e in zip(methods, strengths.strengths(indices, values), strict=True):
                    ids = (judge, dataset, model, method, ALL, STRENGTH)
                    estimates.append((*ids, e.mean, e.low, e.high, e.seeds, e.prompts))
        return pd.DataFrame(estimates, columns=PAIRS)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        page: list[Table | str] = []
        for ids in panels_of(frame):
            part = part_of(frame, PANEL, ids)
            title, judge = panel_title(results, ids), results.label("judges", ids[0])
            methods = _methods(results, part)
            ranked = records(part[part["measure"] == STRENGTH].sort_values("mean", ascending=False, kind="stable"))
            rates = _matrix(part, methods, "mean")
            overall = dict(zip(methods, np.nanmean(rates, axis=1), strict=True))
            caption = (
                f"Judge: {judge}; each pair of methods over the n = {range_text(part['prompts'])} prompts that both "
                f"answered, {seeds_text(results)}, a tie counting half. Strength: the log odds of winning in the model "
                "of Bradley and Terry, of mean 0: of two methods, one wins with the odds exp of the difference. "
                f"Brackets: {interval_kind(results)}. Win rate: mean over the other methods."
            )
            lines = [
                row_names(results, row)
                | {"Strength": interval(row["mean"], row["low"], row["high"])}
                | {"Win rate": number(overall[row["method"]])}
                for row in ranked
            ]
            page.append(Table(caption, lines, title=title) if lines else NOT_LINKED)
            if len(methods) < LEGIBLE:
                page.append(Table(*_matrix_text(results, part, methods)))
        return page or [Table("No pair of methods of this grid was judged.", [], ["Method"])]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """For each judge, dataset and model: the matrix of win rates, row against column, and the strengths."""
        if frame.empty:
            return empty("No pair of methods of this grid was judged.")
        panels, looks = panels_of(frame), looks_of(results)
        longest = max(len(results.method_label(method)) for method in results.methods)
        of_panels = {ids: _methods(results, part_of(frame, PANEL, ids)) for ids in panels}
        most = max(map(len, of_panels.values()))
        cell = 0.27 if most < LEGIBLE else 0.17
        figure = mpl.figure.Figure(layout="constrained")
        figure.set_size_inches(cell * most + 0.14 * longest + 4.0, len(panels) * (cell * most + 0.07 * longest + 0.8))
        axes = figure.subplots(len(panels), 2, squeeze=False, width_ratios=[cell * most, 2.2])
        image = None
        for (left, right), (ids, methods) in zip(axes, of_panels.items(), strict=True):
            part = part_of(frame, PANEL, ids)
            names = [results.method_label(method) for method in methods]
            image = _draw_matrix(left, part, methods, names)
            left.set_title(panel_title(results, ids), loc="left")
            right.set_title("Bradley-Terry strength", loc="left")
            _draw_strengths(right, part, methods, looks)
        assert image is not None
        bar = figure.colorbar(
            image, ax=axes[:, 0].tolist(), location="left", shrink=0.7 / len(panels), aspect=30, pad=0.02
        )
        bar.set_label("win rate of the row against the column")
        bar.outline.set_visible(False)
        axes[-1, 1].set_xlabel(f"log odds, mean 0\n({interval_kind(results, short=True)})")
        return figure


def win_rates(values: statistics.Array, methods: int) -> list[Estimate]:
    """The win rate of each pair.

    With two seeds the variance between them is taken to be the same for all pairs, in logits. Pairs share their
    methods, so that it has only the methods' degrees of freedom.

    Args:
        values: (pairs, seeds, prompts).
        methods: how many there are.
    """
    seeds = None
    if values.shape[1] == 2:
        seeds = statistics.pooled(list(values), bounded=True)
        seeds = replace(seeds, df=min(seeds.df, methods - 1))
    return [statistics.estimate(table, bounded=True, seeds=seeds) for table in values]


def _methods(results: Results, part: pd.DataFrame) -> list[str]:
    """The methods of some pairs, in the grid's order."""
    named = {*part["method"], *part["against"]}
    return [method for method in results.methods if method in named]


def _matrix(part: pd.DataFrame, methods: list[str], column: str) -> statistics.Array:
    """(methods, methods) of the win rates' mean, low or high, row against column; NaN for a pair not compared."""
    matrix = np.full((len(methods), len(methods)), np.nan)
    other = {"mean": "mean", "low": "high", "high": "low"}[column]
    for row in records(part[part["measure"] == WIN]):
        i, j = methods.index(row["method"]), methods.index(row["against"])
        matrix[i, j], matrix[j, i] = row[column], 1 - row[other]
    return matrix


def _clear(part: pd.DataFrame, methods: list[str]) -> Any:
    """(methods, methods): whether a pair's interval leaves out one half."""
    return (_matrix(part, methods, "low") > 0.5) | (_matrix(part, methods, "high") < 0.5)


def _matrix_text(results: Results, part: pd.DataFrame, methods: list[str]) -> tuple[str, list[dict[str, str]]]:
    """Caption and lines of the matrix as a table."""
    rates, clear = _matrix(part, methods, "mean"), _clear(part, methods)
    lines = []
    for i, method in enumerate(methods):
        line = {"Method": results.method_label(method)}
        for j, against in enumerate(methods):
            text = NOTHING if np.isnan(rates[i, j]) else number(rates[i, j], 2)
            line[results.method_label(against)] = Bold(text) if clear[i, j] else text
        lines.append(line)
    pairs = int((part["measure"] == WIN).sum())
    caption = (
        "Win rate of each row against each column. Bold: the pair's own 95 % interval leaves out one half, as that of "
        f"one in twenty equal pairs does: among {pairs} pairs, some {pairs / 20:.1g}."
    )
    return caption, lines


def _draw_matrix(ax: mpl.axes.Axes, part: pd.DataFrame, methods: list[str], names: list[str]) -> Any:
    rates, clear = _matrix(part, methods, "mean"), _clear(part, methods)
    image = ax.imshow(rates, cmap="PuOr_r", vmin=0, vmax=1, aspect="equal")
    for i, j in np.argwhere(~np.isnan(rates)) if len(methods) < LEGIBLE else ():
        text = f"{100 * rates[i, j]:.0f}"
        colour = "white" if abs(rates[i, j] - 0.5) > 0.32 else "#222222"
        ax.text(j, i, text, ha="center", va="center", fontsize=6, color=colour,
                fontweight="bold" if clear[i, j] else "normal")  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    for ticks in (ax.set_xticks, ax.set_yticks):
        ticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return image


def _draw_strengths(ax: mpl.axes.Axes, part: pd.DataFrame, methods: list[str], looks: Any) -> None:
    found = part[part["measure"] == STRENGTH]
    if found.empty:
        ax.text(0.5, 0.5, NOT_LINKED, ha="center", va="center", color="#555555", wrap=True, transform=ax.transAxes)
    for row in records(found):
        look, y = looks[row["method"]], methods.index(row["method"])
        ax.plot([row["low"], row["high"]], [y, y], color=look.colour, linewidth=1.3, solid_capstyle="butt")
        ax.plot([row["mean"]], [y], "o", color=look.colour, markerfacecolor=look.face, markersize=4.6, mew=1.1)
    guide(ax, x=0.0)
    ax.grid(axis="x")
    ax.set_yticks(range(len(methods)), [""] * len(methods))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(methods) - 0.5, -0.5)
