"""Checks of a study before anything runs: its local files, its keys, and settings of stages that no cell reads."""

from __future__ import annotations

from pathlib import Path

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromFile, Judge
from halos.files import read_json
from halos.models.adapters import check_origin
from halos.models.architectures import check_classifier
from halos.models.load import is_model
from halos.models.rewards import check_reward_model, is_reward_model
from halos.online.settings import Labeller
from halos.scoring.api import read_key
from halos.scoring.settings import Server
from halos.study.cells import RESULTS
from halos.study.paths import Paths
from halos.study.study import Study
from halos.tokens.store import no_split, no_view
from halos.train.settings import UNSHARDED
from halos.views import VIEWS


def check_files(study: Study) -> None:
    """Refuse a study whose local files are missing, or whose local models cannot be trained.

    Raises:
        HalosError: naming the file and the entry that wants it.
    """
    named = (*study.settings.datasets, *(cell.dataset for cell in study.answering), *study.settings.preference_sets)
    for name in dict.fromkeys(named):
        for source in study.config.datasets[name].all_sources:
            for file in source.files:
                if _missing(file):
                    raise HalosError(f"datasets.{name}: source {source.name} wants {file}, which does not exist")
    others = (*study.reference_models, *study.asked_models, *(cell.model for cell in study.answering))
    for name in dict.fromkeys((*study.settings.models, *others)):
        path = study.config.models[name].path
        if path is not None and not is_model(Path(path)):
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
        if path is not None:
            try:
                check_origin(Path(path))
            except HalosError as error:
                raise HalosError(f"models.{name}: {error}") from None
            scores = (Path(path) / "config.json").is_file() and is_reward_model(Path(path))
            if scores and (name in study.asked_models or any(cell.model == name for cell in study.cells)):
                raise HalosError(
                    f"models.{name}: {path} holds a reward model, which answers no prompts: take it out of the grid's "
                    "models and of `kind: model`, and name it as a reward_model"
                )
    for cell in study.trained:
        lora = study.stage(cell).lora
        if lora is not None and lora.path is not None and not (Path(lora.path) / "adapter_config.json").is_file():
            raise HalosError(f"stages.{cell.stage}.lora.path: there are no adapters in {lora.path}")
    for where, scorer in _scorers(study).items():
        if scorer.folder is not None:
            try:
                check_reward_model(scorer.folder, trusted=False)
            except HalosError as error:
                raise HalosError(f"{where}: {error}") from None
    for name, where in study.reward_models_of_others.items():
        path = study.config.models[name].path
        if path is not None:
            entry = study.config.models[name]
            try:
                check_reward_model(Path(path), entry.template is None, entry.trust_remote_code or None)
            except HalosError as error:
                raise HalosError(f"models.{name}, the reward model of {where}: {error}") from None
    for name, judge in {**study.judges, **study.apart}.items():
        baseline = judge.baseline.file if isinstance(judge.baseline, FromFile) else None
        for wanted in (baseline, judge.difficulties):
            if wanted is not None and _missing(wanted):
                raise HalosError(f"judges.{name} wants {wanted}, which does not exist; put it there")


def overridden(study: Study) -> str | None:
    """A line on settings of `stages:` that no cell of a study reads, because each of its models has its own.

    Only those are named that differ from their default, as an edited one does: a stage may say its default for the
    reader.
    """
    models: dict[str, set[str]] = {}
    for cell in study.trained:
        models.setdefault(str(cell.stage), set()).add(cell.model)
    found = []
    for name, of in models.items():
        own = [study.config.models[model].stages.get(name, {}) for model in of]
        in_force = [study.config.stage(name, model) for model in of]
        for key, value in study.config.stages[name].changed.items():
            if all(key in settings for settings in own) and value not in [stage.changed.get(key) for stage in in_force]:
                found.append(f"stages.{name}.{key}")
    if not found:
        return None
    return (
        f"without effect in the grid {study.grid}: {', '.join(found)}; each of its models has a value of its own, in "
        f"models.MODEL.stages: change it there, or give yours by --config"
    )


def check_splits(study: Study) -> None:
    """Refuse a study that reads prompts of a validation or test split that a dataset, by its settings, does not have,
    or that reports the task that it chooses by.

    Raises:
        HalosError: naming the dataset and the entries that want its prompts, or the task.
    """
    for cell in study.sweeps:
        task = study.decided_by(cell).task
        if task in study.tasks:
            raise HalosError(
                f"stages.{cell.stage}.select.task: {task} is one of the grid's tasks, whose results would then be "
                "those of the choice: take it out of the grid, or choose by another"
            )
    read = {prompts.dataset for prompts in study.prompts.values() if prompts.dataset}
    read |= {dataset for dataset, _, _ in study.sampled_prompts}
    read.update(study.settings.preference_sets)
    for name in [*study.settings.datasets, *sorted(read)]:
        for split in ("validation", "test"):
            if not study.config.datasets[name].may_have(split) and (wanted_by := study.readers(name, split)):
                raise HalosError(no_split(name, split, wanted_by))


def check_views(study: Study) -> None:
    """Refuse a study with a stage that reads a plugin's view of a dataset that does not have it.

    Raises:
        HalosError: naming the dataset, the view and the stage.
    """
    for cell in study.trained:
        view, dataset = study.stage(cell).reads, study.config.datasets[cell.dataset]
        if VIEWS.plugin(view) and view not in dataset.views:
            raise HalosError(f"stages.{cell.stage}: {no_view(cell.dataset, view)}")


def check_weights(study: Study) -> None:
    """Refuse a study that trains all weights of a model whose entry quantises them, or shards weights that a stage's
    optimiser takes whole.

    Raises:
        HalosError: naming the model and the stage.
    """
    for cell in study.trained:
        model, stage = study.config.models[cell.model], study.stage(cell)
        if model.quantization is not None and stage.lora is None:
            raise HalosError(
                f"models.{cell.model} has `quantization: {model.quantization}`, and is trained by adapters alone: give "
                f"stages.{cell.stage} `lora: {{}}`, or take quantization out"
            )
        if model.resources.shards and stage.optimizer in UNSHARDED:
            raise HalosError(
                f"models.{cell.model} has `parallel: fsdp`, and {stage.optimizer} cannot train sharded weights: give "
                f"stages.{cell.stage} another optimizer, or the model's resources `parallel: ddp`"
            )


def check_classifiers(study: Study) -> None:
    """Refuse a study that trains a reward model from a model whose type has no sequence classifier.

    The type of a hub model is known once it was made.

    Raises:
        HalosError: naming the model and the stage.
    """
    for cell in study.trained:
        if study.stage(cell).make_loss().head != "score":
            continue
        model = study.config.models[cell.model]
        kind = (model.architecture or {}).get("model_type")
        for folder in (Paths().model(cell.model).model, Path(model.path or "")):
            if kind is None and (folder / "config.json").is_file():
                kind = read_json(folder / "config.json").get("model_type")
        if kind is not None:
            try:
                check_classifier(kind)
            except HalosError as error:
                raise HalosError(f"models.{cell.model} with stages.{cell.stage}: {error}") from None


def check_keys(study: Study) -> None:
    """Refuse a study that will ask a server whose key is not in the environment.

    Raises:
        HalosError: naming the variable.
    """
    for server in servers(study).values():
        read_key(server.base_url, server.key_variable)


def servers(study: Study) -> dict[str, Server]:
    """The servers that judges and labellers of a study ask, by the places of these in the config."""
    return {where: scorer.openai for where, scorer in _scorers(study).items() if scorer.openai is not None}


def _missing(file: str) -> bool:
    """Whether a file does not exist and no rule can make it."""
    return not Path(file).is_file() and not Path(file).is_relative_to(RESULTS)


def _scorers(study: Study) -> dict[str, Judge | Labeller]:
    """The judges and labellers of a study, by their places in the config."""
    judges = {f"judges.{name}": judge for name, judge in {**study.judges, **study.apart}.items()}
    return {**judges, **{f"labellers.{name}": labeller for name, labeller in study.labellers.items()}}
