"""Bars of speed and memory relative to TRL, in the look of the report's figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halos.report.style import GUIDE, STYLE

COLOURS = {"trl-default": "#0072b2", "trl-precomputed": "#56b4e9", "trl-best": "#d55e00", "trl-packing": "#8c8c8c"}
NAMES = {"trl-default": "TRL's defaults", "trl-precomputed": "reference precomputed", "trl-best": "TRL's best",
         "trl-packing": "TRL's best, packed"}  # fmt: skip


def save(results: Path, output: Path) -> None:
    """Draw a table of results: a row for each model, speed on the left and memory on the right.

    Args:
        results: CSV of the benchmark.
        output: .svg or .png to write.
    """
    table = pd.read_csv(results)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        models = list(dict.fromkeys(table["model"]))
        groups = [len(table[table["model"] == model].groupby(["loss", "profile"])) for model in models]
        figure = Figure(figsize=(6.6, 0.9 + sum(0.3 * n + 0.55 for n in groups)), layout="constrained")
        axes = figure.subplots(len(models), 2, squeeze=False, height_ratios=[n + 0.6 for n in groups])
        for (speed, memory), model in zip(axes, models, strict=True):
            mine = table[table["model"] == model]
            _bars(speed, mine, "ratio_examples_per_s", spread=True)
            _bars(memory, mine, "ratio_peak_memory", spread=False)
            speed.set(title=f"{model}: speed", xlim=(0, 1.12 * table["ratio_max"].max()))
            memory.set(title=f"{model}: peak memory", xlim=(0, max(1.1, 1.15 * table["ratio_peak_memory"].max())))
            memory.tick_params(labelleft=False)
        axes[-1, 0].set_xlabel("examples a second, ours over TRL's\n(median of pairs of steps; line: least to most)")
        axes[-1, 1].set_xlabel("peak memory, ours over TRL's")
        used = [peer for peer in COLOURS if peer in set(table["peer"])]
        handles = [mpl.patches.Patch(color=COLOURS[peer], label=NAMES[peer]) for peer in used]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(used), frameon=False)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Date": None, "Creator": None} if output.suffix == ".svg" else None)


def _bars(ax: Axes, table: pd.DataFrame, column: str, spread: bool) -> None:
    """A group of bars for each loss and profile, one for each peer."""
    groups = list(table.groupby(["loss", "profile"], sort=False))
    for place, (_, rows) in enumerate(groups):
        height = min(0.8 / len(rows), 0.4)
        at = place + height * (np.arange(len(rows)) - (len(rows) - 1) / 2)
        values = rows[column].to_numpy()
        ax.barh(at, values, 0.9 * height, color=[COLOURS[peer] for peer in rows["peer"]])
        ends = values
        if spread:
            ends = rows["ratio_max"].to_numpy()
            ax.hlines(at, rows["ratio_min"], ends, color="#222222", linewidth=0.8)
        for y, value, end in zip(at, values, ends, strict=True):
            ax.annotate(
                f"{value:.{1 if spread else 2}f}",
                (end, y),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    ax.axvline(1, color=GUIDE, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set_yticks(range(len(groups)), [f"{loss}, {profile}" for (loss, profile), _ in groups])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
