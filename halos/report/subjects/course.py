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
from halos.report.panels import PANEL, empty, panel_title, panels_of, part_of
from halos.report.results import SCORE, WIN, Results
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import interval_kind

COURSE = ["judge", *ROW, "share", "steps", "log_ratio", "length", "measure", "mean", "low", "high", "seeds", "prompts"]


@subject
class Course(Subject):
    figure = "course"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.courses)

    def frame(self, results: Results) -> pd.DataFrame:
        """Score, or win rate where a judge gives no score, of each snapshot: over all seeds, with interval; and means
        over seeds of steps, of response length (characters) and of the log-ratio of model to reference on validation
        data (nats per response). Share 0 is what the training began with, 1 its result."""
        lines = []
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
                    | {"share": i / snapshots, "measure": measure}
                    | {"steps": np.mean([results.manifest(cell).steps for cell in at]) if i else 0.0}
                    | {"log_ratio": np.mean([results.log_ratio(cell) for cell in at]) if i else 0.0}
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
        far = frame["log_ratio"].notna() & (frame["share"] > 0)
        rows = [("share", "mean"), *([("log_ratio", "mean")] if far.any() else []), ("share", "length")]
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
            ax.set_xlabel("share of the training" if x == "share" else "log-ratio to the reference (nats per response)")
            if i == 0:
                ax.set_title(panel_title(results, ids), loc="left")
            measure = "win rate" if part["measure"].iloc[0] == WIN else "score"
            ax.set_ylabel(measure if y == "mean" else "response length\n(characters)")
        figure.supxlabel(f"vertical lines: {interval_kind(results, short=True)}", fontsize=7.5)
        names = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(list(names.values()), list(names), loc="outside right upper", fontsize=7, frameon=False)
        return figure
