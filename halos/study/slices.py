"""The slice of the catalogue that makes each folder of the results tree."""

from __future__ import annotations

import re
from typing import Any

from halos.errors import HalosError
from halos.registry import SOURCES, VERIFIERS, plugin_slice, suggest
from halos.settings import identity
from halos.study.catalogue import KINDS, Config
from halos.study.cells import Cell
from halos.tokens.template import read_template
from halos.train.settings import stage_plugins, stage_slice

FRESH = re.compile(r".*/fresh/(?P<split>train|test)")
"""The prompts of a round of an online stage, and what is made of them, below the round's folder."""


def entry(config: Config, kind: str, name: str) -> Any:
    catalogue = getattr(config, kind)
    if name not in catalogue:
        raise HalosError(f"there is no {name!r} in {kind}{suggest(name, catalogue)}")
    return catalogue[name]


def config_slice(config: Config, folder: str) -> dict[str, Any]:
    """The part of the catalogue that makes a folder of the results tree; its `config.yaml`.

    Labels and resources are left out, so that editing them reruns nothing. A folder's slice holds what is its own; what
    it inherits (a parent's stage, the dataset's sources) reaches it as files.

    Args:
        folder: below the results folder, for example `data/toy` or `runs/toy/tiny/sft-kto/seed1`.
    """
    kind, *ids = folder.strip("/").split("/")
    if len(ids) < (2 if kind == "tokens" else 1):
        raise HalosError(f"{folder} is no folder of the results tree")
    if kind == "runs":
        cell = Cell.of(folder)
        model = entry(config, "models", cell.model)
        entry(config, "datasets", cell.dataset)
        content: dict[str, Any] = {**cell.ids, "attention": model.attention, "precision": model.precision}
        if cell.stage is not None:
            for name in cell.method.split("-"):
                entry(config, "stages", name)
            stage = config.stage(cell.stage, cell.model)
            rounds = stage.online.rounds if stage.online else 0
            if cell.round > rounds:
                raise HalosError(f"{folder}: the stage {cell.stage} has {rounds or 'no'} rounds; see its `online:`")
            if stage.online and cell.round and (fresh := FRESH.fullmatch(folder)):
                return stage.online.prompts(fresh["split"], cell.round, cell.seed)
            if cell.round:  # how many there are, and where their data comes from, is not what trains one of them
                stage = stage.model_copy(update={"online": None})
            content |= {"stage": stage_slice(stage), "plugins": stage_plugins(stage)}
        return content
    if kind == "grids":
        grid = entry(config, "grids", ids[0])
        return {**grid.model_dump(mode="json"), "grid": ids[0], "labels": labels(config)}
    if kind == "tokens":
        dataset = entry(config, "datasets", ids[0])
        entry(config, "models", ids[1])
        keys = ("max_length", "max_prompt_length", "eval_examples", "keep_desirable", "keep_undesirable")
        content = {k: getattr(dataset, k) for k in keys}
        return {"dataset": ids[0], "model": ids[1], **content}
    if kind == "data":
        sources = entry(config, "datasets", ids[0]).sources
        plugins = plugin_slice(*(SOURCES.plugin(s.name) for s in sources))
        return {"dataset": ids[0], "sources": [identity(s) for s in sources], "plugins": plugins}
    if kind == "models":
        model = entry(config, "models", ids[0])
        text = None if model.template is None else read_template(model.template)  # an edited file is another model
        return {"model": ids[0], **identity(model), "chat_template": text}
    if kind in ("judges", "labellers"):
        scorer = entry(config, kind, ids[0])
        own = {key: value for key, value in identity(scorer).items() if key not in scorer.foreign}
        plugins = plugin_slice(VERIFIERS.plugin(scorer.verifier)) if scorer.verifier else {}
        return {kind.removesuffix("s"): ids[0], **own, "plugins": plugins}
    if kind == "prompts":
        return {"prompts": ids[0], **identity(entry(config, "prompts", ids[0]))}
    if kind == "tasks":
        return {"task_id": ids[0], **identity(entry(config, "tasks", ids[0]))}
    raise HalosError(f"{folder} is no folder of the results tree")


def labels(config: Config) -> dict[str, dict[str, str]]:
    """{kind: {id: name in tables and figures}} of the entries that have a label."""
    return {
        kind: {name: e.label for name, e in getattr(config, kind).items() if getattr(e, "label", None)}
        for kind in KINDS
    }
