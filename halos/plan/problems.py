"""What does not fit: sequences their model, jobs their GPU, memory or time; and the settings that would help."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from halos.errors import HalosError
from halos.models.settings import Resources
from halos.plan.devices import GB
from halos.plan.jobs import Job
from halos.plan.plan import Plan
from halos.plan.sizes import config_of
from halos.tokens.positions import Positions
from halos.train.settings import ADAMW, UNSHARDED, Lora
from halos.train.stage import Stage


def problems(plan: Plan) -> list[str]:
    """One sentence for each model and each kind of job that something does not fit, each once."""
    return [*_positions(plan), *dict.fromkeys(line for job in plan.jobs for line in _problems(plan, job))]


def _positions(plan: Plan) -> Iterator[str]:
    """Datasets whose max_length is beyond the positions of a model, where these are known."""
    for model, dataset in product(plan.sizes, plan.study.settings.datasets):
        config = config_of(model, plan.config.models[model], plan.results)
        if config is None:
            continue
        try:
            line = Positions.of(config).check(model, dataset, plan.config.datasets[dataset].max_length)
        except HalosError as error:
            line = str(error)
        if line is not None:
            yield line


def _problems(plan: Plan, job: Job) -> Iterator[str]:
    resources = plan.config.models[job.cell.model].resources
    name = f"{job.cell.model}, {job.kind}"
    if not plan.fits(job):
        needed, room = job.memory.total / GB, plan.room(job.cell.model) / GB
        yield f"{name}: {needed:.1f} GB on each GPU do not fit {plan.gpu} (room for {room:.1f} GB): {_help(plan, job)}"
    if job.main > resources.mem_gb * GB:
        yield f"{name}: {job.main / GB:.0f} GB of main memory are needed: raise mem_gb ({resources.mem_gb})"
    if job.seconds > 60 * resources.runtime:
        yield (f"{name}: {job.seconds / 60:.0f} minutes are needed: raise runtime ({resources.runtime}), or the job "
               f"goes on in a second attempt")  # fmt: skip


def _help(plan: Plan, job: Job) -> str:
    """The smallest changes that make a job fit its GPU."""
    model = plan.config.models[job.cell.model]
    resources = model.resources
    if job.kind in ("reference", "divergence"):
        shardable = job.kind == "reference" and model.quantization is None
        shards = "`parallel: fsdp` over several GPUs, " if shardable else ""
        return f"{shards}a GPU with more memory or fewer tokens_per_microbatch may help"
    if job.kind == "sample":
        larger = [n for n in (2, 4, 8) if n > resources.tensor_parallel]
        return f"sampler: vllm and a tensor_parallel of {' or '.join(map(str, larger)) or 'more than one node has'}"
    stage = plan.study.stage(job.cell)
    changes = _changes(resources, stage, plan.longest(job.cell, stage), model.quantization)
    fitting = [name for name, other, changed, kind in changes
               if plan.fits(plan.training(job.cell, other, changed, kind))]  # fmt: skip
    return "it fits with " + ", or with ".join(fitting[:3]) if fitting else "no setting helps; take larger GPUs"


Change = tuple[str, Resources, Stage, str | None]
"""A name, resources, a stage, and a quantisation of the model; None for its own."""


def _changes(resources: Resources, stage: Stage, longest: int, quantization: str | None = None) -> Iterator[Change]:
    """Changes that may make a training fit, from small to large, and that its settings can be given.

    Args:
        resources: those of its model.
        stage: its stage.
        longest: tokens of the longest example.
        quantization: that of its model.
    """

    def having(name: str, **changes: Any) -> Change:
        return name, resources.model_copy(update=changes), stage, None

    saving = {"gradient_checkpointing": True, "tokens_per_microbatch": min(longest, resources.tokens_per_microbatch)}
    yield having("gradient_checkpointing", gradient_checkpointing=True)
    yield having(f"tokens_per_microbatch: {longest}", tokens_per_microbatch=longest)
    yield having(f"gradient_checkpointing and tokens_per_microbatch: {longest}", **saving)
    shardable = quantization is None and stage.optimizer not in UNSHARDED
    for gpus in (2, 4, 8) if shardable else ():
        if gpus > resources.gpus or (gpus == resources.gpus and resources.parallel == "ddp"):
            budget = math.ceil(stage.batch_size / gpus) * longest
            for further in ({}, {"gradient_checkpointing": True, "tokens_per_microbatch": budget}):
                also = "".join(f" and {name}: {str(value).lower()}" for name, value in further.items())
                yield having(f"gpus: {gpus} and parallel: fsdp{also}", gpus=gpus, parallel="fsdp", **further)
    if resources.parallel == "fsdp":
        for nodes in (2, 4):
            budget = math.ceil(stage.batch_size / (nodes * resources.gpus)) * longest
            yield having(f"nodes: {nodes} and tokens_per_microbatch: {budget}", nodes=nodes,
                         tokens_per_microbatch=budget)  # fmt: skip
    sharded = resources.shards
    if resources.gpus and shardable:
        budget = math.ceil(stage.batch_size / (resources.gpus * resources.nodes)) * longest
        also = f" and gradient_checkpointing: true and tokens_per_microbatch: {budget}"
        yield having(f"parallel: fsdp and offload: true{also}", parallel="fsdp", offload=True,
                     gradient_checkpointing=True, tokens_per_microbatch=budget)  # fmt: skip
    saved, adapted = resources.model_copy(update=saving), stage.model_copy(update={"lora": stage.lora or Lora()})
    if stage.lora is None and stage.optimizer == "AdamW" and stage.optimizer_args.keys() <= ADAMW.keys():
        yield "optimizer: AdamW8bit", saved, stage.model_copy(update={"optimizer": "AdamW8bit"}), None
    goes_on = stage.online is not None and stage.online.continue_optimizer
    adaptable = stage.lora is not None or not (stage.freeze or goes_on)
    if stage.lora is None and adaptable:
        yield "lora in the stage", saved, adapted, None
    if quantization is None and adaptable and not sharded:
        name = "quantization: nf4 in the model" + ("" if stage.lora else " and lora in the stage")
        yield name, saved, adapted, "nf4"
