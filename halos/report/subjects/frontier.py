"""Frontier: the reward of each method against its distance from the reference."""

from __future__ import annotations

from itertools import product

import numpy as np

from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, pooled, rows
from halos.report.panels import (
    PANEL,
    draw_marker,
    empty,
    legend,
    methods_of,
    panel_title,
    panels_of,
    part_of,
    row_of_panels,
)
from halos.report.results import SCORE, WIN, Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import WHOSE, interval_kind
from halos.study.cells import BASE

FRONTIER = ["judge", *ROW, "loss", "beta", "measure", "reward", "low", "high", "kl", "kl_min", "kl_max",
            "kl_on", "seeds"]  # fmt: skip
MARGIN = "margin"


@subject
class Frontier(Subject):
    figure = "frontier"

    def shows(self, grid: Outline) -> bool:
        return any(stage.make_loss().needs_reference for stage in grid.stages)

    def frame(self, results: Results) -> pd.DataFrame:
        """Reward and distance from the reference of each method, over all seeds.

        The reward is the judge's score, or the win rate of a judge without scores, or the reward margin of the last
        evaluation in a grid without a judge. The distance is the log-ratio at the last evaluation, in nats per response
        of the data (`kl_on` data); or, in a grid with `divergence`, that on the method's own responses to the judge's
        prompts (`kl_on` samples). Losses without a reference are left out; on samples, those that start from another
        method than any loss with one.
        """
        log = results.training
        if "kl" not in log:
            return pd.DataFrame(columns=FRONTIER)
        compared = {ids[2] for ids in log.loc[log["kl"].notna(), ROW].drop_duplicates().itertuples(index=False)}
        starts = {_start(method) for method in compared}
        # "eval" comes before "train": the evaluation's value, where there is one
        ends = (
            log[log["kl"].notna()].groupby([*ROW, "seed", "split"])["kl"].last().groupby(level=[*ROW, "seed"]).first()
        )
        points = []
        for judge, ids in product(results.judges or [""], rows(results)):
            cells = results.cells_of(*ids)
            distances = [ends[key] for cell in cells if (key := tuple(cell.ids.values())) in ends.index]
            on = "data"
            if judge and results.divergence_prompts and ids[2] != BASE:
                prompts, on = results.judge_settings[judge].prompts, "samples"
                own = [results.divergence(cell, prompts).values() for cell in cells if _start(ids[2]) in starts]
                distances = [float(np.mean([*values])) for values in own]
            reward = _judged(results, judge, ids) if judge else _margin(log, ids)
            if not distances or reward is None:
                continue
            stage = results.settings(cells[0])
            parts = {} if not stage or isinstance(stage["loss"], str) else stage["loss"]
            beta = (parts.get(results.loss(ids[2])) or stage).get("beta", np.nan)
            spread = (np.mean(distances), min(distances), max(distances), on, len(distances))
            points.append((judge, *ids, results.loss(ids[2]), beta, *reward, *spread))
        return pd.DataFrame(points, columns=FRONTIER)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per judge, dataset and model: reward against distance from the reference; a point per method, a line
        through the methods of one loss."""
        if frame.empty:
            return empty("No method of this grid is trained against a reference.")
        panels, looks, methods = panels_of(frame), looks_of(results), methods_of(results, frame)
        figure, axes = row_of_panels(panels, len(methods), 3.4)
        for ax, ids in zip(axes, panels, strict=True):
            part = part_of(frame, PANEL, ids)
            for _, of_loss in part.groupby("loss", sort=False):
                line = of_loss.sort_values("kl")
                hue = looks[line["method"].iloc[0]].hue
                ax.plot(line["kl"], line["reward"], color=hue, linewidth=0.9, alpha=0.6, zorder=1.5)
            for row in part.to_dict("records"):
                look = looks[row["method"]]
                ax.vlines(row["kl"], row["low"], row["high"], color=look.colour, linewidth=0.7, alpha=0.55)
                ax.hlines(row["reward"], row["kl_min"], row["kl_max"], color=look.colour, linewidth=0.7, alpha=0.55)
                draw_marker(ax, look, row["kl"], row["reward"])
            ax.grid()
            name = {WIN: "win rate", MARGIN: "reward margin"}.get(part["measure"].iloc[0])
            name = name or results.score_name(ids[0])
            ax.set_ylabel(f"{name}\n({interval_kind(results, short=True) if ids[0] else 'range over seeds'})")
            ax.set_title(panel_title(results, ids) if ids[0] else results.panel_label(*ids[1:]), loc="left")
        on = frame["kl_on"].iloc[0]
        figure.supxlabel(f"log-ratio to the reference at the end (nats per {WHOSE[on]}; range over seeds)", fontsize=8)
        legend(figure, looks, {method: results.method_label(method) for method in methods})
        return figure


def _start(method: str) -> str:
    """The method that a method's last stage starts from."""
    return method.rpartition("-")[0] or BASE


Reward = tuple[str, float, float, float]
"""Name of the measure, mean, low and high."""


def _judged(results: Results, judge: str, ids: tuple[str, str, str]) -> Reward | None:
    estimates = part_of(pooled(results, SCORE, WIN), ("judge", *ROW), (judge, *ids)).set_index("measure")
    name = next((measure for measure in (SCORE, WIN) if measure in estimates.index), None)
    return None if name is None else (name, *estimates.loc[name, ["mean", "low", "high"]])


def _margin(log: pd.DataFrame, ids: tuple[str, str, str]) -> Reward | None:
    """The last reward margin: mean and range over seeds."""
    logged = part_of(log, ROW, ids)
    if "rewards/margin" not in logged or logged["rewards/margin"].isna().all():
        return None
    margins = logged.dropna(subset="rewards/margin").groupby("seed")["rewards/margin"].last()
    return MARGIN, float(margins.mean()), float(margins.min()), float(margins.max())
