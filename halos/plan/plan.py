"""The plan of a grid: its jobs, with the memory, the time and the disk space that each needs.

Memory is that of the largest step that the settings allow; time is that of an average step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path

from halos.distributed.peaks import GPUS, Device
from halos.errors import HalosError
from halos.models.settings import Resources, saved_precision
from halos.plan.devices import CONTEXT, CORE, FLOAT, HALF, RESERVE, UTILISATION
from halos.plan.jobs import Job
from halos.plan.measured import corrected
from halos.plan.memory import (
    longest_example,
    main_memory,
    offloaded,
    over_shards,
    reference_memory,
    sampling_memory,
    training_memory,
    uses_vllm,
)
from halos.plan.sizes import Amount, Trained, amount_of, config_of, counted_training, size_of
from halos.plan.work import sampling_seconds, training_operations, work_of
from halos.reference.cache import SCORES
from halos.registry import suggest
from halos.sample.settings import Prompts, PromptsSlice
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.study import Study
from halos.train.stage import Stage


class Plan:
    """The jobs of a grid that need GPUs: trainings, reference passes and sampling, without judging and benchmarks.

    Args:
        config: the catalogue.
        grid: id of the grid.
        gpu: kind of GPU, a key of GPUS.
        results: results folder: sizes, lengths and times are read from it where they are known.
        utilisation: fraction of a GPU's peak that training reaches.

    Raises:
        HalosError: an unknown grid or GPU, or a model whose size is unknown.
    """

    def __init__(self, config: Config, grid: str, gpu: str, results: Path, utilisation: float = UTILISATION) -> None:
        if gpu not in GPUS:
            raise HalosError(
                f"there is no GPU {gpu!r}{suggest(gpu, GPUS)}; halos/distributed/peaks.py has {', '.join(GPUS)}"
            )
        self.study = Study(config, grid)
        self.config, self.gpu, self.results, self.utilisation = config, gpu, results, utilisation
        self._counts: dict[tuple[str, str, tuple[str, ...], str | None, str | None], Trained | None] = {}
        models = self.study.settings.models
        answering = self.study.answering
        sized = dict.fromkeys((*models, *self.study.reference_models, *(cell.model for cell in answering)))
        self.sizes = {m: size_of(m, config.models[m], results) for m in sized}
        read = [*product(self.study.settings.datasets, models), *((cell.dataset, cell.model) for cell in answering)]
        self.amounts = {(d, m): amount_of(config, d, m, results) for d, m in dict.fromkeys(read)}

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, the times of trainings corrected by finished cells."""
        trainings = corrected(self.trainings(), self.config, self.gpu, self.results)
        sampled = [(cell, name) for name in self.study.prompts for cell in self.study.cells]
        judges = self.study.judges.values()
        rounds = [round_ for cell in self.study.cells for round_ in self.study.rounds(cell)[:-1]]
        sampled += [(round_, judge.prompts) for round_, judge in product(rounds, judges)]
        sampled += [(of.cell, name) for of in self.study.sampled for _, name in of.prompts]
        judged = [(trial, self.study.decided_by(trial).judge)
                  for trial in chain(*map(self.study.candidates, self.study.sweeps))]  # fmt: skip
        judged += product(self.study.watched, self.study.settings.snapshots)
        sampled += [(cell, self.config.judges[judge].prompts) for cell, judge in judged if judge is not None]
        samplings = [self.sampling(cell, self.config.prompts[name]) for cell, name in dict.fromkeys(sampled)]
        return [*trainings, *self._references(), *map(self._fresh, self._rounds), *samplings, *self._divergences()]

    def trainings(self) -> list[Job]:
        """The trainings of the grid's cells and of those that they are made from, as estimated."""
        return [self.training(cell) for cell in self.study.trained]

    def device(self, model: str) -> Device:
        """The GPU that a model runs on, or its CPU cores."""
        resources = self.config.models[model].resources
        if resources.gpus:
            return GPUS[self.gpu]
        return replace(CORE, bf16=CORE.bf16 * resources.cpus, fp32=CORE.fp32 * resources.cpus)

    def longest(self, cell: Cell, stage: Stage) -> int:
        """Tokens of the longest example of a cell, including the control token that some losses add."""
        loss = stage.make_loss()
        length = self.config.datasets[cell.dataset].max_length + bool(loss.control)
        return longest_example(loss.view, length, self.amounts[cell.dataset, cell.model].group)

    def training(
        self,
        cell: Cell,
        resources: Resources | None = None,
        stage: Stage | None = None,
        quantization: str | None = None,
    ) -> Job:
        """The training of a cell, by default with its own resources, stage and quantisation."""
        model = self.config.models[cell.model]
        quantization = quantization or model.quantization
        resources, stage = resources or model.resources, stage or self.study.stage(cell)
        size, world = self.sizes[cell.model], max(1, resources.gpus) * resources.nodes
        counted = self._counted(cell.model, stage, quantization)
        longest = self.longest(cell, stage)
        memory = training_memory(size, stage, model.precision, resources, longest, counted, quantization)
        dataset = self.config.datasets[cell.dataset]
        wanted = dataset.validation_prompts
        eval_examples = min(dataset.eval_examples, wanted) if isinstance(wanted, int) else dataset.eval_examples
        amount = self.amounts[cell.dataset, cell.model]
        budget, source = resources.tokens_per_microbatch, self.study.resumed(cell)
        work = work_of(stage, amount, budget, world, eval_examples)
        if source is not None:
            work = work.after(work_of(self.study.stage(source), amount, budget, world, eval_examples))
        operations = training_operations(size, stage, resources.gradient_checkpointing, work)
        seconds = operations / (world * self._speed(cell.model))
        shards = offloaded(size, stage, counted) if resources.offload else 0
        main = main_memory(size, resources, memory, stage.lora is not None, shards)
        saved = saved_precision(model.save_precision, model.precision, is_round=stage.online is not None)
        disk = (HALF if saved == "bf16" else FLOAT) * size.parameters
        return Job(str(cell.stage), cell, world, memory, main, seconds, disk)

    def _counted(self, model: str, stage: Stage, quantization: str | None) -> Trained | None:
        """What a stage trains of a model, where it is not all of it; None where no config is there to count by."""
        if stage.lora is None and not stage.freeze:
            return None
        key = (model, str(stage.lora), stage.freeze, stage.make_loss().head, quantization)
        if key not in self._counts:
            entry = self.config.models[model]
            config, precision = config_of(model, entry, self.results), entry.precision
            self._counts[key] = None if config is None else counted_training(config, stage, precision, quantization)
        return self._counts[key]

    def _speed(self, model: str) -> float:
        """Floating-point operations per second that one device of a model reaches."""
        device = self.device(model)
        return self.utilisation * (device.bf16 if self.config.models[model].precision == "bf16" else device.fp32)

    def _references(self) -> Iterator[Job]:
        """One pass for each part of a reference's log-probabilities that is read, one for a reward model's scores, and
        one for each round."""
        passes: dict[tuple[Cell, str, str], None] = {}  # with the model whose store it is over
        for cell in self.study.trained:
            stage = self.study.stage(cell)
            if cell.parent is not None and stage.online is None:
                parts = self.study.reference_parts(cell)
                passes.update(dict.fromkeys((self.study.reference(cell), part, cell.model) for part in parts))
                teacher = self.study.teacher(cell)
                if teacher is not None and teacher.stage is not None:
                    passes[teacher, SCORES, cell.model] = None
        for cell, _, of in passes:
            amount = self.amounts[cell.dataset, of]
            yield self._reference(cell, amount, amount.prompts, amount.responses)
        for cell in self._rounds:
            online, parts = self.study.stage(cell).online, self.study.reference_parts(cell)
            if online is not None and parts:  # all parts by one load
                prompts = len(parts) * (online.prompts_per_round + online.eval_prompts)
                amount = self.amounts[cell.dataset, cell.model]
                yield self._reference(self.study.reference(cell), amount, prompts, prompts * online.samples_per_prompt)

    @property
    def _rounds(self) -> list[Cell]:
        """The rounds of all online stages."""
        return [round_ for cell in self.study.trained for round_ in self.study.rounds(cell)]

    def _reference(self, cell: Cell, amount: Amount, prompts: float, responses: float) -> Job:
        """A pass of a reference over as many prompts and responses as a store has."""
        model = self.config.models[cell.model]
        longest = self.config.datasets[cell.dataset].max_length
        tokens = prompts * amount.prompt + responses * amount.response
        job = self._pass("reference", cell, model.resources, longest, tokens, model.quantization)
        return replace(job, disk=FLOAT * responses * amount.response)

    def _pass(
        self, kind: str, cell: Cell, resources: Resources, longest: int, tokens: float, quantization: str | None = None
    ) -> Job:
        """A forward pass of a cell's model.

        Args:
            kind: of the job.
            longest: tokens of the longest sequence.
            tokens: of all sequences.
            quantization: how linear layers are held.
        """
        precision, size = self.config.models[cell.model].precision, self.sizes[cell.model]
        memory = reference_memory(size, precision, max(resources.tokens_per_microbatch, longest), quantization)
        if resources.shards:
            memory = over_shards(memory, size, precision, resources)
        world = max(1, resources.gpus) * resources.nodes
        seconds = 2.0 * size.parameters * tokens / (world * self._speed(cell.model))
        return Job(kind, cell, world, memory, main_memory(size, resources, memory), seconds)

    def _divergences(self) -> Iterator[Job]:
        """Passes over samples of each policy, by it and then by its reference, for a grid that asks for them."""
        for cell, name in self.study.diverging:
            amount, prompts = self.amounts[cell.dataset, cell.model], self.config.prompts[name]
            responses = min(self.study.settings.divergence, prompts.limit or amount.prompts) * prompts.samples
            tokens = responses * (amount.prompt + prompts.max_new_tokens)
            longest = self.config.datasets[cell.dataset].max_prompt_length + prompts.max_new_tokens
            resources = _single(self.config.models[cell.model].resources)
            passes = [
                self._pass("divergence", of, resources, longest, tokens) for of in (cell, self.study.reference(cell))
            ]
            largest = max(passes, key=lambda job: job.memory.total)
            yield replace(largest, cell=cell, seconds=sum(job.seconds for job in passes))

    def _fresh(self, cell: Cell) -> Job:
        """The sampling of a round's responses to its fresh prompts."""
        online = self.study.stage(cell).online
        assert online is not None, "rounds are of online stages"
        sets = [PromptsSlice(**online.prompts(split, cell.round, cell.seed)) for split in ("train", "validation")]
        jobs = [self.sampling(cell, prompts) for prompts in sets]
        return replace(jobs[0], seconds=sum(job.seconds for job in jobs))

    def sampling(self, cell: Cell, prompts: Prompts) -> Job:
        """The sampling of a cell's responses to a prompt set."""
        model, size = self.config.models[cell.model], self.sizes[cell.model]
        resources = model.resources
        length = self.config.datasets[cell.dataset].max_prompt_length + prompts.max_new_tokens
        memory = sampling_memory(size, model.precision, resources, length)
        gpus, batch = resources.tensor_parallel, resources.generate_batch
        if uses_vllm(resources):  # vLLM runs as many responses at a time as their keys and values fit
            batch = max(1, min(16 * batch, int((self.room(cell.model) - memory.weights) // memory.activations)))
        responses = (prompts.limit or self.amounts[cell.dataset, cell.model].prompts) * prompts.samples
        seconds = sampling_seconds(size, self.device(cell.model), gpus, batch, responses, prompts.max_new_tokens)
        return Job("sample", cell, gpus, memory, main_memory(size, _single(resources), memory), seconds)

    def room(self, model: str) -> float:
        """Bytes of a device's memory that tensors may take."""
        return (1 - RESERVE) * self.device(model).memory - CONTEXT

    def fits(self, job: Job) -> bool:
        """Whether a job's peak memory fits its device."""
        return job.memory.total <= self.room(job.cell.model)


def _single(resources: Resources) -> Resources:
    """The resources of a job of one process."""
    return resources.model_copy(
        update={"gpus": min(1, resources.gpus), "nodes": 1, "parallel": "ddp", "offload": False}
    )
