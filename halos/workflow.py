"""Which files each rule reads: the input functions of the workflow, as methods on the validated config.

Each takes Snakemake's wildcards (dataset, model, method, seed, judge, prompts, ...) and returns paths or values. None
names a loss: they read the traits of the losses that stages name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from halos.config import BASE, Config, Resources, Stage, dump
from halos.grid import Cell, cells, config_slice
from halos.reference import SCORES, parts_for
from halos.rewards import check

RESULTS = "results"


class Workflow:
    """The input functions for one grid.

    Args:
        config: the validated catalogue; its `grid` is the one that is made.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.grid = config.grid
        self.cells = cells(config)
        self.reward_models = cells(config, rewards=True)
        self.judges = config.grids[self.grid].judges
        self.tasks = config.grids[self.grid].tasks
        self.prompts = sorted({config.judges[judge].prompts for judge in self.judges})

    def ids(self, kind: str) -> str:
        """A pattern that matches the ids of one kind of entry, and nothing else."""
        return "|".join(map(re.escape, getattr(self.config, kind))) or "(?!)"

    @property
    def methods(self) -> str:
        """A pattern that matches every method: base, or stages joined by -."""
        return f"{BASE}|{self.trained_methods}"

    @property
    def trained_methods(self) -> str:
        return self._chains(list(self.config.stages))

    @property
    def policies(self) -> str:
        """A pattern that matches every method whose model answers prompts."""
        return f"{BASE}|{self._chains([name for name, loss in self._losses() if loss.head != 'score'])}"

    def _losses(self) -> list[tuple[str, Any]]:
        return [(name, stage.make_loss()) for name, stage in self.config.stages.items()]

    def _chains(self, last: list[str]) -> str:
        """A pattern of chains that end in one of `last`; reward models and control tokens have no stage after them."""
        first = [name for name, loss in self._losses() if loss.head != "score" and not loss.control]
        patterns = ["|".join(map(re.escape, names)) or "(?!)" for names in (first, last)]
        return f"(({patterns[0]})-)*({patterns[1]})"

    # ---- targets -------------------------------------------------------------------------------------------

    def runs(self, *paths: str) -> list[str]:
        """Paths below the run folder of every cell of the grid."""
        return [f"{RESULTS}/{cell.folder}/{path}" for cell, path in product(self.cells, paths)]

    def trained(self, *_: Any) -> list[str]:
        return [f"{RESULTS}/{cell.folder}/manifest.json" for cell in (*self.cells, *self.reward_models) if cell.stage]

    def sampled(self, *_: Any) -> list[str]:
        return self.runs(*(f"samples/{prompts}.jsonl" for prompts in self.prompts))

    def judged(self, *_: Any) -> list[str]:
        return self.runs(*(f"judged/{judge}.json" for judge in self.judges))

    def benchmarked(self, *_: Any) -> list[str]:
        return self.runs(*(f"tasks/{task}.json" for task in self.tasks))

    def logged(self, *_: Any) -> list[str]:
        return [f"{RESULTS}/{cell.folder}/train.jsonl" for cell in (*self.cells, *self.reward_models) if cell.stage]

    # ---- inputs of a folder --------------------------------------------------------------------------------

    def slice(self, wildcards: Any) -> str:
        """The text of a folder's config.yaml."""
        return dump(config_slice(self.config, wildcards.folder))

    def source_files(self, wildcards: Any) -> list[str]:
        """The local files that a dataset is made from."""
        sources = self.config.datasets[wildcards.dataset].sources
        return [file for source in sources for file in source.files]

    def tokenizer_data(self, wildcards: Any) -> list[str]:
        """The train split that a model's tokenizer is trained on, if one is."""
        tokenizer = self.config.models[wildcards.model].tokenizer
        return [f"{RESULTS}/data/{tokenizer.train_on}/train.parquet"] if tokenizer else []

    def views(self, wildcards: Any) -> str:
        """The views that the grid's cells, with all that they are made from, read of a store."""
        of_judges = [replace(c, method=j.method, seed=j.seed) for j in map(self.config.judges.get, self.judges)
                     if j is not None and j.method is not None for c in self.cells]  # fmt: skip
        here = [c for c in (*self.cells, *self.reward_models, *of_judges)
                if (c.dataset, c.model) == (wildcards.dataset, wildcards.model)]  # fmt: skip
        cells = {found for cell in here for found in self.made_from(cell)}
        return " ".join(sorted({self.stage(cell).reads for cell in cells if cell.stage} | {wildcards.view}))

    def made_from(self, cell: Cell) -> Iterator[Cell]:
        """A cell, its parents, and the reward models that they learn from."""
        for found in cell.lineage():
            yield found
            reward_model = self.reward_model(found)
            if reward_model is not None:
                yield from self.made_from(reward_model)

    # ---- inputs of a cell ----------------------------------------------------------------------------------

    def stage(self, cell: Cell) -> Stage:
        assert cell.stage is not None, "a base model has no stage; rules that ask for one never match method base"
        return self.config.stage(cell.stage, cell.model)

    def reward_model(self, cell: Cell) -> Cell | None:
        """The cell whose scores a cell's loss reads."""
        method = self.stage(cell).reward_model if cell.stage else None
        return None if method is None else replace(cell, method=method)

    def model(self, wildcards: Any) -> str:
        """The cell's model folder."""
        return f"{RESULTS}/{_cell(wildcards).model_folder}/model"

    def manifest(self, wildcards: Any) -> str:
        return f"{RESULTS}/{_cell(wildcards).model_folder}/manifest.json"

    def parent_model(self, wildcards: Any) -> str:
        return f"{RESULTS}/{_parent(wildcards).model_folder}/model"

    def parent_manifest(self, wildcards: Any) -> str:
        return f"{RESULTS}/{_parent(wildcards).model_folder}/manifest.json"

    def checked(self, wildcards: Any) -> str:
        """The sign that the store has the view that the cell's loss reads, and all others that the grid needs."""
        cell = _cell(wildcards)
        return f"{RESULTS}/{cell.store_folder}/checked/{self.stage(cell).reads}.json"

    def parent_reference(self, wildcards: Any) -> list[str]:
        """The parts of the parent's log-probabilities that the cell's loss reads."""
        stage = self.stage(_cell(wildcards))
        folder = f"{RESULTS}/{_parent(wildcards).folder}/reference"
        parts = parts_for(stage.make_loss(), live=stage.sync_every is not None)
        return [f"{folder}/{part}.safetensors" for part in parts]

    def scores(self, wildcards: Any) -> list[str]:
        """The scores that the cell's reward model gives, if it has one."""
        cell = self.reward_model(_cell(wildcards))
        return [] if cell is None else [f"{RESULTS}/{cell.folder}/reference/{SCORES}.safetensors"]

    def adapters(self, wildcards: Any) -> list[str]:
        """The saved LoRA adapters that the cell goes on from, if any."""
        lora = self.stage(_cell(wildcards)).lora
        return [] if lora is None or lora.path is None else [f"{lora.path}/adapter_model.safetensors"]

    def prompts_data(self, wildcards: Any) -> str:
        """The feedback file whose prompts are answered."""
        name = getattr(wildcards, "prompts", None) or self.config.judges[wildcards.judge].prompts
        prompts = self.config.prompts[name]
        return f"{RESULTS}/data/{prompts.dataset or wildcards.dataset}/{prompts.split}.parquet"

    def judged_samples(self, wildcards: Any) -> str:
        prompts = self.config.judges[wildcards.judge].prompts
        return f"{RESULTS}/{_cell(wildcards).folder}/samples/{prompts}.jsonl"

    def judging_model(self, wildcards: Any) -> list[str]:
        """The reward model that judges, if one does: its folder, and its manifest where it is of a method.

        Raises:
            HalosError: the judge names a folder without one. (Snakemake itself would say nothing where there are
                judgements already: it takes them as given.)
        """
        judge = self.config.judges[wildcards.judge]
        if judge.folder is not None:
            check(judge.folder)
            return [str(judge.folder)]
        if judge.method is None:
            return []
        cell = Cell(wildcards.dataset, wildcards.model, judge.method, judge.seed)
        return [f"{RESULTS}/{cell.folder}/{name}" for name in ("model", "manifest.json")]

    # ---- resources -----------------------------------------------------------------------------------------

    def resource(self, name: str) -> Callable[..., int]:
        """A resource of the model's entry; memory and time double with each attempt."""

        def of_model(wildcards: Any, attempt: int) -> int:
            resources = self.config.models[wildcards.model].resources
            if name == "mem_mb":
                return int(1000 * resources.mem_gb * 2 ** (attempt - 1))
            if name == "runtime":
                return int(resources.runtime * 2 ** (attempt - 1))
            return int(getattr(resources, name))

        return of_model

    def judging_resource(self, name: str) -> Callable[..., int]:
        """A resource of a judge: a reward model's is that of the cell's model; a program's is the default of models."""
        of_model = self.resource(name)

        def of_judge(wildcards: Any, attempt: int) -> int:
            if self.config.judges[wildcards.judge].reward_model is not None:
                return of_model(wildcards, attempt)
            default = Resources()
            return int(1000 * default.mem_gb if name == "mem_mb" else getattr(default, name))

        return of_judge

    def judging_gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of a judge: GPUs for a reward model alone."""
        return self.gres(wildcards) if self.config.judges[wildcards.judge].reward_model is not None else ""

    def gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of one job: its GPUs, or nothing."""
        gpus = self.config.models[wildcards.model].resources.gpus
        return f"gpu:{gpus}" if gpus else ""

    def launcher(self, wildcards: Any) -> str:
        """How `halos` is started as a module: by accelerate where there are several GPUs, else by Python itself."""
        resources = self.config.models[wildcards.model].resources
        if resources.gpus < 2:
            return "python -m"
        config = f"profiles/accelerate/{resources.parallel}.yaml"
        return f"accelerate launch --config_file {config} --num_processes {resources.gpus} -m"

    def checkpointing(self, wildcards: Any) -> str:
        """The option that saves activations' memory, or nothing."""
        return (
            "--gradient-checkpointing" if self.config.models[wildcards.model].resources.gradient_checkpointing else ""
        )


def _cell(wildcards: Any) -> Cell:
    return Cell(wildcards.dataset, wildcards.model, wildcards.method, int(wildcards.seed))


def _parent(wildcards: Any) -> Cell:
    parent = _cell(wildcards).parent
    assert parent is not None, "a base model has no parent; rules that ask for one never match method base"
    return parent
