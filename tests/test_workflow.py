"""Which files each rule reads, and what its job asks for: the input functions alone, without snakemake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from halos import config as C
from halos.workflow import Workflow
from tests.conftest import CATALOGUE


def workflow(**resources: Any) -> Workflow:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["models"]["m"]["resources"] = resources
    return Workflow(C.load(catalogue))


def wildcards(method: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method=method, seed="3", **more)


@pytest.mark.parametrize(("attempt", "mem_mb", "runtime"), [(1, 12000, 40), (2, 24000, 80), (3, 48000, 160)])
def test_memory_and_time_double_with_each_attempt_and_nothing_else_does(
    attempt: int, mem_mb: int, runtime: int
) -> None:
    w = workflow(mem_gb=12, runtime=40, cpus=6, tokens_per_microbatch=512)
    found = {name: w.resource(name)(wildcards("sft"), attempt)
             for name in ("mem_mb", "runtime", "cpus", "tokens_per_microbatch")}  # fmt: skip
    assert found == {"mem_mb": mem_mb, "runtime": runtime, "cpus": 6, "tokens_per_microbatch": 512}


@pytest.mark.parametrize(
    ("gpus", "gres", "launcher"), [(0, "", "python -m"), (1, "gpu:1", "python -m"), (4, "gpu:4", "accelerate launch ")]
)
def test_several_gpus_are_started_by_accelerate(gpus: int, gres: str, launcher: str) -> None:
    w = workflow(gpus=gpus)
    assert w.gres(wildcards("sft")) == gres
    assert w.launcher(wildcards("sft")).startswith(launcher)
    assert (f"--num_processes {gpus} " in w.launcher(wildcards("sft"))) == (gpus > 1)


def test_a_first_stage_starts_from_the_base_model_whatever_its_seed() -> None:
    w = workflow()
    assert w.parent_model(wildcards("dpo")) == "results/models/m/model"
    assert w.parent_reference(wildcards("dpo")) == ["results/runs/d/m/base/seed0/reference/responses.safetensors"]


def test_a_later_stage_starts_from_its_parent_with_the_same_seed() -> None:
    w = workflow()
    parent = "results/runs/d/m/sft/seed3"
    assert w.parent_model(wildcards("sft-kto")) == f"{parent}/model"
    assert w.parent_manifest(wildcards("sft-kto")) == f"{parent}/manifest.json"
    assert w.parent_reference(wildcards("sft-kto")) == [
        f"{parent}/reference/{part}.safetensors" for part in ("responses", "mismatched")
    ]
    assert w.parent_reference(wildcards("sft-simpo")) == []


def test_a_cell_asks_for_the_check_of_its_own_view_which_looks_at_all_views_of_the_grid() -> None:
    """The grid has sft-dpo alone. Were the file another one when a kto cell joins, dpo would be retrained."""
    w = workflow()
    assert w.checked(wildcards("sft-dpo")) == "results/tokens/d/m/checked/paired.json"
    assert w.checked(wildcards("sft")) == "results/tokens/d/m/checked/sft.json"
    assert w.views(SimpleNamespace(dataset="d", model="m", view="sft")) == "paired sft"
    assert w.views(SimpleNamespace(dataset="d", model="m", view="unpaired")) == "paired sft unpaired"


def test_prompts_are_those_of_the_cells_dataset_unless_the_prompt_set_names_another() -> None:
    w = workflow()
    assert w.prompts_data(wildcards("sft", prompts="p")) == "results/data/d/test.parquet"
    assert w.prompts_data(wildcards("sft", judge="j")) == "results/data/d/test.parquet"
    assert w.judged_samples(wildcards("sft", judge="j")) == "results/runs/d/m/sft/seed3/samples/p.jsonl"
