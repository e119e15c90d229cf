"""Shards of weights and optimiser states that are kept in main memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from pydantic import ValidationError
from safetensors.torch import load_file

from halos.distributed.launch import MODULE, parse
from halos.models.settings import Resources
from halos.plan.memory import main_memory, offloaded, training_memory
from halos.train.stage import Stage
from halos.workflow.resources import launch_options
from tests.conftest import World
from tests.distributed.processes import run_verbs
from tests.distributed.test_sharding import PLAIN, command
from tests.plan.test_plan import SIZE

OFFLOADED = """
from accelerate import FullyShardedDataParallelPlugin
assert type(FullyShardedDataParallelPlugin().cpu_offload).__name__ == "CPUOffloadPolicy"
"""


def test_the_option_reaches_accelerate_of_one_gpu_and_of_several_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpus, nodes in ((1, 1), (4, 1), (4, 2)):
        resources = Resources(gpus=gpus, nodes=nodes, parallel="fsdp", offload=True)
        launch = parse([*launch_options(resources).split(), "train", "--output", "o"])
        words = launch.command({}) if nodes == 1 else launch._srun({})
        if nodes > 1:
            launch = parse(words[words.index(MODULE) + 1 :])
            words = launch.command({"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "n1"})
        arguments = launch_command_parser().parse_args(words[3:])
        assert (arguments.fsdp_offload_params, arguments.num_processes) == ("true", gpus * nodes)
        assert Path(arguments.config_file).name == "fsdp.yaml"
        assert launch.variables()["HALOS_PROCESSES"] == str(gpus * nodes)
    without = parse([*launch_options(Resources(gpus=1, parallel="fsdp")).split(), "train"])
    assert "accelerate.commands.launch" not in without.command({})


@pytest.mark.parametrize("resources", [{"gpus": 1}, {"parallel": "fsdp"}])
def test_there_has_to_be_something_to_offload(resources: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="offload moves what fsdp shards over GPUs"):
        Resources(offload=True, **resources)  # type: ignore[arg-type]


def test_what_is_offloaded_is_planned_in_main_memory() -> None:
    """1000 weights, their gradients and two moments, 16 bytes each, leave the GPUs."""
    stage = Stage(loss="sft", batch_size=4)
    here, there = (Resources(gpus=2, parallel="fsdp", offload=offload) for offload in (False, True))
    one, other = (training_memory(SIZE, stage, "bf16", resources, 32) for resources in (here, there))
    assert one.weights + one.gradients + one.optimizer == 16 * 1000 / 2
    assert (other.weights, other.gradients, other.optimizer) == (0, 0, 0)
    assert other.buffers == one.buffers
    shards = offloaded(SIZE, stage, None)
    assert shards == 16 * 1000
    assert main_memory(SIZE, there, other, shards=shards) - main_memory(SIZE, here, one) == shards


ADAMW = {**PLAIN, "optimizer": "AdamW", "lr": 1e-3, "optimizer_args": {"eps": 1e-3}, "examples": 24}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "value head": ("ppo", ADAMW),
    "8 bits": ("dpo", {**ADAMW, "optimizer": "AdamW8bit", "optimizer_args": {"eps": 1e-3, "min_8bit_size": 256}}),
    "adapters": ("dpo", {**ADAMW, "lora": {"r": 4, "alpha": 8, "dropout": 0.0}, "sync_reference": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_offloaded_shards_train_to_the_same_weights_and_resume_bit_for_bit(
    processes: int, world: World, tmp_path: Path
) -> None:
    """On the CPU, where they are in main memory in any case, by FSDP's own code for it."""
    commands = []
    for name, (stage, changes) in RUNS.items():
        parts = command(world, tmp_path, f"{name} parts", stage, changes)
        commands += [command(world, tmp_path, f"{name} whole", stage, changes), [*parts, "--time-limit", "0"], parts]
    codes = run_verbs(tmp_path, commands, processes, "fsdp", OFFLOADED, "--fsdp_offload_params", "true")
    assert codes == [0, 1, 0] * len(RUNS)
    start = load_file(world.base / "model/model.safetensors")
    for name, (stage, changes) in RUNS.items():
        one = world.train(tmp_path / "one" / name, stage, changes=changes, tokens_per_microbatch=400)
        whole, resumed = (
            load_file(tmp_path / f"two/{name} {part}/model/model.safetensors") for part in ("whole", "parts")
        )
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
        for key, tensor in load_file(one / "model/model.safetensors").items():
            moved = tensor - start[key]
            atol = 1e-2 * float(moved.abs().max())
            torch.testing.assert_close(whole[key] - start[key], moved, rtol=1e-2, atol=atol)
