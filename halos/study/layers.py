"""The layers of a catalogue: config.yaml, the files of `--configfile` in their order, and `--config`, which wins.

Within a layer, a model's own settings for a stage win over the stage's entry; a later layer wins over all of an earlier
one. So `--config 'stages={dpo: {lr: 1e-5}}'` takes effect for every model, also for one that config.yaml gives a value
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from halos.errors import HalosError
from halos.registry import suggest
from halos.settings import numbers

HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


def typed(content: Any) -> Any:
    """The content of `--config`, in which Snakemake leaves all values within {} and [] as text, with YAML's types."""
    if isinstance(content, dict):
        return {key: typed(value) for key, value in content.items()}
    if isinstance(content, list):
        return [typed(value) for value in content]
    if isinstance(content, str):
        try:
            value = yaml.safe_load(content)
        except yaml.YAMLError:
            return content
        return value if value is None or isinstance(value, bool | int | float) else numbers(content)
    return content


def merged(below: Any, above: Any) -> Any:
    """A dictionary with the entries of another one, which win, at every depth. Neither is changed: entries that share
    a YAML anchor must not change with each other."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def combined(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The content of a catalogue from its layers, of which the last wins."""
    return reduce(lambda below, above: merged(_given_way(below, above), above), layers, {})


def _given_way(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A layer whose models' own settings for stages are replaced by those that a later layer gives to these stages."""
    models, stages = below.get("models"), above.get("stages")
    if not isinstance(models, dict) or not isinstance(stages, dict):
        return below  # what is malformed is refused when the whole is read
    for name, model in models.items():
        own = model.get("stages") if isinstance(model, dict) else None
        for stage, settings in own.items() if isinstance(own, dict) else ():
            given = stages.get(stage)
            if isinstance(settings, dict) and isinstance(given, dict):
                changes = {key: value for key, value in given.items() if key in settings}
                below = merged(below, {"models": {name: {"stages": {stage: changes}}}})
    return below


def with_model(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a catalogue in which the chosen grid has the model that `model:` names, in place of its own.

    `model:` is an id of `models:`, a local folder, or a hub id. The latter two get an entry with the defaults of
    models, or what `models:` says under their id, which is their name with `--` for each `/`.

    Raises:
        HalosError: it is none of them.
    """
    name, models, grids = content.get("model"), content.get("models") or {}, content.get("grids")
    grid = content.get("grid", "demo")
    well_formed = isinstance(grid, str) and isinstance(models, dict) and isinstance(grids, dict) and grid in grids
    if name is None or not well_formed:
        return content  # what is malformed is refused when the whole is read
    name = str(name)
    if name not in models:
        if Path(name).is_dir():
            origin = {"path": name}
        elif re.fullmatch(HUB_ID, name):
            origin = {"hub": name}
        else:
            raise HalosError(f"model: {name!r} is no id of models, no local folder and no hub id such as owner/name"
                             f"{suggest(name, models)}")  # fmt: skip
        name = (name.strip("./") or Path(name).resolve().name).replace("/", "--")
        models = {**models, name: merged(origin, models.get(name, {}))}
    return {**content, "models": models, "grids": merged(grids, {grid: {"models": [name]}})}
