"""The methods section of a grid, in words: what was compared, on what, how trained, sampled, judged and benchmarked.

Every number comes from the settings that the runs were made with, so the text cannot contradict them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from halos.data.report import DataReport
from halos.evaluate.judging.judgement import ASKED
from halos.evaluate.judging.settings import JudgeSlice
from halos.evaluate.tasks.settings import TaskSlice
from halos.models.attention import AUTO
from halos.publish.cards import optimizer, schedule
from halos.report.choices import measure_text, over_text, settings_text, snapshots_text, value_text
from halos.report.render import markdown_table
from halos.report.results import Results
from halos.sample.settings import PromptsSlice
from halos.study.cells import BASE, Cell
from halos.study.sampled import SOURCE as SAMPLED
from halos.study.sampled import Sampling
from halos.tokens.report import TokensReport
from halos.train.mixing import loss_text
from halos.train.stage import Stage

NOT_SHOWN = {"label", "optimizer_args", "checkpoint_every", "keep_every", "loss", "lr", "scheduler",
             "min_lr_ratio", "decay", "warmup", "batch_size", "epochs", "examples", "optimizer",
             "max_grad_norm"}  # fmt: skip
"""Settings of a stage that do not shape its result, or that the table has columns for."""
FASTER = {"liger": "Liger's fused layers", "compile": "layers compiled by torch.compile"}
"""Setting of a model -> what it computes with."""


def methods(grid: Results) -> str:
    """The methods section of a grid, as Markdown."""
    parts = [
        f"We compare {_count(len(grid.methods), 'method')} on {_count(len(grid.models), 'model')} and "
        f"{_count(len(grid.datasets), 'dataset')}, each trained with {_count(len(grid.seeds), 'seed')} "
        f"({_list([str(seed) for seed in grid.seeds])}).",
        "**Models.** " + " ".join(_model(grid, name) for name in grid.models),
        "**Data.** " + " ".join(_data(grid, name) for name in grid.datasets),
        "**Training.** Methods are chains of stages, each from the weights of the one before; a stage's reference is "
        "what it starts from, unless its settings name another. " + _training(grid),
        _stages(grid),
        *(["**Tuning.** " + _tuning(grid)] if grid.sweeps else []),
        *(["**Judging.** " + " ".join(_judge(grid, name) for name in grid.judges)] if grid.judges else []),
        *(["**Benchmarks.** " + " ".join(_task(grid, name) for name in grid.tasks)] if grid.tasks else []),
        "**Statistics.** A value is the mean over seeds and prompts. Intervals are at 95 %: a bootstrap over prompts, "
        "each with all its seeds, plus the variance between seeds; comparisons are paired by prompt and seed, and "
        "adjusted for their number by Holm's method.",
    ]
    return "\n\n".join(parts) + "\n"


def _model(grid: Results, name: str) -> str:
    manifest = grid.manifest(Cell(grid.datasets[0], name, BASE, 0))
    model = manifest.config
    if model["architecture"] is not None:
        shape = model["architecture"]
        fields = ", ".join(f"{key} {value}" for key, value in shape.items() if key != "model_type")
        origin = f"a {shape['model_type']} with random weights (seed {model['seed']}; {fields})"
    elif model["hub"] is not None:
        origin = f"`{model['hub']}` at revision {manifest.revision}"
    else:
        origin = f"the local model `{Path(model['path']).name}`"
    template = f" and the chat template `{model['template']}`" if model["template"] else ""
    attention = "" if model["attention"] == AUTO else f" with {model['attention']} attention"
    held = model.get("quantization")
    below = f", its linear layers below adapters in {held}" if held else ""
    faster = "".join(f", with {text}" for name, text in FASTER.items() if model.get(name))
    numerics = f"computed in {model['precision']}{attention}{below}{faster}"
    return f"{grid.label('models', name)} is {origin}{template}, {numerics}."


def of_source(name: str, options: dict[str, Any]) -> str:
    """A source in words."""
    if name != SAMPLED:
        return f"`{name}`"
    cell = Sampling.of(options).cell
    trained = "" if cell.stage is None else f", trained by {cell.method},"
    return f"responses of {cell.model}{trained} to prompts of {cell.dataset}, labelled by {options['labeller']}"


def _data(grid: Results, name: str) -> str:
    report = DataReport.read(grid.paths.data(name).report)
    tokens = [TokensReport.read(grid.paths.store(name, model).report) for model in grid.models]
    train, validation, test = report.train, report.validation, report.test
    sources, held_out = (_list([of_source(s.name, s.options) for s in split.sources]) for split in (train, test))
    apart = "" if {s.name for s in test.sources} <= {s.name for s in train.sources} else f" of {held_out}"
    limits = sorted({(t.max_length, t.max_prompt_length) for t in tokens})
    truncated = sum(t.train.truncated_responses for t in tokens)
    dropped = sum(sum(split.drops.values()) for split in (train, validation, test))
    return (
        f"{grid.label('datasets', name)} ({sources}) has {train.rows_out:,} prompts for training with "
        f"{train.responses:,} responses and {train.pairs:,} pairs, {validation.rows_out:,} for evaluation during "
        f"training, and {test.rows_out:,} held out{apart}; "
        f"{dropped:,} rows were dropped. Sequences have at most "
        f"{_list([f'{length} tokens, {prompt} of them for the prompt' for length, prompt in limits])}; {truncated:,} "
        "responses of training were cut there, and learned without an end of turn."
    )


def _training(grid: Results) -> str:
    manifests = [grid.manifest(cell) for cell in grid.trained]
    if not manifests:
        return "Nothing was trained."
    hours, seconds = sum(m.gpu_hours for m in manifests), sum(m.seconds for m in manifests)
    cost = f"{hours:,.1f} GPU-hours" if hours else f"{seconds / 3600:.1f} hours on CPU"
    return f"All {len(manifests)} trainings took {cost} and {sum(m.tokens for m in manifests):,} tokens."


def _stages(grid: Results) -> str:
    """A table of the stages: one row where all models have the same settings, else one for each."""
    titles = ["Stage", "Model", "Loss", "Optimiser", "Learning rate", "Schedule", "Batch", "Steps", "Settings"]
    models: dict[tuple[str, ...], list[str]] = {}
    for cell in _first_of_each_stage(grid):
        stage = grid.settings(cell)
        row = (
            _stage_name(grid, cell), loss_text(stage["loss"]), optimizer(stage), f"{stage['lr']:g}",
            schedule(stage), str(stage["batch_size"]),
            str(grid.manifest(cell).steps), settings(stage),
        )  # fmt: skip
        models.setdefault(row, []).append(grid.label("models", cell.model))
    every = {grid.label("models", model) for model in grid.models}
    rows = [
        [stage, "all" if set(labels) == every else _list(sorted(set(labels))), *rest]
        for (stage, *rest), labels in models.items()
    ]
    numbers = ("Learning rate", "Batch", "Steps")
    return markdown_table(titles, rows, [title not in numbers for title in titles])


def _first_of_each_stage(grid: Results) -> Iterator[Cell]:
    """A cell for each stage and model that the grid trains or starts from, with the first dataset and seed; of a stage
    whose settings are chosen, one for each choice."""
    seen: set[Any] = set()
    for model, method, dataset in product(grid.models, (*grid.methods, *grid.reward_models), grid.datasets):
        cell = Cell(dataset, model, method, grid.seeds[0])
        for made in reversed(list(cell.lineage())):
            what = replace(made, seed=0) if _is_tuned(grid, made) else (model, made.stage)
            if made.stage and what not in seen:
                seen.add(what)
                yield made


def _is_tuned(grid: Results, cell: Cell) -> bool:
    return replace(cell, seed=0) in grid.choices


def _stage_name(grid: Results, cell: Cell) -> str:
    """The stage; where its settings are chosen, the whole method, and the dataset if the grid has several."""
    if not _is_tuned(grid, cell):
        return grid.method_label(str(cell.stage))
    several = f" ({grid.label('datasets', cell.dataset)})" if len(grid.datasets) > 1 else ""
    return grid.method_label(cell.method) + several


def _tuning(grid: Results) -> str:
    """How each method's settings were chosen, and what the trials took."""
    sentences = []
    for cell, choice in grid.choices.items():
        several = len(grid.datasets) * len(grid.models) > 1
        where = f" ({grid.panel_label(cell.dataset, cell.model)})" if several else ""
        ranges = [_range(name, [t.settings[name] for t in choice.trials.values()]) for name in choice.winner.settings]
        diverged = sum(tried[-1].value is None for tried in choice.trainings.values())
        sentences.append(
            f"The settings of {grid.method_label(cell.method)}{where} were chosen among "
            f"{_count(len(choice.trainings), 'trial')}{snapshots_text(choice)} ({', '.join(ranges)}) by "
            f"{measure_text(grid, choice)}, {over_text(choice)}: {settings_text(choice.winner.settings)}."
            + (f" {_count(diverged, 'trial').capitalize()} diverged." if diverged else "")
        )
    trials = [tried[-1] for choice in grid.choices.values() for tried in choice.trainings.values()]
    hours = sum(trial.seconds for trial in trials) / 3600
    return " ".join([*sentences, f"All {len(trials)} trials trained for {hours:,.1f} hours."])


def _range(name: str, values: list[Any]) -> str:
    """The least and the largest value of a setting, or all that are no numbers: lr 1e-5 to 1e-3."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = [min(values), max(values)]
        return f"{name} {' to '.join(dict.fromkeys(map(value_text, values)))}"
    return f"{name} {_list(list(dict.fromkeys(map(value_text, values))))}"


def settings(stage: dict[str, Any]) -> str:
    """A stage's hyperparameters, and the training settings that are not the default."""
    defaults = {name: field.default for name, field in Stage.model_fields.items()}
    hyperparameters = {key: value for key, value in stage.items() if key not in defaults}
    changed = {key: value for key, value in stage.items()
               if key in defaults and key not in NOT_SHOWN and value != defaults[key]}  # fmt: skip
    changed |= {"max_grad_norm": stage["max_grad_norm"]} if stage["max_grad_norm"] != defaults["max_grad_norm"] else {}
    return ", ".join(f"{key} {_value(value)}" for key, value in {**hyperparameters, **changed}.items()) or "–"


def _judge(grid: Results, name: str) -> str:
    judge = JudgeSlice.read(grid.paths.judge(name).config)
    prompts = PromptsSlice.read(grid.paths.prompts(judge.prompts).config)
    content = judge.model_dump(mode="json")
    decides = content[judge.kind]
    how = _value(decides) if isinstance(decides, dict) else f"`{decides}`"
    how = f"a {judge.kind.replace('_', ' ')} ({how})" if judge.human is None else "the majority of people's votes"
    drawn = (
        "greedily" if prompts.temperature == 0 else f"with temperature {prompts.temperature} and top-p {prompts.top_p}"
    )
    stops = f" or the first of {', '.join(f'`{text!r}`' for text in prompts.stop)}" if prompts.stop else ""
    most = min((n for n in (prompts.limit, judge.most_prompts) if n), default=None)
    limit = f"{most} prompts" if most else "all prompts"
    return (
        f"{grid.label('judges', name)} is {how}. It compares with "
        f"{_value(content['baseline'])} on {limit} of the {prompts.split} split of "
        f"{prompts.dataset or 'the same dataset'}, {_count(prompts.samples, 'response')} each, sampled {drawn}, "
        f"to at most {prompts.max_new_tokens} tokens{stops}." + _order(grid, judge) + _pairs(grid, name)
    )


def _order(grid: Results, judge: JudgeSlice) -> str:
    """The order in which a judge that is asked sees the two responses, in a sentence; of people, their votes, too."""
    if judge.human is not None:
        each = {len(a.questions) for cell in grid.cells for a in grid.judged[cell, judge.judge].annotations} - {0}
        votes = _count(max(each, default=0), "vote")
        several = f"{_count(min(each, default=0), 'vote')} to {votes}" if len(each) > 1 else votes
        return f" There are {several} on a comparison; people see the responses in an order that a hash draws."
    if judge.openai is None and judge.model is None:
        return ""
    if judge.both_orders:
        return " It is asked in both orders, and a response wins that is better in both; else it is a tie."
    return " Which response it sees first is drawn by a hash."


def _pairs(grid: Results, name: str) -> str:
    """The pairs of methods that a judge compares, in a sentence."""
    if name not in grid.pairs:
        return ""
    pairs, how = grid.pairs[name], "by the scores of their responses"
    if grid.kind(name) in ASKED:
        most = JudgeSlice.read(grid.paths.judge_against(name, pairs[0][1]).config).prompts_per_pair
        how = f"each on {most} of these prompts" if most else "each on these prompts"
    return f" It also compares {_count(len(pairs), 'pair')} of methods, {how}."


def _task(grid: Results, name: str) -> str:
    task = TaskSlice.read(grid.paths.task(name).config)
    what = (
        f"the task `{task.task}` of lm-evaluation-harness" if task.task else f"{task.local} of the {task.split} split"
    )
    shots = f" with {task.num_fewshot} shots" if task.num_fewshot else ""
    limit = f", first {task.limit} documents" if task.limit else ""
    return f"{grid.label('tasks', name)} is {what}{shots} ({task.metric}{limit})."


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_value(v)}" for k, v in value.items() if v is not None) + ")"
    if isinstance(value, str):
        return " ".join(value.split()).replace("<", "&lt;")
    return str(value)


def _count(n: int, what: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return f"{words[n] if n < len(words) else n} {what}{'' if n == 1 else 's'}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
