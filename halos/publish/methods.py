"""The methods section of a grid, in words: what was compared, on what, how trained, sampled, judged and benchmarked.

Every figure comes from the settings that the runs were made with, so the text cannot part from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from halos.manifest import Manifest
from halos.report.results import Results
from halos.study.cells import Cell
from halos.train.settings import Stage

NOT_SHOWN = {"label", "optimizer_args", "checkpoint_every", "eval_every", "keep_every", "loss", "lr", "scheduler",
             "warmup", "batch_size", "epochs", "examples", "optimizer", "max_grad_norm"}  # fmt: skip
"""Settings of a stage that do not shape its result, or that the table has columns for."""


def methods(grid: Results) -> str:
    """The section, as Markdown."""
    parts = [
        f"We compare {_count(len(grid.methods), 'method')} on {_count(len(grid.models), 'model')} and "
        f"{_count(len(grid.datasets), 'dataset')}, each trained with {_count(len(grid.seeds), 'seed')} "
        f"({_list([str(seed) for seed in grid.seeds])}).",
        "**Models.** " + " ".join(_model(grid, name) for name in grid.models),
        "**Data.** " + " ".join(_data(grid, name) for name in grid.datasets),
        "**Training.** Methods are chains of stages, each from the weights of the one before; a stage's reference is "
        "what it starts from. " + _training(grid),
        _stages(grid),
        *(["**Judging.** " + " ".join(_judge(grid, name) for name in grid.judges)] if grid.judges else []),
        *(["**Benchmarks.** " + " ".join(_task(grid, name) for name in grid.tasks)] if grid.tasks else []),
        "**Statistics.** A value is the mean over seeds and prompts. Intervals are at 95 %: a bootstrap over prompts, "
        "each with all its seeds, plus the variance between seeds; comparisons are paired by prompt and seed, and "
        "adjusted for their number by Holm's method.",
    ]
    return "\n\n".join(parts) + "\n"


def _model(grid: Results, name: str) -> str:
    manifest = Manifest.read(grid.folder / f"models/{name}/manifest.json")
    model = manifest.config
    label = grid.label("models", name)
    if model["architecture"] is not None:
        shape = model["architecture"]
        fields = ", ".join(f"{key} {value}" for key, value in shape.items() if key != "model_type")
        where = f"a {shape['model_type']} with random weights (seed {model['seed']}; {fields})"
    elif model["hub"] is not None:
        where = f"`{model['hub']}` at revision {manifest.revision}"
    else:
        where = f"the local model `{Path(model['path']).name}`"
    template = f" and the chat template `{model['template']}`" if model["template"] else ""
    return f"{label} is {where}{template}, computed in {model['precision']} with {model['attention']} attention."


def _data(grid: Results, name: str) -> str:
    report = _json(grid.folder / f"data/{name}/report.json")
    sources = _list([f"`{source['name']}`" for source in report["train"]["sources"]])
    train, test = report["train"], report["test"]
    lengths = [_json(grid.folder / f"tokens/{name}/{model}/report.json") for model in grid.models]
    cut = {(tokens["max_length"], tokens["max_prompt_length"]) for tokens in lengths}
    limits = _list([f"{longest} tokens, {prompt} of them for the prompt" for longest, prompt in sorted(cut)])
    truncated = sum(tokens["train"]["truncated_responses"] for tokens in lengths)
    return (
        f"{grid.label('datasets', name)} ({sources}) has {train['rows_out']:,} prompts for training with "
        f"{train['responses']:,} responses and {train['pairs']:,} pairs, and {test['rows_out']:,} held out; "
        f"{sum(train['drops'].values()) + sum(test['drops'].values()):,} rows were dropped. Sequences have at most "
        f"{limits}; {truncated:,} responses of training were cut there, and learned without an end of turn."
    )


def _training(grid: Results) -> str:
    found = [grid.manifest(cell) for cell in grid.trained]
    if not found:
        return "Nothing was trained."
    hours, seconds = sum(m["gpu_hours"] for m in found), sum(m["seconds"] for m in found)
    spent = f"{hours:,.1f} GPU-hours" if hours else f"{seconds / 3600:.1f} hours on CPU"
    return f"All {len(found)} trainings took {spent} and {sum(m['tokens'] for m in found):,} tokens."


def _stages(grid: Results) -> str:
    """A table of the stages, one row where all models agree, else one for each."""
    lines = ["| Stage | Model | Loss | Optimiser | Learning rate | Schedule | Batch | Steps | Settings |",
             "|---|---|---|---|---:|---|---:|---:|---|"]  # fmt: skip
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in _first_of_each_stage(grid):
        manifest = grid.manifest(cell)
        stage = manifest["config"]["stage"]
        row = (
            grid.method_label(str(cell.stage)), f"{stage['loss']}", _optimizer(stage), f"{stage['lr']:g}",
            f"{stage['scheduler']}, warm-up {stage['warmup']:g}", str(stage["batch_size"]), str(manifest["steps"]),
            settings(stage),
        )  # fmt: skip
        rows.setdefault(row, []).append(grid.label("models", cell.model))
    for (label, *rest), models in rows.items():
        which = "all" if set(models) == {grid.label("models", m) for m in grid.models} else _list(sorted(set(models)))
        lines.append(f"| {label} | {which} | {' | '.join(rest)} |")
    return "\n".join(lines)


def _first_of_each_stage(grid: Results) -> Iterator[Cell]:
    """A cell for each stage and model that the grid trains or starts from, with the first dataset and seed."""
    seen = set()
    for model, method in product(grid.models, (*grid.methods, *grid.reward_models)):
        cell = Cell(grid.datasets[0], model, method, grid.seeds[0])
        for made in reversed(list(cell.lineage())):
            if made.stage and (model, made.stage) not in seen:
                seen.add((model, made.stage))
                yield made


def _optimizer(stage: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in stage["optimizer_args"].items())
    return f"{stage['optimizer']} ({arguments})" if arguments else str(stage["optimizer"])


def settings(stage: dict[str, Any]) -> str:
    """A stage's hyperparameters, and what of the training settings is not the default."""
    defaults = {name: field.default for name, field in Stage.model_fields.items()}
    own = {key: value for key, value in stage.items() if key not in defaults}
    changed = {key: value for key, value in stage.items()
               if key in defaults and key not in NOT_SHOWN and value != defaults[key]}  # fmt: skip
    changed |= {"max_grad_norm": stage["max_grad_norm"]} if stage["max_grad_norm"] != defaults["max_grad_norm"] else {}
    return ", ".join(f"{key} {_value(value)}" for key, value in {**own, **changed}.items()) or "–"


def _judge(grid: Results, name: str) -> str:
    judge = _yaml(grid.folder / f"judges/{name}/config.yaml")
    prompts = _yaml(grid.folder / f"prompts/{judge['prompts']}/config.yaml")
    kind = str(judge["kind"])
    how = _value(judge.get(kind)) if isinstance(judge.get(kind), dict) else f"`{judge.get(kind)}`"
    drawn = (
        "greedily"
        if prompts["temperature"] == 0
        else f"with temperature {prompts['temperature']} and top-p {prompts['top_p']}"
    )
    limit = f"{prompts['limit']} prompts" if prompts["limit"] else "all prompts"
    return (
        f"{grid.label('judges', name)} is a {kind.replace('_', ' ')} ({how}). It compares with "
        f"{_value(judge['baseline'])} on {limit} of the {prompts['split']} split of "
        f"{prompts['dataset'] or 'the same dataset'}, {_count(prompts['samples'], 'response')} each, sampled {drawn}, "
        f"to at most {prompts['max_new_tokens']} tokens."
    )


def _task(grid: Results, name: str) -> str:
    task = _yaml(grid.folder / f"tasks/{name}/config.yaml")
    what = f"the task `{task['task']}` of lm-evaluation-harness" if task["task"] else f"held-out {task['local']}"
    shots = f" with {task['num_fewshot']} shots" if task["num_fewshot"] else ""
    limit = f", first {task['limit']} documents" if task["limit"] else ""
    return f"{grid.label('tasks', name)} is {what}{shots} ({task['metric']}{limit})."


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_value(v)}" for k, v in value.items() if v is not None) + ")"
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")
    return str(value)


def _count(n: int, what: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return f"{words[n] if n < len(words) else n} {what}{'' if n == 1 else 's'}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content
