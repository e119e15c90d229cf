"""config.yaml, the catalogue, read and checked as a whole.

`load` reads config.yaml, with what is laid over it (halos/study/layers.py), into frozen objects and refuses mistakes,
one sentence for each, before anything runs.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromCell, Judge
from halos.registry import LOSSES, load_plugins, suggest
from halos.scoring.settings import Scorer
from halos.study.cells import BASE
from halos.study.entries import Entries
from halos.study.layers import combined, with_model
from halos.study.mistakes import not_finite, sentences
from halos.study.sampled import SOURCE, samplings
from halos.train.mixing import SFT_WEIGHT
from halos.train.settings import LENGTH
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from halos.train.sweep import Select
from halos.views import VIEWS

KINDS = ("models", "datasets", "stages", "prompts", "labellers", "judges", "tasks", "grids")


class Config(Entries):
    """The catalogue: all entries of config.yaml, by their kinds and ids."""

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
                    raise ValueError(sentences(error, Stage, f"models.{name}.stages.{stage}")) from None
                if own.loss != self.stages[stage].loss:
                    every = self.stages[stage].loss_name
                    raise ValueError(f"models.{name}.stages.{stage}.loss: it is {every} for every model; add a stage "
                                     f"for another")  # fmt: skip
                if own.resume_from != self.stages[stage].resume_from:
                    raise ValueError(f"models.{name}.stages.{stage}.resume_from: a stage goes on from the same one for "
                                     f"every model; add a stage with it")  # fmt: skip
            if model.tokenizer is not None and model.tokenizer.train_on is not None:
                self._refer(f"models.{name}.tokenizer.train_on", model.tokenizer.train_on, "datasets")
            self._check_tokenizer(name)
        for name, prompts in self.prompts.items():
            if prompts.dataset is not None:
                self._refer(f"prompts.{name}.dataset", prompts.dataset, "datasets")
        for name in self.datasets:
            self._check_sampled(name)
        for name, judge in self.judges.items():
            self._refer(f"judges.{name}.prompts", judge.prompts, "prompts")
            if isinstance(judge.baseline, FromCell):
                self._check_method(f"judges.{name}.baseline.method", judge.baseline.method, rewards=False)
            if judge.prompts_per_pair is not None and not judge.compare:
                raise ValueError(f"judges.{name}: prompts_per_pair is of comparisons between methods: give `compare:`, "
                                 f"or take it out")  # fmt: skip
            for pair in judge.compare if isinstance(judge.compare, tuple) else ():
                for method in pair:
                    self._check_method(f"judges.{name}.compare", method, rewards=False)
        scorers: list[tuple[str, Scorer]] = [(f"judges.{name}", judge) for name, judge in self.judges.items()]
        for where, scorer in (
            *scorers,
            *((f"labellers.{name}", labeller) for name, labeller in self.labellers.items()),
        ):
            if isinstance(scorer, Judge) and scorer.model is not None:
                self._refer(f"{where}.model.model", scorer.model.model, "models")
            elif scorer.named is not None:
                self._check_reward_model(f"{where}.reward_model", scorer.named)
            if scorer.named in self.models and "seed" in scorer.model_fields_set:
                raise ValueError(f"{where}: {scorer.named} is an entry of models, which has no seed: take that out")
        for name, grid in self.grids.items():
            for kind in ("datasets", "models", "prompts", "judges", "tasks"):
                for entry in getattr(grid, kind):
                    self._refer(f"grids.{name}.{kind}", entry, kind)
            for entry in grid.preference_sets:
                self._refer(f"grids.{name}.preference_sets", entry, "datasets")
            for entry in grid.snapshots:
                self._check_judge_apart(f"grids.{name}.snapshots", entry)
                if not self.courses(name):
                    raise ValueError(f"grids.{name}.snapshots: none of its methods takes any: set `snapshots: 8` of a "
                                     f"stage, or take it out")  # fmt: skip
            for method in grid.methods:
                self._check_method(f"grids.{name}.methods", method, rewards=False)
            for method in grid.reward_models:
                self._check_method(f"grids.{name}.reward_models", method, rewards=True)
        stages: list[tuple[str, str | None, Stage]] = [(f"stages.{n}", None, entry) for n, entry in self.stages.items()]
        for name, model in self.models.items():
            stages += [(f"models.{name}.stages.{stage}", name, self.stage(stage, name)) for stage in model.stages]
        for where, of_model, entry in stages:
            if entry.reward_model is not None:
                self._check_reward_model(f"{where}.reward_model", entry.reward_model)
            if entry.online is not None:
                self._check_online(where, entry)
            if entry.reference is not None:
                self._check_reference(where, entry, of_model)
            if entry.resume_from is not None:
                self._check_resumed(where, entry, entry.resume_from, of_model)
            if entry.select is not None:
                self._check_select(where, entry.select)
        teachers = {where: teacher for where, _, entry in stages if (teacher := self.teacher(entry)) is not None}
        taught = {where.rsplit(".", 1)[-1] for where in teachers}
        for where, teacher in teachers.items():
            if teacher in self.models:
                continue
            if circular := sorted(taught.intersection(teacher.split("-"))):
                raise ValueError(f"{where}: its reward model {teacher}: {circular[0]} learns from a reward model "
                                 f"itself; name one that does not")  # fmt: skip
        return self

    def _check_tokenizer(self, name: str) -> None:
        """Refuse the tokenizer of a model that does not exist, or that has this model's in turn."""
        seen = [name]
        while (tokenizer := self.models[seen[-1]].tokenizer) is not None and tokenizer.of_model is not None:
            other = tokenizer.of_model
            if other in seen:
                raise ValueError(
                    f"models.{name}.tokenizer.from: {' from '.join([*seen, other])} goes round in a circle"
                )
            if other not in self.models:
                if "/" not in other and not Path(other).is_dir():
                    self._refer(f"models.{seen[-1]}.tokenizer.from", other, "models")
                return
            seen.append(other)

    def _check_sampled(self, dataset: str) -> None:
        """Refuse a dataset sampled of entries that do not exist or do not go together, or of itself."""
        where = f"datasets.{dataset}: source sampled"
        for source in self.datasets[dataset].sources:
            if source.name == SOURCE and "train" not in source.splits:
                raise ValueError(f"{where}: prompts has no train: name a prompt set to learn from")
        for sampling in samplings(self.datasets[dataset]):
            cell = sampling.cell
            self._refer(f"{where}: dataset", cell.dataset, "datasets")
            self._refer(f"{where}: model", cell.model, "models")
            self._refer(f"{where}: labeller", sampling.labeller, "labellers")
            self._check_method(f"{where}: method", cell.method, rewards=False)
            for split, name in sampling.prompts:
                self._refer(f"{where}: prompts", name, "prompts")
                if self.prompts[name].split != split:
                    raise ValueError(
                        f"{where}: {name} are {self.prompts[name].split} prompts, and cannot be those of {split}: name "
                        f"a prompt set with `split: {split}`"
                    )
            if self._sampled_from(cell.dataset, dataset):
                raise ValueError(f"{where}: it is sampled on {cell.dataset}, which is sampled on {dataset} in turn")

    def _sampled_from(self, dataset: str, other: str, seen: tuple[str, ...] = ()) -> bool:
        """Whether a dataset is another one, or is sampled on it."""
        if dataset == other or dataset in seen or dataset not in self.datasets:
            return dataset == other
        datasets = [sampling.cell.dataset for sampling in samplings(self.datasets[dataset])]
        return any(self._sampled_from(name, other, (*seen, dataset)) for name in datasets)

    def _check_judge_apart(self, where: str, judge: str) -> None:
        """Refuse a judge that does not exist, or that reads test prompts."""
        self._refer(where, judge, "judges")
        prompts = self.judges[judge].prompts
        if prompts in self.prompts and self.prompts[prompts].split == "test":
            raise ValueError(f"{where}: {judge} judges answers to {prompts}, test prompts: name a judge whose prompts "
                             f"have `split: validation`")  # fmt: skip

    def _check_select(self, where: str, select: Select) -> None:
        """Refuse a choice by a judge or task that does not exist, or that reads test prompts."""
        if select.judge is not None:
            self._check_judge_apart(f"{where}.select.judge", select.judge)
        if select.task is not None:
            self._refer(f"{where}.select.task", select.task, "tasks")
            task = self.tasks[select.task]
            if task.local is not None and task.split == "test":
                raise ValueError(f"{where}.select.task: {select.task} is made of test prompts: name a task with "
                                 f"`split: validation`")  # fmt: skip

    def _check_resumed(self, where: str, stage: Stage, source: str, model: str | None) -> None:
        """Refuse to go on from a stage that keeps no state, or with settings that would make it another training."""
        other = self.stages[source] if model is None else self.stage(source, model)
        if stage.online is not None:
            raise ValueError(f"{where}: an online stage goes on by more rounds: raise online.rounds instead")
        if not other.keep_optimizer:
            raise ValueError(
                f"{where}.resume_from: {source} keeps no state to go on from: set its keep_optimizer: true"
            )
        ours, theirs = stage_slice(stage), stage_slice(other)
        differing = [k for k in sorted({*ours, *theirs} - LENGTH) if ours.get(k) != theirs.get(k)]
        if differing:
            raise ValueError(
                f"{where}: {', '.join(differing)} must be that of {source}, from which it goes on: take it out"
            )

    def _check_reference(self, where: str, stage: Stage, model: str | None) -> None:
        """Refuse a reference that does not exist, is ambiguous, is no policy, or is made with the stage itself."""
        assert stage.reference is not None
        where, name, own = f"{where}.reference", stage.reference, where.rsplit(".", 1)[-1]
        _, is_model = self.reference(stage) or ("", False)
        if is_model:
            if name not in self.models:
                known = [BASE, *self.stages, *self.models]
                raise ValueError(f"{where}: there is no method and no model {name!r}{suggest(name, known)}")
            return
        if name in self.models:
            raise ValueError(f"{where}: {name!r} is a stage and a model: give one of them another id")
        self._check_method(where, name, rewards=False)
        if name != BASE and self.stages[name.rsplit("-", 1)[-1]].make_loss().control:
            raise ValueError(f"{where}: {name}: its prompts end in a control token, which those of this stage do not")
        seen: set[str] = set()
        wanted = [part for part in name.split("-") if part != BASE]
        while wanted:
            part = wanted.pop()
            if part not in seen:
                seen.add(part)
                entry = self.stages[part] if model is None else self.stage(part, model)
                named = [entry.reference, self.teacher(entry)]
                wanted += [p for other in named if other for p in other.split("-") if p in self.stages]
        if own in seen:
            raise ValueError(f"{where}: {name} is trained by {own} itself: name a method that is made without it")

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

    def _refer(self, where: str, name: str, kind: str) -> None:
        """Refuse the id of an entry that does not exist."""
        if name not in getattr(self, kind):
            raise ValueError(f"{where}: there is no {name!r} in {kind}{suggest(name, getattr(self, kind))}")


def read(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file with entries of a catalogue.

    Raises:
        HalosError: there is no such file, or it is not of that form.
    """
    if not Path(path).is_file():
        raise HalosError(f"there is no config file {path}; run from the project's folder or name one by --config")
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise HalosError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise HalosError(f"{path} must hold keys (models:, datasets:, ...), not a {type(content).__name__}")
    return content


def load(*layers: str | Path | dict[str, Any]) -> Config:
    """The validated catalogue.

    Args:
        layers: paths of YAML files, or their contents; each is laid over those before it, and wins.

    Raises:
        HalosError: with one line for each mistake.
    """
    content = combined(layer if isinstance(layer, dict) else read(layer) for layer in layers)
    if place := not_finite(content):
        raise HalosError(f"{place} is no finite number: give one, or take it out")
    plugins = content.get("plugins")
    load_plugins(plugins if isinstance(plugins, list | tuple) else ())  # anything else is refused below
    try:
        return Config.model_validate(with_model(content))
    except ValidationError as error:
        raise HalosError(sentences(error, Config)) from None


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml, for editors. A stage lists the hyperparameters of every loss of the package."""
    document = Config.model_json_schema()
    properties = document["$defs"]["Stage"]["properties"]
    del document["$defs"]["Stage"]["required"]
    document["$defs"]["Stage"]["anyOf"] = [{"required": ["loss"]}, {"required": ["resume_from"]}]
    for name in LOSSES:
        if LOSSES.plugin(name) is None:
            for f in dataclasses.fields(LOSSES[name]):
                entry = properties.setdefault(f.name, {"description": "hyperparameter of "})
                entry["description"] += ("" if entry["description"].endswith("of ") else ", ") + name
    properties[SFT_WEIGHT]["description"] += "; beside any other loss of pairs, the weight of the chosen response's NLL"
    return document
