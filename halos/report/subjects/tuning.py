"""Tuning: the best validation value that methods are expected to reach, by the number of their trials."""

from __future__ import annotations

from halos.report.best_of import expected, expected_interval
from halos.report.choices import scale
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import empty, legend, panels_of, part_of, row_of_panels
from halos.report.results import Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.trials import NO_SWEEP

TUNING = ["measure", *ROW, "trials", "mean", "low", "high"]
PANEL = ("measure", "dataset", "model")


@subject
class Tuning(Subject):
    figure = "tuning"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.sweeps)

    def frame(self, results: Results) -> pd.DataFrame:
        """The expected best of 1, 2, ... trials of each method, with its interval (`best_of`). A trial that diverged
        counts like the worst one that did not: it has used up a trial. Of several snapshots of a trial the best one
        counts."""
        lines = []
        for cell, choice in results.choices.items():
            best, worst = (min, max) if choice.lowest else (max, min)
            reached = [[t.value for t in tried if t.value is not None] for tried in choice.trainings.values()]
            known = [best(values) for values in reached if values]
            values = known + [worst(known)] * (len(reached) - len(known))
            curve = zip(expected(values, choice.lowest), *expected_interval(values, choice.lowest), strict=True)
            ids = (scale(results, cell, choice), cell.dataset, cell.model, cell.method)
            lines += [(*ids, n, *estimate) for n, estimate in enumerate(curve, 1)]
        return pd.DataFrame(lines, columns=TUNING)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per measure, dataset and model, a line with a band for each method."""
        if frame.empty:
            return empty(NO_SWEEP)
        panels, looks = panels_of(frame, PANEL), looks_of(results)
        methods = list(dict.fromkeys(frame["method"]))
        figure, axes = row_of_panels(panels, len(methods), 3.0)
        for ax, ids in zip(axes, panels, strict=True):
            for method, line in part_of(frame, PANEL, ids).groupby("method", sort=False):
                look = looks[str(method)]
                ax.fill_between(line["trials"], line["low"], line["high"], color=look.colour, alpha=0.13, linewidth=0)
                ax.plot(line["trials"], line["mean"], color=look.colour, linestyle=look.line, linewidth=1.3)
                ax.plot(line["trials"], line["mean"], look.marker, color=look.colour, markerfacecolor=look.face,
                        markersize=3.6, markeredgewidth=1)  # fmt: skip
            ax.grid(axis="y")
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(8, integer=True))
            ax.set_title(results.panel_label(*ids[1:]), loc="left")
            ax.set_ylabel(f"expected best {ids[0]}".replace(" by ", "\nby ").replace(" of ", "\nof ", 1))
        figure.supxlabel("trials (band: 95 % bootstrap interval over trials)", fontsize=8)
        legend(figure, looks, {method: results.method_label(method) for method in methods}, lines=True)
        return figure
