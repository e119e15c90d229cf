"""The main result: win rate and score of each method."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from halos.report.measures import ALL, MEASURES, ROW, best, measures_of, rows
from halos.report.panels import draw_points, empty, limits_of, of, panel_grid, panel_title
from halos.report.render import Bold, Table, interval, number
from halos.report.results import SCORE, WIN, Results
from halos.report.subjects.cells import COUNTS
from halos.report.words import NO_JUDGE, Page, interval_kind, metric_title, range_text, records, row_names, seeds_text


def win_rate(results: Results, wins: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model; a point with interval per method, seeds as faint dots."""
    if wins.empty:
        return empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
    panels = list(product(results.judges, results.datasets, results.models))
    columns = min(len(panels), 4)
    figure, axes = panel_grid(results, math.ceil(len(panels) / columns), columns, width=2.3 if columns > 1 else 3.4)
    limits = limits_of([*wins["mean"], *wins["low"], *wins["high"], 0.5])
    for ax, ids in zip(axes.flat, panels, strict=False):
        draw_points(results, ax, of(wins, ("judge", "dataset", "model"), ids), guide=0.5)
        ax.set(xlim=limits, title=panel_title(results, ids))
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    figure.supxlabel(f"win rate against the baseline\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def score(results: Results, scores: pd.DataFrame) -> Figure:
    """A row per judge, dataset and model; a column for the score and one for each criterion; dashed: the baseline."""
    if scores.empty:
        return empty(NO_JUDGE if not results.judges else "No judge of this grid gives scores.")
    panels = list(scores[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    columns = max(len(measures_of(results, ids[0])) - 1 for ids in panels)
    figure, axes = panel_grid(results, len(panels), columns, width=1.9, row=0.19 if len(panels) < 4 else 0.155)
    for row, ids in zip(axes, panels, strict=True):
        mine = of(scores, ("judge", "dataset", "model"), ids)
        limits = limits_of(scores.loc[scores["judge"] == ids[0], ["mean", "low", "high", "baseline"]].to_numpy().flat)
        names = measures_of(results, ids[0])[1:]
        for ax, measure in zip(row, names, strict=False):
            part = mine[mine["measure"] == measure]
            draw_points(results, ax, part, guide=part["baseline"].mean())
            name = results.score_name(ids[0]).capitalize() if measure == SCORE else metric_title(measure)
            ax.set(xlim=limits, title=name)
        for ax in row[len(names) :]:
            ax.remove()
        if len(panels) > 1:
            row[0].set_title(f"{panel_title(results, ids)}: {results.score_name(ids[0])}")
    what = " or ".join(dict.fromkeys(results.score_name(ids[0]) for ids in panels))
    figure.supxlabel(f"{what}; dashed: the baseline's own\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def main_page(results: Results, main: pd.DataFrame) -> Page:
    """For each judge a table of methods: their measures, or, of several models or datasets, a table of methods by
    models for the score and for the win rate."""
    several = len(results.models) * len(results.datasets) > 1
    page: list[Table | str] = []
    for judge in results.judges:
        caption = main_caption(results, judge, main)
        if several:
            for measure, title in _judged(results, judge, main):
                page.append(Table(caption, _by_model(results, main, judge, measure), title=title))
        else:
            lines = [row_names(results, row) | _measured(results, main, judge, row) for row in records(main)]
            page.append(Table(caption, lines))
    if not results.judges:
        lines = [row_names(results, row) | {"Seeds": str(row["seeds"])} for row in records(main)]
        page.append(Table(NO_JUDGE, lines))
    return page


def _judged(results: Results, judge: str, main: pd.DataFrame) -> list[tuple[str, str]]:
    """What a judge gives, of its score and win rate, with its name."""
    names = ((SCORE, results.score_name(judge).capitalize()), (WIN, "Win rate"))
    return [(measure, title) for measure, title in names if main[f"{judge}.{measure}"].notna().any()]


def _cell_text(row: dict[str, Any], name: str) -> str:
    text = interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
    return Bold(text) if row[f"{name}_best"] else text


def _by_model(results: Results, main: pd.DataFrame, judge: str, measure: str) -> list[dict[str, str]]:
    at = {tuple(row[key] for key in ROW): row for row in records(main)}
    panels = {ids: results.panel_label(*ids) for ids in product(results.datasets, results.models)}
    return [
        {"Method": results.method_label(method)}
        | {name: _cell_text(at[*ids, method], f"{judge}.{measure}") for ids, name in panels.items()}
        for method in results.methods
    ]


def _measured(results: Results, main: pd.DataFrame, judge: str, row: dict[str, Any]) -> dict[str, str]:
    titles = dict(_judged(results, judge, main))
    line = {titles[SCORE]: _cell_text(row, f"{judge}.{SCORE}")} if SCORE in titles else {}
    for criterion in results.criteria(judge):
        line[metric_title(criterion)] = number(row[f"{judge}.{SCORE}.{criterion}"])
    if WIN in titles:
        line[titles[WIN]] = _cell_text(row, f"{judge}.{WIN}")
    line["Length"] = " / ".join(number(row[f"{judge}.length_{side}"], 0) for side in ("candidate", "baseline"))
    return line


def main_caption(results: Results, judge: str, main: pd.DataFrame) -> str:
    """Who judged, against what, how many, and what the brackets hold."""
    first = results.judged[results.cells[0], judge]
    kind, rewards = results.kind(judge).replace("_", " "), results.score_name(judge) == "reward"
    baseline = first.get("baseline", "target")
    against = "the dataset's target" if baseline == "target" else baseline
    values = main.get(f"{judge}.{SCORE}_baseline", pd.Series(dtype=float)).dropna()
    scores = " to ".join(dict.fromkeys((number(values.min()), number(values.max())))) if len(values) else ""
    scored = f", which itself scores {scores}" if scores else ""
    failed = int(main[f"{judge}.failures"].sum()), int(main[f"{judge}.not_judged"].sum())
    ties = "half a win" if results.ties(judge) == "half" else "a win of neither"
    return (
        f"Judge: {results.label('judges', judge)} ({kind}), against {against}{scored}; "
        f"n = {range_text(main[f'{judge}.prompts'])} prompts, {seeds_text(results)}. "
        f"Brackets: {interval_kind(results)}. Bold: better than every other method of its "
        f"model (p < 0.05, paired, Holm's correction). A tie is {ties}. "
        f"{failed[0]} failed and {failed[1]} unjudged responses are left out. "
        "Length: mean characters, method / baseline."
        + (" Rewards have no scale: only their differences, by this one judge, mean something." if rewards else "")
    )


def main_table(results: Results, measures: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and method; a judge's columns start with its id."""
    found = []
    pooled = {
        (e["judge"], e["dataset"], e["model"], e["method"], e["measure"]): e
        for e in records(measures[measures["seed"] == ALL])
    }
    panels = product(results.judges, results.datasets, results.models, (SCORE, WIN))
    winners = {panel: best(results, *panel) for panel in panels}
    for ids in rows(results):
        cells = [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]
        row: dict[str, Any] = dict(zip(ROW, ids, strict=True)) | {"seeds": len(cells)}
        for judge in results.judges:
            for measure in measures_of(results, judge):
                name = f"{judge}.{measure}"
                e = pooled.get((judge, *ids, measure)) or dict.fromkeys(MEASURES)
                row |= {name: e["mean"], f"{name}_low": e["low"], f"{name}_high": e["high"]}
                if measure in (WIN, SCORE):
                    row[f"{name}_best"] = ids[2] == winners.get((judge, *ids[:2], measure))
                if measure == WIN:
                    row[f"{judge}.prompts"] = e["prompts"]
                else:
                    row[f"{name}_baseline"] = e["baseline"]
            js = [results.judged[cell, judge] for cell in cells]
            row |= {f"{judge}.{name}": sum(j.get(name) or 0 for j in js) for name in COUNTS}
            row[f"{judge}.cut"] = np.mean([results.cut(cell, judge) for cell in cells])
            for side in ("candidate", "baseline"):
                row[f"{judge}.length_{side}"] = np.mean([(j.get("mean_length") or {}).get(side, np.nan) for j in js])
        mine = training[(training[ROW] == list(ids)).all(axis=1)]
        for metric, name in (("eval.loss", "eval_loss"), ("eval.rewards/accuracy", "eval_reward_accuracy")):
            row[name] = mine[metric].mean() if metric in mine else np.nan
        found.append(row)
    return pd.DataFrame(found)
