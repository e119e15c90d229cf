"""The tutorial on a paper's grid, typed on a real Slurm: its grid has a tiny model and a judge that is a program.

All but the grid's last step is made before, without Slurm; tests/slurm/test_slurm.py makes a grid on it from the start.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.slurm.conftest import ClusterProject
from tests.slurm.test_slurm import submitted
from tests.workflow.conftest import CATALOGUE
from tests.workflow.tutorial import Tutorial, typed
from tests.workflow.warm import Warm

NEAR = {"slurm-init-seconds-before-status-checks: 40": "slurm-init-seconds-before-status-checks: 2",
        "latency-wait: 90": "latency-wait: 10"}  # fmt: skip
"""Lines of the profile -> the same where all is near."""


@pytest.fixture
def quick(on_cluster: ClusterProject, tmp_path: Path) -> Iterator[ClusterProject]:
    """A copy of the project whose jobs do not wait for imports."""
    server = Warm(tmp_path)
    yield replace(on_cluster.copy(tmp_path / "project"), python=server.folder)
    server.stop()


def test_a_papers_grid_from_the_doctor_to_the_crate(quick: ClusterProject) -> None:
    project = quick
    profile = project.path / "profiles/slurm/config.yaml"
    for line, near in NEAR.items():
        assert line in profile.read_text()
        profile.write_text(profile.read_text().replace(line, near))
    content = project.read_config()
    content["grids"]["paper"] = {**CATALOGUE["grids"]["pair"], "methods": ["sft"], "tasks": []}
    project.write_config(content)
    replace(project.local, python=project.python).snakemake("--config", "grid=paper", "--", "all").ok()
    overview = project.results / "reports/paper/overview.html"
    overview.unlink()

    def on_head(command: str) -> tuple[int, str]:
        return typed(project, command, lambda words: project.cluster.command(list(words), project.path))

    printed = Tutorial("paper").run(on_head)
    assert submitted(project).keys() == {"rule_write_overview_wildcards_paper", "rule_make_crate_wildcards_paper"}
    assert overview.exists()
    assert "| SFT " in printed["cat results/tables/paper/main.md"]
    with zipfile.ZipFile(project.results / "crates/paper.zip") as crate:
        assert any(name.endswith("ro-crate-metadata.json") for name in crate.namelist())
    assert (project.path / "exported/results.csv").exists()
