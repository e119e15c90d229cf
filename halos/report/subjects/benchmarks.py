"""Benchmarks: the value of each method on each task, as a table and as a heat map."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from halos.report import statistics
from halos.report.lazy import mpl, pd, scipy
from halos.report.measures import ROW, rows
from halos.report.panels import empty, method_axis, method_grid, part_of
from halos.report.render import Bold, Table, interval
from halos.report.results import Results
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, records, row_names, seeds_text
from halos.study.cells import BASE

BENCHMARKS = [*ROW, "task", "metric", "value", "low", "high", "reference", "change", "clear", "seeds", "n"]
NO_TASK = "No task in this grid: give it `tasks:` to benchmark models."


@subject
class Benchmarks(Subject):
    table = figure = "benchmarks"
    title = "Benchmarks"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.tasks)

    def frame(self, results: Results) -> pd.DataFrame:
        """Each method on each task: mean over seeds with interval, and its change from the reference.

        The reference is `base`, or the grid's first method. `change` is positive where the method is better: the
        difference of metrics between 0 and 1, the relative difference of others (perplexity). It is `clear` where the
        difference of two independent means is significant after Holm's correction for all changes of the grid.
        """
        reference = BASE if BASE in results.methods else results.methods[0]
        groups = dict(iter(results.benchmarks.groupby([*ROW, "task"], sort=False)))
        lines = []
        for (dataset, model, method), task in product(rows(results), results.tasks):
            group, base = groups[dataset, model, method, task], groups[dataset, model, reference, task]
            seeds = _pooled_means(results, groups, dataset, model, task)
            e, b = (statistics.over_seeds(g["value"], g["stderr"], seeds) for g in (group, base))
            fraction = all(0 <= mean <= 1 for mean in (e.mean, b.mean))
            change = e.mean - b.mean if fraction or b.mean == 0 else e.mean / b.mean - 1
            error = np.hypot(e.high - e.mean, b.high - b.mean) / scipy.stats.norm.ppf((1 + statistics.LEVEL) / 2)
            p = (
                np.nan
                if method == reference or not error > 0
                else 2 * scipy.stats.norm.sf(abs(e.mean - b.mean) / error)
            )
            low, high = np.clip([e.low, e.high], 0, 1) if fraction else (e.low, e.high)
            row = (dataset, model, method, task, group["metric"].iloc[0], e.mean, low, high, reference)
            sign = 1 if group["higher_is_better"].all() else -1
            lines.append((*row, sign * change, p, e.seeds, group["n"].mean()))
        frame = pd.DataFrame(lines, columns=BENCHMARKS)
        return frame.assign(clear=statistics.holm(frame["clear"].astype(float)) < 1 - statistics.LEVEL)

    def tabulate(self, results: Results, frame: pd.DataFrame) -> pd.DataFrame:
        """Methods x tasks: {task}, {task}_low and {task}_high; with no task, a header only."""
        if frame.empty:
            return pd.DataFrame(columns=[*ROW, "seeds"])
        lines = []
        at = {(e["dataset"], e["model"], e["method"], e["task"]): e for e in records(frame)}
        for ids in rows(results):
            row: dict[str, Any] = dict(zip(ROW, ids, strict=True)) | {"seeds": len(results.seeds)}
            for task in results.tasks:
                e = at[*ids, task]
                row |= {task: e["value"], f"{task}_low": e["low"], f"{task}_high": e["high"], f"{task}_n": e["n"]}
            lines.append(row)
        return pd.DataFrame(lines)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table(NO_TASK, [], ["Method"])]
        # lm-eval names a metric with its filter: acc,none
        metrics = frame.groupby("task", sort=False)["metric"].first().str.removesuffix(",none")
        lines = []
        for ids, group in frame.groupby(ROW, sort=False):
            line = row_names(results, dict(zip(ROW, ids, strict=True)))
            for e in records(group):
                title = f"{results.label('tasks', e['task'])} ({metrics[e['task']]})"
                text = interval(e["value"], e["low"], e["high"])
                line[title] = Bold(text) if e["clear"] and e["change"] > 0 else text
            lines.append(line)
        sizes = frame.groupby("task", sort=False)["n"].max().dropna()
        n = ", ".join(f"{results.label('tasks', str(task))} {size:.0f}" for task, size in sizes.items())
        caption = (
            f"Mean over {seeds_text(results)}{f'; items: {n}' if n else ''}. Brackets: 95 % interval from the standard "
            "error over a task's items, which all seeds share, and the spread between seeds."
        )
        reference = results.method_label(frame["reference"].iloc[0])
        better = f" Bold: better than {reference} (p < 0.05, Holm's correction for all changes)."
        return [Table(caption + better, lines)]

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """Methods x tasks, a panel per dataset and model: values as text, changes from the reference as colour."""
        if frame.empty:
            return empty(NO_TASK)
        panels = list(product(results.datasets, results.models))
        columns = min(len(panels), 4 if len(results.tasks) <= 4 else 2)
        shape = math.ceil(len(panels) / columns), columns
        figure, axes = method_grid(results, *shape, width=0.52 * len(results.tasks) + 0.1, row=0.22, extra=1.1)
        most = max(0.02, frame["change"].abs().max())
        image = None
        for index, (ax, ids) in enumerate(zip(axes.flat, panels, strict=False)):
            part = part_of(frame, ROW[:2], ids)
            values, change, clear = (
                part.pivot(index="method", columns="task", values=key).loc[results.methods, results.tasks].to_numpy()
                for key in ("value", "change", "clear")
            )
            image = ax.imshow(change, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
            for i, j in np.ndindex(values.shape):
                text = f"{values[i, j]:.3f}".replace("0.", ".", 1) if abs(values[i, j]) < 1 else f"{values[i, j]:.3g}"
                colour = "white" if abs(change[i, j]) > 0.65 * most else "#222222"
                weight = "bold" if clear[i, j] else "normal"
                ax.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
            ax.set_xticks(
                range(len(results.tasks)), [results.label("tasks", t) for t in results.tasks], rotation=40, ha="right"
            )
            ax.set_xticks(np.arange(len(results.tasks) + 1) - 0.5, minor=True)
            ax.set_yticks(np.arange(len(results.methods) + 1) - 0.5, minor=True)
            ax.grid(which="minor", color="white", linewidth=1.2)
            ax.tick_params(which="both", length=0)
            ax.spines[:].set_visible(False)
            ax.set_title(results.panel_label(*ids))
            if index + columns < len(panels):
                ax.tick_params(labelbottom=False)
            method_axis(results, ax, first=index % columns == 0)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        assert image is not None
        bar = figure.colorbar(image, ax=list(axes.flat[: len(panels)]), shrink=0.9, aspect=30, pad=0.02)
        bar.set_label(f"change from {results.method_label(frame['reference'].iloc[0])}")
        bar.outline.set_visible(False)
        return figure


def _pooled_means(
    results: Results, groups: dict[Any, pd.DataFrame], dataset: str, model: str, task: str
) -> statistics.Seeds | None:
    """The variance between seeds of a task, pooled as in `pooled_seeds`."""
    if len(results.seeds) != 2:
        return None
    of_methods = [groups[dataset, model, method, task] for method in results.methods if method != BASE]
    variances = [statistics.seeds_of_means(group["value"], group["stderr"]) for group in of_methods]
    return statistics.mean_of(variances) if variances else None
