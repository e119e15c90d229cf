"""Trainings on a GPU: resumed bit for bit, sharded over all GPUs there are, and with the memory that the plan says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from halos.models.load import load
from halos.models.settings import Resources
from halos.plan.memory import training_memory
from halos.plan.sizes import measured_size
from halos.pretrained import read_config
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.train.trainer import Trainer
from tests.conftest import CATALOGUE, World
from tests.gpu.gradients import distance
from tests.train.runs import PLAIN, assert_equal, base_of, log, open_inputs, weights
from tests.train.test_checkpoints import (  # noqa: F401
    StopAfter,
    scores,
    stop_after,
    test_a_stopped_and_resumed_run_is_bit_for_bit_as_never_stopped,
)

pytestmark = pytest.mark.usefixtures("_fresh")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_two_runs_are_bit_for_bit_the_same_in_bf16(attention: str, world: World, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        config = world.slice("runs/d/m/dpo/seed1", examples=24)
        config.write_text(dump({**read_slice(config), "precision": "bf16", "attention": attention}))
        Trainer(open_inputs(world, config), tmp_path / name, 400).run()
        runs.append(tmp_path / name)
    assert_equal(*runs)
    assert log(runs[0]) == log(runs[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="sharding needs two GPUs")
@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo", "lora"])
def test_weights_that_are_sharded_over_all_gpus_train_as_whole_ones(stage: str, world: World, tmp_path: Path) -> None:
    changes = {**PLAIN, "batch_size": 8, "examples": 16}
    if stage == "lora":
        changes["lora"] = {"r": 4, "alpha": 8, "dropout": 0.0}
    one = world.train(tmp_path / "one", stage, changes=changes, tokens_per_microbatch=400)
    config = tmp_path / "run.yaml"
    config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
    files = world.parts(C.Stage(**read_slice(config)["stage"]))
    command = [
        "train", "--config", config, "--parent", world.base, "--store", world.store, "--output", tmp_path / "all",
        "--tokens-per-microbatch", 400, "--reference", *files,
    ]  # fmt: skip
    launch = ["--config_file", "profiles/accelerate/fsdp.yaml", "--num_processes", torch.cuda.device_count()]
    words = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "halos", *command]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads((tmp_path / "all/manifest.json").read_text())["processes"] == torch.cuda.device_count()
    start = {name: p.detach() for name, p in load(world.base / "model", "sdpa").named_parameters()}
    moved = [{name: w[name] - start[name] for name in w.keys() & start.keys()}
             for w in map(weights, (tmp_path / "all", one))]  # fmt: skip
    assert distance(*moved) < 1e-3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_of_a_quantised_model_are_trained_and_published(kind: str, world: World, tmp_path: Path) -> None:
    """As well as those of one that is not quantised; a model with other values would not be published."""
    changes = {"loss": "sft", "lr": 1e-2, "lora": {"r": 8, "alpha": 16, "dropout": 0.0}, "examples": 320}
    learned = []
    for name, settings in {"whole": {}, "quantised": {"quantization": kind}}.items():
        model = {**CATALOGUE["models"]["m"], **settings}
        run = World(world.results, C.load({**CATALOGUE, "models": {"m": model}})).train(
            tmp_path / name, "sft", changes=changes
        )
        losses = [line["loss"] for line in log(run) if line["split"] == "eval"]
        learned.append(losses[0] - losses[-1])
    assert learned[0] > 0.1
    assert learned[1] == pytest.approx(learned[0], rel=0.2)


LARGE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
"""A model whose weights take more than the rounding of an allocator: 100 million of them."""


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "lora"])
def test_the_peak_of_memory_is_what_the_plan_says(
    stage: str, precision: str, checkpointing: bool, world: World, tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Within a tenth, for batches of the size that they have: the plan itself is for the longest that there can be."""
    base = base_of(world, tmp_path_factory.getbasetemp() / "large", LARGE)
    config = world.slice(f"runs/d/m/{stage}/seed1", batch_size=64, examples=128, sync_reference=100)
    content = {**read_slice(config), "precision": precision, "attention": "sdpa"}
    if stage == "sft":
        del content["stage"]["sync_reference"]
    config.write_text(dump(content))
    budget = 10**6
    inputs = replace(open_inputs(world, config), parent=base / "model")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer = Trainer(inputs, tmp_path / "run", budget, checkpointing)
    batches = [trainer._prepare(trainer.examples, trainer.batches[step]) for step in range(2)]
    longest = max(batch.parts[0].positions for batch in batches) / 64
    for step in range(2):  # the optimiser's state is there from the second step on
        trainer.step(step)
    found = torch.cuda.max_memory_allocated() - before
    resources = Resources(gpus=1, tokens_per_microbatch=budget, gradient_checkpointing=checkpointing)
    planned = training_memory(
        measured_size(read_config(base / "model")), trainer.stage, precision, resources, math.ceil(longest)
    )
    assert planned.total == pytest.approx(found, rel=0.1)
