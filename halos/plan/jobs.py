"""The jobs of a grid, with the memory, the time and the disk of each.

Memory is of the fullest step that the settings allow, time is that of an average one. Finished cells of a model, on the
same GPUs, correct the times of its others."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.models.settings import Resources
from halos.plan.devices import CONTEXT, CORE, FLOAT, GB, GPUS, RESERVE, UTILISATION, Device
from halos.plan.memory import (
    Memory,
    longest_example,
    main_memory,
    reference_memory,
    sampling_memory,
    training_memory,
    uses_vllm,
)
from halos.plan.sizes import amount_of, size_of
from halos.plan.work import sampling_seconds, training_operations, work_of
from halos.reference.cache import SCORES
from halos.registry import suggest
from halos.sample.settings import Prompts
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.train.settings import Lora, Stage


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        kind: a stage, `reference` or `sample`.
        devices: GPUs, or processes on the CPU.
        memory: of one device.
        main: bytes of main memory on one node.
        seconds: from start to end.
        origin: `estimate`, `measured`, or `corrected` by the model's finished cells.
        disk: bytes that stay.
    """

    kind: str
    cell: Cell
    devices: int
    memory: Memory
    main: float
    seconds: float
    disk: float = 0
    origin: str = "estimate"


class Plan:
    """The jobs of a grid that cost GPU time: trainings, reference passes, sampling; not judging and benchmarks.

    Args:
        config: the catalogue.
        grid: its id.
        gpu: a key of GPUS.
        results: folder of what is made already.
        utilisation: share of the peak that training reaches.
    """

    def __init__(self, config: Config, grid: str, gpu: str, results: Path, utilisation: float = UTILISATION) -> None:
        if gpu not in GPUS:
            raise HalosError(f"there is no GPU {gpu!r} in halos/costs.py{suggest(gpu, GPUS)}; it has {', '.join(GPUS)}")
        self.study = Study(config, grid)
        self.config, self.gpu, self.results, self.utilisation = config, gpu, results, utilisation
        self.sizes = {m: size_of(m, config.models[m], results) for m in self.study.settings.models}
        self.amounts = {(d, m): amount_of(config, d, m, results)
                        for d in self.study.settings.datasets for m in self.sizes}  # fmt: skip

    @cached_property
    def jobs(self) -> list[Job]:
        """Of the grid's cells and those that they are made from; finished ones correct the times of others."""
        trained = self.trained_jobs()
        factors, measured = self._measured(trained)
        trained = [
            replace(job, seconds=measured[job.cell], origin="measured") if job.cell in measured
            else replace(job, seconds=job.seconds * factors[job.cell.model], origin="corrected")
            if job.cell.model in factors else job
            for job in trained
        ]  # fmt: skip
        return [*trained, *self._references(), *self._samplings()]

    def trained_jobs(self) -> list[Job]:
        """The trainings, as estimated."""
        return [self.training(cell) for cell in self.study.trained]

    def device(self, model: str) -> Device:
        resources = self.config.models[model].resources
        if resources.gpus:
            return GPUS[self.gpu]
        return replace(CORE, bf16=CORE.bf16 * resources.cpus, fp32=CORE.fp32 * resources.cpus)

    def longest(self, cell: Cell, stage: Stage) -> int:
        """Tokens of the longest example of a cell, with the token that some losses put before a response."""
        loss = stage.make_loss()
        length = self.config.datasets[cell.dataset].max_length + bool(loss.control)
        return longest_example(loss.view, length, self.amounts[cell.dataset, cell.model].group)

    def training(self, cell: Cell, resources: Resources | None = None, stage: Stage | None = None) -> Job:
        """The training of a cell; with other resources or another stage than its own, if they are given."""
        model = self.config.models[cell.model]
        resources, stage = resources or model.resources, stage or self.study.stage(cell)
        size, world = self.sizes[cell.model], max(1, resources.gpus) * resources.nodes
        memory = training_memory(size, stage, model.precision, resources, self.longest(cell, stage))
        eval_examples = self.config.datasets[cell.dataset].eval_examples
        amount = self.amounts[cell.dataset, cell.model]
        work = work_of(stage, amount, resources.tokens_per_microbatch, world, eval_examples)
        operations = training_operations(size, stage, resources.gradient_checkpointing, work)
        seconds = operations / (world * self._speed(cell.model))
        main = main_memory(size, resources, memory)
        return Job(str(cell.stage), cell, world, memory, main, seconds, FLOAT * size.parameters)

    def _speed(self, model: str) -> float:
        """Operations a second that one device of a model gets done."""
        device = self.device(model)
        return self.utilisation * (device.bf16 if self.config.models[model].precision == "bf16" else device.fp32)

    def _references(self) -> Iterator[Job]:
        """A pass by each part that some cell reads of its parent, and the scores of each reward model."""
        passes: dict[tuple[Cell, str], None] = {}
        for cell in self.study.trained:
            stage = self.study.stage(cell)
            if cell.parent is not None and stage.online is None:
                passes.update(dict.fromkeys((cell.parent, part) for part in self.study.reference_parts(cell)))
                teacher = self.study.teacher(cell)
                passes.update({} if teacher is None else {(teacher, SCORES): None})
        for cell, _ in passes:
            model, size = self.config.models[cell.model], self.sizes[cell.model]
            amount = self.amounts[cell.dataset, cell.model]
            longest = self.config.datasets[cell.dataset].max_length
            memory = reference_memory(size, model.precision, max(model.resources.tokens_per_microbatch, longest))
            tokens = amount.prompts * amount.prompt + amount.responses * amount.response
            seconds = 2.0 * size.parameters * tokens / self._speed(cell.model)
            one = model.resources.model_copy(update={"gpus": min(1, model.resources.gpus), "parallel": "ddp"})
            disk = FLOAT * amount.responses * amount.response
            yield Job("reference", cell, 1, memory, main_memory(size, one, memory), seconds, disk)

    def _samplings(self) -> Iterator[Job]:
        for prompts in self.study.prompts.values():
            for cell in self.study.cells:
                yield self.sampling(cell, prompts)

    def sampling(self, cell: Cell, prompts: Prompts, resources: Resources | None = None) -> Job:
        model, size = self.config.models[cell.model], self.sizes[cell.model]
        resources = resources or model.resources
        length = self.config.datasets[cell.dataset].max_prompt_length + prompts.max_new_tokens
        memory = sampling_memory(size, model.precision, resources, length)
        gpus, batch = resources.tensor_parallel, resources.generate_batch
        if uses_vllm(resources):  # as many side by side as there is room for their keys and values
            batch = max(1, min(16 * batch, int((self.room(cell.model) - memory.weights) // memory.activations)))
        responses = (prompts.limit or self.amounts[cell.dataset, cell.model].prompts) * prompts.samples
        seconds = sampling_seconds(size, self.device(cell.model), gpus, batch, responses, prompts.max_new_tokens)
        one = resources.model_copy(update={"gpus": min(1, resources.gpus), "parallel": "ddp"})
        return Job("sample", cell, gpus, memory, main_memory(size, one, memory), seconds)

    # ---- what is measured -------------------------------------------------------------------------------------

    def _measured(self, jobs: Iterable[Job]) -> tuple[dict[str, float], dict[Cell, float]]:
        """model -> by how much its finished cells took longer than estimated, in device time; and their own seconds."""
        took: dict[str, list[float]] = defaultdict(list)
        seconds: dict[Cell, float] = {}
        for job in jobs:
            found = self._manifest(job.cell)
            if found is not None:
                took[job.cell.model].append(found["seconds"] * found.get("processes", 1) / (job.seconds * job.devices))
                seconds[job.cell] = found["seconds"]
        return {model: sum(factors) / len(factors) for model, factors in took.items()}, seconds

    def _manifest(self, cell: Cell) -> dict[str, Any] | None:
        """Of a cell that was trained with these settings on these GPUs."""
        path = self.results / cell.folder / "manifest.json"
        if not path.is_file():
            return None
        manifest: dict[str, Any] = json.loads(path.read_text())
        settings = json.loads(json.dumps(config_slice(self.config, cell.folder)))
        gpu = self.gpu if self.config.models[cell.model].resources.gpus else None
        comparable = ran_on(manifest.get("hardware", {}).get("gpus", []), gpu)
        return manifest if manifest.get("config") == settings and comparable else None

    # ---- what does not fit ------------------------------------------------------------------------------------

    def room(self, model: str) -> float:
        """Bytes of a device that tensors may take."""
        return (1 - RESERVE) * self.device(model).memory - CONTEXT

    def fits(self, job: Job) -> bool:
        return job.memory.total <= self.room(job.cell.model)

    def problems(self) -> list[str]:
        """A sentence for each kind of job that does not fit its GPU, its memory or its time, with what would help."""
        found: dict[str, None] = {}
        for job in self.jobs:
            resources = self.config.models[job.cell.model].resources
            what = f"{job.cell.model}, {job.kind}"
            if not self.fits(job):
                need, room = job.memory.total / GB, self.room(job.cell.model) / GB
                found[f"{what}: {need:.1f} GB on each GPU do not fit {self.gpu} (room for {room:.1f} GB): "
                      f"{self._help(job)}"] = None  # fmt: skip
            if job.main > resources.mem_gb * GB:
                found[
                    f"{what}: {job.main / GB:.0f} GB of main memory are needed: raise mem_gb ({resources.mem_gb})"
                ] = None
            if job.seconds > 60 * resources.runtime:
                found[f"{what}: {job.seconds / 60:.0f} minutes are needed: raise runtime ({resources.runtime}), or it "
                      f"goes on in a second attempt"] = None  # fmt: skip
        return list(found)

    def _help(self, job: Job) -> str:
        """The smallest changes that make a job fit."""
        resources = self.config.models[job.cell.model].resources
        if job.kind == "reference":
            return "one process makes this pass, so only a GPU with more memory or fewer tokens_per_microbatch may help"
        if job.kind == "sample":
            more = [n for n in (2, 4, 8) if n > resources.tensor_parallel]
            return f"sampler: vllm and a tensor_parallel of {' or '.join(map(str, more)) or 'more than one node has'}"
        stage = self.study.stage(job.cell)
        fitting = [words for words, other, changed in _changes(resources, stage, self.longest(job.cell, stage))
                   if self.fits(self.training(job.cell, other, changed))]  # fmt: skip
        return "it fits with " + ", or with ".join(fitting[:3]) if fitting else "no setting helps; take larger GPUs"


def ran_on(names: list[str], gpu: str | None) -> bool:
    """Whether GPUs with the names that torch gives them are of a kind; with None, whether there are none."""
    if gpu is None:
        return not names
    kind, memory = gpu.split("-")
    lower = [name.lower() for name in names]
    return bool(names) and all(kind in name and (memory in name or "gb" not in name) for name in lower)


def _changes(resources: Resources, stage: Stage, longest: int) -> Iterator[tuple[str, Resources, Stage]]:
    """What may be changed, from little to much: words, resources, stage."""

    def having(words: str, **changes: Any) -> tuple[str, Resources, Stage]:
        return words, resources.model_copy(update=changes), stage

    saving = {"gradient_checkpointing": True, "tokens_per_microbatch": min(longest, resources.tokens_per_microbatch)}
    yield having("gradient_checkpointing", gradient_checkpointing=True)
    yield having(f"tokens_per_microbatch: {longest}", tokens_per_microbatch=longest)
    yield having(f"gradient_checkpointing and tokens_per_microbatch: {longest}", **saving)
    for gpus in (2, 4, 8):
        if gpus > resources.gpus or (gpus == resources.gpus and resources.parallel == "ddp"):
            budget = math.ceil(stage.batch_size / gpus) * longest
            for more in ({}, {"gradient_checkpointing": True, "tokens_per_microbatch": budget}):
                also = "".join(f" and {name}: {str(value).lower()}" for name, value in more.items())
                yield having(f"gpus: {gpus} and parallel: fsdp{also}", gpus=gpus, parallel="fsdp", **more)
    if resources.parallel == "fsdp":
        for nodes in (2, 4):
            budget = math.ceil(stage.batch_size / (nodes * resources.gpus)) * longest
            yield having(f"nodes: {nodes} and tokens_per_microbatch: {budget}", nodes=nodes,
                         tokens_per_microbatch=budget)  # fmt: skip
    if stage.lora is None:
        yield "lora in the stage", resources.model_copy(update=saving), stage.model_copy(update={"lora": Lora()})
