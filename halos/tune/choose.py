"""The verb `choose`: choose between the trials of a sweep, by what they reach on validation prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from halos.report.statistics import Estimate
from halos.study.cells import Cell
from halos.study.choice import Choice, ChoiceSlice, Tried
from halos.study.paths import Paths, RunPaths
from halos.train.early import EarlyStopping
from halos.train.sweep import TRIAL, Select


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
    trials, measured = {}, None
    for name, tried in settings.trials:
        method = f"{settings.method}{TRIAL}{name}"
        runs = [paths.run(Cell(settings.dataset, settings.model, method, seed)) for seed in settings.select.seeds]
        manifests = [Manifest.read(run.manifest) for run in runs]
        cost = {"steps": manifests[0].steps, "seconds": sum(manifest.seconds for manifest in manifests)}
        diverged = [manifest.diverged for manifest in manifests]
        if any(diverged):
            trials[name] = Tried(settings=tried, values=dict.fromkeys(settings.select.seeds), value=None, **cost)
            continue
        measured = measure(settings.select, runs)
        mean, low, high = (_finite(value) for value in (measured.over.mean, measured.over.low, measured.over.high))
        by_seed = dict(zip(settings.select.seeds, measured.by_seed, strict=True))
        trials[name] = Tried(settings=tried, values=by_seed, value=mean, low=low, high=high, **cost)
    known = {name: trial.value for name, trial in trials.items() if trial.value is not None}
    if not known or measured is None:
        raise HalosError(
            f"every trial of {settings.method} diverged, so none can be chosen: lower the learning rates of its sweep"
        )
    Choice(
        dataset=settings.dataset,
        model=settings.model,
        method=settings.method,
        select=settings.select,
        measure=measured.name,
        unit_interval=measured.unit_interval,
        lowest=measured.lowest,
        n=measured.over.prompts or None,
        trials=trials,
        chosen=(min if measured.lowest else max)(known, key=known.__getitem__),  # the first one of equals
    ).write(output)


@dataclass(frozen=True)
class Measured:
    """What a trial reached.

    Attributes:
        name: of the measure, in words.
        by_seed: the value of each seed.
        over: their mean with its interval.
        unit_interval: whether values lie between 0 and 1.
        lowest: whether the lowest value is best.
    """

    name: str
    by_seed: list[float]
    over: Estimate
    unit_interval: bool
    lowest: bool = False


def measure(select: Select, runs: Sequence[RunPaths]) -> Measured:
    """What a trial reached by the measure that decides.

    Args:
        select: what decides.
        runs: the trial's run of each seed.

    Raises:
        HalosError: a file is missing, or does not give the measure.
    """
    if select.judge is not None:
        return _judged(select.judge, [run.judged(select.judge) for run in runs], select.by)
    if select.task is not None:
        return _scored([run.task(select.task) for run in runs])
    assert select.metric is not None
    values = [_evaluated(run, select.metric) for run in runs]
    over = statistics.over_seeds(values, [np.nan] * len(values))
    unit = select.metric.endswith("accuracy")
    return Measured(f"{select.metric} of the last evaluation", values, over, unit, select.lowest)


def _judged(judge: str, files: Sequence[Path], by: Literal["win_rate", "score"]) -> Measured:
    judgements = [Judgement.read(file) for file in files]
    rows = []
    for judgement in judgements:
        wins = zip(judgement.annotations, judgement.values(), strict=True)
        worth = [(a.prompt_id, win if by == "win_rate" else a.candidate_score) for a, win in wins]
        rows.append(pd.DataFrame(worth, columns=["prompt_id", "value"]).astype({"value": float}).groupby("prompt_id"))
    table = pd.DataFrame([group["value"].mean() for group in rows]).dropna(axis="columns", how="all")
    if table.empty or table.isna().all(axis=1).any():
        raise HalosError(f"{files[0]} has no {by}: choose by another judge, or by its win rate")
    unit = by == "win_rate" or judgements[0].kind == "verifier"
    name = f"{by.replace('_', ' ')} by {judge}"
    return Measured(name, table.mean(axis=1).tolist(), statistics.estimate(table, bounded=unit), unit)


def _scored(files: Sequence[Path]) -> Measured:
    results = [TaskResult.read(file) for file in files]
    values = [np.nan if result.value is None else result.value for result in results]
    if np.isnan(values).any():
        raise HalosError(f"{files[int(np.argmax(np.isnan(values)))]} has no value: choose by another task")
    errors = [np.nan if result.stderr is None else result.stderr for result in results]
    over = replace(statistics.over_seeds(values, errors), prompts=results[0].n)
    unit = min(values) >= 0 and max(values) <= 1
    return Measured(f"{results[0].metric} of {results[0].task_id}", values, over, unit, not results[0].higher_is_better)


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
