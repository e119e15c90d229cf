"""GPUs and memory of this machine, which its jobs share where no scheduler gives them out."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halos.distributed.devices import too_few, usable, visible
from halos.distributed.launch import needs_slurm
from halos.errors import HalosError
from halos.workflow.resources import JobResources, StudyResources

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of containers and of services."""
OWN_GROUPS = Path("/proc/self/cgroup")


def memory() -> int:
    """Bytes of main memory that this process may take: the machine's, or what its container or service may take."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (file.read_text().strip() for file in _limits() if file.is_file())
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def _limits() -> Iterator[Path]:
    """The files that may limit this process's memory: of its control group and those around it, by version 2 or 1."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for line in ["0::/", *lines]:
        _, controllers, group = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            place, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
            own = Path(group.lstrip("/"))
            yield from (place / part / name for part in (own, *own.parents))


def share(workflow: Any, resources: StudyResources) -> Iterator[str]:
    """Let Snakemake start no more jobs at a time than this machine has GPUs and memory for. Limits of `--resources`
    stay as they are, and within a Slurm job there are none.

    Args:
        workflow: Snakemake's, none of whose jobs has been started.
        resources: those of the study's jobs.

    Yields:
        Lines for the log: the limits, and the models whose jobs want more memory than there is.

    Raises:
        HalosError: a job wants more GPUs than there are, or several nodes.
    """
    if "SLURM_JOB_ID" in os.environ:
        return
    limits = {name: limit.value for name, limit in workflow.global_resources.items() if limit.value is not None}
    here = {"gpus": len(visible()), "mem_mb": memory() // 10**6}
    here = {name: limit for name, limit in here.items() if name not in limits}
    refuse_nodes(workflow, resources)
    asked: dict[str, Counter[str]] = {}  # the most of each resource that a job of a model asks for
    for job in workflow.dag.needrun_jobs():
        if "gpus" in job.rule.resources:
            most = asked.setdefault(_of_rule(resources, job.rule.name).model(job.wildcards), Counter())
            for name in ("gpus", "mem_mb"):
                most[name] = max(most[name], _asked(workflow, job, name))
    for model, most in asked.items():
        wanted, allowed = most["gpus"], limits.get("gpus", math.inf)
        if wanted > allowed:
            raise HalosError(f"models.{model}: {wanted} GPUs wanted, and `--resources gpus={allowed}` allows fewer")
        if wanted and wanted > (found := len(usable(wanted))):
            raise HalosError(f"models.{model}: {too_few(wanted, found)}")
    for name, limit in here.items():
        # what a job asks for is cut down to the first, so that a large one runs alone; the scheduler has its own
        for known in (workflow.global_resources, workflow.scheduler.global_resources, workflow.scheduler.resources):
            known[name] = limit
    yield f"Limits of this machine: {', '.join(f'{name}={limit}' for name, limit in here.items())}"
    room = here.get("mem_mb", math.inf)
    large = [f"{model} ({most['mem_mb'] / 1000:g} GB)" for model, most in asked.items() if most["mem_mb"] > room]
    if large:
        yield f"jobs of {', '.join(large)} ask for more than the {room / 1000:.1f} GB of memory here: each runs alone"


def refuse_nodes(workflow: Any, resources: StudyResources) -> None:
    """Refuse jobs of several nodes, which run on Slurm alone.

    Args:
        workflow: Snakemake's, none of whose jobs has been started.
        resources: those of the study's jobs.

    Raises:
        HalosError: a job wants several nodes, and this is no Slurm job.
    """
    for job in workflow.dag.needrun_jobs():
        if (nodes := _asked(workflow, job, "nodes")) > 1 and "SLURM_JOB_ID" not in os.environ:
            raise HalosError(f"models.{_of_rule(resources, job.rule.name).model(job.wildcards)}: {needs_slurm(nodes)}")


def _asked(workflow: Any, job: Any, name: str) -> int:
    """What a job asks for of a resource, whatever the limits."""
    if name not in job.rule.resources:
        return 0
    more = {"input": job.input, "attempt": job.attempt, "threads": 1, "rulename": job.rule.name}
    asked = job.rule.resources[name].evaluate(job.wildcards, **more, async_run=workflow.async_run)
    return int(asked.value or 0)


def _of_rule(resources: StudyResources, rule: str) -> JobResources:
    """The resources that a rule's jobs ask for."""
    scorers = {"score": resources.score, "decide": resources.judge, "label": resources.label}
    return scorers.get(rule.removesuffix("_round"), resources)
