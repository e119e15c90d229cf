"""Curves: the validation value of several methods against the one setting that all of them vary."""

from __future__ import annotations

from collections import Counter

from halos.report.choices import scale
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import empty, legend, panels_of, part_of, row_of_panels
from halos.report.results import Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.trials import value_axis
from halos.train.settings import Stage

CURVES = ["setting", "measure", *ROW, "x", "value", "low", "high"]
PANEL = ("setting", "measure", "dataset", "model")


@subject
class Curves(Subject):
    figure = "curves"

    def shows(self, grid: Outline) -> bool:
        numbers = Counter(setting for stage in grid.stages if (setting := _only(stage)) is not None)
        return max(numbers.values(), default=0) > len(grid.models)

    def frame(self, results: Results) -> pd.DataFrame:
        """The value of each trial, but for those that diverged, of methods that vary one setting, which is a number."""
        lines = []
        for cell, choice in results.choices.items():
            if len(choice.winner.settings) > 1:
                continue
            (setting,) = choice.winner.settings
            ids = (setting, scale(results, cell, choice), cell.dataset, cell.model, cell.method)
            values = {trial.settings[setting]: trial for trial in choice.trials.values() if trial.value is not None}
            if all(isinstance(x, int | float) for x in values):
                lines += [(*ids, x, values[x].value, values[x].low, values[x].high) for x in sorted(values)]
        return pd.DataFrame(lines, columns=CURVES)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per setting, measure, dataset and model: a line with intervals for each method."""
        if frame.empty:
            return empty("No two methods of this grid vary the same setting and no other.")
        panels, looks = panels_of(frame, PANEL), looks_of(results)
        methods = list(dict.fromkeys(frame["method"]))
        figure, axes = row_of_panels(panels, len(methods), 3.4)
        for ax, ids in zip(axes, panels, strict=True):
            part = part_of(frame, PANEL, ids)
            places = value_axis(ax, {str(x): x for x in part["x"]})
            for method, line in part.groupby("method", sort=False):
                look, x = looks[str(method)], [places[str(x)] for x in line["x"]]
                ax.plot(x, line["value"], color=look.colour, linestyle=look.line, linewidth=1.3)
                ax.plot(x, line["value"], look.marker, color=look.colour, markerfacecolor=look.face, markersize=4.2)
                ax.vlines(x, line["low"], line["high"], color=look.colour, linewidth=0.9, alpha=0.6)
            ax.grid(axis="y")
            ax.set_title(results.panel_label(*ids[2:]), loc="left")
            ax.set_xlabel(ids[0])
            ax.set_ylabel(ids[1].replace(" by ", "\nby ").replace(" of ", "\nof ", 1))
        figure.supxlabel("validation prompts; vertical lines: 95 % interval of a value", fontsize=7.5)
        legend(figure, looks, {method: results.method_label(method) for method in methods}, lines=True)
        return figure


def _only(stage: Stage) -> str | None:
    """The only setting that a stage varies, if there is one."""
    return next(iter(stage.sweep)) if len(stage.sweep) == 1 else None
