"""The study of the KTO paper, at full size: what snakemake would run, and whether it fits the machines it asks for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from halos.plan.devices import GB
from halos.plan.plan import Plan
from halos.plan.problems import problems
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.workflow.bound import Workflow
from tests.workflow.conftest import ROOT, Job, Project, Run

CONFIG = C.load(ROOT / "config.yaml")
PAPER = CONFIG.grids["paper"]
ALL = ("--config", "grid=paper", "--", "all")


@pytest.fixture(scope="session")
def paper(project: Project) -> Run:
    return project.dry(*ALL)


def test_the_grid_is_seven_models_by_twelve_methods() -> None:
    assert len(Study(CONFIG, "paper").cells) == 84
    assert (len(PAPER.models), len(PAPER.methods), PAPER.seeds) == (7, 12, (1,))


def test_the_grid_is_so_many_jobs_of_each_rule(paper: Run) -> None:
    """Of each model: eleven trainings; two parts of the reference of base and of sft; a look at three views; twelve
    sets of samples, judged. Configs: dataset, prompts, judge, grid, and what all cells answer; each model, its tokens,
    its cells, and base as a reference."""
    assert paper.rules == {
        "configure": 5 + 7 * (2 + 12 + 1), "fetch_dataset": 1, "fetch_model": 7, "prepare": 1, "model": 7,
        "tokenize": 7, "check": 7 * 3, "describe": 7, "train_cell": 7 * 11, "reference": 7 * 2 * 2, "answer": 84,
        "sample": 84, "ask": 84, "gather": 1, "make_tables": 1, "draw_figures": 1,
        "write_overview": 1, "write_responses": 1, "write_cards": 1, "all": 1,
    }  # fmt: skip


def test_the_slurm_profile_would_run_the_same_jobs(project: Project, paper: Run) -> None:
    assert project.dry("--profile", "slurm", *ALL).names == paper.names


@pytest.fixture(scope="module")
def finished(project: Project, paper: Run, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The grid with an empty file or folder for each output, which snakemake takes as made."""
    done = project.copy(tmp_path_factory.mktemp("finished") / "project")
    for job in paper.jobs:
        for name in filter(None, job.fields.get("output", "").split(", ")):
            path = done.path / name
            if path.name in ("model", "store", "answers", "judgements", "responses"):
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    done.snakemake("--touch", *ALL).ok()
    return done


KTO = [f"archangel/{model}/{method}/seed1" for model in PAPER.models for method in ("kto", "sft-kto")]


def test_another_beta_of_kto_changes_the_configs_of_the_kto_cells_alone(paper: Run) -> None:
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    content["stages"]["kto"]["beta"] = 0.2
    changed = C.load(content)
    configured = [job.wildcards["folder"] for job in paper.jobs if job.rule == "configure"]
    folders = [folder for folder in configured if not re.search("(^|/)(answering|judging)/", folder)]  # name no loss
    different = [folder for folder in folders if config_slice(CONFIG, folder) != config_slice(changed, folder)]
    assert sorted(different) == sorted(f"runs/{cell}" for cell in KTO)


def test_new_configs_of_the_kto_cells_are_their_trainings_and_samples_and_the_report(finished: Project) -> None:
    assert finished.dry(*ALL).names == []
    configs = [f"results/runs/{cell}/config.yaml" for cell in KTO]
    jobs = finished.dry("--forcerun", *configs, *ALL).jobs
    found = Counter((job.rule, _about(job)) for job in jobs if job.fields.get("output"))
    of_cells = {
        "configure": "runs/{}",
        "train_cell": "{}",
        "answer": "{}",
        "sample": "{}/archangel_test",
        "ask": "{}/kto_paper",
    }
    wanted = [(rule, about.format(cell)) for rule, about in of_cells.items() for cell in KTO]
    report = ("gather", "make_tables", "draw_figures", "write_overview", "write_responses", "write_cards")
    assert found == Counter([*wanted, *((rule, "paper") for rule in report)])


def _about(job: Job) -> str:
    w = job.wildcards
    order = ("folder", "dataset", "model", "method", "run", "prompts", "judge", "grid")
    return "/".join(w[name] for name in order if name in w)


def test_every_stage_of_the_paper_is_trained_with_its_optimizer() -> None:
    for model in PAPER.models:
        for stage in {name for method in PAPER.methods if method != "base" for name in method.split("-")}:
            found = config_slice(CONFIG, f"runs/archangel/{model}/{stage}/seed1")
            settings = {name: found["stage"][name] for name in PUBLISHED}
            assert (settings, found["precision"]) == (PUBLISHED, "bf16"), (model, stage)


PUBLISHED: dict[str, Any] = {
    "optimizer": "RMSprop", "lr": 5e-7, "scheduler": "constant", "warmup": 150, "batch_size": 32, "epochs": 1,
    "max_grad_norm": 10, "lora": None, "humanline": False,
}  # fmt: skip


def test_data_template_and_sampling_are_those_of_the_paper() -> None:
    dataset, prompts = CONFIG.datasets["archangel"], CONFIG.prompts["archangel_test"]
    assert [source.name for source in dataset.sources] == ["shp", "hh", "oasst"]
    assert (dataset.max_length, dataset.max_prompt_length) == (2047, 1024)
    sampled = (prompts.split, prompts.limit, prompts.temperature, prompts.top_p, prompts.max_new_tokens)
    assert sampled == ("test", 512, 1.0, 0.95, 2048)
    assert {CONFIG.models[model].template for model in PAPER.models} == {"archangel"}


def test_the_judge_is_that_of_the_paper() -> None:
    [name] = PAPER.judges
    judge = CONFIG.judges[name]
    assert judge.openai is not None
    assert (judge.openai.model, judge.openai.temperature) == ("gpt-4-0613", 0)
    assert (judge.prompts, judge.baseline, judge.ties, judge.whole_sentences) == (
        "archangel_test", "target", "neither", True
    )  # fmt: skip


def test_a_grid_can_have_samples_without_a_judge() -> None:
    grid = PAPER.model_copy(update={"judges": (), "prompts": ("archangel_test",)})
    config = CONFIG.model_copy(update={"grid": "paper", "grids": {**CONFIG.grids, "paper": grid}})
    workflow = Workflow(config)
    assert workflow.targets.judged() == []
    assert len(workflow.targets.sampled()) == 84


KINDS = {"pythia": "gpt_neox", "llama": "llama"}


@pytest.mark.parametrize("model", PAPER.models)
def test_the_size_of_a_model_is_that_of_its_architecture(model: str) -> None:
    size = CONFIG.models[model].size
    assert size is not None
    config = AutoConfig.for_model(
        KINDS[model.split("-")[0]], hidden_size=size.hidden_size, intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers, num_attention_heads=16 if size.hidden_size % 16 == 0 else 8,
        vocab_size=size.vocab_size, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert size.parameters == sum(p.numel() for p in made.parameters())


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(CONFIG, "paper", "a100-80gb", tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("model", PAPER.models)
def test_every_job_fits_what_it_asks_for(model: str, plan: Plan) -> None:
    resources = CONFIG.models[model].resources
    jobs = [job for job in plan.jobs if job.cell.model == model]
    assert len(jobs) == 11 + 12 + 4
    for job in jobs:
        assert plan.fits(job), job
        assert job.main <= resources.mem_gb * GB, job
        assert job.seconds <= 60 * resources.runtime, job


def test_a_reference_pass_that_a_gpu_cannot_hold_is_named(tmp_path: Path) -> None:
    """Of 32.5 billion parameters of 2 bytes each, eight GPUs hold a shard each, or all of them."""
    assert not problems(Plan(CONFIG, "paper", "a100-80gb", tmp_path))
    entry = CONFIG.models["llama-30b"]
    whole = entry.model_copy(update={"resources": entry.resources.model_copy(update={"parallel": "ddp"})})
    for model, named in ((entry, set()), (whole, {"llama-30b"})):
        config = CONFIG.model_copy(update={"models": {**CONFIG.models, "llama-30b": model}})
        found = [line for line in problems(Plan(config, "paper", "a100-40gb", tmp_path)) if ", reference: " in line]
        assert {line.split(",")[0] for line in found if " do not fit " in line} == named
        assert all("`parallel: fsdp`" in line for line in found if " do not fit " in line)
