"""Rounds: how a win rate and a score move over the rounds of online stages."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from halos.report import statistics
from halos.report.measures import ROW, pooled_seeds, rows
from halos.report.panels import empty, of, panel_title
from halos.report.results import SCORE, WIN, Results
from halos.report.style import style
from halos.report.words import interval_kind
from halos.study.cells import BASE

ROUNDS = ["judge", *ROW, "round", "measure", "mean", "low", "high", "seeds", "prompts"]


def rounds_frame(results: Results) -> pd.DataFrame:
    """Score, or win rate where a judge gives no score, after each round of the methods that are trained online: over
    all seeds, with interval. Round 0 is the parent method, where the grid has it."""
    found = []
    for judge, ids in product(results.judges, rows(results)):
        cells = [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]
        last = max(map(results.rounds, cells))
        parent = ids[2].rsplit("-", 1)[0] if "-" in ids[2] else BASE
        measure = SCORE if not results.values(judge, *ids, SCORE).empty else WIN
        for number in range(last + 1) if last else ():
            method, of_round = (ids[2], number % last) if number else (parent, 0)
            values = results.values(judge, *ids[:2], method, measure, of_round)
            if values.empty:
                continue
            seeds = pooled_seeds(results, judge, *ids[:2], measure)
            e = statistics.estimate(values, bounded=results.bounded(judge, measure), seeds=seeds)
            found.append((judge, *ids, number, measure, e.mean, e.low, e.high, e.seeds, e.prompts))
    return pd.DataFrame(found, columns=ROUNDS)


def draw_rounds(results: Results, over_rounds: pd.DataFrame) -> Figure:
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
