"""Frontier: what each method gained against how far it went from its reference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from halos.report.measures import ALL, ROW, rows
from halos.report.panels import MARKERS, empty, legend, marker_turn, of, panel_title, row_of
from halos.report.results import SCORE, WIN, Results, cells_of
from halos.report.style import style
from halos.report.words import interval_kind
from halos.study.cells import Cell


def draw_frontier(results: Results, points: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: reward against the distance from the reference; a point per method, with a
    line through the methods of one loss."""
    if points.empty:
        return empty("No method of this grid is trained against a reference.")
    panels = list(points[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = row_of(panels, len(set(points["method"])), 3.4)
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
            marker = MARKERS[marker_turn(methods, row["method"]) % len(MARKERS)]
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
    legend(figure, methods, labels, [MARKERS[marker_turn(methods, m) % len(MARKERS)] for m in methods])
    return figure


FRONTIER = ["judge", *ROW, "loss", "beta", "measure", "reward", "low", "high", "kl", "kl_min", "kl_max", "seeds"]


def frontier_frame(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """What each method gained, and how far it went from its reference for it, over all seeds: the judge's score (or win
    rate, where it gives none; or the reward margin of the last evaluation, without a judge), and the log-ratio at the
    last evaluation, nats per response of the data. Losses without a reference are left out."""
    log = results.training
    if "kl" not in log:
        return pd.DataFrame(columns=FRONTIER)
    # "eval" comes before "train": what the fixed subset says, where it was asked
    ends = log[log["kl"].notna()].groupby([*ROW, "seed", "split"])["kl"].last().groupby(level=[*ROW, "seed"]).first()
    found = []
    for judge, (dataset, model, method) in product(results.judges or [""], rows(results)):
        cells = cells_of(results, (dataset, model, method))
        distances = [ends[key] for cell in cells if (key := tuple(cell.ids.values())) in ends.index]
        reward = _reward(results, judge, cells, measures, log)
        if not distances or reward is None:
            continue
        settings = results.settings(cells[0])
        ids = (judge, dataset, model, method, results.losses(cells[0])[-1], settings.get("beta", np.nan))
        found.append((*ids, *reward, np.mean(distances), min(distances), max(distances), len(distances)))
    return pd.DataFrame(found, columns=FRONTIER)


def _reward(
    results: Results, judge: str, cells: list[Cell], measures: pd.DataFrame, log: pd.DataFrame
) -> tuple[str, float, float, float] | None:
    first = cells[0]
    if judge:
        mine = measures[(measures["judge"] == judge) & (measures["seed"] == ALL)]
        mine = mine[(mine[ROW] == [first.dataset, first.model, first.method]).all(axis=1)].set_index("measure")
        name = next((measure for measure in (SCORE, WIN) if measure in mine.index), None)
        return None if name is None else (name, *mine.loc[name, ["mean", "low", "high"]])
    logged = log[(log[ROW] == [first.dataset, first.model, first.method]).all(axis=1)]
    if "rewards/margin" not in logged or logged["rewards/margin"].isna().all():
        return None
    margins = logged.dropna(subset="rewards/margin").groupby("seed")["rewards/margin"].last()
    return "margin", float(margins.mean()), float(margins.min()), float(margins.max())
