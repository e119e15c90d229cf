"""Imbalance: win rate by the share of desirable or undesirable responses that were kept."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from halos.report.measures import ALL, ROW
from halos.report.panels import COLUMNS, empty, of, panel_title, row_of
from halos.report.results import WIN, Results
from halos.report.words import interval_kind
from halos.study.cells import Cell


def draw_imbalance(results: Results, curves: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: win rate against the share of desirable, or undesirable, responses kept."""
    if curves.empty:
        return empty("No stage of this grid keeps a share of its data alone.")
    panels = list(curves[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = row_of(panels, 0, 3.0)
    looks = {"desirable": ("#d55e00", "o", "-"), "undesirable": ("#0072b2", "s", (0, (5, 1.5)))}
    for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
        mine = of(curves, ("judge", "dataset", "model"), ids)
        for kept, (colour, marker, line) in looks.items():
            part = mine[mine["kept"] == kept]
            ax.plot(part["share"], part["mean"], marker=marker, linestyle=line, color=colour, linewidth=1.3,
                    markersize=4, label=f"{kept} kept")  # fmt: skip
            ax.fill_between(part["share"], part["low"], part["high"], color=colour, alpha=0.13, linewidth=0)
        ax.set_xscale("log")
        ticks = sorted(set(mine["share"]))
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_xticklabels([f"{100 * tick:g} %" for tick in ticks])
        ax.grid(axis="y")
        ax.set_title(panel_title(results, ids), loc="left")
        if index % COLUMNS == 0:
            ax.set_ylabel(f"win rate\n({interval_kind(results, short=True)})")
    axes[-1].legend(frameon=False, fontsize=7, loc="lower right")
    figure.supxlabel("share of one label kept, all of the other", fontsize=8)
    return figure


IMBALANCE = ["judge", *ROW, "kept", "share", "mean", "low", "high", "seeds", "prompts"]


def imbalance_frame(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """Win rate by the share of desirable, or of undesirable, responses that a method's last stage kept. Where the grid
    has the same losses on all of the data, that is the end of both curves."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == ALL)]
    shares: dict[str, tuple[tuple[str, ...], list[float]]] = {}
    for method in results.methods:
        cell = Cell(results.datasets[0], results.models[0], method, results.seeds[0])
        settings = results.settings(cell)
        kept = [float(settings.get(f"keep_{label}", np.nan)) for label in ("desirable", "undesirable")]
        shares[method] = (tuple(results.losses(cell)), kept)
    chains = {losses for losses, kept in shares.values() if min(kept) < 1}
    found = []
    for label, which in (("desirable", 0), ("undesirable", 1)):
        for row in wins.to_dict("records"):
            losses, kept = shares[row["method"]]
            if losses in chains and (kept[which] < 1 or kept == [1, 1]):
                found.append({**row, "kept": label, "share": kept[which]})
    frame = pd.DataFrame(found, columns=IMBALANCE)
    return frame.sort_values(["judge", "dataset", "model", "kept", "share"], kind="stable").reset_index(drop=True)
