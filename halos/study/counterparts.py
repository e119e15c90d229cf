"""Judges and tasks that choose between trials, and those of a grid that measure the same on test prompts."""

from __future__ import annotations

from typing import Any

from halos.settings import identity
from halos.study.catalogue import Config

NOT_MEASURED = {"split", "skip", "limit", "samples", "batch_size", "prompts", "max_failures", "length_control",
                "difficulties"}  # fmt: skip
"""Settings of judges, prompt sets and tasks that say on what is measured, how often, or what else: not what."""


def counterparts(config: Config, grid: str) -> dict[str, dict[str, str]]:
    """`judges` and `tasks` -> id of one that chooses between trials -> id of the grid's own that measures the same on
    test prompts of the same dataset, where it has one. Baseline, sampling and all that decides have to be the same."""
    entry = config.grids[grid]
    found: dict[str, dict[str, str]] = {"judges": {}, "tasks": {}}
    for _, model, method in config.sweeps(grid):
        select = config.stage(method.rsplit("-", 1)[-1], model).select
        assert select is not None
        kind, name = ("judges", select.judge) if select.judge is not None else ("tasks", select.task)
        if name is None:
            continue
        split, measure = _measure(config, kind, name)
        own = entry.judges if kind == "judges" else entry.tasks
        same = [other for other in own if _measure(config, kind, other) == ("test", measure)]
        if same and split != "test":
            found[kind][name] = same[0]
    return found


def _measure(config: Config, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """The split that a judge or a task reads, and what it measures there."""
    measuring = getattr(config, kind)[name]
    asked = config.prompts[measuring.prompts] if kind == "judges" else measuring
    content = {**identity(asked), **identity(measuring)}
    return asked.split, {k: v for k, v in content.items() if k not in NOT_MEASURED}
