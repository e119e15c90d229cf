"""What a grid will cost: the arithmetic by hand, and beside what torch and transformers really make."""

from __future__ import annotations

import csv
import json
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM

from halos.cli import main
from halos.data.feedback import Feedback
from halos.distributed.peaks import GPUS
from halos.errors import HalosError
from halos.forward.logprobs import token_logps
from halos.forward.networks import ValueHead
from halos.models.load import load
from halos.models.policy import freeze_parameters, with_lora
from halos.models.settings import Resources, Size
from halos.plan.measured import ran_on
from halos.plan.memory import estimated_training, optimizer_bytes, training_memory, value_head_parameters
from halos.plan.plan import Plan
from halos.plan.problems import problems
from halos.plan.sizes import PUBLISHED, Amount, amount_of, counted_training, measured_size, size_of
from halos.plan.work import training_operations, work_of
from halos.registry import SOURCES
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.train.optimizer import make_optimizer
from halos.train.settings import Lora
from halos.train.stage import Stage
from tests.conftest import CATALOGUE, World

ROOT = Path(__file__).parents[2]
SIZE = Size(parameters=1000, layers=2, hidden_size=8, intermediate_size=16, vocab_size=20)
RMSPROP: dict[str, Any] = {"optimizer": "RMSprop", "batch_size": 4}
SMALL: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1024}
KINDS = {"llama": {**SMALL, "intermediate_size": 688, "num_key_value_heads": 2},
         "gpt_neox": {**SMALL, "intermediate_size": 1024}}  # fmt: skip


def small_model(kind: str) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]), dtype=torch.float32)


# ---- memory, by hand ------------------------------------------------------------------------------------------------


def test_the_memory_of_one_gpu_is_that_worked_by_hand() -> None:
    """1000 float32 weights, gradients and squares are 4000 bytes each. 2 * 20 * 8 = 320 parameters are the ends, 340 a
    layer. A layer keeps 40 * 8 + 2 * 4 * 16 = 448 bytes of a token; two layers, half of one at work and 10 * 8 make
    1200 for each of 64 tokens; and 64 * 20 logits take 8 bytes. A batch is 4 * 32 = 128 tokens, so gradients wait."""
    resources = Resources(gpus=1, tokens_per_microbatch=64)
    memory = training_memory(SIZE, Stage(loss="sft", **RMSPROP), "fp32", resources, longest=32)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.step) == (4000, 4000, 4000, 4000)
    assert (memory.copies, memory.buffers, memory.reference) == (0, 0, 0)
    assert (memory.activations, memory.logits) == (64 * 1200, 64 * 20 * 8)
    assert memory.total == 8000 + 4000 + 76800 + 10240


def test_sharding_divides_what_stays_and_not_what_is_gathered() -> None:
    """Two layers and the ends in bfloat16, 2 * 1000 bytes, and the gradients of a layer in both types, 6 * 340. A layer
    keeps 24 * 8 + 2 * 2 * 16 = 256 bytes of a token."""
    resources = Resources(gpus=2, parallel="fsdp", tokens_per_microbatch=64)
    memory = training_memory(SIZE, Stage(loss="sft", **RMSPROP), "bf16", resources, longest=32)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.copies) == (2000, 2000, 2000, 0)
    assert memory.buffers == 2000 + 2040
    assert memory.activations == 64 * (2.5 * 256 + 80)
    assert memory.total == 4000 + 4040 + 64 * 720 + 10240


def test_sharded_gradients_that_wait_for_another_microbatch_are_whole() -> None:
    stage = Stage(loss="sft", **RMSPROP)
    once, twice = (training_memory(SIZE, stage, "bf16", Resources(gpus=2, parallel="fsdp", tokens_per_microbatch=n), 32)
                   for n in (64, 63))  # fmt: skip
    assert twice.buffers - once.buffers == 4000


def test_data_parallel_holds_all_and_its_buckets() -> None:
    memory = training_memory(SIZE, Stage(loss="sft", **RMSPROP), "bf16", Resources(gpus=2), 32)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4000, 4000, 4000)
    assert (memory.copies, memory.buffers) == (2000, 4000)


@pytest.mark.parametrize(("parallel", "share"), [("ddp", 1), ("fsdp", 2)])
def test_a_live_reference_is_one_more_copy_of_the_weights(parallel: Any, share: int) -> None:
    resources = Resources(gpus=2, parallel=parallel)
    frozen, live = (training_memory(SIZE, Stage(loss="dpo", humanline=humanline), "bf16", resources, 32)
                    for humanline in (False, True))  # fmt: skip
    assert frozen.reference == 0
    assert live.reference == 4000 / share


# ---- memory, beside what torch makes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_peak_of_a_real_step_is_at_most_what_is_planned_and_not_far_from_it(
    kind: str, checkpointing: bool, precision: str
) -> None:
    tokens = 768
    model = small_model(kind)
    stage = Stage(loss="sft", optimizer="SGD", batch_size=1)
    optimizer = make_optimizer(model, stage)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            logps = token_logps(hidden.flatten(0, 1), model.get_output_embeddings(), ids.flatten())
        logps.sum().backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    resources = Resources(gpus=1, tokens_per_microbatch=tokens, gradient_checkpointing=checkpointing)
    planned = training_memory(measured_size(model.config), stage, precision, resources, tokens).total
    assert 1.0 <= planned / peak <= 1.5


OPTIMIZERS = typing.get_args(Stage.model_fields["optimizer"].annotation)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_every_optimizer_is_as_large_as_planned(optimizer: str) -> None:
    model = small_model("llama")
    stage = Stage(loss="sft", optimizer=optimizer, batch_size=1)
    made = make_optimizer(model, stage)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    state = [v for kept in made.state.values() for v in kept.values() if isinstance(v, torch.Tensor)]
    real = sum(v.numel() * v.element_size() for v in state)
    memory = training_memory(measured_size(model.config), stage, "fp32", Resources(gpus=1), 64)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert memory.weights == memory.gradients == weights
    assert memory.optimizer == pytest.approx(real, rel=0.01, abs=0.01 * weights)


def test_arguments_of_an_optimizer_that_add_state_are_counted() -> None:
    counts = [optimizer_bytes(Stage(loss="sft", optimizer="RMSprop", optimizer_args=arguments))
              for arguments in ({}, {"momentum": 0.9}, {"momentum": 0.9, "centered": True})]  # fmt: skip
    assert counts == [4, 8, 12]


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_an_architecture_is_as_large_before_it_is_made_as_after(world: World, tmp_path: Path) -> None:
    model = load(world.base / "model", "eager")
    parameters = sum(p.numel() for p in model.parameters())
    entry = world.config.models["m"].model_copy(
        update={"tokenizer": world.config.models["m"].tokenizer.model_copy(update={"vocab_size": model.vocab_size})}  # type: ignore[union-attr]
    )
    assert size_of("m", entry, tmp_path).parameters == parameters
    assert size_of("m", entry, world.results).parameters == parameters


def test_the_tiny_model_has_as_many_parameters_as_planned(tmp_path: Path) -> None:
    """Embedding, tied; a layer has attention, three feed-forward matrices and two norms; one norm at the end."""
    tiny = C.load(ROOT / "config.yaml").models["tiny"]
    by_hand = 1024 * 128 + 2 * (4 * 128**2 + 3 * 128 * 344 + 2 * 128) + 128
    assert size_of("tiny", tiny, tmp_path).parameters == by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_as_many_parameters_as_peft_makes(kind: str) -> None:
    model = small_model(kind)
    lora = Lora(r=4)
    size = measured_size(model.config)
    adapted = with_lora(model, lora.model_dump())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    planned = estimated_training(size, lora).trained
    assert counted_training(model.config, Stage(loss="dpo", lora=lora))[:2] == (trained, trained)
    assert planned == trained if kind == "llama" else 1 <= planned / trained < 1.15  # its q, k and v share an adapter


PARTIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("mixtral", {"lora": Lora(r=4)}),
    "whole layers": ("llama", {"lora": Lora(r=4, modules_to_save=("embed_tokens", "lm_head"))}),
    "frozen": ("gpt_neox", {"freeze": ("*.embed_in.*", "*.layers.0.*")}),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_what_is_trained_is_counted_where_the_model_is_known(case: str) -> None:
    """An estimate from sizes alone knows neither the adapters of experts, nor layers that are saved whole or frozen."""
    kind, changes = PARTIAL[case]
    experts = {**SMALL, "intermediate_size": 256, "num_key_value_heads": 2, "num_local_experts": 4}
    config = AutoConfig.for_model(kind, **(experts if kind == "mixtral" else KINDS[kind]))
    stage, model = Stage(loss="dpo", **changes), AutoModelForCausalLM.from_config(config)
    before = sum(p.numel() for p in model.parameters())
    made = with_lora(model, stage.lora.model_dump()) if stage.lora else model
    freeze_parameters(made, stage.freeze)
    weights = list(made.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    counted = counted_training(config, stage)
    frozen = sum(4 * p.numel() for p in weights if not p.requires_grad)
    assert counted == (sum(p.numel() for p in weights) - before, trained, frozen)
    size = measured_size(config)
    memory, estimate = (training_memory(size, stage, "fp32", Resources(gpus=1), 64, known) for known in (counted, None))
    assert memory.optimizer == 4 * 2 * trained
    assert (memory.weights, memory.gradients) == (4 * sum(p.numel() for p in weights), 4 * trained)
    assert (memory.optimizer > 1.5 * estimate.optimizer) if stage.lora else (memory.optimizer < estimate.optimizer)


def test_a_reward_model_is_counted_with_its_score_and_without_an_output_layer() -> None:
    """Whose names its patterns may hold: a language model has no `score` to freeze."""
    config = AutoConfig.for_model("llama", **KINDS["llama"])
    body = measured_size(config).parameters - config.vocab_size * config.hidden_size * (not config.tie_word_embeddings)
    frozen = counted_training(config, Stage(loss="bradley_terry", freeze=("*layers.0.*", "score.*")))
    kept = counted_training(config, Stage(loss="bradley_terry", freeze=("*layers.0.*",)))
    layer = sum(p.numel() for n, p in AutoModelForCausalLM.from_config(config).named_parameters() if ".layers.0." in n)
    assert (frozen.trained, kept.trained) == (body - layer, body - layer + config.hidden_size)
    adapted, plain = (counted_training(config, Stage(loss=loss, lora=Lora(r=4))) for loss in ("bradley_terry", "dpo"))
    assert adapted.trained == plain.trained + config.hidden_size


def test_a_plan_counts_what_a_stage_trains(tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    whole, frozen = (Plan(C.load({**content, "stages": {**content["stages"], "dpo": {"loss": "dpo", **changes}}}), "g",
                          "a100-80gb", tmp_path).trainings()[-1].memory
                     for changes in ({}, {"freeze": ["*.embed_tokens.*"]}))  # fmt: skip
    assert whole.weights == frozen.weights
    assert whole.optimizer - frozen.optimizer == 4 * 2 * 512 * 32


def test_a_value_head_is_as_many_parameters_as_is_made() -> None:
    head = sum(p.numel() for p in ValueHead(SIZE.hidden_size).parameters())
    assert value_head_parameters(SIZE, Stage(loss="ppo").make_loss()) == head


def test_a_hub_model_that_is_not_here_needs_a_size(tmp_path: Path) -> None:
    entry = C.load(ROOT / "config.yaml").models["llama-7b"]
    assert size_of("x", entry, tmp_path) == entry.size
    with pytest.raises(HalosError, match=r"models\.x: .*`size:`"):
        size_of("x", entry.model_copy(update={"size": None}), tmp_path)


# ---- data and time --------------------------------------------------------------------------------------------------

DATA = Amount({"sft": 80, "paired": 50, "unpaired": 100, "scored": 100, "grouped": 80}, 80, 160, 10, 5, "made up")


@pytest.mark.parametrize(
    ("stage", "trained", "scored"),
    [
        ({"loss": "sft"}, 80 * 15, 0),
        ({"loss": "dpo"}, 50 * 20, 0),
        ({"loss": "dpo", "epochs": 2}, 100 * 20, 0),
        ({"loss": "dpo", "keep_pairs": 0.4}, 20 * 20, 0),
        ({"loss": "dpo", "examples": 7}, 7 * 20, 0),
        ({"loss": "kto"}, 100 * 15, 100 * 5),  # the mismatched response, behind the prompt that is there already
        ({"loss": "kto", "keep_desirable": 0.5}, 75 * 15, 75 * 5),
        ({"loss": "kto", "humanline": True}, 100 * 15, 100 * (5 + 15 + 5)),
        ({"loss": "ppo"}, 100 * 15, 0),
        ({"loss": "grpo"}, 80 * 20, 0),  # two responses to a prompt
    ],
)
def test_the_tokens_of_a_training_are_those_worked_by_hand(stage: dict[str, Any], trained: int, scored: int) -> None:
    work = work_of(Stage(batch_size=4, **stage), DATA, budget=1000, world=1, eval_examples=0)
    assert (work.trained, work.scored) == (trained, scored)


def test_statistics_of_several_microbatches_take_a_pass_of_their_own() -> None:
    def scored(loss: str) -> float:
        return work_of(Stage(loss=loss, batch_size=4), DATA, budget=20, world=1, eval_examples=0).scored

    assert scored("kto") == 100 * 15
    assert scored("ppo") == 100 * 15


def test_the_load_of_experts_takes_a_pass_of_its_own_before_several_microbatches() -> None:
    def scored(loss: str, budget: int, weight: float | None) -> float:
        stage = Stage(loss=loss, batch_size=4, router_weight=weight)
        return work_of(stage, DATA, budget=budget, world=1, eval_examples=0).scored

    assert scored("kto", 20, 0.01) == scored("kto", 20, None) + 100 * 15
    assert scored("kto", 1000, 0.01) == scored("kto", 1000, None)
    assert scored("ppo", 20, 0.01) == scored("ppo", 20, None)  # which has one for its statistics


def test_operations_count_the_second_forward_pass_and_spare_frozen_weights() -> None:
    full, lora = Stage(loss="sft"), Stage(loss="sft", lora=Lora())
    work = work_of(full, DATA, 1000, 1, 0)
    assert training_operations(SIZE, full, False, work) == 6 * 1000 * work.trained
    assert training_operations(SIZE, full, True, work) == 8 * 1000 * work.trained
    assert training_operations(SIZE, lora, False, work) == 4 * 1000 * work.trained


def test_what_is_said_of_the_toy_source_is_what_it_makes() -> None:
    records = [record for record in SOURCES["toy"]("train") if isinstance(record, Feedback)]
    assert len(records) == PUBLISHED["toy"].prompts
    assert sum(len(record.pairs) for record in records) == PUBLISHED["toy"].pairs


def test_the_amount_of_data_is_read_off_the_store_where_it_is_made(world: World, tmp_path: Path) -> None:
    from halos.tokens.store import Store

    store = Store(world.store)
    found = amount_of(world.config, "d", "m", world.results)
    report = json.loads((world.results / "tokens/d/m/report.json").read_text())
    assert found.examples == report["views"]["train"]
    rows = store.view("train", "sft")["sequence"].to_numpy()
    assert found.prompt + found.response == pytest.approx(store.lengths[rows].sum(-1).mean(), rel=0.35)
    assert amount_of(world.config, "d", "m", tmp_path).origin == f"toy: {PUBLISHED['toy'].origin}"


def test_a_dataset_that_nothing_is_known_of_says_so(tmp_path: Path) -> None:
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["datasets"]["d"]["sources"] = [{"name": "local", "options": {"path": "mine.jsonl"}}]
    assert "unknown" in amount_of(C.load(catalogue), "d", "m", tmp_path).origin


# ---- the plan of a grid ---------------------------------------------------------------------------------------------


@pytest.fixture
def finished(world: World, tmp_path: Path) -> Path:
    """A results folder in which the SFT of the grid's only chain is done."""
    results = tmp_path / "results"
    for folder in ("data", "models", "tokens"):
        shutil.copytree(world.results / folder, results / folder)
    world.train(results / "runs/d/m/sft/seed1", "sft")
    return results


def test_finished_cells_give_their_own_time_and_correct_the_others(world: World, finished: Path) -> None:
    grid = world.config.grid
    estimates = {job.cell: job for job in Plan(world.config, grid, "a100-80gb", world.results / "none").trainings()}
    plan = Plan(world.config, grid, "a100-80gb", finished)
    found = {job.cell: job for job in plan.jobs if job.kind in ("sft", "dpo")}
    sft, dpo = Cell("d", "m", "sft", 1), Cell("d", "m", "sft-dpo", 1)
    seconds = json.loads((finished / sft.folder / "manifest.json").read_text())["seconds"]
    assert (found[sft].seconds, found[sft].origin) == (seconds, "measured")
    again = {job.cell: job for job in plan.trainings()}
    assert found[dpo].seconds == pytest.approx(again[dpo].seconds * seconds / again[sft].seconds)
    assert found[dpo].origin == "corrected"
    assert {job.origin for job in estimates.values()} == {"estimate"}


@pytest.mark.parametrize("other", ["settings", "hardware"])
def test_a_run_with_other_settings_or_on_other_hardware_corrects_nothing(
    world: World, finished: Path, other: str
) -> None:
    path = finished / "runs/d/m/sft/seed1/manifest.json"
    manifest = json.loads(path.read_text())
    if other == "settings":
        manifest["config"]["stage"]["lr"] *= 2
    else:
        manifest["hardware"]["gpus"] = ["NVIDIA H100 80GB HBM3"]
    path.write_text(json.dumps(manifest))
    plan = Plan(world.config, world.config.grid, "a100-80gb", finished)
    assert {job.origin for job in plan.jobs} == {"estimate"}


@pytest.mark.parametrize(
    ("names", "gpu", "same"),
    [
        (["NVIDIA A100-SXM4-80GB"], "a100-80gb", True),
        (["NVIDIA A100-SXM4-40GB"], "a100-80gb", False),
        (["NVIDIA H100 80GB HBM3"], "a100-80gb", False),
        (["NVIDIA L40S"], "l40s-48gb", True),  # says no memory
        ([], "a100-80gb", False),
        ([], None, True),
        (["NVIDIA L40S"], None, False),
    ],
)
def test_runs_are_compared_with_those_on_the_same_kind_of_gpu(names: list[str], gpu: str | None, same: bool) -> None:
    assert ran_on(names, gpu) == same


def with_llama(**resources: Any) -> Plan:
    """A plan of one SFT of Llama 30B."""
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    content["models"]["llama-30b"]["resources"] = {"mem_gb": 2000, "runtime": 9999, **resources}
    content["grids"]["one"] = {"datasets": ["archangel"], "models": ["llama-30b"], "methods": ["sft"]}
    return Plan(C.load(content), "one", "a100-80gb", Path("none"))


@pytest.mark.parametrize(
    ("resources", "fits"),
    [
        ({"gpus": 8, "parallel": "fsdp", "gradient_checkpointing": True}, True),  # as in the KTO paper: one node
        ({"gpus": 8, "parallel": "ddp", "gradient_checkpointing": True}, False),
        ({"gpus": 1, "gradient_checkpointing": True}, False),
        ({"gpus": 8, "parallel": "fsdp"}, False),
    ],
)
def test_llama_30b_fits_one_node_of_eight_a100_if_it_is_sharded(resources: dict[str, Any], fits: bool) -> None:
    plan = with_llama(**resources)
    assert [plan.fits(job) for job in plan.trainings()] == [fits]


def test_what_does_not_fit_is_named_with_what_makes_it_fit() -> None:
    [line] = problems(with_llama(gpus=8, parallel="fsdp"))
    assert line.startswith("llama-30b, sft: ")
    assert "it fits with gradient_checkpointing" in line
    assert problems(with_llama(gpus=8, parallel="fsdp", gradient_checkpointing=True)) == []
    ddp = problems(with_llama(gpus=8))
    assert "parallel: fsdp and gradient_checkpointing: true" in ddp[0]


def test_too_little_main_memory_and_time_are_named() -> None:
    lines = problems(with_llama(gpus=8, parallel="fsdp", gradient_checkpointing=True, mem_gb=10, runtime=5))
    assert [line.split(": ")[1].split()[1:4] for line in lines] == [["GB", "of", "main"], ["minutes", "are", "needed"]]
    assert "raise mem_gb (10)" in lines[0]
    assert "raise runtime (5)" in lines[1]


def test_a_faster_gpu_and_more_of_them_take_less_time() -> None:
    [a], [b] = (with_llama(gpus=n, parallel="fsdp").trainings() for n in (4, 8))
    assert a.seconds / b.seconds == pytest.approx(2)
    plan = with_llama(gpus=8, parallel="fsdp")
    [c] = Plan(plan.config, "one", "h100-80gb", Path("none")).trainings()
    assert b.seconds / c.seconds == pytest.approx(GPUS["h100-80gb"].bf16 / GPUS["a100-80gb"].bf16)


def test_the_samples_of_snapshots_are_planned_beside_those_of_the_grid(tmp_path: Path) -> None:
    """base and sft answer the grid's prompts; and base, two snapshots and sft those of the judge of snapshots."""
    content = {**CATALOGUE, "stages": {**CATALOGUE["stages"], "sft": {**CATALOGUE["stages"]["sft"], "snapshots": 3}}}
    prompts = {"p": {"limit": 8}, "v": {"split": "validation", "limit": 8}}
    judges = {name: {"kind": "verifier", "verifier": "toy", "prompts": name} for name in prompts}
    grid = {"datasets": ["d"], "models": ["m"], "methods": ["base", "sft"], "judges": ["p"], "snapshots": ["v"]}
    grid |= {"divergence": 4}
    content |= {"prompts": prompts, "judges": judges, "grid": "followed", "grids": {"followed": grid}}
    jobs = Plan(C.Config.model_validate(content), "followed", "a100-80gb", tmp_path).jobs
    sampled = [job.cell.folder.removeprefix("runs/d/m/") for job in jobs if job.kind == "sample"]
    assert sampled == [
        "base/seed1", "sft/seed1", "base/seed0", "sft/seed1/snapshot1", "sft/seed1/snapshot2", "sft/seed1"
    ]  # fmt: skip
    diverged = [job.cell.folder.removeprefix("runs/d/m/") for job in jobs if job.kind == "divergence"]
    assert diverged == ["sft/seed1", "sft/seed1/snapshot1", "sft/seed1/snapshot2", "sft/seed1"]


def test_rounds_and_divergences_are_planned(tmp_path: Path) -> None:
    """Each round samples fresh prompts, and its reference reads them; a judge sees every round. The divergence is a
    pass over a policy's samples of 4 prompts, up to 8 tokens each, by it and one by its reference."""
    online = {"rounds": 3, "prompts_per_round": 8, "eval_prompts": 4, "max_new_tokens": 8, "label": "l"}
    stages = {**CATALOGUE["stages"], "on": {**CATALOGUE["stages"]["kto"], "online": online}}
    grid = {"datasets": ["d"], "models": ["m"], "methods": ["base", "sft-on"], "judges": ["j"], "divergence": 4}
    content = {**CATALOGUE, "stages": stages, "grid": "rounds", "grids": {"rounds": grid}}
    content["labellers"] = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}}
    plan = Plan(C.Config.model_validate(content), "rounds", "a100-80gb", tmp_path)
    jobs = [(job.kind, job.cell.folder.removeprefix("runs/d/m/")) for job in plan.jobs]
    rounds = [f"sft-on/seed1/round{i}" for i in (1, 2, 3)]
    assert jobs == [
        ("sft", "sft/seed1"), ("on", "sft-on/seed1"),
        *(("reference", cell) for cell in ("sft/seed1", *rounds[:2])),
        *(("sample", cell) for cell in rounds),
        *(("sample", cell) for cell in ("base/seed1", "sft-on/seed1", *rounds[:2])),
        ("divergence", "sft-on/seed1"),
    ]  # fmt: skip
    amount, size = plan.amounts["d", "m"], plan.sizes["m"].parameters
    speed = 2 * size / (plan.utilisation * plan.device("m").fp32)  # seconds of a token
    reference, divergence = plan.jobs[2], plan.jobs[-1]
    assert reference.seconds == pytest.approx(speed * 2 * 12 * (amount.prompt + 2 * amount.response))
    assert divergence.seconds == pytest.approx(2 * speed * 4 * (amount.prompt + 8))
    fresh, judged = plan.jobs[5], plan.jobs[9]
    assert fresh.seconds == pytest.approx(2 * judged.seconds)  # two prompt sets and one, each in one batch of 8 tokens


def test_the_verb_prints_and_writes_the_plan(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CATALOGUE))
    words = ["plan", "--config", tmp_path / "config.yaml", "--results", finished, "--output", tmp_path / "plan"]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "plan/plan.md").read_text() == printed
    rows = list(csv.DictReader((tmp_path / "plan/jobs.csv").open()))
    found = [(row["job"], row["jobs"], row["time"]) for row in rows]
    assert found[:2] == [("sft", "1", "measured"), ("dpo", "1", "corrected")]
    assert found[2:] == [("reference", "1", "estimate"), ("sample", "2", "estimate")]
    totals = list(csv.DictReader((tmp_path / "plan/totals.csv").open()))
    assert [row["model"] for row in totals] == ["m", "all"]
    assert totals[1]["cells"] == "2"


def test_an_unknown_gpu_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CATALOGUE))
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--gpu", "a100-80"]) == 1
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2},
         "datasets.d.max_length is 100, and the model m has 64 positions, which it cannot go beyond: lower max_length"),
        ({**CATALOGUE["models"]["m"]["architecture"], "max_position_embeddings": 64},
         "warning: datasets.d.max_length is 100, and the model m has 64 positions: it was not trained on longer"),
        (CATALOGUE["models"]["m"]["architecture"], None),
    ],
)  # fmt: skip
def test_a_max_length_beyond_a_models_positions_is_named(architecture: dict[str, Any], said: str | None) -> None:
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["models"]["m"]["architecture"] = architecture
    lines = problems(Plan(C.load(content), "g", "a100-80gb", Path("none")))
    assert [line.startswith(str(said)) for line in lines if "positions" in line] == ([] if said is None else [True])
