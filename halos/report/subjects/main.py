"""Main results: score and win rate of each method by each judge."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from halos.report.lazy import pd
from halos.report.measures import MEASURES, ROW, best, measures_of, pooled, rows
from halos.report.render import Bold, Table, interval, number
from halos.report.results import SCORE, WIN, Results
from halos.report.subject import Subject, subject
from halos.report.subjects.cells import COUNTS
from halos.report.subjects.reward_models import RewardModels
from halos.report.subjects.training import trainings
from halos.report.words import NO_JUDGE, Page, interval_kind, metric_title, range_text, records, row_names, seeds_text

REWARD_MODELS = RewardModels()


@subject
class Main(Subject):
    table = "main"
    title = "Main results"

    def frame(self, results: Results) -> pd.DataFrame:
        """One row per dataset, model and method; a judge's columns start with its id."""
        lines, training = [], trainings(results)
        estimates = {tuple(e[key] for key in ("judge", *ROW, "measure")): e for e in records(pooled(results))}
        panels = product(results.judges, results.datasets, results.models, (SCORE, WIN))
        winners = {panel: best(results, *panel) for panel in panels}
        for ids in rows(results):
            cells = results.cells_of(*ids)
            row: dict[str, Any] = dict(zip(ROW, ids, strict=True)) | {"seeds": len(cells)}
            for judge in results.judges:
                for measure in measures_of(results, judge):
                    name = f"{judge}.{measure}"
                    e = estimates.get((judge, *ids, measure)) or dict.fromkeys(MEASURES)
                    row |= {name: e["mean"], f"{name}_low": e["low"], f"{name}_high": e["high"]}
                    if measure in (WIN, SCORE):
                        row[f"{name}_best"] = ids[2] == winners.get((judge, *ids[:2], measure))
                    if measure == WIN:
                        row[f"{judge}.prompts"] = e["prompts"]
                    else:
                        row[f"{name}_baseline"] = e["baseline"]
                judgements = results.judgements(judge, *ids)
                row |= {f"{judge}.{name}": sum(getattr(j, name) for j in judgements) for name in COUNTS}
                row[f"{judge}.cut"] = np.mean([results.cut(cell, judge) for cell in cells])
                for side in ("candidate", "baseline"):
                    row[f"{judge}.length_{side}"] = np.mean([getattr(j.mean_length, side) for j in judgements])
            of_method = training[(training[ROW] == list(ids)).all(axis=1)]
            for metric, name in (("eval.loss", "eval_loss"), ("eval.rewards/accuracy", "eval_reward_accuracy")):
                row[name] = of_method[metric].mean() if metric in of_method else np.nan
            lines.append(row)
        return pd.DataFrame(lines)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        """For each judge a table of methods: their measures, or, of several models or datasets, a table of methods by
        models for the score and for the win rate. The reward models come last."""
        several = len(results.models) * len(results.datasets) > 1
        page: list[Table | str] = []
        for judge in results.judges:
            caption = _caption(results, judge, frame)
            if several:
                for measure, title in _judged(results, judge, frame):
                    page.append(Table(caption, _by_model(results, frame, judge, measure), title=title))
            else:
                lines = [row_names(results, row) | _measured(results, frame, judge, row) for row in records(frame)]
                page.append(Table(caption, lines))
        if not results.judges:
            lines = [row_names(results, row) | {"Seeds": str(row["seeds"])} for row in records(frame)]
            page.append(Table(NO_JUDGE, lines))
        return [*page, *REWARD_MODELS.page(results, REWARD_MODELS.frame(results))]


def _judged(results: Results, judge: str, main: pd.DataFrame) -> list[tuple[str, str]]:
    """(measure, title) of those of score and win rate that a judge gives."""
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


def _caption(results: Results, judge: str, main: pd.DataFrame) -> str:
    """The judge, its baseline, the number of prompts, and the kind of interval."""
    first = results.judged[results.cells[0], judge]
    kind, rewards = results.kind(judge).replace("_", " "), results.score_name(judge) == "reward"
    against = "the dataset's target" if first.baseline == "target" else first.baseline
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
