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

TRIALS = [*ROW, "trial", "chosen", "diverged", "measure", "value", "low", "high", "n", "steps", "seconds"]
NO_SWEEP = "No stage of this grid has a sweep."
WIDE = 20
"""Quotient of two values of a setting from which on their axis is logarithmic."""
TICKS = 5
"""Values that an axis has a tick each for; where there are more, it has ticks of its own."""
CLOSE = 0.05
"""Distance, of the length of an axis, below which two points cannot be told apart; and width of a digit."""


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
        figure = mpl.figure.Figure(layout="constrained")
        columns = max(len(choice.winner.settings) for choice in choices.values())
        axes = figure.subplots(len(choices), columns, squeeze=False, sharey="row")
        figure.set_size_inches(max(3.6, 2.1 * columns + 0.8), 1.75 * len(choices) + 0.35)
        for (i, (cell, choice)), j in product(enumerate(choices.items()), range(columns)):
            ax = axes[i, j]
            if j >= len(choice.winner.settings):
                ax.remove()
                continue
            name = list(choice.winner.settings)[j]
            part = part_of(frame, ROW, (cell.dataset, cell.model, cell.method)).set_index("trial")
            look = looks[cell.method]
            places = value_axis(ax, {trial: tried.settings[name] for trial, tried in choice.trials.items()})
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
            if j == 0:
                panel = results.panel_label(cell.dataset, cell.model)
                title = results.method_label(cell.method)
                several = len(results.datasets) * len(results.models) > 1
                ax.set_title(f"{title} ({panel})" if several else title, loc="left")
                ax.set_ylabel(measure_text(results, choice).replace(" by ", "\nby ").replace(" of ", "\nof ", 1))
        diverged = "; ×: diverged" if frame["diverged"].any() else ""
        figure.supxlabel(f"each point is a trial, with its 95 % interval; ring: chosen{diverged}", fontsize=7.5)
        return figure


def _logarithmic(values: list[float]) -> bool:
    """Whether values are spread more evenly on a logarithmic axis: their largest gap is less of the whole there. Of two
    values, whether they are far apart."""
    x = np.unique(values)
    if len(x) < 2 or x[0] <= 0:
        return False
    if len(x) == 2:
        return bool(x[1] > WIDE * x[0])
    return bool(np.diff(np.log(x)).max() / np.log(x[-1] / x[0]) < np.diff(x).max() / (x[-1] - x[0]))


def value_axis(ax: mpl.axes.Axes, values: dict[str, Any]) -> dict[str, float]:
    """Set up an axis for the values that trials have of one setting: a discrete one for names, and for a few numbers
    that could not be told apart.

    Returns:
        The place of each trial, with those of equal values side by side.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    shown = {trial: value_text(value) for trial, value in values.items()}
    log = numeric and _logarithmic(list(values.values()))
    at = {trial: float(np.log10(x) if log else x) for trial, x in values.items()} if numeric else {}
    gaps = np.diff(np.unique(list(at.values())))
    few = len(gaps) < TICKS
    nearest = gaps.min() / gaps.sum() if len(gaps) else 1.0
    if not numeric or (few and not log and nearest < CLOSE):
        names = list(dict.fromkeys(shown[trial] for trial in (sorted(at, key=at.__getitem__) or shown)))
        at, few = {trial: float(names.index(name)) for trial, name in shown.items()}, True
    elif nearest < CLOSE * max(map(len, shown.values())):
        few = False
    room = 0.12 * (max(at.values()) - min(at.values())) or 0.5
    equal = {x: [trial for trial in at if at[trial] == x] for x in at.values()}
    places = {t: x + 0.3 * room * (equal[x].index(t) - (len(equal[x]) - 1) / 2) for t, x in at.items()}
    limits = min(places.values()) - room, max(places.values()) + room
    ax.set(xscale="log" if log else "linear", xlim=[10**x if log else x for x in limits])
    if few:
        ticks = {10**x if log else x: shown[trial] for trial, x in at.items()}
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(list(ticks)))
        ax.xaxis.set_major_formatter(mpl.ticker.FixedFormatter(list(ticks.values())))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    else:
        subs = (1.0, 2.0, 5.0) if limits[1] - limits[0] < 2 else (1.0,)
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=subs) if log else mpl.ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: value_text(float(value))))
        ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    return {trial: 10**x if log else x for trial, x in places.items()}
