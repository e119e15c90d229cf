"""A plan as Markdown: a row for each kind of job, totals, and the assumptions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, astuple, dataclass
from typing import Any

from halos.distributed.peaks import GIB, GPUS
from halos.plan.devices import CONTEXT, DECODING, GB, RESERVE
from halos.plan.jobs import Job
from halos.plan.plan import Plan
from halos.plan.problems import problems
from halos.plan.questions import questions
from halos.plan.sizes import Amount


@dataclass(frozen=True)
class Row:
    """The jobs of one model and kind: their largest memory, mean wall time, and sum of GPU time."""

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
    """One row for each model and kind of job, in the order of the grid's models."""
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in plan.jobs:
        groups[job.cell.model, job.kind].append(job)
    order = list(plan.sizes)
    lines = []
    for (model, kind), jobs in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        on_gpu = plan.config.models[model].resources.gpus > 0
        origins = sorted({job.origin for job in jobs})
        lines.append(Row(
            model, kind, len(jobs), jobs[0].devices if on_gpu else 0,
            max(job.memory.total for job in jobs) / GB if on_gpu else 0.0,
            "yes" if all(map(plan.fits, jobs)) else "NO", max(job.main for job in jobs) / GB,
            sum(job.seconds for job in jobs) / len(jobs) / 3600,
            sum(job.seconds * job.devices for job in jobs) / 3600 * on_gpu, " and ".join(origins),
        ))  # fmt: skip
    return lines


@dataclass(frozen=True)
class Total:
    """The cost of all jobs of one model."""

    model: str
    parameters: int
    cells: int
    gpu_hours: float
    hours_in_a_row: float
    disk_gb: float


def totals(plan: Plan) -> list[Total]:
    """One total for each model, and their sum, whose model is `all`."""
    models = []
    for model, size in plan.sizes.items():
        jobs = [job for job in plan.jobs if job.cell.model == model]
        on_gpu = plan.config.models[model].resources.gpus > 0
        cells = sum(cell.model == model for cell in (*plan.study.cells, *plan.study.reward_models))
        gpu_hours = sum(job.seconds * job.devices for job in jobs) / 3600 * on_gpu
        hours = sum(job.seconds for job in jobs) / 3600
        models.append(Total(model, size.parameters, cells, gpu_hours, hours, sum(job.disk for job in jobs) / GB))
    sums = [sum(values) for values in zip(*(astuple(total)[1:] for total in models), strict=True)]
    return [*models, Total("all", 0, int(sums[1]), *sums[2:])]


def _number(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value < 10 else f"{value:,.0f}" if isinstance(
        value, float) else f"{value:,}" if isinstance(value, int) else str(value)  # fmt: skip


def _table(lines: list[Any]) -> str:
    """A Markdown table of dataclasses, whose fields are its columns."""
    names = list(asdict(lines[0]))
    cells = [names, ["---:" if isinstance(v, int | float) else "---" for v in astuple(lines[0])],
             *([_number(v) for v in astuple(line)] for line in lines)]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _describe(amount: Amount) -> str:
    counts = {"targets": "sft", "pairs": "paired", "labelled responses": "unpaired"}
    numbers = ", ".join(f"{amount.examples[view]:,.0f} {what}" for what, view in counts.items())
    return (
        f"{numbers}; prompts of {amount.prompt:.0f} tokens and responses of {amount.response:.0f} on average "
        f"({amount.origin})"
    )


def text(plan: Plan) -> str:
    """The plan as Markdown: jobs, totals, jobs that do not fit, and the assumptions."""
    unfit = problems(plan)
    d = GPUS[plan.gpu]
    assumptions = [
        f"{plan.gpu}: {d.memory / GIB:.1f} GiB, {d.bf16 / 1e12:.0f} TFLOP/s in bf16, {d.bandwidth / 1e12:.2f} TB/s "
        "(NVIDIA's data sheet)",
        f"training and reference passes reach {plan.utilisation:.0%} of the peak, generation {DECODING:.0%} of the "
        "memory bandwidth, and every response has max_new_tokens (assumed)",
        f"{RESERVE:.0%} of a GPU's memory and {CONTEXT / GB:.1f} GB of it are not available (assumed)",
        "memory is that of the largest step that the dataset's max_length allows; time is that of an average step",
        "time: `measured` cells are finished; `corrected` ones are scaled by the model's finished cells; the rest are "
        "estimates",
        "judging by verifiers and reward models, benchmarks, scores by reward models of `models:` and the disk of "
        "checkpoints are not in the plan",
    ]  # fmt: skip
    data = sorted({f"{dataset}: {_describe(amount)}" for (dataset, _), amount in plan.amounts.items()})
    parts = [f"# Plan of {plan.study.grid}", _table(rows(plan)), _table(totals(plan))]
    asked = questions(plan)
    if asked:
        parts += ["## Judges that are asked", _table(asked)]
        assumptions.append("judges that are asked: responses as long as the dataset's, 4 characters a token of the "
                           "question, answers of max_tokens (assumed); tokens are millions; nothing was answered "
                           "before")  # fmt: skip
    parts += ["## What does not fit", "\n".join(f"- {line}" for line in unfit)] if unfit else []
    parts += ["## Assumptions", "\n".join(f"- {line}" for line in (*assumptions, *data))]
    return "\n\n".join(parts)
