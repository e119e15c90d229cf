"""References and reward models that snakemake would compute: nothing here is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from halos.reference.cache import parts_for
from halos.registry import LOSSES
from tests.workflow.conftest import CATALOGUE, Project, Run

# ---- references ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parts"), [("sft-simpo", []), ("sft-dpo", ["responses"]), ("sft-kto", ["mismatched", "responses"])]
)
def test_a_loss_asks_for_the_reference_parts_that_it_reads(small: Project, method: str, parts: list[str]) -> None:
    run = small.dry(f"results/runs/d/m/{method}/seed1/manifest.json")
    assert [n for n in run.names if n.startswith("reference")] == [f"reference sft/seed1 {part}" for part in parts]
    [job] = [job for job in run.jobs if job.name == f"train_cell {method}/seed1"]
    read = [Path(path).stem for path in job.input if "/reference/" in path]
    assert sorted(read) == parts


def test_all_losses_with_one_parent_share_its_reference(fresh: Project) -> None:
    parts = {name: parts_for(LOSSES[name]()) for name in LOSSES}
    stages = {f"{name}_{beta}": {"loss": name} for name in parts if parts[name] for beta in ("a", "b")}
    assert len(stages) >= 4
    fresh.edit({
        "stages": {**CATALOGUE["stages"], **stages},
        "grids.both.methods": [f"sft-{stage}" for stage in stages],
    })  # fmt: skip
    run = fresh.dry("train")
    assert run.rules["train_cell"] == len(stages) + 1
    assert [n for n in run.names if n.startswith("reference")] == [
        "reference sft/seed1 mismatched",
        "reference sft/seed1 responses",
    ]


# ---- reward models and live references ----------------------------------------------------------------------------

LEARNED: dict[str, Any] = {
    "stages": {
        **CATALOGUE["stages"],
        "rm": {"loss": "bradley_terry"},
        "ppo": {"loss": "ppo", "reward": "score", "reward_model": "sft-rm"},
        "grpo": {"loss": "grpo"},
        "kto": {"loss": "kto", "humanline": True},
    },
    "grids.both.methods": ["sft-ppo", "sft-grpo", "sft-kto"],
    "grids.both.reward_models": ["sft-rm"],
}
POLICIES = ("sft-grpo", "sft-kto", "sft-ppo")


@pytest.fixture(scope="module")
def learned(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small.copy(tmp_path_factory.mktemp("learned") / "project").edit(LEARNED)


@pytest.fixture(scope="module")
def planned(learned: Project) -> Run:
    return learned.dry("all")


def inputs_of(run: Run, name: str) -> list[str]:
    """What a training reads of references: the parts' paths below the runs."""
    [job] = [job for job in run.jobs if job.name == f"train_cell {name}"]
    return sorted(path.removeprefix("results/runs/d/m/") for path in job.input if "/reference/" in path)


def test_a_grid_with_a_reward_model_and_a_live_reference_is_so_many_jobs_of_each_rule(planned: Run) -> None:
    """sft-ppo learns from the scores of sft-rm, sft-grpo from those of the data, sft-kto against itself."""
    assert planned.rules == {
        # data, model, store; the cells; what they answer; what is judged together; prompts, judge, task, grid
        "configure": 3 + 5 + 1 + 1 + 4,
        "prepare": 1, "model": 1, "tokenize": 1, "describe": 1, "check": 4,  # sft, paired, unpaired, grouped
        "train_cell": 5,
        "reference": 2,
        "answer": 3, "sample": 3, "decide": 1, "judge": 3, "task": 3,
        "gather": 1, "make_tables": 1, "draw_figures": 1, "write_overview": 1, "write_responses": 1, "write_cards": 1,
        "all": 1,
    }  # fmt: skip
    rest = r"(train_cell|reference|sample|judge|task|check) "
    assert [name for name in planned.names if re.match(rest, name)] == sorted([
        *(f"check d/m/{view}" for view in ("grouped", "paired", "sft", "unpaired")),
        *(f"train_cell {method}/seed1" for method in ("sft", "sft-rm", *POLICIES)),
        "reference sft/seed1 responses", "reference sft-rm/seed1 scores",
        *(f"{verb} {method}/seed1 {of}" for verb, of in (("sample", "p"), ("judge", "j"), ("task", "t"))
          for method in POLICIES),
    ])  # fmt: skip


def test_each_cell_reads_its_own_references_and_scores(planned: Run) -> None:
    responses, scores = "sft/seed1/reference/responses.safetensors", "sft-rm/seed1/reference/scores.safetensors"
    assert inputs_of(planned, "sft-ppo/seed1") == [scores, responses]
    assert inputs_of(planned, "sft-grpo/seed1") == [responses]
    for cell in ("sft-kto/seed1", "sft-rm/seed1", "sft/seed1"):
        assert inputs_of(planned, cell) == []


def test_all_views_are_checked_before_the_first_training(planned: Run) -> None:
    checks = [job for job in planned.jobs if job.rule == "check"]
    assert {job.resources["views"] for job in checks} == {"grouped paired sft unpaired"}
    [sft] = [job for job in planned.jobs if job.name == "train_cell sft/seed1"]
    assert "results/tokens/d/m/checked/sft.json" in sft.input


def test_a_reward_model_of_the_hub_is_fetched_and_scores_for_stages_judges_and_labellers(
    small: Project, tmp_path: Path
) -> None:
    theirs = {"kind": "reward_model", "reward_model": "theirs"}
    changes = {
        "models.theirs": {"hub": "some/one", "resources": {"gpus": 1, "mem_gb": 7, "tokens_per_microbatch": 99}},
        "stages.ppo": {"loss": "ppo", "reward": "score", "reward_model": "theirs"},
        "judges.j": {**theirs, "prompts": "p"},
        "labellers": {"l": {**theirs, "feedback": "scalar"}},
        "grids.both": {"datasets": ["d"], "models": ["m"], "methods": ["sft-ppo"], "judges": ["j"]},
    }
    run = small.copy(tmp_path / "project").edit(changes).dry(
        "results/runs/d/m/sft-ppo/seed1/labelled/p/l.parquet", "results/runs/d/m/sft-ppo/seed1/judged/j.json"
    )  # fmt: skip
    rest = r"(fetch_model|model|score|decide|judge|label) "
    assert [name for name in run.names if re.match(rest, name)] == [
        "decide KEY", "fetch_model theirs", "judge sft-ppo/seed1 j", "label sft-ppo/seed1 p", "model m", "model theirs",
        "score d/m/theirs",
    ]  # fmt: skip
    jobs = {job.rule: job for job in run.jobs}
    reads = {"results/models/theirs/model", "results/models/theirs/manifest.json"}
    for rule in ("score", "decide", "label"):
        assert set(jobs[rule].input) >= reads
        assert (jobs[rule].resources["mem_mb"], jobs[rule].resources["gres"]) == ("7000", "gpu:1")
    [ppo] = [job for job in run.jobs if job.name == "train_cell sft-ppo/seed1"]
    assert "results/tokens/d/m/scores/theirs.safetensors" in ppo.input
    assert "/reference/scores" not in " ".join(ppo.input)


@pytest.mark.parametrize(
    "path", ["sft-rm-dpo/seed1/manifest.json", "sft-rm/seed1/samples/p.jsonl", "sft-rm/seed1/tasks/t.json"]
)
def test_a_reward_model_answers_nothing_and_ends_its_chain(learned: Project, path: str) -> None:
    run = learned.snakemake("-n", f"results/runs/d/m/{path}", timeout=60).failed()
    assert "MissingRuleException" in run.output


def test_training_is_all_cells_and_reward_models(learned: Project) -> None:
    run = learned.dry("train")
    assert {name for name in run.names if name.startswith("train_cell")} == {
        f"train_cell {method}/seed1" for method in ("sft", "sft-rm", *POLICIES)
    }
    assert not {"answer", "sample", "judge", "task", "make_tables"} & set(run.rules)


def test_a_reward_model_that_no_grid_names_is_made_for_the_cell_that_learns_from_it(learned: Project) -> None:
    """With the same seed as the cell."""
    run = learned.dry("results/runs/d/m/sft-ppo/seed7/manifest.json")
    assert [name for name in run.names if re.match(r"(train_cell|reference|check) ", name)] == [
        "check d/m/paired",
        "check d/m/sft",
        "check d/m/unpaired",
        "reference sft-rm/seed7 scores",
        "reference sft/seed7 responses",
        "train_cell sft-ppo/seed7",
        "train_cell sft-rm/seed7",
        "train_cell sft/seed7",
    ]


def test_sharding_and_checkpointing_are_resources_and_plan_the_same_jobs(
    learned: Project, planned: Run, tmp_path: Path
) -> None:
    resources = {"gpus": 2, "parallel": "fsdp", "gradient_checkpointing": True}
    run = learned.copy(tmp_path / "project").edit({"models.m.resources": resources}).dry("--profile", "slurm", "all")
    assert run.names == planned.names
    launch = "--nodes 1 --gpus 2 --parallel fsdp --cpus 1"
    for job in run.jobs:
        if job.rule == "train_cell":
            assert job.resources["launch"] == launch
            assert "--gradient-checkpointing" in job.resources["options"]


def test_trackers_and_previews_are_options_of_trainings_and_plan_the_same_jobs(
    learned: Project, planned: Run, tmp_path: Path
) -> None:
    changes = {"trackers": ["tensorboard", "mlflow"], "project": "a study", "stages.sft.preview_prompts": 4}
    run = learned.copy(tmp_path / "project").edit(changes).dry("all")
    assert run.names == planned.names
    shown = "--trackers tensorboard mlflow --tracker-project 'a study' --tracker-folder results/trackers"
    for job in run.jobs:
        if job.rule in ("train_cell", "train_round"):
            assert shown in job.resources["options"]
            previewed = "--preview-prompts 4 --preview-tokens 128" in job.resources["options"]
            assert previewed == (job.wildcards["method"] == "sft")
