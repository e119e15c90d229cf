"""config.yaml, the catalogue, read and checked as a whole.

`load` reads config.yaml (or Snakemake's dictionary) into frozen objects and refuses mistakes, one sentence for each,
before anything runs.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halos.data.settings import Dataset
from halos.errors import HalosError
from halos.evaluate.judging.settings import FromCell, Judge
from halos.evaluate.tasks.settings import Task
from halos.models.settings import Model
from halos.online.settings import Labeller
from halos.registry import LOSSES, load_plugins, suggest
from halos.sample.settings import Prompts
from halos.scoring.settings import Scorer
from halos.study.cells import BASE
from halos.study.settings import Grid
from halos.train.mixing import SFT_WEIGHT
from halos.train.settings import Stage
from halos.views import VIEWS

KINDS = ("models", "datasets", "stages", "prompts", "labellers", "judges", "tasks", "grids")


class Config(BaseModel):
    """The catalogue: all entries of config.yaml, by their kinds and ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: str = Field("demo", description="id of the grid that `snakemake all` makes")
    plugins: tuple[str, ...] = Field((), description="Python files with losses, sources or verifiers of your own")
    models: dict[str, Model] = {}
    datasets: dict[str, Dataset] = {}
    stages: dict[str, Stage] = {}
    prompts: dict[str, Prompts] = {}
    labellers: dict[str, Labeller] = {}
    judges: dict[str, Judge] = {}
    tasks: dict[str, Task] = {}
    grids: dict[str, Grid] = {}

    @model_validator(mode="after")
    def consistent(self) -> Config:
        """Refuse malformed ids, references to entries that do not exist, and entries that cannot work together."""
        for kind in KINDS:
            for name in getattr(self, kind):
                pattern = r"[A-Za-z0-9_]+" if kind == "stages" else r"[A-Za-z0-9][A-Za-z0-9._-]*"
                if not re.fullmatch(pattern, name):
                    raise ValueError(
                        f"{kind}.{name}: an id is letters, digits and _"
                        + (" (stages are joined by - in a method)" if kind == "stages" else ", . or - after the first")
                    )
        if BASE in self.stages:
            raise ValueError(f"stages.{BASE}: this id means a model without training; choose another")
        self._refer("grid", self.grid, "grids")
        for name, model in self.models.items():
            for stage in model.stages:
                self._refer(f"models.{name}.stages", stage, "stages")
                try:
                    own = self.stage(stage, name)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, (f"models.{name}.stages.{stage}", *first["loc"])))
                    raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
                if own.loss != self.stages[stage].loss:
                    every = self.stages[stage].loss_name
                    raise ValueError(f"models.{name}.stages.{stage}.loss: it is {every} for every model; add a stage "
                                     f"for another")  # fmt: skip
            if model.tokenizer is not None:
                self._refer(f"models.{name}.tokenizer.train_on", model.tokenizer.train_on, "datasets")
        for name, prompts in self.prompts.items():
            if prompts.dataset is not None:
                self._refer(f"prompts.{name}.dataset", prompts.dataset, "datasets")
        for name, judge in self.judges.items():
            self._refer(f"judges.{name}.prompts", judge.prompts, "prompts")
            if isinstance(judge.baseline, FromCell):
                self._check_method(f"judges.{name}.baseline.method", judge.baseline.method, rewards=False)
        scorers: list[tuple[str, Scorer]] = [(f"judges.{name}", judge) for name, judge in self.judges.items()]
        for where, scorer in (
            *scorers,
            *((f"labellers.{name}", labeller) for name, labeller in self.labellers.items()),
        ):
            if scorer.named is not None:
                self._check_reward_model(f"{where}.reward_model", scorer.named)
            if scorer.named in self.models and "seed" in scorer.model_fields_set:
                raise ValueError(f"{where}: {scorer.named} is an entry of models, which has no seed: take that out")
        for name, grid in self.grids.items():
            for kind in ("datasets", "models", "prompts", "judges", "tasks"):
                for entry in getattr(grid, kind):
                    self._refer(f"grids.{name}.{kind}", entry, kind)
            for method in grid.methods:
                self._check_method(f"grids.{name}.methods", method, rewards=False)
            for method in grid.reward_models:
                self._check_method(f"grids.{name}.reward_models", method, rewards=True)
        stages = [(f"stages.{name}", entry) for name, entry in self.stages.items()]
        for name, model in self.models.items():
            stages += [(f"models.{name}.stages.{stage}", self.stage(stage, name)) for stage in model.stages]
        for where, entry in stages:
            if entry.reward_model is not None:
                self._check_reward_model(f"{where}.reward_model", entry.reward_model)
            if entry.online is not None:
                self._check_online(where, entry)
        teachers = {where: teacher for where, entry in stages if (teacher := self.teacher(entry)) is not None}
        taught = {where.rsplit(".", 1)[-1] for where in teachers}
        for where, teacher in teachers.items():
            if teacher in self.models:
                continue
            if circular := sorted(taught.intersection(teacher.split("-"))):
                raise ValueError(f"{where}: its reward model {teacher}: {circular[0]} learns from a reward model "
                                 f"itself; name one that does not")  # fmt: skip
        return self

    def prompt_data(self, grid: str) -> list[tuple[str, str]]:
        """(dataset, split) of each prompt set of a grid that names a dataset, other than that of the cells."""
        entry = self.grids[grid]
        names = {*entry.prompts, *(self.judges[judge].prompts for judge in entry.judges)}
        return sorted({(p.dataset, p.split) for p in map(self.prompts.__getitem__, names) if p.dataset is not None})

    def teacher(self, stage: Stage) -> str | None:
        """The reward model that a stage learns from, a method or the id of a model: the one that it names, or that of
        its labeller."""
        return stage.reward_model if stage.online is None else self.labellers[stage.online.label].named

    def _check_online(self, where: str, stage: Stage) -> None:
        """Refuse a labeller that does not exist, or whose feedback the stage's loss cannot read."""
        assert stage.online is not None
        self._refer(f"{where}.online.label", stage.online.label, "labellers")
        feedback = self.labellers[stage.online.label].feedback
        wanted = VIEWS[stage.reads].feedback
        if wanted and feedback not in wanted:
            raise ValueError(f"{where}.online.label: the loss {stage.loss_name} wants {' or '.join(wanted)} feedback, "
                             f"and {stage.online.label} gives {feedback}")  # fmt: skip

    def _check_reward_model(self, where: str, name: str) -> None:
        """Refuse what is neither a method that ends in a reward model nor the id of a model that could be one."""
        stages = name.split("-")
        if name in self.models:
            if all(stage in self.stages for stage in stages):
                raise ValueError(f"{where}: {name} is a model and a method: give the model another id")
            if self.models[name].architecture is not None:
                raise ValueError(f"{where}: models.{name} has random weights, and scores nothing: name another")
        elif "/" in name:
            raise ValueError(
                f"{where}: {name} is a folder: make it an entry of models, {{path: {name}}}, and name that"
            )
        elif name != BASE and not any(stage in self.stages for stage in stages):
            known = [*self.models, *self.stages]
            raise ValueError(f"{where}: {name!r} is neither a method nor the id of a model{suggest(name, known)}")
        else:
            self._check_method(where, name, rewards=True)

    def _check_method(self, where: str, method: str, rewards: bool) -> None:
        """Refuse a method of unknown stages, with a stage after one that ends a chain, or of the wrong kind of model.

        Args:
            rewards: whether the method must end in a reward model; else it must not.
        """
        stages = [] if method == BASE else method.split("-")
        for stage in stages:
            self._refer(f"{where}: {method}", stage, "stages")
        losses = [self.stages[stage].make_loss() for stage in stages]
        for stage, loss in zip(stages[:-1], losses, strict=False):
            if loss.head == "score" or loss.control:
                why = "it trains a reward model" if loss.head == "score" else "its prompts end in a control token"
                raise ValueError(f"{where}: {method}: no stage can follow {stage}: {why}")
        if (bool(losses) and losses[-1].head == "score") != rewards:
            wants = (
                "must end in a reward model, such as bradley_terry"
                if rewards
                else "ends in a reward model, which answers no prompts: name it in reward_models"
            )
            raise ValueError(f"{where}: {method} {wants}")

    def stage(self, name: str, model: str) -> Stage:
        """A stage as a model runs it: the stage's entry with the model's own settings for it."""
        stage, changes = self.stages[name], self.models[model].stages.get(name, {})
        return Stage.model_validate({**stage.model_dump(exclude_unset=True), **changes}) if changes else stage

    def _refer(self, where: str, name: str, kind: str) -> None:
        """Refuse the id of an entry that does not exist."""
        if name not in getattr(self, kind):
            raise ValueError(f"{where}: there is no {name!r} in {kind}{suggest(name, getattr(self, kind))}")


def _sentences(error: ValidationError) -> str:
    """pydantic's errors, a line for each: the place, the mistake, and a similar key that exists."""
    lines = []
    places = [mistake["loc"] for mistake in error.errors()]
    for mistake in error.errors():
        loc = mistake["loc"]
        if any(len(place) > len(loc) and place[: len(loc)] == loc for place in places):
            continue  # it follows from a mistake within, such as a list with too few valid items
        where = ".".join(map(str, loc))
        if mistake["type"] == "extra_forbidden":
            owners: dict[str, type[BaseModel]] = {
                "models": Model, "datasets": Dataset, "prompts": Prompts, "judges": Judge, "tasks": Task, "grids": Grid,
                "labellers": Labeller
            }  # fmt: skip
            owner = Config if len(loc) == 1 else owners.get(str(loc[0])) if len(loc) == 3 else None
            hint = suggest(str(loc[-1]), owner.model_fields) if owner else "; take it out or correct its name"
            lines.append(f"{where}: unknown key{hint}")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return "\n".join(lines)


def load(source: str | Path | dict[str, Any]) -> Config:
    """The validated catalogue.

    Args:
        source: path of a YAML file, or the dictionary that Snakemake made of it and the command line.

    Raises:
        HalosError: with one line for each mistake.
    """
    if isinstance(source, dict):
        content = dict(source)
    else:
        if not Path(source).is_file():
            raise HalosError(f"there is no config file {source}; run from the project's folder or name one by --config")
        try:
            content = yaml.safe_load(Path(source).read_text()) or {}
        except yaml.YAMLError as error:
            raise HalosError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise HalosError(f"{source} must hold keys (models:, datasets:, ...), not a {type(content).__name__}")
    plugins = content.get("plugins")
    load_plugins(plugins if isinstance(plugins, list | tuple) else ())  # anything else is refused below
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise HalosError(_sentences(error)) from None


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml, for editors. A stage lists the hyperparameters of every loss of the package."""
    document = Config.model_json_schema()
    properties = document["$defs"]["Stage"]["properties"]
    for name in LOSSES:
        if LOSSES.plugin(name) is None:
            for f in dataclasses.fields(LOSSES[name]):
                entry = properties.setdefault(f.name, {"description": "hyperparameter of "})
                entry["description"] += ("" if entry["description"].endswith("of ") else ", ") + name
    properties[SFT_WEIGHT]["description"] += "; beside any other loss of pairs, the weight of the chosen response's NLL"
    return document
