"""Best of n: the score of the best of a prompt's samples against the KL divergence that choosing it costs.

A judge chooses, and every judge that scored the same samples measures. Where the choice by a proxy goes on rising by
the proxy's own score and falls by another one's, it is over-optimised (Gao et al. 2023, arXiv 2210.10760).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from halos.report import best_of_n, statistics
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import PANEL, empty, legend, methods_of, panels_of, part_of
from halos.report.results import SCORE, Results
from halos.report.statistics import Array
from halos.report.style import looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import interval_kind
from halos.study.cells import BASE, Cell

BEST_OF_N = ["judge", "measured_by", *ROW, "n", "kl", "mean", "low", "high", "seeds", "prompts", "left_out"]


@subject
class BestOfN(Subject):
    figure = "best_of_n"

    def shows(self, grid: Outline) -> bool:
        return any(judge.kind != "openai" and grid.samples[judge.prompts] > 1 for judge in grid.judges)

    def frame(self, results: Results) -> pd.DataFrame:
        """The score by `measured_by` of the best of n samples by `judge`, for each n up to the number of samples: over
        all seeds, with interval over prompts; and the KL divergence of best-of-n from the method itself, in nats.

        A prompt counts where both judges scored all of its samples; the others, of any seed, are `left_out`."""
        scoring = [judge for judge in results.judges if results.kind(judge) != "openai"]
        places = product(product(scoring, scoring), product(results.datasets, results.models))
        lines: list[tuple[Any, ...]] = []
        for judges, place in places:
            found = {method: _best(results, judges, results.cells_of(*place, method)) for method in results.methods}
            tables = {method: table for method, (table, _) in found.items() if table.size}
            bounded = results.bounded(judges[1], SCORE)
            for n in range(max(map(len, tables.values()), default=0)):
                seeds = _seeds(results, {method: table[n] for method, table in tables.items()}, bounded)
                for method, table in tables.items():
                    # a base model is not trained, so its seeds are samples of one model
                    values = np.nanmean(table[n], axis=0)[None] if method == BASE else table[n]
                    e = statistics.estimate(values, bounded, seeds=None if method == BASE else seeds)
                    counts = (len(results.seeds), e.prompts, found[method][1])
                    lines.append((*judges, *place, method, n + 1, e.mean, e.low, e.high, *counts))
        frame = pd.DataFrame(lines, columns=[name for name in BEST_OF_N if name != "kl"])
        return frame.assign(kl=best_of_n.kl(frame["n"].to_numpy(dtype=float)))[BEST_OF_N]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A row per dataset, model and judge that chooses, a column per judge that measures: the score against the KL
        divergence, with n at the top; a line per method."""
        if frame.empty:
            return empty("No judge scores several samples of a prompt in this grid.")
        panels, measures = panels_of(frame), list(dict.fromkeys(frame["measured_by"]))
        looks, methods = looks_of(results), methods_of(results, frame)
        figure = mpl.figure.Figure(layout="constrained")
        figure.set_size_inches(3.1 * len(measures) + 1.7, 2.6 * len(panels) + 0.2)
        axes = figure.subplots(len(panels), len(measures), squeeze=False)
        for (i, ids), (j, measure) in product(enumerate(panels), enumerate(measures)):
            ax, part = axes[i, j], part_of(frame, (*PANEL, "measured_by"), (*ids, measure))
            if part.empty:
                ax.remove()
                continue
            for method, line in part.groupby("method", sort=False):
                look = looks[str(method)]
                ax.fill_between(line["kl"], line["low"], line["high"], color=look.colour, alpha=0.13, linewidth=0)
                powers = line[np.log2(line["n"]) % 1 == 0]
                ax.plot(line["kl"], line["mean"], linestyle=look.line, color=look.colour, linewidth=1.2)
                ax.plot(powers["kl"], powers["mean"], look.marker, color=look.colour, markerfacecolor=look.face,
                        markersize=4)  # fmt: skip
            ax.grid(axis="y")
            top = ax.secondary_xaxis("top")
            ticks = 2 ** np.arange(int(np.log2(part["n"].max())) + 1)
            top.set_xticks(best_of_n.kl(ticks), [f"n = {n}" if n == 1 else str(n) for n in ticks])
            ax.set_ylabel(f"{results.score_name(measure)} by {results.label('judges', measure)}")
            chosen = f"best by {results.label('judges', ids[0])}"
            alone = len(results.datasets) * len(results.models) == 1 and len(measures) > 1
            ax.set_title(chosen if alone else f"{results.panel_label(*ids[1:])}, {chosen}", loc="left")
        figure.supxlabel(
            f"KL divergence of best-of-n from the method (nats per response); shaded: {interval_kind(results, True)}",
            fontsize=8,
        )
        legend(figure, looks, {method: results.method_label(method) for method in methods}, lines=True)
        return figure


def _best(results: Results, judges: tuple[str, str], cells: Sequence[Cell]) -> tuple[Array, int]:
    """(N, seeds, prompts) scores by the second judge of the best of n samples by the first, NaN where a seed lacks a
    prompt; and the number of prompts that are left out. Empty for judges of different samples, or of single ones."""
    prompts, other = (results.judge_settings[judge].prompts for judge in judges)
    samples = results.prompt_sets[prompts].samples
    if samples == 1 or prompts != other:
        return np.empty((0, 0, 0)), 0
    by_seed, asked = [], set()
    for cell in cells:
        kept, (proxy, gold) = best_of_n.complete([_scores(results, cell, judge) for judge in judges], samples)
        by_seed.append(pd.DataFrame(best_of_n.best_of(proxy, gold), columns=kept))
        asked |= {a.prompt_id for a in results.judged[cell, judges[0]].annotations}
    known = sorted(set().union(*(table.columns for table in by_seed)))
    whole = np.stack([table.reindex(columns=known).to_numpy(dtype=float) for table in by_seed], axis=1)
    return whole, len(asked) - len(known)


def _seeds(results: Results, tables: Mapping[str, Array], bounded: bool) -> statistics.Seeds | None:
    """The variance between seeds, pooled over trained methods where each has two (`measures.pooled_seeds`)."""
    trained = [table for method, table in tables.items() if method != BASE]
    return statistics.pooled(trained, bounded) if len(results.seeds) == 2 and trained else None


def _scores(results: Results, cell: Cell, judge: str) -> dict[tuple[str, int], float]:
    """A judge's scores of a cell's samples, by prompt and sample."""
    annotations = results.judged[cell, judge].annotations
    return {(a.prompt_id, a.sample): a.candidate_score for a in annotations if a.candidate_score is not None}
