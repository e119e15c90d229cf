"""Curves: the validation value of methods against the one number that they vary.

A method that varies settings of a few names besides (true or false, cosine or linear) has a line for each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from halos.report.choices import scale, settings_text
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import empty, panels_of, part_of, row_of_panels
from halos.report.results import Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.trials import value_axis
from halos.train.sweep import Range

CURVES = ["setting", "measure", *ROW, "others", "x", "value", "low", "high"]
PANEL = ("setting", "measure", "dataset", "model")
LINE = ("method", "others")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
"""Looks of a method's lines for the values of other settings, in turn."""


@subject
class Curves(Subject):
    figure = "curves"

    def shows(self, grid: Outline) -> bool:
        lines: Counter[str] = Counter()
        for stage in grid.stages:
            number, others = _parted(stage.sweep)
            if number is not None:
                lines[number] += len({tuple(trial[name] for name in others) for trial in stage.tried.values()})
        return max(lines.values(), default=0) > len(grid.models)

    def frame(self, results: Results) -> pd.DataFrame:
        """The value of each trial, but for those that diverged, of methods that vary one number alone."""
        rows = []
        for cell, choice in results.choices.items():
            varied = {
                name: [trial.settings[name] for trial in choice.trials.values()] for name in choice.winner.settings
            }
            number, others = _parted(varied)
            if number is None:
                continue
            ids = (number, scale(results, cell, choice), cell.dataset, cell.model, cell.method)
            for trial in choice.trials.values():
                if trial.value is not None:
                    text = settings_text({name: trial.settings[name] for name in others})
                    rows.append((*ids, text, trial.settings[number], trial.value, trial.low, trial.high))
        frame = pd.DataFrame(rows, columns=CURVES)
        order = frame.groupby([*PANEL, "method", "others"], sort=False).ngroup()
        return frame.assign(order=order).sort_values(["order", "x"], kind="stable", ignore_index=True)[CURVES]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per setting, measure, dataset and model: a line with intervals for each method."""
        if frame.empty:
            return empty("No methods of this grid vary one number alone.")
        panels, looks = panels_of(frame, PANEL), looks_of(results)
        figure, axes = row_of_panels(panels, len(panels_of(frame, LINE)), 3.4)
        handles: dict[str, mpl.lines.Line2D] = {}
        for ax, ids in zip(axes, panels, strict=True):
            part = part_of(frame, PANEL, ids)
            places = value_axis(ax, {str(x): x for x in part["x"]})
            for method, others in panels_of(part, LINE):
                line = part_of(part, LINE, (method, others))
                look, x = looks[method], [places[str(x)] for x in line["x"]]
                variant = list(part.loc[part["method"] == method, "others"].unique()).index(others)
                label = ", ".join(filter(None, (results.method_label(method), others)))
                (handles[label],) = ax.plot(
                    x, line["value"], marker=look.marker, color=look.colour, markerfacecolor=look.face, markersize=4.2,
                    linestyle=LINES[variant % len(LINES)] if others else look.line, linewidth=1.3,
                )  # fmt: skip
                ax.vlines(x, line["low"], line["high"], color=look.colour, linewidth=0.9, alpha=0.6)
            ax.grid(axis="y")
            ax.set_title(results.panel_label(*ids[2:]), loc="left")
            ax.set_xlabel(ids[0])
            ax.set_ylabel(ids[1].replace(" by ", "\nby ").replace(" of ", "\nof ", 1))
        figure.supxlabel("validation prompts; vertical lines: 95 % interval of a value", fontsize=7.5)
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=7, frameon=False,
                      handlelength=2.8)  # fmt: skip
        return figure


def _parted(varied: dict[str, Any]) -> tuple[str | None, list[str]]:
    """The only setting of numbers among those that vary, None if there is another number of them; and the others."""
    numbers = [name for name, values in varied.items() if _are_numbers(values)]
    return numbers[0] if len(numbers) == 1 else None, [name for name in varied if name not in numbers]


def _are_numbers(values: Any) -> bool:
    return isinstance(values, Range) or all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
