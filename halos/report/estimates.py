"""The numbers of tables and figures: tidy frames, one row per estimate, in the grid's order."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from halos.config import BASE
from halos.report import statistics
from halos.report.results import SCORE, WIN, Results

ALL = "all"
"""In a `seed` column: the estimate over all seeds."""

ROW = ["dataset", "model", "method"]
MEASURES = ["judge", *ROW, "measure", "seed", "mean", "low", "high", "baseline", "seeds", "prompts"]
COMPARISONS = [*ROW, "against", "judge", "measure", "difference", "low", "high", "p", "p_holm",
               "improvement", "improvement_low", "improvement_high", "seeds", "prompts"]  # fmt: skip
BENCHMARKS = [*ROW, "task", "metric", "value", "low", "high", "reference", "change", "clear", "seeds", "n"]
ROUNDS = ["judge", *ROW, "round", "measure", "mean", "low", "high", "seeds", "prompts"]
CURVES = [*ROW, "quantity", "split", "unit", "examples", "mean", "min", "max", "seeds"]

POINTS = 40
"""Points of a curve made of training steps: enough for its shape, few enough to average the noise of a batch."""

QUANTITIES = {"rewards/margin": "reward", "kl": "nats", "loss": "loss"}
"""What `curves` holds, and its unit."""


def rows(results: Results) -> list[tuple[str, str, str]]:
    return list(product(results.datasets, results.models, results.methods))


def measures_of(results: Results, judge: str) -> list[str]:
    return [WIN, SCORE, *(f"{SCORE}.{criterion}" for criterion in results.criteria(judge))]


def measures(results: Results) -> pd.DataFrame:
    """Win rate, score and its criteria of every method: over all seeds, with interval, and seed by seed."""
    found = []
    for judge, ids in product(results.judges, rows(results)):
        for measure in measures_of(results, judge):
            values = results.values(judge, *ids, measure)
            if values.empty:
                continue
            # seeds of a model without training are samples of one and the same: there are no other seeds to speak of
            of_one = values.mean().to_frame().T if ids[2] == BASE else values
            seeds = None if ids[2] == BASE else pooled_seeds(results, judge, *ids[:2], measure)
            estimate = statistics.estimate(of_one, bounded=results.bounded(judge, measure), seeds=seeds)
            key = (judge, *ids, measure)
            base = _baseline(results, judge, ids, measure)
            found.append((*key, ALL, estimate.mean, estimate.low, estimate.high, base, len(values), estimate.prompts))
            for seed, of_seed in values.iterrows():
                found.append((*key, str(seed), of_seed.mean(), np.nan, np.nan, base, 1, of_seed.count()))
    return pd.DataFrame(found, columns=MEASURES)


def pooled_seeds(results: Results, judge: str, dataset: str, model: str, measure: str) -> statistics.Seeds | None:
    """What seeds add to every trained method of a dataset and model, where there are two of each; a single one knows
    nothing of it, and three or more know their own."""
    if len(results.seeds) != 2:
        return None
    tables = [results.values(judge, dataset, model, method, measure) for method in results.methods if method != BASE]
    there = [table for table in tables if len(table) == 2]
    return statistics.pooled(there, results.bounded(judge, measure)) if there else None


def _baseline(results: Results, judge: str, ids: tuple[str, str, str], measure: str) -> float:
    """What the baseline itself scores, mean over seeds; .5 is its win rate against itself."""
    if measure == WIN:
        return 0.5
    key = "mean" if measure == SCORE else measure.removeprefix(f"{SCORE}.")
    cells = [c for c in results.cells if (c.dataset, c.model, c.method) == ids]
    scores = [((results.judged[c, judge].get("scores") or {}).get("baseline") or {}).get(key) for c in cells]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else np.nan


def opponents(method: str, methods: list[str]) -> list[str]:
    """What a method is compared with: its parent method and `sft`, where the grid has them."""
    if method == BASE:
        return []
    parent = method.rsplit("-", 1)[0] if "-" in method else BASE
    return [m for m in dict.fromkeys((parent, "sft")) if m in methods and m != method]


def comparisons(results: Results) -> pd.DataFrame:
    """Difference of score and of win rate between methods, over their common prompts and all seeds.

    `p_holm` is adjusted for all comparisons of one judge and measure. `improvement` is the probability that the
    method's response to a prompt is better than the other's.
    """
    found, better = [], []
    for judge, (dataset, model, method) in product(results.judges, rows(results)):
        for against, measure in product(opponents(method, results.methods), (SCORE, WIN)):
            ours = results.values(judge, dataset, model, method, measure)
            theirs = results.values(judge, dataset, model, against, measure)
            ours, theirs = ours.align(theirs, join="inner")
            if (ours - theirs).isna().all(axis=None):
                continue
            seeds = pooled_seeds(results, judge, dataset, model, measure)
            d = statistics.difference(ours, theirs, seeds=seeds, bounded=results.bounded(judge, measure))
            ids = (dataset, model, method, against, judge, measure)
            found.append((*ids, d.mean, d.low, d.high, d.p, *[np.nan] * 4, d.seeds, d.prompts))
            better.append(statistics.improved(ours, theirs))
    frame = pd.DataFrame(found, columns=COMPARISONS)
    for _, mine in frame.groupby(["judge", "measure"]):
        tables = [better[i] for i in mine.index]
        seeds = statistics.pooled(tables, bounded=True) if len(results.seeds) == 2 else None
        for i, table in zip(mine.index, tables, strict=True):
            e = statistics.estimate(table, bounded=True, seeds=seeds)
            frame.loc[i, ["improvement", "improvement_low", "improvement_high"]] = [e.mean, e.low, e.high]
    frame["p_holm"] = frame.groupby(["judge", "measure"])["p"].transform(lambda p: statistics.holm(p))
    return frame


def benchmarks(results: Results) -> pd.DataFrame:
    """Each method on each task: mean over seeds with interval, and its change from the reference.

    The reference is `base`, or the grid's first method. `change` is positive where the method is better: the
    difference of metrics between 0 and 1, the relative difference of others (perplexity). It is `clear` where the
    difference of two independent means is significant after Holm's correction for all changes of the grid.
    """
    reference = BASE if BASE in results.methods else results.methods[0]
    groups = dict(iter(results.benchmarks.groupby([*ROW, "task"], sort=False)))
    found = []
    for (dataset, model, method), task in product(rows(results), results.tasks):
        group, base = groups[dataset, model, method, task], groups[dataset, model, reference, task]
        seeds = _pooled_means(results, groups, dataset, model, task)
        e, b = (statistics.over_seeds(g["value"], g["stderr"], seeds) for g in (group, base))
        fraction = all(0 <= mean <= 1 for mean in (e.mean, b.mean))
        change = e.mean - b.mean if fraction or b.mean == 0 else e.mean / b.mean - 1
        error = np.hypot(e.high - e.mean, b.high - b.mean) / norm.ppf((1 + statistics.LEVEL) / 2)
        p = np.nan if method == reference or not error > 0 else 2 * norm.sf(abs(e.mean - b.mean) / error)
        low, high = np.clip([e.low, e.high], 0, 1) if fraction else (e.low, e.high)
        row = (dataset, model, method, task, group["metric"].iloc[0], e.mean, low, high, reference)
        sign = 1 if group["higher_is_better"].all() else -1
        found.append((*row, sign * change, p, e.seeds, group["n"].mean()))
    frame = pd.DataFrame(found, columns=BENCHMARKS)
    return frame.assign(clear=statistics.holm(frame["clear"].astype(float)) < 1 - statistics.LEVEL)


def _pooled_means(
    results: Results, groups: dict[Any, pd.DataFrame], dataset: str, model: str, task: str
) -> statistics.Seeds | None:
    """`pooled_seeds` of a task."""
    if len(results.seeds) != 2:
        return None
    mine = [groups[dataset, model, method, task] for method in results.methods if method != BASE]
    found = [statistics.seeds_of_means(group["value"], group["stderr"]) for group in mine]
    return statistics.mean_of(found) if found else None


def curves(results: Results) -> pd.DataFrame:
    """Reward margin, KL and loss during training: mean and range over seeds, at the examples seen.

    A quantity comes from the evaluations (a fixed subset, so no noise of batches) when all that log it evaluate it at
    three points or more; else from the training steps, averaged in bins. Losses of different kinds share no scale:
    where methods differ in their last stage, loss is relative to the first evaluation, and left out where that is not
    above zero.
    """
    log = results.training
    log = log[log["method"].isin(results.methods)]  # a reward model's scores have no place beside policies' rewards
    found = []
    for quantity, unit in QUANTITIES.items():
        there = log[log[quantity].notna()] if quantity in log else log[:0]
        if there.empty:
            continue
        counts = (
            there.groupby(["method", "split"])["step"].nunique().unstack("split").reindex(columns=["eval", "train"])
        )
        split = "eval" if (counts["eval"].fillna(0) >= 3).all() else "train"
        part = there[there["split"] == split]
        if split == "train":
            width = part["examples"].max() / POINTS
            part = part.assign(examples=(np.ceil(part["examples"] / width) * width).round())
        per_seed = part.groupby([*ROW, "seed", "examples"], sort=False)[quantity].mean()
        if quantity == "loss" and part["method"].str.rsplit("-").str[-1].nunique() > 1:
            unit = "first = 1"
            first = per_seed.groupby(level=[*ROW, "seed"]).transform("first")
            per_seed = (per_seed / first)[first > 0.05]
        stats = per_seed.groupby(level=[*ROW, "examples"]).agg(["mean", "min", "max", "count"]).reset_index()
        stats = stats.rename(columns={"count": "seeds"}).assign(quantity=quantity, split=split, unit=unit)
        order = [rows(results).index(ids) for ids in zip(*(stats[key] for key in ROW), strict=True)]
        found.append(stats.assign(order=order).sort_values(["order", "examples"]))
    return pd.concat(found, ignore_index=True)[CURVES] if found else pd.DataFrame(columns=CURVES)


def rounds(results: Results) -> pd.DataFrame:
    """Score, or win rate where a judge gives no score, after each round of the methods that are trained online: over
    all seeds, with interval. Round 0 is the parent method, where the grid has it."""
    found = []
    for judge, ids in product(results.judges, rows(results)):
        cells = [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]
        last = max(map(results.rounds, cells))
        parent = ids[2].rsplit("-", 1)[0] if "-" in ids[2] else BASE
        measure = SCORE if not results.values(judge, *ids, SCORE).empty else WIN
        for number in range(last + 1) if last else ():
            method, of_round = (ids[2], number % last) if number else (parent, 0)
            values = results.values(judge, *ids[:2], method, measure, of_round)
            if values.empty:
                continue
            seeds = pooled_seeds(results, judge, *ids[:2], measure)
            e = statistics.estimate(values, bounded=results.bounded(judge, measure), seeds=seeds)
            found.append((judge, *ids, number, measure, e.mean, e.low, e.high, e.seeds, e.prompts))
    return pd.DataFrame(found, columns=ROUNDS)


def best(results: Results, judge: str, dataset: str, model: str, measure: str) -> str | None:
    """The method that is better than every other one of its dataset and model, if one is (`statistics.winner`)."""
    tables = [results.values(judge, dataset, model, method, measure) for method in results.methods]
    there = [table for table in tables if not table.empty]
    if len(there) < 2:
        return None
    seeds, prompts = _union([t.index for t in there]), _union([t.columns for t in there])
    found = statistics.winner(
        [None if table.empty else table.reindex(index=seeds, columns=prompts) for table in tables],
        seeds=pooled_seeds(results, judge, dataset, model, measure),
        bounded=results.bounded(judge, measure),
    )
    return None if found is None else results.methods[found]


def _union(labels: list[pd.Index]) -> list[Any]:
    return sorted(set().union(*labels))


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Ten digits: more than anyone reads, few enough to be the same on every machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
