"""Training: loss, reward margin and distance from the reference over the examples seen, and the costs of each cell."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, rows
from halos.report.panels import empty, methods_of, part_of, spread, thousands
from halos.report.results import CELL, Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject

CURVES = [*ROW, "quantity", "split", "unit", "examples", "mean", "min", "max", "seeds"]
POINTS = 40
"""Points of a curve made of training steps: enough for its shape, few enough to average the noise of a batch."""
QUANTITIES = {"rewards/margin": "reward", "kl": "nats", "loss": "loss"}
"""Quantity -> its unit."""
DIRECT_LABELS = 6
"""Curves that a panel can name at their ends; more have a legend."""
TRAINING_COSTS = ["seconds", "gpu_hours", "tokens", "steps", "peak_memory_gb", "parameters"]


@subject
class Training(Subject):
    table = figure = "training"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.stages)

    def frame(self, results: Results) -> pd.DataFrame:
        """Reward margin, KL and loss during training: mean and range over seeds, at the examples seen.

        A quantity comes from the evaluations (a fixed subset, so no noise of batches) when every method that logs it
        evaluates it at three points or more; else from the training steps, averaged in bins. Losses of different kinds
        share no scale: where methods differ in their last stage, loss is relative to the first evaluation, and left out
        where that is not above zero.
        """
        log = results.training
        log = log[log["method"].isin(results.methods)]  # a reward model's scores have no place beside policies' rewards
        curves = []
        for quantity, unit in QUANTITIES.items():
            logged = log[log[quantity].notna()] if quantity in log else log[:0]
            if logged.empty:
                continue
            counts = (
                logged.groupby(["method", "split"])["step"]
                .nunique()
                .unstack("split")
                .reindex(columns=["eval", "train"])
            )
            split = "eval" if (counts["eval"].fillna(0) >= 3).all() else "train"
            part = logged[logged["split"] == split]
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
            curves.append(stats.assign(order=order).sort_values(["order", "examples"]))
        return pd.concat(curves, ignore_index=True)[CURVES] if curves else pd.DataFrame(columns=CURVES)

    def tabulate(self, results: Results, frame: pd.DataFrame) -> pd.DataFrame:
        return trainings(results)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A row per dataset and model: reward margin, KL and loss against the examples seen; band: range over seeds."""
        if frame.empty:
            return empty("No training in this grid: its only method is `base`.")
        quantities = [q for q in QUANTITIES if q in set(frame["quantity"])]
        panels = [ids for ids in product(results.datasets, results.models) if len(part_of(frame, ROW[:2], ids))]
        drawn, looks = methods_of(results, frame), looks_of(results)
        names = 0.065 * max(len(results.method_label(m)) for m in drawn)
        crowded = len(drawn) > DIRECT_LABELS
        figure = mpl.figure.Figure(layout="constrained")
        axes = figure.subplots(len(panels), len(quantities), squeeze=False)
        height = max(2.1, 0.13 * len(drawn) + 0.75)
        width = 2.3 * len(quantities) + names * (1 if crowded else len(quantities)) + 0.4 * crowded
        figure.set_size_inches(width, height * len(panels) + 0.3)
        for (i, ids), (j, quantity) in product(enumerate(panels), enumerate(quantities)):
            ax = axes[i, j]
            part = part_of(frame, (*ROW[:2], "quantity"), (*ids, quantity))
            for method, line in part.groupby("method", sort=False):
                look = looks[str(method)]
                ax.plot(line["examples"], line["mean"], color=look.colour, linestyle=look.line, linewidth=1.3)
                if (line["seeds"] > 1).any():
                    ax.fill_between(
                        line["examples"], line["min"], line["max"], color=look.colour, alpha=0.15, linewidth=0
                    )
            ax.grid(axis="y")
            ax.margins(x=0)
            ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(thousands))
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            if j == 0:
                ax.set_title(results.panel_label(*ids), loc="left")
            ax.set_ylabel(_curve_title(part) if len(part) else "")
            ax.set_xlabel("examples seen" if i == len(panels) - 1 else "")
            _compress(ax, part)
            if not crowded:
                _end_labels(results, ax, part, height)
        if crowded:
            lines = [
                mpl.lines.Line2D([], [], color=look.colour, linestyle=look.line, linewidth=1.5)
                for look in (looks[method] for method in drawn)
            ]
            names_of = [results.method_label(m) for m in drawn]
            figure.legend(lines, names_of, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
        return figure


@lru_cache(maxsize=1)  # three tables hold a part of it
def trainings(results: Results) -> pd.DataFrame:
    """One row per trained cell: the last logged value of every training and evaluation metric, and its costs."""
    log = results.training
    # `last` is a metric's last value, not the last line: not every line has every metric
    last = log.groupby([*CELL, "split"]).last().to_dict("index")
    rows = []
    for cell in results.trained:
        row: dict[str, Any] = dict(cell.ids)
        for split in ("train", "eval"):
            numbers = last.get((*cell.ids.values(), split), {})
            row |= {f"{split}.{name}": value for name, value in numbers.items() if pd.notna(value)}
        manifest = results.manifest(cell)
        rows.append(row | {name: getattr(manifest, name) for name in TRAINING_COSTS})
    frame = pd.DataFrame(rows)
    metrics = sorted((c for c in frame.columns if "." in c), key=lambda c: c.startswith("eval."))
    return frame.reindex(columns=[*CELL, *metrics, *TRAINING_COSTS])


def _curve_title(part: pd.DataFrame) -> str:
    quantity, split, unit = part[["quantity", "split", "unit"]].iloc[0]
    name = {"rewards/margin": "reward margin", "kl": "log-ratio to the reference", "loss": "loss"}[quantity]
    where = "evaluation" if split == "eval" else "training"
    return f"{name}\n({where})" if unit in name or unit == "reward" else f"{name}\n({unit}; {where})"


def _compress(ax: mpl.axes.Axes, part: pd.DataFrame) -> None:
    """A scale that is linear about 0 and logarithmic beyond, where one method would flatten the others: the sum of
    log-probabilities that SLiC has for a reward is a hundred times the odds of ORPO."""
    largest = part.assign(mean=part["mean"].abs()).groupby("method")["mean"].max()
    usual = largest[largest > 0].median()
    if largest.max() > 5 * usual:
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(usual)), linscale=0.6)
        ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(f"{ax.get_ylabel().removesuffix(')')}; log scale)")


def _end_labels(results: Results, ax: mpl.axes.Axes, part: pd.DataFrame, height: float) -> None:
    """Each line's name right of its end, moved up or down where names would overlap."""
    if part.empty:
        return
    last = part.groupby("method", sort=False).last().sort_values("mean", kind="stable")
    ax.set(xlim=(0, part["examples"].max()), ylim=ax.get_ylim())
    ends = (ax.transScale + ax.transLimits).transform(last[["examples", "mean"]].to_numpy(dtype=float))
    places = spread(ends[:, 1], gap=0.125 / (height - 0.7))
    for (method, end), place in zip(last.iterrows(), places, strict=True):
        colour = looks_of(results)[str(method)].colour
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
