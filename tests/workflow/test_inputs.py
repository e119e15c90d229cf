"""Which files each rule reads, and what its job asks for: the input functions alone, without a workflow."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.common import FUNC_OVERWRITE_PARAMS_ATTR, get_function_params
from snakemake.resources import Resource

from halos.distributed.launch import parse
from halos.errors import HalosError
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.workflow.inputs import Inputs
from tests.conftest import CATALOGUE
from tests.workflow.bound import Workflow

ROOT = Path(__file__).parents[2]


def workflow(**resources: Any) -> Workflow:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["models"]["m"]["resources"] = resources
    return Workflow(C.load(catalogue))


STAGES: dict[str, Any] = {
    "rm": {"loss": "bradley_terry"},
    "ppo_rm": {"loss": "ppo", "reward": "score", "reward_model": "sft-rm"},
    "ppo_scores": {"loss": "ppo", "reward": "score"},
    "kto_live": {"loss": "kto", "humanline": True},
    "dpo_synced": {"loss": "dpo", "sync_reference": 16},
    "grpo_rm": {"loss": "grpo", "humanline": True, "reward_model": "rm"},
    "more": {"loss": "dpo", "lora": {"path": "adapters/mine"}},
}


def with_rewards(*methods: str, reward_models: tuple[str, ...] = (), **resources: Any) -> Workflow:
    """A grid of two seeds."""
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["stages"] |= STAGES
    catalogue["grids"]["g"] |= {"methods": list(methods), "reward_models": list(reward_models), "seeds": [1, 2]}
    catalogue["models"]["m"]["resources"] = resources
    return Workflow(C.load(catalogue))


def wildcards(method: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method=method, run="seed3", **more)


@pytest.mark.parametrize(("attempt", "mem_mb", "runtime"), [(1, 12000, 40), (2, 24000, 80), (3, 48000, 160)])
def test_memory_and_time_double_with_each_attempt_and_nothing_else_does(
    attempt: int, mem_mb: int, runtime: int
) -> None:
    w = workflow(mem_gb=12, runtime=40, cpus=6, tokens_per_microbatch=512)
    r, sft = w.resources, wildcards("sft")
    assert (r.mem_mb(sft, attempt), r.runtime(sft, attempt), r.cpus(sft), r.tokens(sft)) == (mem_mb, runtime, 6, 512)


@pytest.mark.parametrize(("gpus", "gres", "single"), [(0, "", ""), (1, "gpu:1", "gpu:1"), (4, "gpu:4", "gpu:1")])
def test_a_training_has_all_gpus_of_its_model_and_a_job_of_one_process_has_one(
    gpus: int, gres: str, single: str
) -> None:
    w = workflow(gpus=gpus)
    assert (w.resources.gres(wildcards("sft")), w.resources.single_gres(wildcards("sft"))) == (gres, single)
    assert parse([*w.resources.launch(wildcards("sft")).split(), "train"]).processes == max(1, gpus)


OVER_NODES = ("mpi", "nodes", "tasks_per_gpu")


def test_a_training_over_nodes_is_one_job_with_a_task_on_each() -> None:
    w = workflow(gpus=8, nodes=4, cpus=32)
    assert [getattr(w.resources, name)(wildcards("sft")) for name in OVER_NODES] == ["srun", 4, 0]
    launch = parse([*w.resources.launch(wildcards("sft")).split(), "train"])
    assert (launch.nodes, launch.gpus, launch.cpus, launch.processes) == (4, 8, 32, 32)
    assert w.resources.gres(wildcards("sft")) == "gpu:8"  # of each node


def test_scores_of_a_store_are_made_on_all_gpus_of_one_node_each_with_the_whole_reward_model() -> None:
    w = workflow(gpus=8, nodes=4, parallel="fsdp")
    of = SimpleNamespace(dataset="d", model="m", reward_model="m")
    launch = parse([*w.resources.score.launch(of).split(), "score"])
    assert (launch.nodes, launch.gpus, launch.parallel, w.resources.score.gres(of)) == (1, 8, "ddp", "gpu:8")


def test_a_training_on_one_node_says_nothing_of_nodes() -> None:
    """Snakemake leaves out what is None; the mere presence of `mpi` would take the job out of srun's hands."""
    assert [getattr(workflow(gpus=8).resources, name) for name in OVER_NODES] == [None] * 3
    models = {"m": {**CATALOGUE["models"]["m"], "resources": {"gpus": 8}}}
    models["n"] = {**models["m"], "resources": {"gpus": 8, "nodes": 2}}
    w = Workflow(C.load({**CATALOGUE, "models": models}))
    assert [getattr(w.resources, name)(wildcards("sft")) for name in OVER_NODES] == [None] * 3


def test_the_parameters_that_snakemake_finds_are_those_of_the_methods() -> None:
    w = workflow()
    for called in (w.resources.mem_mb, w.resources.training, Inputs(w.study).checked, Resource("", 1).evaluate):
        found = getattr(called, FUNC_OVERWRITE_PARAMS_ATTR)  # kept: nothing is made out
        assert found == get_function_params(called) == dict(inspect.signature(called).parameters)
    assert list(get_function_params(w.resources.mem_mb)) == ["wildcards", "attempt"]


def test_shards_over_nodes_without_gpus_are_refused() -> None:
    with pytest.raises(HalosError, match=r"models\.m\.resources: weights are sharded over GPUs: give `gpus`"):
        workflow(nodes=2, parallel="fsdp")
    workflow(nodes=2, gpus=1, parallel="fsdp")


def test_a_first_stage_starts_from_the_base_model_whatever_its_seed() -> None:
    w = workflow()
    assert w.inputs.parent_model(wildcards("dpo")) == "results/models/m/model"
    assert w.inputs.reference(wildcards("dpo")) == ["results/runs/d/m/base/seed0/reference/responses.safetensors"]


def test_a_later_stage_starts_from_its_parent_with_the_same_seed() -> None:
    w = workflow()
    parent = "results/runs/d/m/sft/seed3"
    assert w.inputs.parent_model(wildcards("sft-kto")) == f"{parent}/model"
    assert w.inputs.parent_manifest(wildcards("sft-kto")) == f"{parent}/manifest.json"
    assert w.inputs.reference(wildcards("sft-kto")) == [
        f"{parent}/reference/{part}.safetensors" for part in ("responses", "mismatched")
    ]
    assert w.inputs.reference(wildcards("sft-simpo")) == []


def test_a_cell_asks_for_the_check_of_its_own_view_which_looks_at_all_views_of_the_grid() -> None:
    """The grid has sft-dpo alone. Were the file another one when a kto cell joins, dpo would be retrained."""
    w = workflow()
    assert w.inputs.checked(wildcards("sft-dpo")) == "results/tokens/d/m/checked/paired.json"
    assert w.inputs.checked(wildcards("sft")) == "results/tokens/d/m/checked/sft.json"
    assert w.resources.views(SimpleNamespace(dataset="d", model="m", view="sft")) == "paired sft"
    assert w.resources.views(SimpleNamespace(dataset="d", model="m", view="unpaired")) == "paired sft unpaired"


def test_prompts_are_those_of_the_cells_dataset_unless_the_prompt_set_names_another() -> None:
    w = workflow()
    answers = Path(w.inputs.answers(wildcards("sft", prompts="p")))
    assert answers.parents[1] == Path("results/runs/d/m/sft/seed3/answering")
    assert w.inputs.answered_data(wildcards("sft", batch=answers.parent.name)) == ["results/data/d/test.parquet"]
    [judgements] = w.inputs.judgements(wildcards("sft", judge="j"))
    assert w.inputs.decided(wildcards("sft", batch=Path(judgements).parent.name)) == [
        "results/judges/j/config.yaml", "results/runs/d/m/sft/seed3/samples/p.jsonl", "results/data/d/test.parquet"
    ]  # fmt: skip


# ---- reward models -----------------------------------------------------------------------------------------------


def test_a_stage_with_a_reward_model_reads_its_scores_of_the_same_dataset_model_and_seed() -> None:
    w = with_rewards("sft-ppo_rm")
    assert w.inputs.scores(wildcards("sft-ppo_rm")) == ["results/runs/d/m/sft-rm/seed3/reference/scores.safetensors"]
    assert w.inputs.scores(wildcards("sft-grpo_rm")) == ["results/runs/d/m/rm/seed3/reference/scores.safetensors"]
    assert w.inputs.scores(wildcards("ppo_rm-dpo")) == []  # those of its last stage alone
    for method in ("sft-ppo_scores", "sft-grpo", "sft-rm", "sft"):
        assert w.inputs.scores(wildcards(method)) == []


def test_a_reward_models_own_settings_for_a_model_reach_its_cells() -> None:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["stages"] |= STAGES
    catalogue["models"]["m"]["stages"] = {"ppo_rm": {"reward_model": "rm"}}
    w = Workflow(C.load(catalogue))
    assert w.inputs.scores(wildcards("sft-ppo_rm")) == ["results/runs/d/m/rm/seed3/reference/scores.safetensors"]


def test_the_views_of_a_reward_model_are_checked_before_what_learns_from_it_is_trained() -> None:
    """Its own and those of its parents, none of which the grid names."""

    def views(*methods: str, view: str = "sft", reward_models: tuple[str, ...] = ()) -> str:
        w = with_rewards(*methods, reward_models=reward_models)
        return w.resources.views(SimpleNamespace(dataset="d", model="m", view=view))

    assert views("ppo_rm") == "paired sft unpaired"
    assert views("grpo_rm") == "grouped paired sft"
    assert views("ppo_rm-simpo", view="paired") == "paired sft unpaired"  # a parent's reward model
    assert views("base", reward_models=("rm",)) == "paired sft"
    assert views("base") == "sft"
    assert views("ppo_scores") == "scored sft"


def test_the_views_of_a_reward_model_that_judges_are_checked_as_well() -> None:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["stages"] |= STAGES
    catalogue["judges"]["j"] = {"kind": "reward_model", "reward_model": "sft-rm", "prompts": "p"}
    catalogue["grids"]["g"]["methods"] = ["base"]
    w = Workflow(C.load(catalogue))
    assert w.resources.views(SimpleNamespace(dataset="d", model="m", view="sft")) == "paired sft"


def test_a_cell_asks_for_the_check_of_the_view_that_its_scores_make_of_it() -> None:
    w = with_rewards("base")
    checked = {
        method: w.inputs.checked(wildcards(method)).rsplit("/", 1)[1] for method in ("ppo", "ppo_scores", "ppo_rm")
    }
    assert checked == {"ppo": "unpaired.json", "ppo_scores": "scored.json", "ppo_rm": "unpaired.json"}
    assert w.inputs.checked(wildcards("sft-grpo_rm")) == "results/tokens/d/m/checked/grouped.json"
    assert w.inputs.checked(wildcards("sft-rm")) == "results/tokens/d/m/checked/paired.json"


def test_what_a_cell_is_made_from_holds_its_parents_and_their_reward_models() -> None:
    w = with_rewards("base")
    found = [(c.method, c.seed) for c in w.study.made_from(Cell("d", "m", "sft-ppo_rm-simpo", 3))]
    assert found == [("base", 0), ("sft", 3), ("sft-rm", 3), ("sft-ppo_rm", 3), ("sft-ppo_rm-simpo", 3)]


def test_reward_models_of_a_grid_are_trained_and_logged_and_neither_sampled_nor_judged() -> None:
    without, w = (with_rewards("base", "sft-dpo", reward_models=r) for r in ((), ("rm", "sft-rm")))
    more = [f"results/runs/d/m/{method}/seed{seed}" for method in ("rm", "sft-rm") for seed in (1, 2)]
    assert w.targets.trained() == [*without.targets.trained(), *(f"{folder}/manifest.json" for folder in more)]
    assert w.targets.logged() == [*without.targets.logged(), *(f"{folder}/train.jsonl" for folder in more)]
    assert len(without.targets.trained()) == 2  # base is not trained
    for target in ("sampled", "judged", "benchmarked"):
        assert getattr(w.targets, target)() == getattr(without.targets, target)()
        assert len(getattr(w.targets, target)()) == 4
        assert not [path for path in getattr(w.targets, target)() if "rm/" in path]


def test_nothing_follows_a_reward_model_or_control_tokens_and_only_policies_answer() -> None:
    w = with_rewards("base")
    for method, trained, policy in (
        ("sft", True, True), ("base", False, True), ("sft-kto-dpo", True, True), ("sft-csft", True, True),
        ("rm", True, False), ("sft-rm", True, False), ("rm-sft", False, False), ("sft-rm-dpo", False, False),
        ("csft-dpo", False, False), ("csft-rm", False, False), ("sft-nope", False, False),
    ):  # fmt: skip
        found = bool(re.fullmatch(w.patterns.trained_methods, method)), bool(re.fullmatch(w.patterns.policies, method))
        assert found == (trained, policy), method
        assert bool(re.fullmatch(w.patterns.methods, method)) == (trained or policy)


# ---- live references and adapters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kto_live", "sft-dpo_synced", "sft-grpo_rm"])
def test_a_live_reference_is_no_file(method: str) -> None:
    assert with_rewards("base").inputs.reference(wildcards(method)) == []


def test_saved_adapters_are_an_input() -> None:
    w = with_rewards("base")
    assert w.inputs.adapters(wildcards("sft-more")) == ["adapters/mine/adapter_model.safetensors"]
    for method in ("more-dpo", "lora", "dpo"):
        assert w.inputs.adapters(wildcards(method)) == []


# ---- how it is run, and not what is made ---------------------------------------------------------------------------


def test_sharding_and_checkpointing_are_options_of_the_command() -> None:
    w = workflow(gpus=8, parallel="fsdp", gradient_checkpointing=True)
    assert parse([*w.resources.launch(wildcards("sft")).split(), "train"]).parallel == "fsdp"
    assert w.resources.checkpointing(wildcards("sft")) == "--gradient-checkpointing"
    plain = workflow(gpus=8)
    assert parse([*plain.resources.launch(wildcards("sft")).split(), "train"]).parallel == "ddp"
    assert plain.resources.checkpointing(wildcards("sft")) == ""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_every_launcher_has_its_file(parallel: str) -> None:
    assert (ROOT / f"profiles/accelerate/{parallel}.yaml").is_file()


def test_sharding_and_checkpointing_change_nothing_that_is_made() -> None:
    methods, rewards = ("sft-ppo_rm", "sft-kto"), ("sft-rm",)
    one = with_rewards(*methods, reward_models=rewards)
    other = with_rewards(
        *methods, reward_models=rewards, gpus=8, parallel="fsdp", gradient_checkpointing=True, tokens_per_microbatch=9,
        nodes=2, cpus=8,
    )  # fmt: skip
    folders = ["data/d", "tokens/d/m", "models/m", "grids/g"]
    folders += [f"runs/d/m/{method}/seed1" for method in ("sft", *methods, *rewards)]
    for folder in folders:
        assert one.inputs.slice(SimpleNamespace(folder=folder)) == other.inputs.slice(SimpleNamespace(folder=folder))
    for target in ("trained", "sampled", "judged", "benchmarked", "logged"):
        assert getattr(one.targets, target)() == getattr(other.targets, target)()
    for inputs in ("parent_model", "parent_manifest", "checked", "reference", "scores", "adapters"):
        for method in (*methods, *rewards):
            assert getattr(one.inputs, inputs)(wildcards(method)) == getattr(other.inputs, inputs)(wildcards(method))


def test_the_tokenizer_of_a_model_of_the_catalogue_is_read_from_where_that_is_made() -> None:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["models"] |= {
        "a": {"path": "somewhere", "tokenizer": {"from": "m"}},
        "b": {"path": "somewhere", "tokenizer": {"from": "some/one"}},
    }
    inputs = Workflow(C.load(catalogue)).inputs

    def read(model: str) -> list[list[Any]]:
        named = SimpleNamespace(model=model)
        return [inputs.tokenizer_data(named), inputs.tokenizer_model(named), inputs.fetched_model(named)]

    assert read("m") == [["results/data/d/train.parquet"], [], []]
    assert read("a") == [[], ["results/models/m/model"], []]
    assert read("b") == [[], [], ["results/models/b/fetched.json"]]


def test_the_files_of_both_splits_are_read() -> None:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    own = {"name": "local", "options": {"path": "a.jsonl", "test_fraction": 0}}
    catalogue["datasets"]["d"] |= {
        "sources": [own], "test_sources": [{"name": "local", "options": {"path": {"test": "b.jsonl"}}}, {"name": "shp"}]
    }  # fmt: skip
    inputs = Workflow(C.load(catalogue)).inputs
    named = SimpleNamespace(dataset="d")
    assert inputs.source_files(named) == ["a.jsonl", "b.jsonl"]
    assert inputs.fetched_data(named) == ["results/data/d/fetched.json"]
