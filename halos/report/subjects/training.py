"""Training: loss, rewards, margin and KL over the examples seen."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halos.report.measures import ROW, rows
from halos.report.panels import empty, of, spread
from halos.report.results import CELL, Results
from halos.report.style import style

CURVES = [*ROW, "quantity", "split", "unit", "examples", "mean", "min", "max", "seeds"]
POINTS = 40
"""Points of a curve made of training steps: enough for its shape, few enough to average the noise of a batch."""
QUANTITIES = {"rewards/margin": "reward", "kl": "nats", "loss": "loss"}
"""What `curves` holds, and its unit."""


def curves(results: Results) -> pd.DataFrame:
    """Reward margin, KL and loss during training: mean and range over seeds, at the examples seen.

    A quantity comes from the evaluations (a fixed subset, so no noise of batches) when all that log it evaluate it at
    three points or more; else from the training steps, averaged in bins. Losses of different kinds share no scale:
    where methods differ in their last stage, loss is relative to the first evaluation, and left out where that is not
    above zero.
    """
    log = results.training
    log = log[log["method"].isin(results.methods)]  # a reward model's scores have no place beside policies' rewards
    found = []
    for quantity, unit in QUANTITIES.items():
        there = log[log[quantity].notna()] if quantity in log else log[:0]
        if there.empty:
            continue
        counts = (
            there.groupby(["method", "split"])["step"].nunique().unstack("split").reindex(columns=["eval", "train"])
        )
        split = "eval" if (counts["eval"].fillna(0) >= 3).all() else "train"
        part = there[there["split"] == split]
        if split == "train":
            width = part["examples"].max() / POINTS
            part = part.assign(examples=(np.ceil(part["examples"] / width) * width).round())
        per_seed = part.groupby([*ROW, "seed", "examples"], sort=False)[quantity].mean()
        if quantity == "loss" and part["method"].str.rsplit("-").str[-1].nunique() > 1:
            unit = "first = 1"
            first = per_seed.groupby(level=[*ROW, "seed"]).transform("first")
            per_seed = (per_seed / first)[first > 0.05]
        stats = per_seed.groupby(level=[*ROW, "examples"]).agg(["mean", "min", "max", "count"]).reset_index()
        stats = stats.rename(columns={"count": "seeds"}).assign(quantity=quantity, split=split, unit=unit)
        order = [rows(results).index(ids) for ids in zip(*(stats[key] for key in ROW), strict=True)]
        found.append(stats.assign(order=order).sort_values(["order", "examples"]))
    return pd.concat(found, ignore_index=True)[CURVES] if found else pd.DataFrame(columns=CURVES)


DIRECT_LABELS = 6
"""Curves that a panel can name at their ends; more have a legend."""


def training(results: Results, curves: pd.DataFrame) -> Figure:
    """A row per dataset and model: reward margin, KL and loss against the examples seen; band: range over seeds."""
    if curves.empty:
        return empty("No training in this grid: its only method is `base`.")
    quantities = [q for q in QUANTITIES if q in set(curves["quantity"])]
    panels = [ids for ids in product(results.datasets, results.models) if len(of(curves, ("dataset", "model"), ids))]
    drawn = [m for m in results.methods if m in set(curves["method"])]
    names = 0.065 * max(len(results.method_label(m)) for m in drawn)
    crowded = len(drawn) > DIRECT_LABELS
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(panels), len(quantities), squeeze=False)
    height = max(2.1, 0.13 * len(drawn) + 0.75)
    width = 2.3 * len(quantities) + names * (1 if crowded else len(quantities)) + 0.4 * crowded
    figure.set_size_inches(width, height * len(panels) + 0.3)
    for (i, ids), (j, quantity) in product(enumerate(panels), enumerate(quantities)):
        ax = axes[i, j]
        mine = of(curves, ("dataset", "model", "quantity"), (*ids, quantity))
        for method, line in mine.groupby("method", sort=False):
            s = style(results.methods, str(method))
            ax.plot(line["examples"], line["mean"], color=s["color"], linestyle=s["line"], linewidth=1.3)
            if (line["seeds"] > 1).any():
                ax.fill_between(line["examples"], line["min"], line["max"], color=s["color"], alpha=0.15, linewidth=0)
        ax.grid(axis="y")
        ax.margins(x=0)
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_thousands))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        if j == 0:
            ax.set_title(results.panel_label(*ids), loc="left")
        ax.set_ylabel(_curve_title(mine) if len(mine) else "")
        ax.set_xlabel("examples seen" if i == len(panels) - 1 else "")
        _compress(ax, mine)
        if not crowded:
            _end_labels(results, ax, mine, height)
    if crowded:
        styles = [style(results.methods, m) for m in drawn]
        lines = [Line2D([], [], color=s["color"], linestyle=s["line"], linewidth=1.5) for s in styles]
        names_of = [results.method_label(m) for m in drawn]
        figure.legend(lines, names_of, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
    return figure


def _curve_title(mine: pd.DataFrame) -> str:
    quantity, split, unit = mine[["quantity", "split", "unit"]].iloc[0]
    name = {"rewards/margin": "reward margin", "kl": "log-ratio to the reference", "loss": "loss"}[quantity]
    where = "evaluation" if split == "eval" else "training"
    return f"{name}\n({where})" if unit in name or unit == "reward" else f"{name}\n({unit}; {where})"


def _compress(ax: Axes, mine: pd.DataFrame) -> None:
    """A scale that is linear about 0 and logarithmic beyond, where one method would flatten the others: the sum of
    log-probabilities that SLiC has for a reward is a hundred times the odds of ORPO."""
    largest = mine.assign(mean=mine["mean"].abs()).groupby("method")["mean"].max()
    usual = largest[largest > 0].median()
    if largest.max() > 5 * usual:
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(usual)), linscale=0.6)
        ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(f"{ax.get_ylabel().removesuffix(')')}; log scale)")


def _end_labels(results: Results, ax: Axes, mine: pd.DataFrame, height: float) -> None:
    """Each line's name right of its end, moved up or down where names would overlap."""
    if mine.empty:
        return
    last = mine.groupby("method", sort=False).last().sort_values("mean", kind="stable")
    ax.set(xlim=(0, mine["examples"].max()), ylim=ax.get_ylim())
    ends = (ax.transScale + ax.transLimits).transform(last[["examples", "mean"]].to_numpy(dtype=float))
    places = spread(ends[:, 1], gap=0.125 / (height - 0.7))
    for (method, end), place in zip(last.iterrows(), places, strict=True):
        colour = style(results.methods, str(method))["color"]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 1, "shrinkB": 0}
        ax.annotate(
            results.method_label(str(method)),
            (end["examples"], end["mean"]),
            (1.07, place),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={**arrow, "relpos": (0, 0.5)},
            color=colour,
            fontsize=7,
            va="center",
        )


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


TRAINING_COSTS = ["seconds", "gpu_hours", "tokens", "steps", "peak_memory_gb", "parameters"]


def training_table(results: Results) -> pd.DataFrame:
    """One row per trained cell: the last logged value of every training and evaluation metric, and what it cost."""
    log = results.training
    # `last` is a metric's last value, not the last line: not every line has every metric
    last = log.groupby([*CELL, "split"]).last().to_dict("index")
    found = []
    for cell in results.trained:
        row: dict[str, Any] = dict(cell.ids)
        for split in ("train", "eval"):
            numbers = last.get((*cell.ids.values(), split), {})
            row |= {f"{split}.{name}": value for name, value in numbers.items() if pd.notna(value)}
        manifest = results.manifest(cell)
        found.append(row | {name: manifest.get(name) for name in TRAINING_COSTS})
    frame = pd.DataFrame(found)
    metrics = sorted((c for c in frame.columns if "." in c), key=lambda c: c.startswith("eval."))
    return frame.reindex(columns=[*CELL, *metrics, *TRAINING_COSTS])
