"""The verb `choose`: choose between the trials of a sweep, by what they reach on validation prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from halos.errors import HalosError
from halos.evaluate.judging.judgement import Judgement
from halos.evaluate.tasks.result import TaskResult
from halos.manifest import Manifest
from halos.registry import suggest
from halos.report import statistics
from halos.report.lazy import pd
from halos.report.measures import by_prompt
from halos.report.statistics import Estimate
from halos.study.cells import Cell
from halos.study.choice import Choice, ChoiceSlice, Tried
from halos.study.paths import Paths, RunPaths
from halos.train.early import EarlyStopping
from halos.train.sweep import Select


def choose(config: Path, results: Path, output: Path) -> None:
    """Choose between the trials of a sweep, by what they reach on validation prompts.

    Args:
        config: config.yaml of the choice
        results: the results folder, with what the trials were judged by
        output: file for the choice

    Raises:
        HalosError: a file of a trial is missing, or every trial diverged.
    """
    settings, paths = ChoiceSlice.read(config), Paths(results)
    cell, select = Cell(settings.dataset, settings.model, settings.method, 0), settings.select
    runs, costs = {}, {}
    for name, _ in settings.trials:
        tried = [paths.run(cell.candidate(name, seed)) for seed in select.seeds]
        manifests = [Manifest.read(run.manifest) for run in tried]
        costs[name] = {"steps": manifests[0].steps, "seconds": sum(manifest.seconds for manifest in manifests)}
        if not any(manifest.diverged for manifest in manifests):
            runs[name] = tried
    if not runs:
        raise HalosError(
            f"every trial of {settings.method} diverged, so none can be chosen: lower the learning rates of its sweep"
        )
    measured = measure(select, list(runs.values()))
    estimates = dict(zip(runs, measured.estimates(), strict=True))
    values = dict(zip(runs, measured.values, strict=True))
    trials = {}
    for name, tried_settings in settings.trials:
        e = estimates.get(name)
        by_seed = values[name] if name in values else [None] * len(select.seeds)
        trials[name] = Tried(
            settings=tried_settings,
            values=dict(zip(select.seeds, by_seed, strict=True)),
            **({"value": None} if e is None else {"value": e.mean, "low": _finite(e.low), "high": _finite(e.high)}),
            **costs[name],
        )
    Choice(
        dataset=settings.dataset,
        model=settings.model,
        method=settings.method,
        select=select,
        measure=measured.name,
        unit_interval=measured.unit_interval,
        lowest=measured.lowest,
        n=measured.n,
        trials=trials,
        # the first one of equals
        chosen=(min if measured.lowest else max)(estimates, key=lambda name: estimates[name].mean),
    ).write(output)


@dataclass(frozen=True)
class Measured:
    """What trials reached.

    Attributes:
        name: of the measure, in words.
        values: trial -> seed -> the value.
        unit_interval: whether values lie between 0 and 1.
        lowest: whether the lowest value is best.
        n: prompts or documents that a value is a mean over; None where it is none.
        tables: trial -> (seeds, prompts), where values are means over prompts.
        errors: trial -> seed -> standard error, where they are not; NaN where there is none.
    """

    name: str
    values: list[list[float]]
    unit_interval: bool
    lowest: bool = False
    n: int | None = None
    tables: list[pd.DataFrame] | None = None
    errors: list[list[float]] | None = None

    def estimates(self) -> list[Estimate]:
        """The mean of each trial over its seeds, with its interval. What two seeds add to it is taken to be the same
        for all trials, as it is for all methods of a table."""
        two = len(self.values[0]) == 2
        if self.tables is not None:
            seeds = statistics.pooled(self.tables, self.unit_interval) if two else None
            return [statistics.estimate(table, bounded=self.unit_interval, seeds=seeds) for table in self.tables]
        errors = self.errors or [[np.nan] * len(values) for values in self.values]
        pairs = list(zip(self.values, errors, strict=True))
        pooled = statistics.mean_of([statistics.seeds_of_means(*pair) for pair in pairs]) if two else None
        return [statistics.over_seeds(*pair, pooled) for pair in pairs]


def measure(select: Select, trials: Sequence[Sequence[RunPaths]]) -> Measured:
    """What trials reached by the measure that decides.

    Args:
        select: what decides.
        trials: the runs of each trial, one for each seed.

    Raises:
        HalosError: a file is missing, or does not give the measure.
    """
    if select.judge is not None:
        return _judged(select.judge, [[run.judged(str(select.judge)) for run in runs] for runs in trials], select.by)
    if select.task is not None:
        return _scored([[run.task(str(select.task)) for run in runs] for runs in trials])
    metric = str(select.metric)
    values = [[_evaluated(run, metric) for run in runs] for runs in trials]
    return Measured(f"{metric} of the last evaluation", values, metric.endswith("accuracy"), select.lowest)


def _judged(judge: str, files: Sequence[Sequence[Path]], by: Literal["win_rate", "score"]) -> Measured:
    judgements = [[Judgement.read(file) for file in of_trial] for of_trial in files]
    tables = [pd.DataFrame([by_prompt(judgement, by) for judgement in of_trial]) for of_trial in judgements]
    tables = [table.dropna(axis="columns", how="all") for table in tables]
    for table, of_trial in zip(tables, files, strict=True):
        if table.empty or table.isna().all(axis=1).any():
            raise HalosError(f"{of_trial[0]} has no {by}: choose by another judge, or by its win rate")
    unit = by == "win_rate" or judgements[0][0].kind == "verifier"
    means = [table.mean(axis=1).tolist() for table in tables]
    n = max(table.shape[1] for table in tables)
    return Measured(f"{by.replace('_', ' ')} by {judge}", means, unit, n=n, tables=tables)


def _scored(files: Sequence[Sequence[Path]]) -> Measured:
    results = [[TaskResult.read(file) for file in of_trial] for of_trial in files]
    for result, file in zip(chain(*results), chain(*files), strict=True):
        if result.value is None:
            raise HalosError(f"{file} has no value: choose by another task")
    values = [[float(result.value or 0) for result in of_trial] for of_trial in results]
    errors = [[np.nan if result.stderr is None else result.stderr for result in of_trial] for of_trial in results]
    unit, first = all(0 <= value <= 1 for value in chain(*values)), results[0][0]
    name = f"{first.metric} of {first.task_id}"
    return Measured(name, values, unit, not first.higher_is_better, first.n, errors=errors)


def _evaluated(run: RunPaths, metric: str) -> float:
    """A quantity of the last evaluation in a train.jsonl; with early stopping of the best one (in the last round of an
    online stage), whose weights were published."""
    log = run.log
    if not log.is_file():
        raise HalosError(f"there is no {log}; run `snakemake {log}` to make it")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line["split"] == "eval"), None)
    if last is None:
        raise HalosError(f"{log} has no evaluation: give the dataset validation prompts, or choose by a judge")
    early = (Manifest.read(run.manifest).config.get("stage") or {}).get("early_stopping")
    if early is not None:
        evaluations = [line for line in lines if line["split"] == "eval" and line.get("round") == last.get("round")]
        best = EarlyStopping.model_validate(early).course(evaluations).best
        last = next(line for line in evaluations if line["step"] == best)
    if not isinstance(last.get(metric), float | int):
        known = sorted(key for key, value in last.items() if isinstance(value, float))
        raise HalosError(f"{log} has no {metric!r}{suggest(metric, known)}")
    return float(last[metric])


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
