"""What the doctor looks at: a grid, its results folder, and the probes that answer in processes of their own."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from halos.doctor.partitions import Partition, partitions
from halos.doctor.probe import SECONDS, Probe
from halos.errors import HalosError
from halos.models.attention import is_kernel
from halos.models.settings import Model, Resources
from halos.plan.plan import Plan
from halos.study.catalogue import load
from halos.study.study import Study

CONFIG = Path("config.yaml")
IMPORTED = ("vllm", "bitsandbytes")
"""Packages that are tried by an import, where they are installed."""


@dataclass
class Setup:
    """A grid on this machine.

    Attributes:
        config: the catalogue.
        grid: id of the grid; None for the catalogue's own.
        results: the results folder.
        offline: whether the hub is left alone.
        probes: (interpreter, name, arguments ...) -> a probe that was started.
    """

    config: Path = CONFIG
    grid: str | None = None
    results: Path = Path("results")
    offline: bool = False
    probes: dict[tuple[str | None, ...], Probe] = field(default_factory=dict)

    def probe(
        self, name: str, *arguments: str, python: str | None = None, seconds: float = SECONDS, **environment: str
    ) -> Probe:
        """A probe, started by the first who asks."""
        key = (python, name, *arguments)
        if key not in self.probes:
            self.probes[key] = Probe(
                name, *arguments, python=python, environment=os.environ | environment, seconds=seconds
            )
        return self.probes[key]

    def start(self) -> None:
        """Start the probes that take long, so that they run side by side."""
        self.probe("devices")
        self.attention()
        self.probe("collective")
        for name in IMPORTED:
            if find_spec(name) is not None:
                self.probe("package", name)
        self.hub_cache()

    def attention(self) -> Probe:
        """The probe of attention implementations, the kernels that models of the grid name among them."""
        kernels = sorted({model.attention for model in self.models.values() if is_kernel(model.attention)})
        return self.probe("attention", *kernels)

    def hub_cache(self) -> Probe | None:
        """The probe of what the grid reads from the hub (halos.doctor.answers.cached); None without a grid."""
        if self.study is None:
            return None
        return self.probe("cached", str(self.config), self.study.grid, HF_HUB_OFFLINE="1")

    @cached_property
    def study(self) -> Study | None:
        """The grid; None where there is no catalogue, or it cannot be read (the check `grid` says why)."""
        try:
            return self.read()
        except Exception:  # plugins may raise anything
            return None

    def read(self) -> Study | None:
        """The grid; None where there is no catalogue and none was named.

        Raises:
            HalosError: the catalogue cannot be read, or has no such grid.
        """
        if not self.config.is_file() and self.config == CONFIG and self.grid is None:
            return None
        return Study(load(self.config), self.grid)

    @cached_property
    def plan(self) -> Plan | HalosError | None:
        """The plan of the grid, whose memory and disk space hold for any GPU; or why there is none."""
        if self.study is None:
            return None
        try:
            return Plan(self.study.config, self.study.grid, "a100-80gb", self.results)
        except HalosError as error:
            return error

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models that jobs of the grid run, named references, reward models of others and models that judge among
        them."""
        if self.study is None:
            return {}
        names = [*self.study.settings.models, *self.study.reference_models, *self.study.reward_models_of_others]
        names += [*self.study.asked_models, *(cell.model for cell in self.study.answering)]
        return {name: self.study.config.models[name] for name in names}

    @property
    def resources(self) -> dict[str, Resources]:
        """What the jobs of each model ask for."""
        return {name: model.resources for name, model in self.models.items()}

    @cached_property
    def partitions(self) -> dict[str, Partition] | HalosError | None:
        """Slurm's partitions; why it shows none; None where there is no Slurm."""
        if shutil.which("sinfo") is None:
            return None
        try:
            return partitions()
        except HalosError as error:
            return error

    @property
    def on_cluster(self) -> bool:
        """Whether Slurm answers: what jobs need may then be on its nodes."""
        return isinstance(self.partitions, dict) and bool(self.partitions)

    @property
    def gpus(self) -> int:
        """The most GPUs of one node that a job of the grid asks for."""
        return max((resources.gpus for resources in self.resources.values()), default=0)

    @property
    def distributed(self) -> bool:
        """Whether a job of the grid has several processes."""
        return any(resources.gpus > 1 or resources.nodes > 1 for resources in self.resources.values())
