"""Which files each rule reads: the input functions of the workflow, as methods on the validated config.

Each takes Snakemake's wildcards (dataset, model, method, seed, judge, prompts, ...) and returns paths or values. None
names a loss: they read the traits of the losses that stages name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

from halos.config import BASE, Config, dump
from halos.grid import Cell, cells, config_slice
from halos.reference import parts_for

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
        stage = f"({self.ids('stages')})"
        return f"{stage}(-{stage})*"

    # ---- targets -------------------------------------------------------------------------------------------

    def runs(self, *paths: str) -> list[str]:
        """Paths below the run folder of every cell of the grid."""
        return [f"{RESULTS}/{cell.folder}/{path}" for cell, path in product(self.cells, paths)]

    def trained(self, *_: Any) -> list[str]:
        return [f"{RESULTS}/{cell.folder}/manifest.json" for cell in self.cells if cell.stage]

    def sampled(self, *_: Any) -> list[str]:
        return self.runs(*(f"samples/{prompts}.jsonl" for prompts in self.prompts))

    def judged(self, *_: Any) -> list[str]:
        return self.runs(*(f"judged/{judge}.json" for judge in self.judges))

    def benchmarked(self, *_: Any) -> list[str]:
        return self.runs(*(f"tasks/{task}.json" for task in self.tasks))

    def logged(self, *_: Any) -> list[str]:
        return [f"{RESULTS}/{cell.folder}/train.jsonl" for cell in self.cells if cell.stage]

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
        """The views that the grid's cells, their parents included, read of a store."""
        here = [c for c in self.cells if (c.dataset, c.model) == (wildcards.dataset, wildcards.model)]
        stages = {c.stage for cell in here for c in cell.lineage() if c.stage}
        return " ".join(sorted({self.loss(stage, wildcards.model).view for stage in stages} | {wildcards.view}))

    # ---- inputs of a cell ----------------------------------------------------------------------------------

    def loss(self, stage: str, model: str) -> Any:
        return self.config.stage(stage, model).make_loss()

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
        return f"{RESULTS}/{cell.store_folder}/checked/{self.loss(str(cell.stage), cell.model).view}.json"

    def parent_reference(self, wildcards: Any) -> list[str]:
        """The parts of the parent's log-probabilities that the cell's loss reads."""
        cell = _cell(wildcards)
        folder = f"{RESULTS}/{_parent(wildcards).folder}/reference"
        return [f"{folder}/{part}.safetensors" for part in parts_for(self.loss(str(cell.stage), cell.model))]

    def prompts_data(self, wildcards: Any) -> str:
        """The feedback file whose prompts are answered."""
        name = getattr(wildcards, "prompts", None) or self.config.judges[wildcards.judge].prompts
        prompts = self.config.prompts[name]
        return f"{RESULTS}/data/{prompts.dataset or wildcards.dataset}/{prompts.split}.parquet"

    def judged_samples(self, wildcards: Any) -> str:
        prompts = self.config.judges[wildcards.judge].prompts
        return f"{RESULTS}/{_cell(wildcards).folder}/samples/{prompts}.jsonl"

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

    def gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of one job: its GPUs, or nothing."""
        gpus = self.config.models[wildcards.model].resources.gpus
        return f"gpu:{gpus}" if gpus else ""

    def launcher(self, wildcards: Any) -> str:
        """How `halos` is started as a module: by accelerate where there are several GPUs, else by Python itself."""
        gpus = self.config.models[wildcards.model].resources.gpus
        if gpus < 2:
            return "python -m"
        return f"accelerate launch --config_file profiles/accelerate/ddp.yaml --num_processes {gpus} -m"


def _cell(wildcards: Any) -> Cell:
    return Cell(wildcards.dataset, wildcards.model, wildcards.method, int(wildcards.seed))


def _parent(wildcards: Any) -> Cell:
    parent = _cell(wildcards).parent
    assert parent is not None, "a base model has no parent; rules that ask for one never match method base"
    return parent
