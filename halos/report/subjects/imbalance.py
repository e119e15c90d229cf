"""Imbalance: win rate by the share of desirable or undesirable responses that were kept."""

from __future__ import annotations

import numpy as np

from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, pooled
from halos.report.panels import COLUMNS, PANEL, empty, panel_title, panels_of, part_of, row_of_panels
from halos.report.results import WIN, Results
from halos.report.subject import Outline, Subject, subject
from halos.report.words import interval_kind
from halos.study.cells import Cell

IMBALANCE = ["judge", *ROW, "kept", "share", "mean", "low", "high", "seeds", "prompts"]
LINES = {"desirable": ("#d55e00", "o", "-"), "undesirable": ("#0072b2", "s", (0, (5, 1.5)))}
"""Colour, marker and line of each label."""


@subject
class Imbalance(Subject):
    figure = "imbalance"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.judges) and any(min(s.keep_desirable, s.keep_undesirable) < 1 for s in grid.stages)

    def frame(self, results: Results) -> pd.DataFrame:
        """Win rate by the share of desirable, or of undesirable, responses that a method's last stage kept. Where the
        grid has the same losses on all of the data, that is the end of both curves."""
        chains, shares = {}, {}
        for method in results.methods:
            cell = Cell(results.datasets[0], results.models[0], method, results.seeds[0])
            settings = results.settings(cell)
            chains[method] = tuple(results.losses(cell))
            shares[method] = {label: float(settings.get(f"keep_{label}", np.nan)) for label in LINES}
        imbalanced = {chains[method] for method, kept in shares.items() if min(kept.values()) < 1}
        wins = pooled(results, WIN).to_dict("records")
        points = [
            {**row, "kept": label, "share": kept[label]}
            for label in LINES
            for row in wins
            if chains[row["method"]] in imbalanced
            and ((kept := shares[row["method"]])[label] < 1 or set(kept.values()) == {1})
        ]
        frame = pd.DataFrame(points, columns=IMBALANCE)
        return frame.sort_values([*PANEL, "kept", "share"], kind="stable").reset_index(drop=True)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per judge, dataset and model: win rate against the share of desirable, or undesirable, responses."""
        if frame.empty:
            return empty("No stage of this grid keeps a share of its data alone.")
        panels = panels_of(frame)
        figure, axes = row_of_panels(panels, 0, 3.0)
        for index, (ax, ids) in enumerate(zip(axes, panels, strict=True)):
            part = part_of(frame, PANEL, ids)
            for label, (colour, marker, line) in LINES.items():
                curve = part[part["kept"] == label]
                ax.plot(curve["share"], curve["mean"], marker=marker, linestyle=line, color=colour, linewidth=1.3,
                        markersize=4, label=f"{label} kept")  # fmt: skip
                ax.fill_between(curve["share"], curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
            ax.set_xscale("log")
            ticks = sorted(set(part["share"]))
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
