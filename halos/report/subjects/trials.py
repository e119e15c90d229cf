"""Trials: the settings that were tried, and what each reached on validation prompts."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from halos.report.choices import how_chosen, measure_text, settings_columns, settings_text, value_text
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import empty, part_of
from halos.report.render import Bold, Table, interval
from halos.report.results import Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, number_of, records, row_names
from halos.study.choice import Choice

TRIALS = [*ROW, "trial", "chosen", "diverged", "measure", "value", "low", "high", "n", "steps", "seconds"]
NO_SWEEP = "No stage of this grid has a sweep."
WIDE = 8
"""Quotient of the largest and the least value of a setting from which on its axis is logarithmic. Values that are drawn
from a logarithmic range of a factor of ten differ by less than that."""
TICKS = 5
"""Values that an axis has a tick each for; where there are more, it has ticks of its own."""


@subject
class Trials(Subject):
    table = "trials"
    title = "Trials"
    figure = "sensitivity"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.sweeps)

    def tabulates(self, grid: Outline | Results) -> bool:
        return bool(grid.sweeps)

    def frame(self, results: Results) -> pd.DataFrame:
        """A row per trial, with a column for each setting that is swept: by method, the best trial first and those that
        diverged, which have no value, last."""
        lines = []
        for cell, choice in results.choices.items():
            known = [name for name, trial in choice.trials.items() if trial.value is not None]
            known.sort(key=lambda name: number_of(choice.trials[name].value), reverse=not choice.lowest)
            for name in (*known, *(name for name in choice.trials if name not in known)):
                trial = choice.trials[name]
                about: dict[str, Any] = {"trial": name, "chosen": name == choice.chosen, "diverged": name not in known}
                about |= {"measure": choice.measure, "n": number_of(choice.n)}
                about |= {key: number_of(getattr(trial, key)) for key in ("value", "low", "high")}
                about |= {"steps": trial.steps, "seconds": trial.seconds}
                ids = dict(zip(ROW, (cell.dataset, cell.model, cell.method), strict=True))
                lines.append({**ids, **about, **settings_columns(trial.settings)})
        frame = pd.DataFrame(lines, columns=None if lines else TRIALS)
        return frame[[*TRIALS, *(column for column in frame if column not in TRIALS)]]

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table(NO_SWEEP, [], ["Method"])]
        settings = {
            (cell.dataset, cell.model, cell.method, name): trial.settings
            for cell, choice in results.choices.items()
            for name, trial in choice.trials.items()
        }
        lines = []
        for row in records(frame):
            texts = {
                "Settings": settings_text(settings[tuple(row[key] for key in (*ROW, "trial"))]),
                "Validation value": "diverged" if row["diverged"] else interval(row["value"], row["low"], row["high"]),
            }
            marked = {title: Bold(text) if row["chosen"] else text for title, text in texts.items()}
            lines.append(row_names(results, row) | marked)
        caption = (
            f"{how_chosen(results)} Brackets: 95 % interval of a trial by itself. Bold: chosen; its value looks better "
            "than it is, because it is the best of several. A trial that diverged was not chosen."
        )
        return [Table(caption, lines)]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A row per method, a panel per swept setting: the validation value of each trial against its setting."""
        if frame.empty:
            return empty(NO_SWEEP)
        looks, choices = looks_of(results), results.choices
        names = list(dict.fromkeys(name for choice in choices.values() for name in _swept(choice)))
        figure = mpl.figure.Figure(layout="constrained")
        axes = figure.subplots(len(choices), len(names), squeeze=False, sharey="row")
        figure.set_size_inches(2.1 * len(names) + 0.8, 1.75 * len(choices) + 0.35)
        for (i, (cell, choice)), (j, name) in product(enumerate(choices.items()), enumerate(names)):
            ax = axes[i, j]
            if name not in _swept(choice):
                ax.remove()
                continue
            part = part_of(frame, ROW, (cell.dataset, cell.model, cell.method)).set_index("trial")
            look = looks[cell.method]
            places = _axis(ax, {trial: tried.settings[name] for trial, tried in choice.trials.items()})
            for trial, x in places.items():
                row = part.loc[trial]
                if row["diverged"]:
                    ax.plot(x, 0.05, "x", color=look.colour, markersize=4, transform=ax.get_xaxis_transform())
                    continue
                ax.vlines(x, row["low"], row["high"], color=look.colour, linewidth=0.8, alpha=0.6)
                ax.plot(x, row["value"], look.marker, color=look.colour, markerfacecolor=look.face, markersize=4)
                if row["chosen"]:
                    ax.plot(x, row["value"], "o", color="#222222", markerfacecolor="none", markersize=9, mew=1)
            ax.grid(axis="y")
            ax.set_xlabel(name)
            if name == _swept(choice)[0]:
                panel = results.panel_label(cell.dataset, cell.model)
                title = results.method_label(cell.method)
                several = len(results.datasets) * len(results.models) > 1
                ax.set_title(f"{title} ({panel})" if several else title, loc="left")
                ax.set_ylabel(measure_text(results, choice).replace(" by ", "\nby ").replace(" of ", "\nof ", 1))
                ax.tick_params(labelleft=True)
        diverged = "; ×: diverged" if frame["diverged"].any() else ""
        figure.supxlabel(f"each point is a trial, with its 95 % interval; ring: chosen{diverged}", fontsize=7.5)
        return figure


def _swept(choice: Choice) -> list[str]:
    return list(choice.winner.settings)


def _axis(ax: mpl.axes.Axes, values: dict[str, Any]) -> dict[str, float]:
    """Set up an axis for the values that trials have of one setting.

    Returns:
        The place of each trial, with those of equal values side by side.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    names = list(dict.fromkeys(map(value_text, values.values())))
    at = {trial: float(value if numeric else names.index(value_text(value))) for trial, value in values.items()}
    log = numeric and 0 < WIDE * min(at.values()) < max(at.values())
    ticks = {x: value_text(values[trial]) for trial, x in at.items()}
    if log:
        ax.set_xscale("log")
        at = {trial: float(np.log10(x)) for trial, x in at.items()}
    room = 0.12 * (max(at.values()) - min(at.values())) or 0.5
    equal = {x: [trial for trial in at if at[trial] == x] for x in at.values()}
    places = {t: x + 0.3 * room * (equal[x].index(t) - (len(equal[x]) - 1) / 2) for t, x in at.items()}
    limits = min(places.values()) - room, max(places.values()) + room
    ax.set_xlim(*(10**x if log else x for x in limits))
    if not numeric or len(ticks) <= TICKS:
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(list(ticks)))
        ax.xaxis.set_major_formatter(mpl.ticker.FixedFormatter(list(ticks.values())))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    elif log:
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: value_text(float(value))))
        ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    else:
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    return {trial: 10**x if log else x for trial, x in places.items()}
