"""From a grid to its cells, their parents, their folders, and the slice of the config that makes each folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from halos import config as C
from halos.api import read_key
from halos.catalogue import Judge, Labeller, Scorer
from halos.data.template import read_template
from halos.errors import HalosError
from halos.models import is_model
from halos.registry import SOURCES, VERIFIERS, plugin_slice
from halos.rewards import check as check_rewards

RESULTS = "results"
RUN = re.compile(
    r"runs/(?P<dataset>[^/]+)/(?P<model>[^/]+)/(?P<method>[^/]+)/seed(?P<seed>\d+)(/round(?P<round>\d+))?(?=/|$)"
)
FRESH = re.compile(r".*/fresh/(?P<split>train|test)")
"""The prompts of a round of an online stage, and what is made of them, below the round's folder."""


@dataclass(frozen=True, order=True)
class Cell:
    """The unit that is trained, judged, rerun and tabulated, or a round of one whose stage is online.

    Attributes:
        round: from 1; 0 for the cell itself, which holds what its last round made.
    """

    dataset: str
    model: str
    method: str
    seed: int
    round: int = 0

    @property
    def stage(self) -> str | None:
        """The stage that this cell trains: the last of its method; None for `base`."""
        return None if self.method == C.BASE else self.method.rsplit("-", 1)[-1]

    @property
    def parent(self) -> Cell | None:
        """The cell whose weights this one starts from: of a round, the round before. A base model has no training and
        so no seed: as a parent it is always seed 0, and its one reference pass serves all seeds."""
        if self.stage is None:
            return None
        if self.round > 1:
            return replace(self, round=self.round - 1)
        if "-" not in self.method:
            return replace(self, method=C.BASE, seed=0, round=0)
        return replace(self, method=self.method.rsplit("-", 1)[0], round=0)

    def rounds(self, number: int) -> list[Cell]:
        return [replace(self, round=i) for i in range(1, number + 1)]

    @property
    def ids(self) -> dict[str, str | int]:
        """What names it: the keys of config slices and tables."""
        return {k: v for k, v in self.__dict__.items() if v or k != "round"}

    @property
    def folder(self) -> str:
        """Below the results folder."""
        folder = f"runs/{self.dataset}/{self.model}/{self.method}/seed{self.seed}"
        return f"{folder}/round{self.round}" if self.round else folder

    @property
    def model_folder(self) -> str:
        """The folder that holds its `model/`: the cell's own, or the base model's."""
        return f"models/{self.model}" if self.stage is None else self.folder

    @property
    def store_folder(self) -> str:
        return f"tokens/{self.dataset}/{self.model}"

    def lineage(self) -> Iterator[Cell]:
        """Itself, its parent, and so on to the base model."""
        cell: Cell | None = self
        while cell is not None:
            yield cell
            cell = cell.parent

    @classmethod
    def of(cls, folder: str | Path) -> Cell:
        match = RUN.search(str(folder))
        if match is None:
            raise HalosError(f"{folder} is no cell; a cell is runs/DATASET/MODEL/METHOD/seedN")
        return cls(match["dataset"], match["model"], match["method"], int(match["seed"]), int(match["round"] or 0))


def cells(config: C.Config, grid: str | None = None, rewards: bool = False) -> list[Cell]:
    """The cells of a grid, in the config's order: its policies, or its reward models. (Parents that it does not name
    are made, but not tabulated.)"""
    g = entry(config, "grids", grid or config.grid)
    return [Cell(*parts) for parts in product(g.datasets, g.models, g.reward_models if rewards else g.methods, g.seeds)]


def entry(config: C.Config, kind: str, name: str) -> Any:
    catalogue = getattr(config, kind)
    if name not in catalogue:
        raise HalosError(f"there is no {name!r} in {kind}{C.suggest(name, catalogue)}")
    return catalogue[name]


def config_slice(config: C.Config, folder: str) -> dict[str, Any]:
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
            content |= {"stage": C.stage_slice(stage), "plugins": C.stage_plugins(stage)}
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
        return {"dataset": ids[0], "sources": [C.identity(s) for s in sources], "plugins": plugins}
    if kind == "models":
        model = entry(config, "models", ids[0])
        text = None if model.template is None else read_template(model.template)  # an edited file is another model
        return {"model": ids[0], **C.identity(model), "chat_template": text}
    if kind in ("judges", "labellers"):
        scorer = entry(config, kind, ids[0])
        own = {key: value for key, value in C.identity(scorer).items() if key not in scorer.foreign}
        plugins = plugin_slice(VERIFIERS.plugin(scorer.verifier)) if scorer.verifier else {}
        return {kind.removesuffix("s"): ids[0], **own, "plugins": plugins}
    if kind == "prompts":
        return {"prompts": ids[0], **C.identity(entry(config, "prompts", ids[0]))}
    if kind == "tasks":
        return {"task_id": ids[0], **C.identity(entry(config, "tasks", ids[0]))}
    raise HalosError(f"{folder} is no folder of the results tree")


def labels(config: C.Config) -> dict[str, dict[str, str]]:
    """{kind: {id: name in tables and figures}} of the entries that have a label."""
    return {
        kind: {name: e.label for name, e in getattr(config, kind).items() if getattr(e, "label", None)}
        for kind in C.KINDS
    }


def state(cell: Cell, results: Path) -> str:
    """`done`, `resumable` (stopped, with a checkpoint or a finished round) or `to do`, by what stands in its folder."""
    folder = results / cell.folder
    if cell.stage is None:
        return "done" if (results / cell.model_folder / "model" / "config.json").exists() else "to do"
    if (folder / "manifest.json").exists():
        return "done"
    begun = ("checkpoints/step*", "round*/manifest.json", "round*/checkpoints/step*")
    return "resumable" if any(any(folder.glob(pattern)) for pattern in begun) else "to do"


def check_files(config: C.Config, grid: str | None = None) -> None:
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
                check_rewards(scorer.folder)
            except HalosError as error:
                raise HalosError(f"{name}: {error}") from None
    for name in g.judges:
        judge = config.judges[name]
        for wanted in (getattr(judge.baseline, "file", None), judge.difficulties):
            if wanted is not None and not Path(wanted).is_file() and not Path(wanted).is_relative_to(RESULTS):
                raise HalosError(f"judges.{name} wants {wanted}, which does not exist; put it there")


def labellers(config: C.Config, grid: str | None = None) -> dict[str, Labeller]:
    """Those that label the rounds of a grid's online stages, by their ids."""
    every = [c for cell in cells(config, grid) for c in cell.lineage() if c.stage is not None]
    stages = [config.stage(str(cell.stage), cell.model) for cell in every]
    names = sorted({stage.online.label for stage in stages if stage.online})
    return {name: config.labellers[name] for name in names}


def check_keys(config: C.Config, grid: str | None = None) -> None:
    """Refuse a grid that will ask a server whose key is not in the environment.

    Raises:
        HalosError: naming the variable.
    """
    judges = [config.judges[name] for name in entry(config, "grids", grid or config.grid).judges]
    askers: list[Judge | Labeller] = [*judges, *labellers(config, grid).values()]
    for asker in askers:
        if asker.openai is not None:
            read_key(asker.openai.base_url, asker.openai.key_variable)
