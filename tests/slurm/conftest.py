"""The cluster, and the project in a folder of its own with `snakemake` run on the cluster's head."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from halos.distributed.devices import FOLDER, KNOWN, VISIBLE
from tests.slurm import cluster as slurm
from tests.slurm.cluster import Cluster
from tests.workflow.conftest import CATALOGUE, Project, copy_files

NEEDED = ("CI", "HALOS_NEED_SLURM")
"""Variables either of which says that these tests are to run: what is missing fails them then, and is no excuse."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of four GPUs, in the partition `gpu`; gone with the session."""
    reason = slurm.missing()
    if reason is not None:
        (pytest.fail if any(map(os.environ.get, NEEDED)) else pytest.skip)(reason)
    with slurm.started(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@dataclass(frozen=True)
class ClusterProject(Project):
    """A copy of the project whose commands run on the cluster's head."""

    cluster: Cluster

    def command(self, *arguments: str) -> list[str]:
        patience = ["--slurm-init-seconds-before-status-checks=2", "--latency-wait=10"]  # seconds, where all is near
        return self.cluster.command(["snakemake", "--profile=slurm", *patience, *arguments], self.path)

    @property
    def local(self) -> Project:
        """The same folder, with commands run outside the cluster, on a machine with a GPU by name."""
        return Project(self.path, variables={KNOWN: "GPU-0", VISIBLE: "0", FOLDER: str(self.path / ".locks")})

    def copy(self, to: Path) -> ClusterProject:
        return ClusterProject(super().copy(to).path, self.cluster)


@pytest.fixture(scope="session")
def on_cluster(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterProject:
    """The project with a config.yaml of seconds whose model asks for a GPU, to count: there is none. For copies."""
    project = ClusterProject(copy_files(tmp_path_factory.mktemp("slurm") / "project"), cluster)
    project.write_config(CATALOGUE)
    return project.edit({"models.m.resources.gpus": 1, "models.m.resources.sampler": "transformers"})
