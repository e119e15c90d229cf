"""The tutorial on a paper's grid, typed on a real Slurm: its grid has a tiny model and a judge that is a program."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.slurm.conftest import ClusterProject
from tests.workflow.conftest import CATALOGUE
from tests.workflow.tutorial import Tutorial, typed

NEAR = {"slurm-init-seconds-before-status-checks: 40": "slurm-init-seconds-before-status-checks: 2",
        "latency-wait: 90": "latency-wait: 10"}  # fmt: skip
"""Lines of the profile -> the same where all is near."""


def test_a_papers_grid_from_the_doctor_to_the_crate(on_cluster: ClusterProject, tmp_path: Path) -> None:
    project = on_cluster.copy(tmp_path / "project")
    profile = project.path / "profiles/slurm/config.yaml"
    for line, near in NEAR.items():
        assert line in profile.read_text()
        profile.write_text(profile.read_text().replace(line, near))
    content = project.read_config()
    content["grids"]["paper"] = {**CATALOGUE["grids"]["pair"], "methods": ["sft"], "tasks": []}
    project.write_config(content)

    def on_head(command: str) -> tuple[int, str]:
        return typed(project, command, lambda words: project.cluster.command(list(words), project.path))

    printed = Tutorial("paper").run(on_head)
    assert "| SFT " in printed["cat results/tables/paper/main.md"]
    with zipfile.ZipFile(project.results / "crates/paper.zip") as crate:
        assert any(name.endswith("ro-crate-metadata.json") for name in crate.namelist())
    assert (project.path / "exported/results.csv").exists()
