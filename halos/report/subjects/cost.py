"""Cost: time, GPU-hours, memory and tokens of each method's training."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import empty, panels_of, part_of, thousands
from halos.report.render import NOTHING, Table, number
from halos.report.results import Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, number_of, records, row_names

MANIFEST = ["parameters", "seconds", "gpu_hours", "peak_memory_gb", "tokens", "processes"]
LOGGED = {"tokens_per_second": "tokens_per_second", "eval_loss": "loss", "eval_reward_accuracy": "rewards/accuracy"}
COSTS = [*ROW, "cells", *MANIFEST, *LOGGED]


@subject
class Cost(Subject):
    table = figure = "cost"
    title = "Cost"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.stages or grid.reward_models)

    def frame(self, results: Results) -> pd.DataFrame:
        """Costs of training a cell's last stage, by method, reward models last: means over seeds of wall time, GPU
        time, peak memory of a device, tokens, the median of tokens per second over steps, and loss and reward accuracy
        of the last evaluation."""
        log = results.training.reindex(
            columns=[*results.training.columns, *set(LOGGED.values()) - set(results.training)]
        )
        by = [*ROW, "seed"]
        ends = log[log["split"] == "eval"].groupby(by)[["loss", "rewards/accuracy"]].last()
        logged = ends.join(log.groupby(by)["tokens_per_second"].median(), how="outer")
        rows = []
        for ids in dict.fromkeys((cell.dataset, cell.model, cell.method) for cell in results.trained):
            cells = results.cells_of(*ids)
            manifests = [results.manifest(cell) for cell in cells]
            row: dict[str, Any] = {**dict(zip(ROW, ids, strict=True)), "cells": len(cells)}
            row |= {key: np.mean([number_of(getattr(m, key)) for m in manifests]) for key in MANIFEST}
            means = logged.loc[[tuple(cell.ids.values()) for cell in cells]].mean()
            rows.append(row | {key: means[of] for key, of in LOGGED.items()})
        return pd.DataFrame(rows, columns=COSTS)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        lines = [
            row_names(results, row)
            | {"Parameters": _millions(row["parameters"]), "Minutes": number(row["seconds"] / 60, 1)}
            | {"GPU hours": number(row["gpu_hours"], 2), "Memory (GB)": number(row["peak_memory_gb"], 1)}
            | {"Tokens": _millions(row["tokens"]), "Tokens/s": number(row["tokens_per_second"], 0)}
            | {"Processes": number(row["processes"], 0), "Cells": str(row["cells"])}
            | {"Eval loss": number(row["eval_loss"]), "Reward accuracy": number(row["eval_reward_accuracy"])}
            for row in records(frame)
        ]
        hours = (frame["gpu_hours"] * frame["cells"]).sum(), (frame["seconds"] * frame["cells"]).sum() / 3600
        caption = (
            "Training of one cell's last stage, mean over its seeds: wall time, GPU time, the most memory of one "
            "device (of the process, on a CPU), tokens trained on, and the median of tokens per second over steps. "
            f"All cells together: {number(hours[0], 1)} GPU hours, {number(hours[1], 1)} hours of wall time one after "
            "the other; parents outside of the grid, sampling and judging not counted. Eval loss and reward accuracy "
            "are those of the last evaluation; losses of different kinds share no scale."
        )
        return [Table(caption, lines, ["Method"])]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A row per dataset and model; bars of wall time, memory and tokens per second of each method's training."""
        if frame.empty:
            return empty("No training in this grid: its only method is `base`.")
        panels, looks = panels_of(frame, ROW[:2]), looks_of(results)
        quantities = {
            "seconds": "wall time (minutes)",
            "peak_memory_gb": "peak memory (GB)",
            "tokens_per_second": "tokens/s",
        }
        figure = mpl.figure.Figure(layout="constrained")
        axes = figure.subplots(len(panels), len(quantities), squeeze=False)
        methods = list(dict.fromkeys(frame["method"]))
        names = 0.075 * max(len(results.method_label(m)) for m in methods)
        figure.set_size_inches(1.8 * len(quantities) + names, len(panels) * (0.19 * len(methods) + 0.5) + 0.3)
        for (i, ids), (j, (key, title)) in product(enumerate(panels), enumerate(quantities.items())):
            ax = axes[i, j]
            part = part_of(frame, ROW[:2], ids).reset_index(drop=True)
            values = part[key] / (60 if key == "seconds" else 1)
            ax.barh(part.index, values, color=[looks[m].colour for m in part["method"]], height=0.66)
            labels = [results.method_label(m) for m in part["method"]] if j == 0 else [""] * len(part)
            ax.set_yticks(part.index, labels)
            ax.set_ylim(len(part) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x")
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(thousands))
            if i == len(panels) - 1:
                ax.set_xlabel(title)
            if j == 0:
                ax.set_title(results.panel_label(*ids), loc="left")
        return figure


def _millions(value: float) -> str:
    return NOTHING if pd.isna(value) else f"{value / 1e6:,.1f}M" if value < 1e9 else f"{value / 1e9:,.1f}B"
