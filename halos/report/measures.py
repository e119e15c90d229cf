"""Measures of a grid's cells and methods with intervals: tidy frames, one row per estimate, in the grid's order."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.report import statistics
from halos.report.results import SCORE, WIN, Results
from halos.study.cells import BASE

ALL = "all"
"""In a `seed` column: the estimate over all seeds."""
ROW = ["dataset", "model", "method"]
MEASURES = ["judge", *ROW, "measure", "seed", "mean", "low", "high", "baseline", "seeds", "prompts"]


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
