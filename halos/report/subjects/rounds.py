"""Rounds: win rate or score over the rounds of online stages."""

from __future__ import annotations

from itertools import product

from halos.report import statistics
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, pooled_seeds, rows
from halos.report.panels import PANEL, empty, panel_title, panels_of, part_of
from halos.report.results import SCORE, WIN, Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import interval_kind
from halos.study.cells import BASE

ROUNDS = ["judge", *ROW, "round", "measure", "mean", "low", "high", "seeds", "prompts"]


@subject
class Rounds(Subject):
    figure = "rounds"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.judges) and any(stage.online for stage in grid.stages)

    def frame(self, results: Results) -> pd.DataFrame:
        """Score, or win rate where a judge gives no score, after each round of the methods that are trained online:
        over all seeds, with interval. Round 0 is the parent method, where the grid has it."""
        estimates = []
        for judge, ids in product(results.judges, rows(results)):
            last = max(map(results.rounds, results.cells_of(*ids)))
            parent = ids[2].rsplit("-", 1)[0] if "-" in ids[2] else BASE
            measure = SCORE if not results.values(judge, *ids, SCORE).empty else WIN
            for number in range(last + 1) if last else ():
                method, of_round = (ids[2], number % last) if number else (parent, 0)
                values = results.values(judge, *ids[:2], method, measure, of_round)
                if values.empty:
                    continue
                seeds = pooled_seeds(results, judge, *ids[:2], measure)
                e = statistics.estimate(values, bounded=results.bounded(judge, measure), seeds=seeds)
                estimates.append((judge, *ids, number, measure, e.mean, e.low, e.high, e.seeds, e.prompts))
        return pd.DataFrame(estimates, columns=ROUNDS)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per judge, dataset and model: the score after each round of the methods that are trained online."""
        if frame.empty:
            return empty("No method of this grid is trained online, in rounds.")
        panels, looks = panels_of(frame), looks_of(results)
        figure = mpl.figure.Figure(layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=len(set(frame["measure"])) == 1)[0]
        figure.set_size_inches(2.6 * len(panels) + 1.6, 2.5)
        last = int(frame["round"].max())
        for ax, ids in zip(axes, panels, strict=True):
            part = part_of(frame, PANEL, ids)
            methods = list(dict.fromkeys(part["method"]))
            for k, method in enumerate(methods):
                line = part[part["method"] == method]
                x = line["round"] + 0.05 * (k - (len(methods) - 1) / 2)  # intervals beside each other
                ax.plot(x, line["mean"], "o-", color=looks[method].colour, linewidth=1.3, markersize=4,
                        label=results.method_label(method))  # fmt: skip
                ax.vlines(x, line["low"], line["high"], color=looks[method].colour, linewidth=1.1)
            ax.grid(axis="y")
            ax.set_xticks(range(last + 1))
            ax.set_xlabel("rounds done")
            ax.set_title(panel_title(results, ids), loc="left")
            name = "win rate" if part["measure"].iloc[0] == WIN else results.score_name(ids[0])
            ax.set_ylabel(f"{name}\n({interval_kind(results, short=True)})")
        names = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(list(names.values()), list(names), loc="outside right upper", fontsize=7, frameon=False)
        return figure
