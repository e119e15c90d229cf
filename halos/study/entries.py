"""The keys of config.yaml, and what is looked up in them."""

from __future__ import annotations

from itertools import product
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halos.data.settings import Dataset
from halos.errors import HalosError
from halos.evaluate.judging.settings import Judge
from halos.evaluate.tasks.settings import Task
from halos.models.settings import Model
from halos.online.settings import Labeller
from halos.registry import suggest
from halos.sample.settings import Prompts
from halos.study.cells import BASE
from halos.study.sampled import located
from halos.study.settings import Grid
from halos.train.settings import LENGTH, Trackers
from halos.train.stage import Stage


class Entries(BaseModel):
    """The entries of a catalogue, by their kinds and ids, each for itself; catalogue.py checks them together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: str = Field("demo", description="id of the grid that `snakemake all` makes")
    model: str | None = Field(
        None,
        description="a model in place of those of that grid: an id of models, a local folder, or a hub id; the latter "
        "two need no entry",
    )
    plugins: tuple[str, ...] = Field(
        (), description="Python files with losses, forward passes, views, sources or verifiers of your own"
    )
    trackers: Trackers = Field(
        (), description="what shows a run while it is trained: tensorboard, wandb, trackio, mlflow; reruns nothing"
    )
    project: str = Field(
        "halos", min_length=1, description="the name under which trackers file the runs; reruns nothing"
    )
    envmodules: tuple[str, ...] = Field(
        (), description="modules of a cluster that `--sdm env-modules` loads before each job; reruns nothing"
    )
    models: dict[str, Model] = {}
    datasets: dict[str, Dataset] = {}
    stages: dict[str, Stage] = {}
    prompts: dict[str, Prompts] = {}
    labellers: dict[str, Labeller] = {}
    judges: dict[str, Judge] = {}
    tasks: dict[str, Task] = {}
    grids: dict[str, Grid] = {}

    @model_validator(mode="before")
    @classmethod
    def sampled(cls, content: Any) -> Any:
        """Give sources that are sampled of a model the paths of what rules will sample."""
        return located(content)

    @model_validator(mode="before")
    @classmethod
    def resumed(cls, content: Any) -> Any:
        """Give stages with `resume_from` the settings of the stage that they go on from."""
        stages = content.get("stages") if isinstance(content, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
            return content

        def whole(name: str, after: tuple[str, ...] = ()) -> dict[str, Any]:
            source = stages[name].get("resume_from")
            if not isinstance(source, str):  # what is no text is refused with the stage
                return dict(stages[name])
            if source not in stages:
                raise ValueError(
                    f"stages.{name}.resume_from: there is no {source!r} in stages{suggest(source, stages)}"
                )
            if source in (*after, name):
                raise ValueError(f"stages.{name}.resume_from: {source} goes on from {name} itself")
            return _extended(whole(source, (*after, name)), stages[name])

        return {**content, "stages": {name: whole(name) for name in stages}}

    def prompt_data(self, grid: str) -> list[tuple[str, str]]:
        """(dataset, split) of each prompt set of a grid that names a dataset, other than that of the cells, and of each
        preference set."""
        entry = self.grids[grid]
        names = {*entry.prompts, *(self.judges[judge].prompts for judge in entry.judges)}
        named = {(p.dataset, p.split) for p in map(self.prompts.__getitem__, names) if p.dataset is not None}
        return sorted(named | {(dataset, "test") for dataset in entry.preference_sets})

    def sweeps(self, grid: str) -> list[tuple[str, str, str]]:
        """(dataset, model, method) of each choice between trials that a grid's methods are made by, in their order."""
        entry = self.grids[grid]
        found: dict[tuple[str, str, str], None] = {}
        for dataset, model, method in product(entry.datasets, entry.models, (*entry.methods, *entry.reward_models)):
            stages = [] if method == BASE else method.split("-")
            for number, stage in enumerate(stages, 1):
                if self.stage(stage, model).is_chosen:
                    found[dataset, model, "-".join(stages[:number])] = None
        return list(found)

    def courses(self, grid: str) -> list[tuple[str, str, str, int]]:
        """(dataset, model, method, number of snapshots) of each method of a grid whose snapshots are judged."""
        entry, found = self.grids[grid], []
        for dataset, model, method in product(entry.datasets, entry.models, entry.methods if entry.snapshots else ()):
            number = 1 if method == BASE else self.stage(method.rsplit("-", 1)[-1], model).followed
            if number > 1:
                found.append((dataset, model, method, number))
        return found

    def teacher(self, stage: Stage) -> str | None:
        """The reward model that a stage learns from, a method or the id of a model: the one that it names, or that of
        its labeller."""
        return stage.reward_model if stage.online is None else self.labellers[stage.online.label].named

    def reference(self, stage: Stage) -> tuple[str, bool] | None:
        """The reference that a stage names, and whether it is a model's id and no method; None if it names none."""
        name = stage.reference
        if name is None:
            return None
        return name, name != BASE and not all(part in self.stages for part in name.split("-"))

    def stage(self, name: str, model: str, trial: str | None = None) -> Stage:
        """A stage as a model runs it: the stage's entry with the model's own settings for it, and those of a trial.

        Raises:
            HalosError: the stage has no such trial.
        """
        stage, changes = self.stages[name], self._changes(name, model)
        if changes:
            stage = Stage.model_validate({**stage.model_dump(exclude_unset=True), **changes})
        if trial is None:
            return stage
        if trial not in stage.tried:
            raise HalosError(f"stages.{name}: its sweep has no trial {trial} with the model {model}: `python -m halos "
                             f"list cells` names those that there are")  # fmt: skip
        return stage.trial(trial)

    def _changes(self, name: str, model: str) -> dict[str, Any]:
        """A model's own settings for a stage, and for the one that it goes on from, where the stage has none itself."""
        own, source = self.models[model].stages.get(name, {}), self.stages[name].resume_from
        if source is None:
            return own
        stage, other = self.stages[name], self.stages[source]
        given = {key for key in LENGTH if getattr(stage, key) != getattr(other, key)}
        if given & {"epochs", "examples"}:  # either says how long it is
            given |= {"epochs", "examples"}
        theirs = {key: value for key, value in self._changes(source, model).items() if key not in given}
        return _extended(theirs, own)


def _extended(source: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The settings of a stage that goes on from another: that one's, but for its label and length, and its own."""
    left = {"label", "keep_optimizer", *(("examples",) if "epochs" in own else ())}
    return {**{key: value for key, value in source.items() if key not in left}, **own}
