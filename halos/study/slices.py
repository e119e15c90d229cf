"""Slices: the part of the catalogue that makes each folder of the results tree."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.pretrained import CODE
from halos.registry import SOURCES, VERIFIERS, plugin_slice, suggest
from halos.settings import identity
from halos.study.catalogue import KINDS, Config
from halos.study.cells import Cell
from halos.study.choice import chosen_by
from halos.study.counterparts import counterparts
from halos.study.local import contents
from halos.study.paths import Paths
from halos.study.settings import Compared
from halos.tokens.chat import read_template
from halos.train.slices import stage_plugins, stage_slice
from halos.train.stage import Stage
from halos.train.sweep import TRIAL
from halos.views import VIEWS

Content = dict[str, Any]


def config_slice(config: Config, folder: str) -> Content:
    """The part of the catalogue that makes a folder of the results tree: the content of its `config.yaml`.

    Labels and resources are left out, so that editing them reruns nothing. A slice holds the folder's own settings;
    what the folder inherits (a parent's stage, the dataset's sources) reaches it as files. Of local files and models
    that the settings name it holds the hashes, as `local`.

    Args:
        folder: below the results folder, for example `data/toy` or `runs/toy/tiny/sft-kto/seed1`.

    Raises:
        HalosError: no such folder is in the results tree, or the catalogue lacks an entry that it names.
    """
    kind, *ids = folder.strip("/").split("/")
    try:
        function = SLICES[kind]
        inspect.signature(function).bind(config, *ids)
    except (KeyError, TypeError):
        raise HalosError(
            f"{folder} is no folder of the results tree that has a config.yaml; such are data/DATASET, "
            f"tokens/DATASET/MODEL, models/MODEL and runs/DATASET/MODEL/METHOD/seedN"
        ) from None
    return function(config, *ids)


def _with_local(content: Content, paths: Iterable[str | Path | None]) -> Content:
    """A slice with the hashes of the local files and folders that it is made from, where there are some."""
    local = contents(path for path in paths if path is not None)
    return {**content, "local": local} if local else content


def entry(config: Config, kind: str, name: str) -> Any:
    """The entry of a kind and an id.

    Raises:
        HalosError: the catalogue has none; the message suggests a similar id.
    """
    catalogue = getattr(config, kind)
    if name not in catalogue:
        raise HalosError(f"there is no {name!r} in {kind}{suggest(name, catalogue)}")
    return catalogue[name]


def _data(config: Config, dataset: str) -> Content:
    settings = entry(config, "datasets", dataset)
    plugins = plugin_slice(*(SOURCES.plugin(source.name) for source in settings.all_sources))
    content = {
        "dataset": dataset,
        "sources": [identity(source) for source in settings.sources],
        "validation_prompts": settings.validation_prompts,
        "drop_duplicates": settings.drop_duplicates,
        "seed": settings.seed,
        "plugins": plugins,
    }
    if settings.test_sources:
        content["test_sources"] = [identity(source) for source in settings.test_sources]
    return _with_local(content, (file for source in settings.all_sources for file in source.files))


def _tokens(config: Config, dataset: str, model: str) -> Content:
    settings = entry(config, "datasets", dataset)
    entry(config, "models", model)
    keys = (
        "max_length", "max_prompt_length", "eval_examples", "keep_desirable", "keep_undesirable", "split_special_tokens"
    )  # fmt: skip
    content = {"dataset": dataset, "model": model, **{key: getattr(settings, key) for key in keys}}
    if not settings.views:
        return content
    return {**content, "views": list(settings.views), "plugins": plugin_slice(*map(VIEWS.plugin, settings.views))}


def _model(config: Config, name: str) -> Content:
    model = entry(config, "models", name)
    # the text of the template, because an edited file makes another model
    text = None if model.template is None else read_template(model.template)
    other = model.tokenizer.of_model if model.tokenizer else None
    folder = None if other in config.models else other
    code = sorted(Path(model.path).glob(CODE)) if model.path is not None and model.trust_remote_code else []
    return _with_local({"model": name, **identity(model), "chat_template": text}, [model.path, folder, *code])


def _run(config: Config, *ids: str) -> Content:
    """A cell, a round of one, or the prompts of a round."""
    folder = "/".join(("runs", *ids))
    cell = Cell.of(folder)
    fresh = re.fullmatch(r"/fresh/(train|validation)", folder.removeprefix(cell.folder))
    if folder != cell.folder and not (fresh and cell.round):
        raise HalosError(f"{folder} is no cell, nor the prompts of a round; a cell is {cell.folder}")
    model = entry(config, "models", cell.model)
    entry(config, "datasets", cell.dataset)
    content = {**replace(cell, snapshot=0).ids, "attention": model.attention, "precision": model.precision}
    content |= {name: True for name in ("liger", "compile") if getattr(model, name)}
    if model.quantization is not None:
        content["quantization"] = model.quantization
    if cell.stage is None:
        return content
    for name in cell.method.partition(TRIAL)[0].split("-"):
        entry(config, "stages", name)
    stage = config.stage(cell.stage, cell.model, cell.trial)
    snapshots = stage.followed
    if stage.is_chosen and not fresh:  # which the settings that are chosen do not change
        stage = stage.trial(chosen(cell, stage))
    if cell.snapshot:
        if cell.snapshot >= snapshots:
            raise HalosError(f"{folder}: runs of the stage {cell.stage} have no such snapshot; see its `snapshots:`")
        stage = stage.model_copy(update={"stop_after": cell.snapshot / snapshots})
    rounds = stage.online.rounds if stage.online else 0
    if cell.round > rounds:
        raise HalosError(f"{folder}: the stage {cell.stage} has {rounds or 'no'} rounds; see its `online:`")
    if stage.online and fresh:
        return stage.online.prompts(fresh[1], cell.round, cell.seed)
    if cell.round and stage.online and stage.online.continue_optimizer:
        content["rounds"] = rounds
    if cell.round:  # else the number of rounds and the source of their data do not change the training of one round
        stage = stage.model_copy(update={"online": None})
    if model.save_precision != "auto":  # no part of the base model, or of what else a stage does
        content["save_precision"] = model.save_precision
    content |= {"stage": stage_slice(stage), "plugins": stage_plugins(stage)}
    return _with_local(content, [stage.lora.path if stage.lora else None])


def chosen(cell: Cell, stage: Stage) -> str:
    """The trial whose settings a cell of a swept stage has.

    Raises:
        HalosError: none is chosen yet.
    """
    made = chosen_by(Paths(), cell)
    if made is None or made not in stage.candidates:
        path = Paths().choice(cell).choice
        raise HalosError(
            f"{cell.folder} has settings that a sweep chooses, which it has not yet: run `snakemake {path}`"
        )
    return made


def _choice(config: Config, dataset: str, model: str, method: str) -> Content:
    """The trials of a method's last stage, and what decides between them."""
    cell = Cell(dataset, model, method, 0)
    entry(config, "datasets", dataset)
    entry(config, "models", model)
    stage = config.stage(cell.stage or "", model)
    assert stage.select is not None
    select, tried = stage.select.model_dump(mode="json", exclude_none=True), stage.candidates
    # a list, as its order says which of equal trials wins
    return {
        **{k: v for k, v in cell.ids.items() if k != "seed"},
        "select": select,
        "trials": [[*trial] for trial in tried.items()],
    }


def _scorer(config: Config, name: str, kind: str) -> Content:
    """A judge or a labeller, without the settings that its kind does not read."""
    scorer = entry(config, kind, name)
    settings = {key: value for key, value in identity(scorer).items() if key not in scorer.foreign}
    plugins = plugin_slice(VERIFIERS.plugin(scorer.verifier)) if scorer.verifier else {}
    return _with_local({kind.removesuffix("s"): name, **settings, "plugins": plugins}, scorer.files)


def _judge(config: Config, name: str, *pair: str) -> Content:
    """A judge; or one that is asked, with a method in place of its baseline: `against/METHOD`."""
    content = _scorer(config, name, "judges")
    if not pair:
        return content
    judge = entry(config, "judges", name)
    if len(pair) != 2 or pair[0] != "against" or not judge.is_asked:
        raise HalosError(f"judges/{name}/{'/'.join(pair)} is no folder of the results tree: a judge that is asked has "
                         f"judges/{name}/against/METHOD")  # fmt: skip
    content |= {"baseline": {"method": pair[1], "seed": "same"}, "length_control": "length_only", "difficulties": None}
    return {k: v for k, v in content.items() if k != "local"} | {"prompts_per_pair": judge.prompts_per_pair}


def _prompts(config: Config, name: str) -> Content:
    return {"prompts": name, **identity(entry(config, "prompts", name))}


def _task(config: Config, name: str) -> Content:
    return {"task_id": name, **identity(entry(config, "tasks", name))}


def _grid(config: Config, name: str) -> Content:
    """A grid with its label and those of all entries, which its report shows; read as a `GridSlice`."""
    grid = entry(config, "grids", name)
    labels = {
        kind: {name: e.label for name, e in getattr(config, kind).items() if getattr(e, "label", None)}
        for kind in KINDS
    }
    prompt_data = [list(pair) for pair in config.prompt_data(name)]
    content = {**grid.model_dump(mode="json"), "grid": name, "labels": labels, "prompt_data": prompt_data}
    if courses := config.courses(name):
        content["courses"] = [[*course] for course in courses]
    judges = {judge: config.judges[judge] for judge in grid.judges}
    compared = {judge: Compared(pairs=j.compares, tie_margin=j.tie_margin) for judge, j in judges.items() if j.compares}
    if compared:
        content["compared"] = {judge: pairs.model_dump(mode="json") for judge, pairs in compared.items()}
    sweeps = [[*ids] for ids in config.sweeps(name)]
    return {**content, "sweeps": sweeps, "counterparts": counterparts(config, name)} if sweeps else content


SLICES: dict[str, Callable[..., Content]] = {
    "data": _data,
    "tokens": _tokens,
    "models": _model,
    "runs": _run,
    "choices": _choice,
    "prompts": _prompts,
    "labellers": partial(_scorer, kind="labellers"),
    "judges": _judge,
    "tasks": _task,
    "grids": _grid,
}
"""The first part of a folder's path -> what makes its slice, from the ids that follow."""
