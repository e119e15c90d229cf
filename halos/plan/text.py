"""A plan as text: a row for each kind of job, totals, and the assumptions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, astuple, dataclass
from typing import Any

from halos.plan.devices import CONTEXT, DECODING, GB, GIB, GPUS, RESERVE
from halos.plan.jobs import Job, Plan
from halos.plan.sizes import Amount


@dataclass(frozen=True)
class Row:
    """The jobs of a model and a kind: the most memory of any, the mean time, and the sum of GPU time."""

    model: str
    job: str
    jobs: int
    gpus: int
    gpu_memory_gb: float
    fits: str
    main_memory_gb: float
    hours: float
    gpu_hours: float
    time: str


def rows(plan: Plan) -> list[Row]:
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in plan.jobs:
        groups[job.cell.model, job.kind].append(job)
    order = list(plan.sizes)
    found = []
    for (model, kind), jobs in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        on_gpu = plan.config.models[model].resources.gpus > 0
        origins = sorted({job.origin for job in jobs})
        found.append(Row(
            model, kind, len(jobs), jobs[0].devices if on_gpu else 0,
            max(job.memory.total for job in jobs) / GB if on_gpu else 0.0,
            "yes" if all(map(plan.fits, jobs)) else "NO", max(job.main for job in jobs) / GB,
            sum(job.seconds for job in jobs) / len(jobs) / 3600,
            sum(job.seconds * job.devices for job in jobs) / 3600 * on_gpu, " and ".join(origins),
        ))  # fmt: skip
    return found


@dataclass(frozen=True)
class Total:
    """A model's share of the grid."""

    model: str
    parameters: int
    cells: int
    gpu_hours: float
    hours_in_a_row: float
    disk_gb: float


def totals(plan: Plan) -> list[Total]:
    found = []
    for model, size in plan.sizes.items():
        jobs = [job for job in plan.jobs if job.cell.model == model]
        on_gpu = plan.config.models[model].resources.gpus > 0
        cells = sum(cell.model == model for cell in (*plan.study.cells, *plan.study.reward_models))
        gpu_hours = sum(job.seconds * job.devices for job in jobs) / 3600 * on_gpu
        hours = sum(job.seconds for job in jobs) / 3600
        found.append(Total(model, size.parameters, cells, gpu_hours, hours, sum(job.disk for job in jobs) / GB))
    sums = [sum(values) for values in zip(*(astuple(total)[1:] for total in found), strict=True)]
    return [*found, Total("all", 0, int(sums[1]), *sums[2:])]


def _number(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value < 10 else f"{value:,.0f}" if isinstance(
        value, float) else f"{value:,}" if isinstance(value, int) else str(value)  # fmt: skip


def _table(found: list[Any]) -> str:
    """Markdown, a row for each dataclass; columns are its fields."""
    names = list(asdict(found[0]))
    lines = [names, ["---:" if isinstance(v, int | float) else "---" for v in astuple(found[0])],
             *([_number(v) for v in astuple(row)] for row in found)]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(amount: Amount) -> str:
    counts = {"targets": "sft", "pairs": "paired", "labelled responses": "unpaired"}
    numbers = ", ".join(f"{amount.examples[view]:,.0f} {what}" for what, view in counts.items())
    return (
        f"{numbers}; prompts of {amount.prompt:.0f} tokens and responses of {amount.response:.0f} on average "
        f"({amount.origin})"
    )


def text(plan: Plan) -> str:
    """The plan as Markdown: jobs, totals, what does not fit, and what is taken for granted."""
    problems = plan.problems()
    d = GPUS[plan.gpu]
    grounds = [
        f"{plan.gpu}: {d.memory / GIB:.1f} GiB, {d.bf16 / 1e12:.0f} TFLOP/s in bf16, {d.bandwidth / 1e12:.2f} TB/s "
        "(NVIDIA's data sheet)",
        f"training and reference passes reach {plan.utilisation:.0%} of the peak, generation {DECODING:.0%} of the "
        "memory bandwidth, with responses as long as they may be (assumed)",
        f"{RESERVE:.0%} of a GPU's memory and {CONTEXT / GB:.1f} GB of it are not to be had (assumed)",
        "memory is of the fullest step that the dataset's max_length allows; time is of an average one",
        "time: `measured` cells are finished; `corrected` ones are scaled by the model's finished cells; the rest are "
        "estimates",
        "judging and benchmarks are not in the plan; disk is of models and references, without checkpoints",
    ]  # fmt: skip
    data = sorted({f"{dataset}: {_said(amount)}" for (dataset, _), amount in plan.amounts.items()})
    parts = [f"# Plan of {plan.study.grid}", _table(rows(plan)), _table(totals(plan))]
    parts += ["## What does not fit", "\n".join(f"- {line}" for line in problems)] if problems else []
    parts += ["## What this rests on", "\n".join(f"- {line}" for line in (*grounds, *data))]
    return "\n\n".join(parts)
