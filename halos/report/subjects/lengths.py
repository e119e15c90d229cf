"""Lengths of responses beside win rates."""

from __future__ import annotations

from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from halos.report import statistics
from halos.report.measures import ALL, ROW, rows
from halos.report.panels import COLUMNS, MARKERS, empty, legend, marker_turn, of, panel_title, row_of
from halos.report.render import Table, interval, number, percent
from halos.report.results import WIN, Results, cells_of, number_of
from halos.report.style import GUIDE, style
from halos.report.words import NO_JUDGE, Page, interval_kind, records, row_names, seeds_text


def lengths_page(results: Results, long: pd.DataFrame) -> Page:
    if long.empty:
        return [Table(NO_JUDGE, [], ["Method"])]
    page: list[Table | str] = []
    for judge, of_judge in long.groupby("judge", sort=False):
        controlled = of_judge["controlled"].notna().any()
        shown = []
        for row in records(of_judge):
            line = row_names(results, row)
            line["Length"] = number(row["length"], 0)
            line["Baseline"] = number(row["baseline_length"], 0)
            line["Win rate"] = interval(row["win_rate"], row["low"], row["high"])
            if controlled:
                line["At equal length"] = interval(row["controlled"], row["controlled_low"], row["controlled_high"])
            line |= {"Cut off": percent(row["cut"]), "Ties": str(row["ties"]), "Failures": str(row["failures"])}
            shown.append(line)
        caption = (
            f"Judge: {results.label('judges', str(judge))}. Length, baseline: mean characters of both's responses. "
            f"Brackets: {interval_kind(results)}. Cut off: responses that reached the token limit. "
            f"Ties and failures: of {seeds_text(results)}."
            + (" At equal length: the length-controlled win rate." if controlled else "")
        )
        page.append(Table(caption, shown))
    return page


def length(results: Results, lengths: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: win rate against the mean length of responses; dashed: the baseline's."""
    shown = lengths.dropna(subset=["length", "win_rate"])
    if shown.empty:
        return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
    panels = list(shown[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    methods = [method for method in results.methods if method in set(shown["method"])]
    figure, axes = row_of(panels, len(methods), 3.0)
    for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
        mine = of(shown, ("judge", "dataset", "model"), ids)
        for row in mine.to_dict("records"):
            s = style(methods, row["method"])
            ax.vlines(row["length"], row["low"], row["high"], color=s["color"], linewidth=0.8, alpha=0.6)
            face = s["color"] if s["filled"] else "white"
            marker = MARKERS[marker_turn(methods, row["method"]) % len(MARKERS)]
            ax.plot(row["length"], row["win_rate"], marker, color=s["color"], markerfacecolor=face, markersize=4.6,
                    markeredgewidth=1)  # fmt: skip
        ax.axvline(mine["baseline_length"].mean(), color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        ax.axhline(0.5, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.grid()
        ax.set_title(panel_title(results, ids), loc="left")
        if index % COLUMNS == 0:
            ax.set_ylabel(f"win rate\n({interval_kind(results, short=True)})")
    figure.supxlabel("mean characters of a response; dashed: the baseline's", fontsize=8)
    labels = [results.method_label(method) for method in methods]
    legend(figure, methods, labels, [MARKERS[marker_turn(methods, m) % len(MARKERS)] for m in methods])
    return figure


LENGTHS = ["judge", *ROW, "length", "baseline_length", "cut", "ties", "failures", "not_judged", "win_rate", "low",
           "high", "controlled", "controlled_low", "controlled_high", "seeds"]  # fmt: skip


def lengths(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """What may flatter or spoil a win rate: mean response lengths (characters), responses cut off, ties, failures, and
    the win rate at equal lengths where the judge gives one."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == ALL)]
    rate = {tuple(row[:4]): tuple(row[4:]) for row in wins[["judge", *ROW, "mean", "low", "high"]].to_numpy()}
    found = []
    for judge, ids in product(results.judges, rows(results)):
        cells = cells_of(results, ids)
        js = [results.judged[cell, judge] for cell in cells]
        length = [np.mean([number_in(j, "mean_length", side) for j in js]) for side in ("candidate", "baseline")]
        counts = [sum(j.get(name) or 0 for j in js) for name in ("ties", "failures", "not_judged")]
        controlled = [number_of(j.get("length_controlled_win_rate")) for j in js]
        errors = [number_of(j.get("length_controlled_standard_error")) for j in js]
        e = statistics.over_seeds(controlled, errors)
        cut = np.mean([results.cut(cell, judge) for cell in cells])
        of_win = rate.get((judge, *ids), (np.nan,) * 3)
        found.append((judge, *ids, *length, cut, *counts, *of_win, e.mean, e.low, e.high, len(cells)))
    return pd.DataFrame(found, columns=LENGTHS)


def number_in(content: dict[str, Any], *keys: str) -> float:
    """A number deep in a JSON object; NaN where it is not there."""
    found: Any = content
    for key in keys:
        found = (found or {}).get(key)
    return number_of(found)
