"""Tables of a catalogue's entries, registered plugins and cells, for `python -m halos list`."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped]

from halos.registry import FORWARDS, LOSSES, SOURCES, VERIFIERS
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.choice import chosen_by
from halos.study.paths import Paths
from halos.study.study import Study
from halos.train.mixing import loss_text
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from halos.train.sweep import TRIAL
from halos.views import VIEWS

Row = dict[str, Any]


def state(cell: Cell, results: Path) -> str:
    """State of a cell, by the files in its folder: `done`, `resumable` (stopped, with a checkpoint or a finished round)
    or `to do`."""
    run = Paths(results).run(cell)
    if run.manifest.exists():
        return "done"
    resumable = ("checkpoints/step*", "round*/manifest.json", "round*/checkpoints/step*")
    return "resumable" if any(any(run.folder.glob(pattern)) for pattern in resumable) else "to do"


def table(config: Config, what: str, grid: str | None, results: Path) -> str:
    """An aligned text table of one kind of entry, plugin or cell.

    Args:
        what: models, datasets, sources, views, stages, losses, forwards, prompts, labellers, judges, verifiers, tasks,
            grids or cells.
        grid: id of the grid whose cells are listed; None for the config's own.
        results: the results folder, which the states of cells are read from.
    """
    rows = list(getattr(_Rows, what)(config, grid, results))
    return aligned(rows) if rows else f"there are no {what}"


def aligned(rows: list[Row]) -> str:
    """Rows of the same columns, of which there must be some, as a text table whose long cells have several lines."""
    cells = [tuple(rows[0]), *(tuple(map(_wrapped, row.values())) for row in rows)]
    return str(tabulate(cells, "firstrow", "simple", disable_numparse=True))


def _wrapped(value: Any) -> str:
    """A cell in lines of at most 40 characters, or of one longer word: names are not cut, for they are copied."""
    return textwrap.fill(str(value), 40, break_long_words=False, break_on_hyphens=False)


def _settings(study: Study, cell: Cell, results: Path) -> str:
    """The settings that a sweep varies, of a trial; of a cell that has chosen ones, the trial that they are from."""
    if cell.trial is not None:
        tried = study.config.stage(str(cell.stage), cell.model).tried[cell.trial]
        return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in tried.items())  # fmt: skip
    swept = study.swept(cell)
    name = None if swept is None else chosen_by(Paths(results), swept)
    return "" if swept is None else f"those of {TRIAL}{name}" if name else "not yet chosen"


def _summary(plugin: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(plugin) or "").split("\n")[0]


def _defaults(kind: Any) -> str:
    """The options of a loss or forward pass with their defaults; those that have to be given by name alone."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    given = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
    return ", ".join(name if value is dataclasses.MISSING else f"{name} {value}" for name, value in given.items())


class _Rows:
    """Rows of each kind, by the name under which it is listed."""

    @staticmethod
    def models(config: Config, *_: Any) -> Iterator[Row]:
        for name, m in config.models.items():
            random = f"{m.architecture['model_type']}, random weights" if m.architecture else ""
            origin = m.hub or m.path or random
            r = m.resources
            yield {"model": name, "origin": origin, "template": m.template or "its own", "precision": m.precision,
                   "GPUs": r.gpus, "memory GB": r.mem_gb, "minutes": r.runtime}  # fmt: skip

    @staticmethod
    def datasets(config: Config, *_: Any) -> Iterator[Row]:
        for name, d in config.datasets.items():
            yield {"dataset": name, "sources": " + ".join(s.name for s in d.sources), "max length": d.max_length,
                   "max prompt length": d.max_prompt_length}  # fmt: skip

    @staticmethod
    def sources(*_: Any) -> Iterator[Row]:
        for name in SOURCES:
            options = list(inspect.signature(SOURCES[name]).parameters)[1:]  # the first is the split
            yield {"source": name, "options": ", ".join(options), "description": _summary(SOURCES[name])}

    @staticmethod
    def stages(config: Config, *_: Any) -> Iterator[Row]:
        for name, s in config.stages.items():
            filled = stage_slice(s)
            hyperparameters = {key: value for key, value in filled.items() if key not in Stage.model_fields}
            yield {"stage": name, "loss": loss_text(filled["loss"]), "lr": f"{s.lr:g}", "batch": s.batch_size,
                   "epochs": s.epochs,
                   "LoRA": "yes" if s.lora else "no", "rounds": s.online.rounds if s.online else "",
                   "hyperparameters": ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                                                for k, v in hyperparameters.items())}  # fmt: skip

    @staticmethod
    def losses(*_: Any) -> Iterator[Row]:
        for name in LOSSES:
            loss = LOSSES[name]
            yield {"loss": name, "view": loss.view.name, "reference": "yes" if loss.needs_reference else "no",
                   "hyperparameters": _defaults(loss), "definition": _summary(loss)}  # fmt: skip

    @staticmethod
    def views(*_: Any) -> Iterator[Row]:
        for view in VIEWS.values():
            yield {"view": view.name, "roles": ", ".join(view.roles), "labels": ", ".join(view.labels),
                   "plugin": VIEWS.plugin(view.name) or ""}  # fmt: skip

    @staticmethod
    def forwards(*_: Any) -> Iterator[Row]:
        for name in FORWARDS:
            yield {"forward pass": name, "options": _defaults(FORWARDS[name]), "definition": _summary(FORWARDS[name])}

    @staticmethod
    def prompts(config: Config, *_: Any) -> Iterator[Row]:
        for name, p in config.prompts.items():
            yield {"prompts": name, "dataset": p.dataset or "the cell's own", "split": p.split,
                   "limit": p.limit or "all", "samples": p.samples, "temperature": p.temperature, "top_p": p.top_p,
                   "max new tokens": p.max_new_tokens}  # fmt: skip

    @staticmethod
    def labellers(config: Config, *_: Any) -> Iterator[Row]:
        for name, s in config.labellers.items():
            scorer = s.verifier or s.reward_model or (s.openai.model if s.openai else None)
            bound = "from" if s.at_threshold == "desirable" else "above"
            rule = {"binary": f"{bound} {s.threshold}", "pairwise": s.pairs, "scalar": ""}[s.feedback]
            yield {"labeller": name, "kind": s.kind, "by": scorer, "feedback": f"{s.feedback} {rule}".strip()}

    @staticmethod
    def judges(config: Config, *_: Any) -> Iterator[Row]:
        for name, j in config.judges.items():
            server = (j.openai.annotator or j.openai.model) if j.openai else j.model.model if j.model else None
            people = (", ".join(j.human.annotators) or "whoever votes") if j.human else None
            baseline = j.baseline if isinstance(j.baseline, str) else " seed ".join(map(str, dict(j.baseline).values()))
            yield {"judge": name, "kind": j.kind, "by": j.verifier or j.reward_model or server or people,
                   "prompts": j.prompts, "baseline": baseline}  # fmt: skip

    @staticmethod
    def verifiers(*_: Any) -> Iterator[Row]:
        for name in VERIFIERS:
            yield {"verifier": name, "description": _summary(VERIFIERS[name])}

    @staticmethod
    def tasks(config: Config, *_: Any) -> Iterator[Row]:
        for name, t in config.tasks.items():
            yield {"task": name, "lm-eval task": t.task or f"local: {t.local}", "metric": t.metric,
                   "limit": t.limit or "all"}  # fmt: skip

    @staticmethod
    def grids(config: Config, *_: Any) -> Iterator[Row]:
        for name, g in config.grids.items():
            yield {"grid": name, "cells": len(Study(config, name).cells), "datasets": ", ".join(g.datasets),
                   "models": ", ".join(g.models), "methods": ", ".join((*g.methods, *g.reward_models)),
                   "seeds": ", ".join(map(str, g.seeds)),
                   "judges": ", ".join(g.judges) or "none",
                   "tasks": ", ".join(g.tasks) or "none"}  # fmt: skip

    @staticmethod
    def cells(config: Config, grid: str | None, results: Path) -> Iterator[Row]:
        study = Study(config, grid)
        cells = (*study.cells, *study.reward_models, *study.tried)
        named = {cell: study.stage(cell).reference for cell in cells if cell.stage}
        for cell in cells:
            row: Row = dict(cell.ids)
            if any(named.values()):
                row["reference"] = named.get(cell) or "parent"
            row["state"] = state(cell, results)
            if study.sweeps:
                row["settings"] = _settings(study, cell, results)
            yield row
