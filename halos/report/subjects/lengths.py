"""Lengths: lengths of responses, and what else may flatter or spoil a win rate."""

from __future__ import annotations

from itertools import product

import numpy as np

from halos.report import statistics
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, pooled, rows
from halos.report.panels import (
    COLUMNS,
    PANEL,
    draw_marker,
    empty,
    guide,
    legend,
    methods_of,
    panel_title,
    panels_of,
    part_of,
    row_of_panels,
)
from halos.report.render import Table, interval, number, percent
from halos.report.results import WIN, Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import NO_JUDGE, Page, interval_kind, number_of, records, row_names, seeds_text

LENGTHS = ["judge", *ROW, "length", "baseline_length", "cut", "ties", "failures", "not_judged", "win_rate", "low",
           "high", "controlled", "controlled_low", "controlled_high", "seeds"]  # fmt: skip


@subject
class Lengths(Subject):
    table = "lengths"
    title = "Responses"
    figure = "length"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.judges)

    def frame(self, results: Results) -> pd.DataFrame:
        """Mean lengths of responses (characters), responses cut off, ties, failures, the win rate, and the win rate at
        equal lengths where the judge gives one."""
        wins = pooled(results, WIN)[["judge", *ROW, "mean", "low", "high"]]
        win_rates = {tuple(row[:4]): tuple(row[4:]) for row in wins.to_numpy()}
        lines = []
        for judge, ids in product(results.judges, rows(results)):
            judgements = results.judgements(judge, *ids)
            lengths = [
                np.mean([getattr(j.mean_length, side) for j in judgements]) for side in ("candidate", "baseline")
            ]
            counts = [sum(getattr(j, name) for j in judgements) for name in ("ties", "failures", "not_judged")]
            controlled = [number_of(j.length_controlled_win_rate) for j in judgements]
            errors = [number_of(j.length_controlled_standard_error) for j in judgements]
            e = statistics.over_seeds(controlled, errors)
            cut = np.mean([results.cut(cell, judge) for cell in results.cells_of(*ids)])
            win_rate = win_rates.get((judge, *ids), (np.nan,) * 3)
            lines.append((judge, *ids, *lengths, cut, *counts, *win_rate, e.mean, e.low, e.high, len(judgements)))
        return pd.DataFrame(lines, columns=LENGTHS)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table(NO_JUDGE, [], ["Method"])]
        page: list[Table | str] = []
        for judge, of_judge in frame.groupby("judge", sort=False):
            controlled = of_judge["controlled"].notna().any()
            lines = []
            for row in records(of_judge):
                line = row_names(results, row)
                line["Length"] = number(row["length"], 0)
                line["Baseline"] = number(row["baseline_length"], 0)
                line["Win rate"] = interval(row["win_rate"], row["low"], row["high"])
                if controlled:
                    line["At equal length"] = interval(row["controlled"], row["controlled_low"], row["controlled_high"])
                line |= {"Cut off": percent(row["cut"]), "Ties": str(row["ties"]), "Failures": str(row["failures"])}
                lines.append(line)
            caption = (
                f"Judge: {results.label('judges', str(judge))}. Length, baseline: mean characters of both's responses. "
                f"Brackets: {interval_kind(results)}. Cut off: responses that reached the token limit. "
                f"Ties and failures: of {seeds_text(results)}."
                + (" At equal length: the length-controlled win rate." if controlled else "")
            )
            page.append(Table(caption, lines))
        return page

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per judge, dataset and model: win rate against the mean length of responses; dashed: the baseline."""
        frame = frame.dropna(subset=["length", "win_rate"])
        if frame.empty:
            return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
        panels, looks, methods = panels_of(frame), looks_of(results), methods_of(results, frame)
        figure, axes = row_of_panels(panels, len(methods), 3.0)
        for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
            part = part_of(frame, PANEL, ids)
            for row in part.to_dict("records"):
                look = looks[row["method"]]
                ax.vlines(row["length"], row["low"], row["high"], color=look.colour, linewidth=0.8, alpha=0.6)
                draw_marker(ax, look, row["length"], row["win_rate"])
            guide(ax, x=part["baseline_length"].mean(), y=0.5)
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            ax.grid()
            ax.set_title(panel_title(results, ids), loc="left")
            if index % COLUMNS == 0:
                ax.set_ylabel(f"win rate\n({interval_kind(results, short=True)})")
        figure.supxlabel("mean characters of a response; dashed: the baseline's", fontsize=8)
        legend(figure, looks, {method: results.method_label(method) for method in methods})
        return figure
