"""Charts of a data report: the outcome of every row, and the lengths of texts."""

from __future__ import annotations

from itertools import product

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halos.report.dataset.counts import KEPT, NOT_EVALUATED
from halos.report.dataset.split import ROLES
from halos.report.style import GUIDE
from halos.tokens.report import TokensReport

OUTCOMES = {KEPT: "#0072b2", NOT_EVALUATED: "#999999"}
DROPPED = "#d55e00"


def draw_rows(rows: pd.DataFrame) -> Figure:
    """A panel per split, a group of bars per source: rows kept, and rows dropped by reason."""
    splits = [part for _, part in rows.groupby("split", sort=False) if part["rows"].any()]
    heights = [len(part) + 1.25 * part["source"].nunique() + 0.6 for part in splits]
    figure = Figure(layout="constrained", figsize=(6.4, 0.165 * sum(heights) + 0.75))
    axes = figure.subplots(len(splits), squeeze=False, sharex=True, height_ratios=heights)
    counts = rows.loc[rows["rows"] > 0, "rows"]
    log = counts.max() > 50 * counts.min()  # a bar of a fiftieth of the panel can just be seen
    for ax, part in zip(axes.flat, splits, strict=True):
        _bars(ax, part, log)
        ax.set_title(str(part["split"].iloc[0]), loc="left", fontweight="bold")
    left, right = (0.7, counts.max() ** 1.45) if log else (0, counts.max() * 1.3)
    axes[-1, 0].set(xlim=(left, max(right, 2)), xlabel="rows (log scale)" if log else "rows")
    return figure


def _bars(ax: Axes, part: pd.DataFrame, log: bool) -> None:
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    y, ticks, names = 0.0, [], []
    for source, outcomes in part.groupby("source", sort=False):
        total = int(outcomes["rows"].sum())
        ticks.append(y)
        names.append(f"{source}: {total:,} rows")
        for outcome, count in zip(outcomes["outcome"], outcomes["rows"], strict=True):
            y += 1
            ax.barh(y, count, height=0.72, color=OUTCOMES.get(outcome, DROPPED), linewidth=0)
            place = max(count, 0.7) if log else count
            label = f"{count:,}" + (f" ({_percent(count / total)})" if total else "")
            ax.annotate(label, (place, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
            ticks.append(y)
            names.append(outcome if outcome in (KEPT, NOT_EVALUATED) else f"dropped: {outcome}")
        y += 1.25
    ax.set_yticks(ticks, names)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if name.endswith(" rows") else "normal")
    ax.set_ylim(y - 0.6, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def draw_lengths(lengths: pd.DataFrame, limits: TokensReport) -> Figure:
    """A row per split: cumulative distributions of the lengths of prompts, responses by role, and sequences."""
    splits = list(lengths["split"].unique())
    panels = {"prompt": "max_prompt_length", "response": None, "total": "max_length"}
    titles = {"prompt": "prompts", "response": "responses", "total": "sequences"}
    figure = Figure(layout="constrained", figsize=(7.2, 1.95 * len(splits) + 0.55))
    axes = figure.subplots(len(splits), len(panels), squeeze=False, sharex="col", sharey=True)
    for (row, split), (column, (panel, limit)) in product(enumerate(splits), enumerate(panels.items())):
        ax = axes[row, column]
        texts = dict(list(lengths[lengths["split"] == split].groupby("text")))
        roles = [role for role in ROLES if panel == "response" and role in texts]
        for text in roles or [panel]:
            part = texts[text]
            line = ROLES.get(text, {"color": "#222222", "linewidth": 1.4})
            ax.step([part["tokens"].iloc[0], *part["tokens"]], [0, *part["share"]], where="post", label=text, **line)
        _length_axis(ax, lengths.loc[lengths["text"] == panel, "tokens"], limit, limits)
        ax.set_title(f"{split}: {texts[panel]['texts'].sum():,} {titles[panel]}", loc="left")
    for ax in axes[:, 0]:
        ax.set_ylabel("share at most so long")
    for ax in axes[-1]:
        ax.set_xlabel("tokens (log scale)")
    drawn = {line.get_label(): line for ax in axes[:, 1] for line in ax.lines if line.get_label() in ROLES}
    if drawn:
        figure.legend(handles=drawn.values(), loc="outside lower center", ncols=len(drawn), frameon=False, fontsize=7.5)
    return figure


def _length_axis(ax: Axes, tokens: pd.Series[int], limit: str | None, limits: TokensReport) -> None:
    most = tokens.max()
    if limit:
        at = getattr(limits, limit)
        most = max(most, at)
        ax.axvline(at, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
        ax.annotate(f"{limit} {at:,}", (at, 0.04), (-3, 0), textcoords="offset points",
                    rotation=90, fontsize=6.5, ha="right", va="bottom", color="#555555")  # fmt: skip
    ax.set(xscale="log", xlim=(max(1, tokens.min()) / 1.15, 1.15 * most), ylim=(0, 1.03))
    ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ax.grid(axis="both")
