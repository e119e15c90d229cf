"""Choices between trials, in words and as columns, which the tables, figures and methods that show them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from halos.report.lazy import pd
from halos.report.results import Results
from halos.report.words import range_text
from halos.study.cells import BASE, Cell
from halos.study.choice import Choice
from halos.train.mixing import leading_loss


def value_text(value: Any) -> str:
    """A setting's value as the config writes it: 3e-5, 0.25, true, cosine."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)
    if value and not 1e-2 <= abs(value) < 1e5:
        return np.format_float_scientific(value, precision=3, trim="-", exp_digits=1).replace("+", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_text(settings: Mapping[str, Any]) -> str:
    """`lr 1e-5, beta 0.1`."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in settings.items())


def settings_columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A column for each setting of a trial, `settings.lr`, so that none is taken for a number about the trial."""
    return {f"settings.{name}": value for name, value in settings.items()}


def measure_text(results: Results, choice: Choice) -> str:
    """What decides between trials, with the label of its judge or task: win rate by Toy verifier."""
    named = {"judges": choice.select.judge, "tasks": choice.select.task}
    kind, name = next(((kind, name) for kind, name in named.items() if name is not None), ("", ""))
    text = choice.measure.removesuffix(name) + results.label(kind, name) if name else choice.measure
    return text.replace(",none of ", " of ")  # lm-eval names a metric with its filter


def over_text(choice: Choice) -> str:
    """What a value is the mean over: 128 validation prompts, seed 1."""
    what = "documents" if choice.select.task else "validation prompts"
    seeds = ", ".join(map(str, choice.select.seeds))
    return (f"{choice.n} {what}, " if choice.n else "") + f"seed{'s' * (len(choice.select.seeds) > 1)} {seeds}"


def scale(results: Results, cell: Cell, choice: Choice) -> str:
    """The measure, named so that values of choices of the same scale can be compared: what a training logs has a scale
    of its own for each loss, unless it is an accuracy."""
    measure = measure_text(results, choice)
    if choice.select.metric is None or choice.unit_interval:
        return measure
    return f"{measure}, {leading_loss(results.settings(cell_of(results, cell))['loss'])}"


def cell_of(results: Results, cell: Cell) -> Cell:
    """The cell with the grid's first seed whose settings are chosen."""
    return Cell(cell.dataset, cell.model, cell.method, results.seeds[0])


def how_chosen(results: Results) -> str:
    """Each method's measure and number of trials, and whether methods were tuned alike, in sentences."""
    methods: dict[tuple[str, str], list[str]] = {}
    for cell, choice in results.choices.items():
        names = methods.setdefault((measure_text(results, choice), over_text(choice)), [])
        names += [cell.method] * (cell.method not in names)
    sentences = [
        f"{', '.join(f'{results.method_label(m)} ({_trials(results, m)})' for m in names)}: {measure}, {over}."
        for (measure, over), names in methods.items()
    ]
    last = {m: _trials(results, m) for m in dict.fromkeys(cell.method for cell in results.choices)}
    compared = [last[method] for method in results.methods if method in last]
    if len(set(compared)) > 1:
        sentences.append(
            "Methods had different numbers of trials, and the best of more is better for that alone: compare them at "
            "the same number."
        )
    untuned = [results.method_label(m) for m in results.methods if m != BASE and m not in last]
    if untuned:
        sentences.append(f"Last stage not tuned: {', '.join(untuned)}.")
    return " ".join(sentences)


def _trials(results: Results, method: str) -> str:
    """The number of trials of a method, over datasets and models, and of snapshots of each: 8 trials."""
    choices = [choice for cell, choice in results.choices.items() if cell.method == method]
    text = range_text(pd.Series([len(choice.trainings) for choice in choices]))
    return f"{text} trial{'' if text == '1' else 's'}{snapshots_text(choices[0])}"


def snapshots_text(choice: Choice) -> str:
    """` with 4 snapshots each`, where a choice is between those of trials."""
    number = len(choice.trials) // len(choice.trainings)
    return f" with {number} snapshots each" if number > 1 else ""
