"""Course: score or win rate, length and distance from the reference of the models that a training passes through.

A curve that falls while the distance grows is over-optimisation (Gao et al. 2023, arXiv 2210.10760).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from halos.evaluate.judging.judgement import ASKED
from halos.report import statistics
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW, by_prompt
from halos.report.panels import PANEL, empty, panels_of, part_of
from halos.report.results import SCORE, WIN, Results
from halos.report.statistics import Array
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import WHOSE, interval_kind
from halos.study.cells import Cell

COURSE = ["judge", *ROW, "share", "steps", "kl", "kl_on", "length", "measure", "mean", "low", "high", "seeds",
          "prompts"]  # fmt: skip


@subject
class Course(Subject):
    figure = "course"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.courses)

    def frame(self, results: Results) -> pd.DataFrame:
        """Score, or win rate where a judge gives no score, of each snapshot: over all seeds, with interval; and means
        over seeds of steps, of response length (characters) and of the log-ratio of model to reference (nats per
        response): on the responses that are judged in a grid with `divergence` (`kl_on` samples), of every loss; else
        on validation data (`kl_on` data), of losses with a reference. Share 0 is what the training began with, 1 its
        result."""
        lines, on = [], "samples" if results.divergence_prompts else "data"
        for judge, (*ids, snapshots) in product(results.course_judges, results.courses):
            cells = results.cells_of(*ids)
            courses = [results.course(judge, cell, snapshots) for cell in cells]
            for i in range(snapshots + 1):
                judgements = [course[i][1] for course in courses]
                measure = SCORE if judgements[0].kind not in ASKED else WIN
                table = pd.DataFrame([by_prompt(judgement, measure) for judgement in judgements], index=results.seeds)
                bounded = measure == WIN or judgements[0].kind == "verifier"
                e = statistics.estimate(table, bounded=bounded)
                at = [replace(cell, snapshot=i % snapshots) for cell in cells]
                lines.append(
                    dict(zip(("judge", *ROW), (judge, *ids), strict=True))
                    | {"share": i / snapshots, "kl_on": on}
                    | {"measure": "reward" if judgements[0].kind == "reward_model" else measure}
                    | {"steps": np.mean([results.manifest(cell).steps for cell in at]) if i else 0.0}
                    | {"kl": np.mean([_distance(results, judge, cell) for cell in at]) if i else 0.0}
                    | {"length": np.mean([judgement.mean_length.candidate for judgement in judgements])}
                    | {"mean": e.mean, "low": e.low, "high": e.high, "seeds": e.seeds, "prompts": e.prompts}
                )
        return pd.DataFrame(lines, columns=COURSE)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A column per judge, dataset and model: the measure over the training and against the distance from the
        reference, and the length over the training."""
        if frame.empty:
            return empty("No snapshots are judged in this grid.")
        panels, looks = panels_of(frame), looks_of(results)
        far = frame["kl"].notna() & (frame["share"] > 0)
        distance = f"log-ratio to the reference\n(nats per {WHOSE[frame['kl_on'].iloc[0]]})"
        names = {"share": "share of the training", "kl": distance}
        judges = [results.label("judges", judge) if len(results.course_judges) > 1 else "" for judge, *_ in panels]
        rows = [("share", "mean"), *([("kl", "mean")] if far.any() else []), ("share", "length")]
        figure = mpl.figure.Figure(layout="constrained")
        figure.set_size_inches(2.8 * len(panels) + 1.6, 2.3 * len(rows) + 0.2)
        axes = figure.subplots(len(rows), len(panels), squeeze=False)
        for (i, (x, y)), (j, ids) in product(enumerate(rows), enumerate(panels)):
            ax, part = axes[i, j], part_of(frame, PANEL, ids)
            for method in dict.fromkeys(part["method"]):
                line, look = part[part["method"] == method], looks[method]
                ax.plot(line[x], line[y], marker=look.marker, color=look.colour, markerfacecolor=look.face,
                        linewidth=1.2, markersize=4, label=results.method_label(method))  # fmt: skip
                if y == "mean":
                    ax.vlines(line[x], line["low"], line["high"], color=look.colour, linewidth=1, alpha=0.6)
            ax.grid(axis="y")
            ax.set_xlabel(names[x])
            if x == "kl":  # as Gao et al. draw it: most of what happens, happens near the reference
                ax.set_xscale("function", functions=(_root, _square))
                low, high = _root(np.array([part["kl"].min(), part["kl"].max()]))
                ticks = mpl.ticker.MaxNLocator(5, integer=high > 2).tick_values(low, high)
                ax.set_xticks(_square(np.asarray(ticks)))
                ax.set_xlim(_square(low - 0.05 * (high - low)), _square(high + 0.05 * (high - low)))
            if i == 0:
                ax.set_title(", ".join(filter(None, (results.panel_label(*ids[1:]), judges[j]))), loc="left")
            measure = part["measure"].iloc[0]
            ax.set_ylabel({WIN: "win rate"}.get(measure, measure) if y == "mean" else "response length\n(characters)")
        figure.supxlabel(f"vertical lines: {interval_kind(results, short=True)}", fontsize=7.5)
        lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=7, frameon=False)
        return figure


def _distance(results: Results, judge: str, cell: Cell) -> float:
    """The log-ratio of a model, or of a snapshot, to its reference, in nats per response."""
    if not results.divergence_prompts:
        return results.log_ratio(cell)
    return float(np.mean([*results.divergence(cell, results.prompts_of(judge)).values()]))


def _root(x: Array) -> Array:
    root: Array = np.sign(x) * np.sqrt(np.abs(x))
    return root


def _square(x: Array) -> Array:
    return x * np.abs(x)
