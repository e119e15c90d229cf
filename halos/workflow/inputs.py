"""Which files each rule reads: the input functions of the workflow, as methods on the validated config.

Each takes Snakemake's wildcards (dataset, model, method, seed, judge, prompts, ...) and returns paths or values. None
names a loss: they read the traits of the losses that stages name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from halos.data.settings import on_hub
from halos.evaluate.judging.settings import FromCell, FromFile
from halos.hub import FETCHED
from halos.models.download import base_on_hub
from halos.models.load import check
from halos.models.settings import Resources
from halos.reference.cache import SCORES, parts_for
from halos.report import subject, subjects  # noqa: F401 (the subjects register themselves)
from halos.report.subject import Outline
from halos.scoring.settings import Scorer
from halos.settings import dump
from halos.study.catalogue import Config
from halos.study.cells import BASE, RESULTS, Cell
from halos.study.slices import config_slice
from halos.study.study import cells
from halos.train.settings import Stage
from halos.workflow.resources import call_limits, launch_options

PROMPTS = "prompts"
"""Stands for a view where an online stage wants prompts alone of a dataset."""


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
        asked = {config.judges[judge].prompts for judge in self.judges}
        self.prompts = sorted(asked.union(config.grids[self.grid].prompts))

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
    def offline_methods(self) -> str:
        return self._chains([name for name, stage in self.config.stages.items() if stage.online is None])

    @property
    def online_methods(self) -> str:
        """A pattern that matches every method whose last stage is trained in rounds."""
        return self._chains([name for name, stage in self.config.stages.items() if stage.online is not None])

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
        """Of every cell, and of the rounds of online stages but the last, which is the cell's own."""
        names = [f"judged/{judge}.json" for judge in self.judges]
        rounds = [c for cell in self.cells for c in self.rounds(cell)[:-1]]
        return self.runs(*names) + [f"{RESULTS}/{cell.folder}/{name}" for cell, name in product(rounds, names)]

    def benchmarked(self, *_: Any) -> list[str]:
        return self.runs(*(f"tasks/{task}.json" for task in self.tasks))

    @property
    def tables(self) -> list[str]:
        """The tables of the grid, each as CSV, Markdown and LaTeX."""
        return subject.tables(Outline.of(self.config))

    @property
    def plain_tables(self) -> list[str]:
        """The tables of the grid that are a CSV alone."""
        return subject.plain_tables(Outline.of(self.config))

    @property
    def figures(self) -> list[str]:
        """The figures that have something to show of the grid, and the main one."""
        return subject.figures(Outline.of(self.config))

    def data_reports(self, *_: Any) -> list[str]:
        """What was counted of each dataset, before and after it was tokenized."""
        grid = self.config.grids[self.grid]
        stored = [f"{RESULTS}/tokens/{d}/{m}/report.json" for d, m in product(grid.datasets, grid.models)]
        return [f"{RESULTS}/data/{dataset}/report.json" for dataset in grid.datasets] + stored

    def described(self, *_: Any) -> list[str]:
        grid = self.config.grids[self.grid]
        return [
            f"{RESULTS}/reports/{dataset}/{model}/report.json" for dataset, model in product(grid.datasets, grid.models)
        ]

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

    def fetched_data(self, wildcards: Any) -> list[str]:
        """What says which commits a dataset is made from, if one of its sources is on the hub."""
        sources = self.config.datasets[wildcards.dataset].sources
        there = any(on_hub(source.model_dump()) for source in sources)
        return [f"{RESULTS}/data/{wildcards.dataset}/{FETCHED}"] if there else []

    def fetched_model(self, wildcards: Any) -> list[str]:
        """The same of a model: one of the hub, or LoRA adapters of one."""
        model = self.config.models[wildcards.model]
        there = model.hub is not None or (model.path is not None and base_on_hub(Path(model.path)) is not None)
        return [f"{RESULTS}/models/{wildcards.model}/{FETCHED}"] if there else []

    def fetched_task(self, wildcards: Any) -> list[str]:
        """The same of a task: one of lm-eval's own."""
        there = self.config.tasks[wildcards.task].task is not None
        return [f"{RESULTS}/tasks/{wildcards.task}/{FETCHED}"] if there else []

    def tokenizer_data(self, wildcards: Any) -> list[str]:
        """The train split that a model's tokenizer is trained on, if one is."""
        tokenizer = self.config.models[wildcards.model].tokenizer
        return [f"{RESULTS}/data/{tokenizer.train_on}/train.parquet"] if tokenizer else []

    def views(self, wildcards: Any) -> str:
        """The views that the grid's cells, with all that they are made from, read of a store."""
        here = [c for c in (*self.cells, *self.reward_models, *self.of_judges)
                if (c.dataset, c.model) == (wildcards.dataset, wildcards.model)]  # fmt: skip
        stages = [self.stage(found) for cell in here for found in self.made_from(cell) if found.stage]
        needed = {stage.reads for stage in stages if stage.online is None} | {wildcards.view}
        return " ".join(sorted(needed - {PROMPTS}))

    def fresh_prompts(self, wildcards: Any) -> int:
        """How many prompts the rounds of the grid's online stages want of a dataset."""
        stages = [self.stage(found) for cell in (*self.cells, *self.of_judges) if cell.dataset == wildcards.dataset
                  for found in self.made_from(cell) if found.stage]  # fmt: skip
        return max((s.online.rounds * s.online.prompts_per_round for s in stages if s.online), default=0)

    @property
    def of_judges(self) -> list[Cell]:
        """The cells that the grid's judges need: the reward models that judge, and the baselines."""
        judges = {name: self.config.judges[name] for name in self.judges}
        rewards = [replace(c, method=j.method, seed=j.seed) for j in judges.values() if j.method is not None
                   for c in self.cells]  # fmt: skip
        return rewards + [b for name in judges for c in self.cells if (b := self._baseline_cell(name, c)) is not None]

    def made_from(self, cell: Cell) -> Iterator[Cell]:
        """A cell, its parents, and the reward models that they learn from."""
        for found in cell.lineage():
            yield found
            teacher = self.teacher(found)
            if teacher is not None:
                yield from self.made_from(teacher)

    # ---- inputs of a cell ----------------------------------------------------------------------------------

    def stage(self, cell: Cell) -> Stage:
        assert cell.stage is not None, "a base model has no stage; rules that ask for one never match method base"
        return self.config.stage(cell.stage, cell.model)

    def teacher(self, cell: Cell) -> Cell | None:
        """The cell of the reward model that a cell learns from: by its scores of the data, or as the labeller."""
        stage = self.stage(cell) if cell.stage else None
        method = None if stage is None else self.config.teacher(stage)
        if stage is None or method is None:
            return None
        seed = cell.seed if stage.online is None else self.config.labellers[stage.online.label].seed
        return replace(cell, method=method, seed=seed, round=0)

    def rounds(self, cell: Cell) -> list[Cell]:
        """The rounds of a cell whose stage is online; none of another."""
        online = self.stage(cell).online if cell.stage else None
        return cell.rounds(online.rounds) if online else []

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
        stage = self.stage(cell)
        return f"{RESULTS}/{cell.store_folder}/checked/{PROMPTS if stage.online else stage.reads}.json"

    def parent_reference(self, wildcards: Any) -> list[str]:
        """The parts of the parent's log-probabilities that the cell's loss reads."""
        return self._reference(_cell(wildcards), f"{_parent(wildcards).folder}/reference")

    def _reference(self, cell: Cell, folder: str) -> list[str]:
        stage = self.stage(cell)
        parts = parts_for(stage.make_loss(), live=stage.sync_every is not None)
        return [f"{RESULTS}/{folder}/{part}.safetensors" for part in parts]

    def scores(self, wildcards: Any) -> list[str]:
        """The scores that the cell's reward model gives, if it has one."""
        cell = self.teacher(_cell(wildcards))
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

    def baseline(self, wildcards: Any) -> list[str]:
        """The file of a judge's baseline: outputs, or another cell's samples; none for the dataset's targets."""
        judge = self.config.judges[wildcards.judge]
        if isinstance(judge.baseline, FromFile):
            return [judge.baseline.file]
        found = self._baseline_cell(wildcards.judge, _cell(wildcards))
        return [] if found is None else [f"{RESULTS}/{found.folder}/samples/{judge.prompts}.jsonl"]

    def _baseline_cell(self, judge: str, cell: Cell) -> Cell | None:
        baseline = self.config.judges[judge].baseline
        if not isinstance(baseline, FromCell):
            return None
        seed = cell.seed if baseline.seed == "same" else baseline.seed
        return replace(cell, method=baseline.method, seed=seed, round=0)

    def difficulties(self, wildcards: Any) -> list[str]:
        """The file of AlpacaEval's difficulties, where a judge names one."""
        path = self.config.judges[wildcards.judge].difficulties
        return [] if path is None else [path]

    def judging_limits(self, wildcards: Any) -> str:
        """How fast a model behind an API is asked to judge; options, so that changing them reruns nothing."""
        return call_limits(self.config.judges[wildcards.judge])

    def judging_model(self, wildcards: Any) -> list[str]:
        """The reward model that judges, if one does: its folder, and its manifest where it is of a method.

        Raises:
            HalosError: the judge names a folder without one. (Snakemake itself would say nothing where there are
                judgements already: it takes them as given.)
        """
        return self._scoring_model(self.config.judges[wildcards.judge], wildcards)

    @staticmethod
    def _scoring_model(scorer: Scorer, wildcards: Any) -> list[str]:
        if scorer.folder is not None:
            check(scorer.folder)
            return [str(scorer.folder)]
        if scorer.method is None:
            return []
        cell = Cell(wildcards.dataset, wildcards.model, scorer.method, scorer.seed)
        return [f"{RESULTS}/{cell.folder}/{name}" for name in ("model", "manifest.json")]

    # ---- labelling, and the rounds of online stages -----------------------------------------------------------

    def round_manifests(self, wildcards: Any) -> list[str]:
        return [f"{RESULTS}/{cell.folder}/manifest.json" for cell in self.rounds(_cell(wildcards))]

    def last_model(self, wildcards: Any) -> str:
        return f"{RESULTS}/{self.rounds(_cell(wildcards))[-1].folder}/model"

    def anchor(self, wildcards: Any) -> Cell:
        """The reference of a round: the policy that it starts from, or the one that the first round started from."""
        cell = _cell(wildcards)
        online = self.stage(cell).online
        assert online is not None, "only rules of online stages ask"
        parent = (replace(cell, round=0) if online.reference == "fixed" else cell).parent
        assert parent is not None
        return parent

    def anchor_config(self, wildcards: Any) -> str:
        return f"{RESULTS}/{self.anchor(wildcards).folder}/config.yaml"

    def anchor_model(self, wildcards: Any) -> str:
        return f"{RESULTS}/{self.anchor(wildcards).model_folder}/model"

    def anchor_manifest(self, wildcards: Any) -> str:
        return f"{RESULTS}/{self.anchor(wildcards).model_folder}/manifest.json"

    def round_reference(self, wildcards: Any) -> list[str]:
        """The parts of the reference of a round that its loss reads."""
        cell = _cell(wildcards)
        return self._reference(cell, f"{cell.folder}/fresh/reference")

    def _labeller(self, wildcards: Any) -> str:
        """The labeller that a rule names, or the one of the round's stage."""
        named: str | None = getattr(wildcards, "labeller", None)
        if named is not None:
            return named
        online = self.stage(_cell(wildcards)).online
        assert online is not None, "only rules of online stages name no labeller"
        return online.label

    def labeller(self, wildcards: Any) -> str:
        return f"{RESULTS}/labellers/{self._labeller(wildcards)}/config.yaml"

    def labelling_model(self, wildcards: Any) -> list[str]:
        """The reward model that labels, if one does: its folder, and its manifest where it is of a method."""
        return self._scoring_model(self.config.labellers[self._labeller(wildcards)], wildcards)

    def labelling_resource(self, name: str) -> Callable[..., Any]:
        """A resource of labelling: a reward model's is that of the cell's model; another's the default of models."""
        return self._scoring_resource(name, lambda wildcards: self.config.labellers[self._labeller(wildcards)])

    def labelling_gres(self, wildcards: Any) -> str:
        model = self.config.labellers[self._labeller(wildcards)].reward_model
        return "" if model is None else self.gres(wildcards)

    def labelling_launcher(self, wildcards: Any) -> str:
        """Several processes for a reward model where there are several GPUs; each holds all of it."""
        model = self.config.labellers[self._labeller(wildcards)].reward_model
        resources = self.config.models[wildcards.model].resources
        return launch_options(
            Resources() if model is None else resources.model_copy(update={"nodes": 1, "parallel": "ddp"})
        )

    def labelling_limits(self, wildcards: Any) -> str:
        """How fast a model behind an API is asked; options, so that changing them reruns nothing."""
        return call_limits(self.config.labellers[self._labeller(wildcards)])

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
        return self._scoring_resource(name, lambda wildcards: self.config.judges[wildcards.judge])

    def _scoring_resource(self, name: str, scorer: Callable[[Any], Scorer]) -> Callable[..., int]:
        of_model = self.resource(name)

        def of_scorer(wildcards: Any, attempt: int) -> int:
            if scorer(wildcards).reward_model is not None:
                return of_model(wildcards, attempt)
            default = Resources()
            return int(1000 * default.mem_gb if name == "mem_mb" else getattr(default, name))

        return of_scorer

    def judging_gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of a judge: a GPU for a reward model alone."""
        return self.single_gres(wildcards) if self.config.judges[wildcards.judge].reward_model is not None else ""

    def gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of a job with a process for each GPU: all the model's of a node, or nothing."""
        gpus = self.config.models[wildcards.model].resources.gpus
        return f"gpu:{gpus}" if gpus else ""

    def single_gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of a job of one process: a GPU, if the model has any."""
        return "gpu:1" if self.config.models[wildcards.model].resources.gpus else ""

    def sampler(self, wildcards: Any) -> str:
        """The backend of sampling: what the model's entry says, else vLLM where there are GPUs."""
        resources = self.config.models[wildcards.model].resources
        return ("vllm" if resources.gpus else "transformers") if resources.sampler == "auto" else resources.sampler

    def sampling_gres(self, wildcards: Any) -> str:
        """Slurm's generic resources of sampling: the GPUs over which the model is split, if it has any."""
        resources = self.config.models[wildcards.model].resources
        return f"gpu:{resources.tensor_parallel}" if resources.gpus else ""

    def launcher(self, wildcards: Any) -> str:
        """The options of halos.launch: how many processes train, and where."""
        return launch_options(self.config.models[wildcards.model].resources)

    def over_nodes(self, name: str) -> Callable[..., int | str | None]:
        """A resource with which the Slurm plugin makes one job of several nodes; None, so left out, for one node.

        With `mpi` the job's shell runs on its first node, and starts the tasks itself.
        """

        def of_model(wildcards: Any) -> int | str | None:
            nodes = self.config.models[wildcards.model].resources.nodes
            wanted: dict[str, int | str] = {"mpi": "srun", "nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0}
            return wanted[name] if nodes > 1 else None

        return of_model

    def checkpointing(self, wildcards: Any) -> str:
        """The option that saves activations' memory, or nothing."""
        return (
            "--gradient-checkpointing" if self.config.models[wildcards.model].resources.gradient_checkpointing else ""
        )


def _cell(wildcards: Any) -> Cell:
    """The cell of a rule; the seed of a round is `1/round2`."""
    return Cell.of(f"runs/{wildcards.dataset}/{wildcards.model}/{wildcards.method}/seed{wildcards.seed}")


def _parent(wildcards: Any) -> Cell:
    parent = _cell(wildcards).parent
    assert parent is not None, "a base model has no parent; rules that ask for one never match method base"
    return parent
