"""Tables of a grid: CSV with every number, Markdown to read, and LaTeX to put into a paper."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.grid import Cell
from halos.report import estimates as E
from halos.report import published as P
from halos.report import relations as R
from halos.report import statistics
from halos.report.pages import (
    Page,
    benchmarks_page,
    comparisons_page,
    cost_page,
    data_page,
    lengths_page,
    main_page,
    published_page,
    records,
    reward_models_page,
)
from halos.report.render import latex_page, markdown_page
from halos.report.results import CELL, SCORE, STRICT, WIN, Results

REWARD_METRICS = ["rewards/accuracy", "rewards/margin", "loss"]
REWARD_MODELS = [*E.ROW, "seeds", "accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs"]
COSTS = ["seconds", "gpu_hours", "tokens", "steps", "peak_memory_gb", "parameters"]
COUNTS = ["n", "wins", "losses", "ties", "failures", "not_judged"]
DATA = [*E.ROW[:2], "split", "prompts", "responses", "pairs", "desirable", "undesirable", "dropped", "truncated",
        "prompt_tokens", "response_tokens", "examples"]  # fmt: skip


def make(config: Path, results: Path, output: Path) -> None:
    """Write all tables of a grid.

    Args:
        config: the grid's slice of the config.
        results: the results folder.
        output: folder for main, comparisons, benchmarks, lengths, cost, data and, in a grid with `published:`,
            published, each as .csv, .md and .tex; and for cells.csv, training.csv and reward_models.csv. Reward models
            are a table of main, where there are any.

    Raises:
        HalosError: a file of a cell is missing.
    """
    r = Results(config, results)
    training = training_table(r)
    measures, compared, benchmarked = E.measures(r), E.comparisons(r), E.benchmarks(r)
    main, rewards = main_table(r, measures, training), reward_models_table(r, training)
    long, cost, data = R.lengths(r, measures), R.costs(r), data_table(r)
    E.write_csv(cells_table(r, training), output / "cells.csv")
    E.write_csv(training, output / "training.csv")
    E.write_csv(rewards, output / "reward_models.csv")
    pages: dict[str, tuple[str, pd.DataFrame, Page]] = {
        "main": ("Main results", main, [*main_page(r, main), *reward_models_page(r, rewards)]),
        "comparisons": ("Comparisons", compared, comparisons_page(r, compared)),
        "benchmarks": ("Benchmarks", benchmarks_table(r, benchmarked), benchmarks_page(r, benchmarked)),
        "lengths": ("Responses", long, lengths_page(r, long)),
        "cost": ("Cost", cost, cost_page(r, cost)),
        "data": ("Data", data, data_page(r, data)),
    }
    if r.published is not None:
        beside = R.published(r)
        pages["published"] = ("Published results", beside, published_page(r, beside))
    for name, (title, frame, page) in pages.items():
        E.write_csv(frame, output / f"{name}.csv")
        (output / f"{name}.md").write_text(markdown_page(f"{title}: {r.label('grids', r.grid)}", page))
        (output / f"{name}.tex").write_text(latex_page(name, page))


def training_table(results: Results) -> pd.DataFrame:
    """One row per trained cell: the last logged value of every training and evaluation metric, and what it cost."""
    log = results.training
    # `last` is a metric's last value, not the last line: not every line has every metric
    last = log.groupby([*CELL, "split"]).last().to_dict("index")
    found = []
    for cell in results.trained:
        row: dict[str, Any] = dict(cell.ids)
        for split in ("train", "eval"):
            numbers = last.get((*cell.ids.values(), split), {})
            row |= {f"{split}.{name}": value for name, value in numbers.items() if pd.notna(value)}
        manifest = results.manifest(cell)
        found.append(row | {name: manifest.get(name) for name in COSTS})
    frame = pd.DataFrame(found)
    metrics = sorted((c for c in frame.columns if "." in c), key=lambda c: c.startswith("eval."))
    return frame.reindex(columns=[*CELL, *metrics, *COSTS])


def cells_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: counts, lengths and scores of each judge, tasks, and the row of training.csv."""
    found = []
    for cell in results.cells:
        row: dict[str, Any] = dict(cell.ids)
        for judge in results.judges:
            j = results.judged[cell, judge]
            row |= {f"{judge}.{name}": j.get(name) for name in COUNTS}
            row[f"{judge}.cut"] = results.cut(cell, judge)
            decided = sum(j.get(name) or 0 for name in ("wins", "losses", "ties"))
            low, high = statistics.wilson((j.get("wins") or 0) + (j.get("ties") or 0) / 2, decided)
            row |= {f"{judge}.{WIN}": j.get(WIN), f"{judge}.{WIN}_low": low, f"{judge}.{WIN}_high": high}
            row[f"{judge}.standard_error"] = j.get("standard_error")
            # as Ethayarajh et al. (2024) count and print
            exact = statistics.clopper_pearson(j.get("wins") or 0, decided, P.PAPER_LEVEL) if decided else (0.0, 1.0)
            row[f"{judge}.{STRICT}"] = (j.get("wins") or 0) / decided if decided else np.nan
            row |= {f"{judge}.{STRICT}_low90": exact[0], f"{judge}.{STRICT}_high90": exact[1]}
            for side in ("candidate", "baseline"):
                row[f"{judge}.length.{side}"] = (j.get("mean_length") or {}).get(side)
                scores = (j.get("scores") or {}).get(side) or {}
                row |= {f"{judge}.{SCORE}.{side}.{name}": value for name, value in scores.items()}
        found.append(row)
    frame = pd.DataFrame(found)
    for task, group in results.benchmarks.groupby("task", sort=False):
        part = group[[*CELL, "value", "stderr", "n"]].rename(
            columns={k: f"{task}.{k}" for k in ("value", "stderr", "n")}
        )
        frame = frame.merge(part, on=CELL, how="left")
    return frame.merge(training, on=CELL, how="left") if len(training) else frame


def main_table(results: Results, measures: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and method; a judge's columns start with its id."""
    found = []
    pooled = {
        (e["judge"], e["dataset"], e["model"], e["method"], e["measure"]): e
        for e in records(measures[measures["seed"] == E.ALL])
    }
    panels = product(results.judges, results.datasets, results.models, (SCORE, WIN))
    winners = {panel: E.best(results, *panel) for panel in panels}
    for ids in E.rows(results):
        cells = [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]
        row: dict[str, Any] = dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(cells)}
        for judge in results.judges:
            for measure in E.measures_of(results, judge):
                name = f"{judge}.{measure}"
                e = pooled.get((judge, *ids, measure)) or dict.fromkeys(E.MEASURES)
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
        mine = training[(training[E.ROW] == list(ids)).all(axis=1)]
        for metric, name in (("eval.loss", "eval_loss"), ("eval.rewards/accuracy", "eval_reward_accuracy")):
            row[name] = mine[metric].mean() if metric in mine else np.nan
        found.append(row)
    return pd.DataFrame(found)


def reward_models_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and reward model, of the last evaluation: ranking accuracy with interval, margin and
    loss, means over seeds."""
    found = []
    for ids in product(results.datasets, results.models, results.reward_models):
        mine = training[(training[E.ROW] == list(ids)).all(axis=1)]
        values = {name: mine.get(f"eval.{name}", pd.Series(np.nan, mine.index)) for name in REWARD_METRICS}
        pairs = results.held_out_pairs(Cell(*ids, results.seeds[0]))
        e = statistics.shares(values["rewards/accuracy"], pairs)
        means = {"margin": values["rewards/margin"].mean(), "loss": values["loss"].mean()}
        row: dict[str, Any] = {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high, **means}
        found.append(dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(mine)} | row | {"pairs": pairs})
    return pd.DataFrame(found, columns=REWARD_MODELS)


def benchmarks_table(results: Results, benchmarked: pd.DataFrame) -> pd.DataFrame:
    """Methods x tasks: {task}, {task}_low and {task}_high; with no task, a header only."""
    if benchmarked.empty:
        return pd.DataFrame(columns=[*E.ROW, "seeds"])
    found = []
    at = {(e["dataset"], e["model"], e["method"], e["task"]): e for e in records(benchmarked)}
    for ids in E.rows(results):
        row: dict[str, Any] = dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(results.seeds)}
        for task in results.tasks:
            e = at[*ids, task]
            row |= {task: e["value"], f"{task}_low": e["low"], f"{task}_high": e["high"], f"{task}_n": e["n"]}
        found.append(row)
    return pd.DataFrame(found)


def data_table(results: Results) -> pd.DataFrame:
    """One row per dataset, model and split: what was left of the data, and its lengths in tokens (medians)."""
    found = []
    for dataset, model in product(results.datasets, results.models):
        made, stored = results.data_reports(dataset, model)
        for split in ("train", "test"):
            of_data, of_store = made.get(split) or {}, stored.get(split) or {}
            views = (stored.get("views") or {}).get(split) or {}
            lengths = of_store.get("length_quantiles") or {}
            row: dict[str, Any] = {"dataset": dataset, "model": model, "split": split}
            row |= {"prompts": of_data.get("rows_out"), "responses": of_data.get("responses")}
            row |= {key: of_data.get(key) for key in ("pairs", "desirable", "undesirable")}
            row["dropped"] = sum((of_data.get("drops") or {}).values()) + sum((of_store.get("dropped") or {}).values())
            row["truncated"] = of_store.get("truncated_responses")
            row |= {f"{side}_tokens": (lengths.get(side) or {}).get("0.5") for side in ("prompt", "response")}
            found.append(row | {"examples": max(views.values(), default=None)})
    return pd.DataFrame(found, columns=DATA)
