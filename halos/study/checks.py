"""Checks of a grid before anything runs: its local files, its keys."""

from __future__ import annotations

from pathlib import Path

from halos.errors import HalosError
from halos.evaluate.judging.settings import Judge
from halos.models.load import check_reward_model, is_model
from halos.online.settings import Labeller
from halos.scoring.api import read_key
from halos.scoring.settings import Scorer
from halos.study.catalogue import Config
from halos.study.cells import RESULTS
from halos.study.slices import entry
from halos.study.study import cells, labellers


def check_files(config: Config, grid: str | None = None) -> None:
    """Refuse a grid whose local files are missing, before anything is run.

    Raises:
        HalosError: naming the file and the entry that wants it.
    """
    g = entry(config, "grids", grid or config.grid)
    for name in g.datasets:
        for source in config.datasets[name].sources:
            for file in source.files:
                if not Path(file).is_file() and not Path(file).is_relative_to(RESULTS):  # a rule can make what is there
                    raise HalosError(f"datasets.{name}: source {source.name} wants {file}, which does not exist")
    for name in g.models:
        path = config.models[name].path
        if path is not None and not is_model(Path(path)):
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
    for cell in (*cells(config, grid), *cells(config, grid, rewards=True)):
        for trained in (c for c in cell.lineage() if c.stage is not None):
            stage = config.stage(str(trained.stage), trained.model)
            lora = stage.lora
            if lora is not None and lora.path is not None and not (Path(lora.path) / "adapter_config.json").is_file():
                raise HalosError(f"stages.{trained.stage}.lora.path: there are no adapters in {lora.path}")
    judging = {f"judges.{name}": config.judges[name] for name in g.judges}
    labelling = {f"labellers.{name}": labeller for name, labeller in labellers(config, grid).items()}
    scorers: dict[str, Scorer] = {**judging, **labelling}
    for name, scorer in scorers.items():
        if scorer.folder is not None:
            try:
                check_reward_model(scorer.folder)
            except HalosError as error:
                raise HalosError(f"{name}: {error}") from None
    for name in g.judges:
        judge = config.judges[name]
        for wanted in (getattr(judge.baseline, "file", None), judge.difficulties):
            if wanted is not None and not Path(wanted).is_file() and not Path(wanted).is_relative_to(RESULTS):
                raise HalosError(f"judges.{name} wants {wanted}, which does not exist; put it there")


def check_keys(config: Config, grid: str | None = None) -> None:
    """Refuse a grid that will ask a server whose key is not in the environment.

    Raises:
        HalosError: naming the variable.
    """
    judges = [config.judges[name] for name in entry(config, "grids", grid or config.grid).judges]
    askers: list[Judge | Labeller] = [*judges, *labellers(config, grid).values()]
    for asker in askers:
        if asker.openai is not None:
            read_key(asker.openai.base_url, asker.openai.key_variable)
