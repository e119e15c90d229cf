"""Checks of a study before anything runs: its local files and its keys."""

from __future__ import annotations

import json
from pathlib import Path

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromFile, Judge
from halos.models.adapters import check_origin
from halos.models.architectures import check_classifier
from halos.models.load import check_reward_model, is_model
from halos.online.settings import Labeller
from halos.scoring.api import read_key
from halos.study.cells import RESULTS
from halos.study.paths import Paths
from halos.study.study import Study
from halos.tokens.store import no_test_split


def check_files(study: Study) -> None:
    """Refuse a study whose local files are missing, or whose local models cannot be trained.

    Raises:
        HalosError: naming the file and the entry that wants it.
    """
    for name in study.settings.datasets:
        for source in study.config.datasets[name].sources:
            for file in source.files:
                if _missing(file):
                    raise HalosError(f"datasets.{name}: source {source.name} wants {file}, which does not exist")
    named = [reference.model for cell in study.trained if (reference := study.named_reference(cell))]
    for name in dict.fromkeys((*study.settings.models, *named)):
        path = study.config.models[name].path
        if path is not None and not is_model(Path(path)):
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
        if path is not None:
            try:
                check_origin(Path(path))
            except HalosError as error:
                raise HalosError(f"models.{name}: {error}") from None
    for cell in study.trained:
        lora = study.stage(cell).lora
        if lora is not None and lora.path is not None and not (Path(lora.path) / "adapter_config.json").is_file():
            raise HalosError(f"stages.{cell.stage}.lora.path: there are no adapters in {lora.path}")
    for where, scorer in _scorers(study).items():
        if scorer.folder is not None:
            try:
                check_reward_model(scorer.folder)
            except HalosError as error:
                raise HalosError(f"{where}: {error}") from None
    for name, judge in study.judges.items():
        baseline = judge.baseline.file if isinstance(judge.baseline, FromFile) else None
        for wanted in (baseline, judge.difficulties):
            if wanted is not None and _missing(wanted):
                raise HalosError(f"judges.{name} wants {wanted}, which does not exist; put it there")


def check_splits(study: Study) -> None:
    """Refuse a study that reads prompts of a test split that a dataset, by its settings, does not have.

    Raises:
        HalosError: naming the dataset and the entries that want its prompts.
    """
    read = {prompts.dataset for prompts in study.prompts.values() if prompts.dataset}
    for name in [*study.settings.datasets, *sorted(read)]:
        has_test = any("test" in source.splits for source in study.config.datasets[name].sources)
        if not has_test and (wanted_by := study.test_for(name)):
            raise HalosError(no_test_split(name, wanted_by))


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
                kind = json.loads((folder / "config.json").read_text()).get("model_type")
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
    for scorer in _scorers(study).values():
        if scorer.openai is not None:
            read_key(scorer.openai.base_url, scorer.openai.key_variable)


def _missing(file: str) -> bool:
    """Whether a file does not exist and no rule can make it."""
    return not Path(file).is_file() and not Path(file).is_relative_to(RESULTS)


def _scorers(study: Study) -> dict[str, Judge | Labeller]:
    """The judges and labellers of a study, by their places in the config."""
    judges = {f"judges.{name}": judge for name, judge in study.judges.items()}
    return {**judges, **{f"labellers.{name}": labeller for name, labeller in study.labellers.items()}}
