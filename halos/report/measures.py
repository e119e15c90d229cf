"""Measures of a grid's cells and methods with intervals: tidy frames, one row per estimate, in the grid's order."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from halos.evaluate.judging.judgement import Judgement
from halos.report import statistics
from halos.report.lazy import pd
from halos.report.results import SCORE, WIN, Results
from halos.study.cells import BASE

ALL = "all"
"""In a `seed` column: the estimate over all seeds."""
ROW = ["dataset", "model", "method"]
MEASURES = ["judge", *ROW, "measure", "seed", "mean", "low", "high", "baseline", "seeds", "prompts"]


def rows(results: Results) -> list[tuple[str, str, str]]:
    """(dataset, model, method) of all policies."""
    return list(product(results.datasets, results.models, results.methods))


def by_prompt(judgement: Judgement, measure: str) -> pd.Series:
    """The win rate or score of a judgement by prompt_id, each the mean over a prompt's samples."""
    wins = zip(judgement.annotations, judgement.values(), strict=True)
    worth = [(a.prompt_id, win if measure == WIN else a.candidate_score) for a, win in wins]
    frame = pd.DataFrame(worth, columns=["prompt_id", "value"]).astype({"value": float})
    means: pd.Series = frame.groupby("prompt_id")["value"].mean()
    return means


def measures_of(results: Results, judge: str) -> list[str]:
    return [WIN, SCORE, *(f"{SCORE}.{criterion}" for criterion in results.criteria(judge))]


@lru_cache(maxsize=1)  # most subjects start from them, and bootstraps take seconds
def measures(results: Results) -> pd.DataFrame:
    """Win rate, score and its criteria of every method: over all seeds, with interval, and seed by seed."""
    estimates = []
    for judge, ids in product(results.judges, rows(results)):
        for measure in measures_of(results, judge):
            values = results.values(judge, *ids, measure)
            if values.empty:
                continue
            # a base model is not trained, so its seeds are samples of one model: there is no variance between seeds
            pooled_values = values.mean().to_frame().T if ids[2] == BASE else values
            seeds = None if ids[2] == BASE else pooled_seeds(results, judge, *ids[:2], measure)
            e = statistics.estimate(pooled_values, bounded=results.bounded(judge, measure), seeds=seeds)
            key = (judge, *ids, measure)
            base = _baseline(results, judge, ids, measure)
            estimates.append((*key, ALL, e.mean, e.low, e.high, base, len(values), e.prompts))
            for seed, of_seed in values.iterrows():
                estimates.append((*key, str(seed), of_seed.mean(), np.nan, np.nan, base, 1, of_seed.count()))
    return pd.DataFrame(estimates, columns=MEASURES)


def pooled(results: Results, *names: str) -> pd.DataFrame:
    """`measures` over all seeds; of some measures alone, if named."""
    frame = measures(results)
    frame = frame[frame["seed"] == ALL]
    return frame[frame["measure"].isin(names)] if names else frame


def pooled_seeds(results: Results, judge: str, dataset: str, model: str, measure: str) -> statistics.Seeds | None:
    """The variance between seeds, pooled over the trained methods of a dataset and model, where each has two seeds.

    None otherwise: a single seed says nothing of it, and three or more are enough for each method by itself.
    """
    if len(results.seeds) != 2:
        return None
    tables = [results.values(judge, dataset, model, method, measure) for method in results.methods if method != BASE]
    complete = [table for table in tables if len(table) == 2]
    return statistics.pooled(complete, results.bounded(judge, measure)) if complete else None


def _baseline(results: Results, judge: str, ids: tuple[str, str, str], measure: str) -> float:
    """The baseline's own value, mean over seeds; .5 is its win rate against itself."""
    if measure == WIN:
        return 0.5
    key = "mean" if measure == SCORE else measure.removeprefix(f"{SCORE}.")
    scores = [j.scores.baseline.get(key) for j in results.judgements(judge, *ids) if j.scores]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else np.nan


def best(results: Results, judge: str, dataset: str, model: str, measure: str) -> str | None:
    """The method that is better than every other one of its dataset and model, if one is (`statistics.winner`)."""
    tables = [results.values(judge, dataset, model, method, measure) for method in results.methods]
    judged = [table for table in tables if not table.empty]
    if len(judged) < 2:
        return None
    seeds = sorted(set().union(*(table.index for table in judged)))
    prompts = sorted(set().union(*(table.columns for table in judged)))
    winner = statistics.winner(
        [None if table.empty else table.reindex(index=seeds, columns=prompts) for table in tables],
        seeds=pooled_seeds(results, judge, dataset, model, measure),
        bounded=results.bounded(judge, measure),
    )
    return None if winner is None else results.methods[winner]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Ten digits: more than anyone reads, few enough to be the same on every machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
