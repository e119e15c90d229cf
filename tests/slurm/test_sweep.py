"""A sweep as jobs of a real Slurm, whose driver chooses between trials that other nodes have made."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.slurm.conftest import ClusterProject
from tests.slurm.test_slurm import submitted

ARGUMENTS = ("--configfile", "config.yaml", "my_study.yaml", "--", "train")
STUDY = {
    "grid": "tuned",
    "stages": {
        "dpo": {
            "sweep": {"lr": [1e-4, 1e-3]},
            "snapshots": 2,
            "select": {"metric": "kl", "goal": "lowest", "checkpoint": "best"},
        }
    },
    "grids": {"tuned": {"datasets": ["d"], "models": ["m"], "methods": ["dpo"], "seeds": [1, 2]}},
}


def test_a_sweep_chooses_on_a_cluster_and_trains_no_trial_twice(on_cluster: ClusterProject, tmp_path: Path) -> None:
    project = on_cluster.copy(tmp_path / "project")
    (project.path / "my_study.yaml").write_text(yaml.safe_dump(STUDY))
    project.snakemake(*ARGUMENTS, timeout=900).ok()
    choice = json.loads((project.results / "choices/d/m/dpo/choice.json").read_text())
    assert choice["trials"][choice["chosen"]]["settings"] == {"lr": 1e-3, "stop_after": 1.0}
    jobs = submitted(project)
    trained = [about for about, (*_, state) in jobs.items() if "train_cell" in about and state == "COMPLETED"]
    assert len(trained) == 4  # two trials, and two seeds of the chosen one, of which one is the trial's
    weights = "model/model.safetensors"
    trial = project.cell(f"dpo~{choice['chosen']}")
    assert (project.cell("dpo") / weights).samefile(trial / weights)
    assert "Nothing to be done" in project.local.dry(*ARGUMENTS).output
