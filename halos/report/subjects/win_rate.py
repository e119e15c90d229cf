"""Win rate of each method against a judge's baseline."""

from __future__ import annotations

import math
from itertools import product

from halos.report.lazy import mpl, pd
from halos.report.measures import measures
from halos.report.panels import PANEL, draw_points, empty, limits_of, method_grid, panel_title, part_of
from halos.report.results import WIN, Results
from halos.report.subject import Subject, subject
from halos.report.words import NO_JUDGE, interval_kind


@subject
class WinRate(Subject):
    """The main figure: every grid has it; without judges it says so."""

    figure = "win_rate"

    def frame(self, results: Results) -> pd.DataFrame:
        """Win rates over all seeds, with interval, and seed by seed."""
        frame = measures(results)
        return frame[frame["measure"] == WIN]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per judge, dataset and model; a point with interval per method, seeds as faint dots."""
        if frame.empty:
            return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
        panels = list(product(results.judges, results.datasets, results.models))
        columns = min(len(panels), 4)
        rows, width = math.ceil(len(panels) / columns), 2.3 if columns > 1 else 3.4
        figure, axes = method_grid(results, rows, columns, width)
        limits = limits_of([*frame["mean"], *frame["low"], *frame["high"], 0.5])
        for ax, ids in zip(axes.flat, panels, strict=False):
            draw_points(results, ax, part_of(frame, PANEL, ids), at=0.5)
            ax.set(xlim=limits, title=panel_title(results, ids))
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        figure.supxlabel(f"win rate against the baseline\n({interval_kind(results, short=True)})", fontsize=8)
        return figure
