"""The doctor on a real Slurm."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.slurm.cluster import CPUS, GPUS, MEM_MB, NODES
from tests.slurm.conftest import ClusterProject

CODE = """
import os
from pathlib import Path
from halos.doctor.checks import cluster
from halos.doctor.setup import Setup
for line in cluster.slurm(Setup(Path("config.yaml"))):
    print(line.state, line.about, line.text, sep="|")
"""


def test_the_partition_is_held_against_the_grids_jobs(on_cluster: ClusterProject, tmp_path: Path) -> None:
    """The nodes have less memory than the profile's retries may ask for, and Slurm keeps no accounts."""
    project = on_cluster.copy(tmp_path / "project")

    def lines() -> list[list[str]]:
        said = project.cluster.run([sys.executable, "-c", CODE], project.path)
        return [line.split("|") for line in said.splitlines()]

    nodes = f"{len(NODES)} nodes with {CPUS} cores, {MEM_MB // 1000} GB and {GPUS} GPUs"
    partition, retry = lines()
    assert partition == ["ok", "Slurm", f"partition gpu: no limit of time; {nodes}"]
    assert retry[:2] == ["-", "Slurm profile"]
    assert "a retry may ask for mem_gb: 1000, and the most is 32" in retry[2]
    project.edit({"models.m.resources.gpus": GPUS + 1})
    _, job, _ = lines()
    assert job[:2] == ["to do", "Slurm profile"]
    assert f"m asks for gpus: {GPUS + 1}, and the most is {GPUS}" in job[2]
