"""Times of finished cells, which correct the estimates for the other cells of their models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from halos.manifest import Manifest
from halos.plan.jobs import Job
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.paths import Paths
from halos.study.slices import config_slice


def corrected(jobs: Iterable[Job], config: Config, gpu: str, results: Path) -> list[Job]:
    """Estimated trainings with measured times: finished cells take their own, and the other cells of a model are scaled
    by the mean ratio, in device time, of its finished cells to their estimates."""
    jobs = list(jobs)
    finished = {job.cell: manifest for job in jobs if (manifest := _comparable(job.cell, config, gpu, results))}
    ratios: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        if manifest := finished.get(job.cell):
            ratios[job.cell.model].append(manifest.seconds * manifest.processes / (job.seconds * job.devices))

    def correct(job: Job) -> Job:
        if manifest := finished.get(job.cell):
            return replace(job, seconds=manifest.seconds, origin="measured")
        if job.cell.model in ratios:
            return replace(job, seconds=job.seconds * fmean(ratios[job.cell.model]), origin="corrected")
        return job

    return [correct(job) for job in jobs]


def _comparable(cell: Cell, config: Config, gpu: str, results: Path) -> Manifest | None:
    """The manifest of a cell that was trained with today's settings on the GPUs that are planned for."""
    path = Paths(results).run(cell).manifest
    if not path.is_file():
        return None
    manifest = Manifest.read(path)
    settings = json.loads(json.dumps(config_slice(config, cell.folder)))
    planned = gpu if config.models[cell.model].resources.gpus else None
    names = manifest.hardware.gpus if manifest.hardware else ()
    return manifest if manifest.config == settings and ran_on(names, planned) else None


def ran_on(names: Iterable[str], gpu: str | None) -> bool:
    """Whether GPUs are of a kind.

    Args:
        names: the names that torch gives them.
        gpu: a key of GPUS; None asks whether there are no GPUs.
    """
    lower = [name.lower() for name in names]
    if gpu is None:
        return not lower
    kind, memory = gpu.split("-")
    return bool(lower) and all(kind in name and (memory in name or "gb" not in name) for name in lower)
