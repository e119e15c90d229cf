"""Cost: time, GPU-hours, memory and tokens of each method's training."""

from __future__ import annotations

from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from halos.report.measures import ROW
from halos.report.panels import empty, of
from halos.report.render import NOTHING, Table, number
from halos.report.results import Results, number_of
from halos.report.style import style
from halos.report.words import Page, records, row_names


def cost_page(results: Results, cost: pd.DataFrame) -> Page:
    shown = [
        row_names(results, row)
        | {"Parameters": _millions(row["parameters"]), "Minutes": number(row["seconds"] / 60, 1)}
        | {"GPU hours": number(row["gpu_hours"], 2), "Memory (GB)": number(row["peak_memory_gb"], 1)}
        | {"Tokens": _millions(row["tokens"]), "Tokens/s": number(row["tokens_per_second"], 0)}
        | {"Processes": number(row["processes"], 0), "Cells": str(row["cells"])}
        | {"Eval loss": number(row["eval_loss"]), "Reward accuracy": number(row["eval_reward_accuracy"])}
        for row in records(cost)
    ]
    hours = (cost["gpu_hours"] * cost["cells"]).sum(), (cost["seconds"] * cost["cells"]).sum() / 3600
    caption = (
        "Training of one cell's last stage, mean over its seeds: wall time, GPU time, the most memory of one device "
        "(of the process, on a CPU), tokens trained on, and the median of tokens per second over steps. All cells "
        f"together: {number(hours[0], 1)} GPU hours, {number(hours[1], 1)} hours of wall time one after the other; "
        "parents outside of the grid, sampling and judging not counted. Eval loss and reward accuracy are those of the "
        "last evaluation; losses of different kinds share no scale."
    )
    return [Table(caption, shown, ["Method"])]


def _millions(value: float) -> str:
    return NOTHING if pd.isna(value) else f"{value / 1e6:,.1f}M" if value < 1e9 else f"{value / 1e9:,.1f}B"


def cost(results: Results, costs: pd.DataFrame) -> Figure:
    """A row per dataset and model; bars of wall time, memory and tokens per second of each method's training."""
    if costs.empty:
        return empty("No training in this grid: its only method is `base`.")
    panels = list(costs[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    quantities = {
        "seconds": "wall time (minutes)",
        "peak_memory_gb": "peak memory (GB)",
        "tokens_per_second": "tokens/s",
    }
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(panels), len(quantities), squeeze=False)
    methods = list(dict.fromkeys(costs["method"]))
    names = 0.075 * max(len(results.method_label(m)) for m in methods)
    figure.set_size_inches(1.8 * len(quantities) + names, len(panels) * (0.19 * len(methods) + 0.5) + 0.3)
    for (i, ids), (j, (key, title)) in product(enumerate(panels), enumerate(quantities.items())):
        ax = axes[i, j]
        mine = of(costs, ("dataset", "model"), ids).reset_index(drop=True)
        values = mine[key] / (60 if key == "seconds" else 1)
        ax.barh(mine.index, values, color=[style(methods, m)["color"] for m in mine["method"]], height=0.66)
        labels = [results.method_label(m) for m in mine["method"]] if j == 0 else [""] * len(mine)
        ax.set_yticks(mine.index, labels)
        ax.set_ylim(len(mine) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
        if i == len(panels) - 1:
            ax.set_xlabel(title)
        if j == 0:
            ax.set_title(results.panel_label(*ids), loc="left")
    return figure


MANIFEST = ["parameters", "seconds", "gpu_hours", "peak_memory_gb", "tokens", "processes"]
LOGGED = {"tokens_per_second": "tokens_per_second", "eval_loss": "loss", "eval_reward_accuracy": "rewards/accuracy"}
COSTS = [*ROW, "cells", *MANIFEST, *LOGGED]


def costs(results: Results) -> pd.DataFrame:
    """What training took, by method, reward models last: means over seeds of one cell's last stage (wall time, GPU
    time, the most memory of a device, tokens), the median of tokens per second over its steps, and loss and reward
    accuracy of the last evaluation."""
    log = results.training.reindex(columns=[*results.training.columns, *set(LOGGED.values()) - set(results.training)])
    by = [*ROW, "seed"]
    ends = log[log["split"] == "eval"].groupby(by)[["loss", "rewards/accuracy"]].last()
    logged = ends.join(log.groupby(by)["tokens_per_second"].median(), how="outer")
    found = []
    for ids in dict.fromkeys((cell.dataset, cell.model, cell.method) for cell in results.trained):
        cells = [cell for cell in results.trained if (cell.dataset, cell.model, cell.method) == ids]
        manifests = [results.manifest(cell) for cell in cells]
        row: dict[str, Any] = {**dict(zip(ROW, ids, strict=True)), "cells": len(cells)}
        row |= {key: np.mean([number_of(m.get(key)) for m in manifests]) for key in MANIFEST}
        means = logged.loc[[tuple(cell.ids.values()) for cell in cells]].mean()
        found.append(row | {key: means[of] for key, of in LOGGED.items()})
    return pd.DataFrame(found, columns=COSTS)
