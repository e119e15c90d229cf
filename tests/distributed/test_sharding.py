"""Training with weights that are sharded over two processes (FSDP2), by accelerate's own code, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from tests.conftest import World
from tests.distributed.processes import in_processes, run_verbs

PLAIN = {"optimizer": "SGD", "optimizer_args": {}, "lr": 0.3, "batch_size": 7, "examples": 14, "eval_every": 1}


def command(world: World, tmp_path: Path, name: str, stage: str, changes: dict[str, Any], *more: object) -> list[str]:
    config = tmp_path / f"{name}.yaml"
    config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
    files = world.parts(C.Stage(**read_slice(config)["stage"]))
    words = ["train", "--config", config, "--parent", world.base, "--store", world.store, "--output",
             tmp_path / "two" / name, "--tokens-per-microbatch", 400, "--reference", *files, *more]  # fmt: skip
    return list(map(str, words))


@pytest.mark.slow
def test_sharded_processes_train_the_same_weights_as_one(world: World, tmp_path: Path) -> None:
    humanline = {f"{name}_humanline": (name, {"humanline": True}) for name in ("dpo", "kto", "ppo", "grpo")}
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        **{name: (name, {}) for name in LOSSES},
        **humanline,
        # Its sigmoid of temperature .05 makes of a rounding in the first step twenty in the second: a shorter step.
        "discopop": ("discopop", {"lr": 0.03}),
        "lora": (
            "lora",
            {
                "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "path": None},
                "keep_every": 1,
            },
        ),
        "wpo": ("wpo", {"lr": 300.0}),  # a pair's weight is its probability by token, some 1 / 512 ^ 2 here
        "mixture": ("dpo", {"loss": {"dpo": 0.8, "bco": 0.2, "sft": 1.0}}),
        "soft": ("dpo", {"sync_reference": 1, "sync_weight": 0.5}),
        "adamw": ("kto", {"optimizer": "AdamW", "lr": 1e-3, "optimizer_args": {"eps": 1e-3}}),
        "kept": ("dpo", {"keep_every": 1}),
        "checkpointed": ("dpo", {}),
    }
    commands, ones = [], {}
    for name, (stage, changes) in runs.items():
        changes = {**PLAIN, **changes}
        more = ["--gradient-checkpointing"] if name == "checkpointed" else []
        commands.append(command(world, tmp_path, name, stage, changes, *more))
        ones[name] = world.train(tmp_path / "one" / name, stage, changes=changes, tokens_per_microbatch=400)
    assert run_verbs(tmp_path, commands) == [0] * len(commands)
    start = load_file(world.base / "model/model.safetensors")
    for name, file in (("kept", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        one, two = (load_file(tmp_path / part / name / "kept/step1" / file) for part in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=3e-4, atol=1e-6)
    for name, one in ones.items():
        two = tmp_path / "two" / name
        assert json.loads((two / "manifest.json").read_text())["processes"] == 2
        a, b = load_file(one / "model/model.safetensors"), load_file(two / "model/model.safetensors")
        assert a.keys() == b.keys()
        furthest = max(float((w[k] - start[k]).abs().max()) for w in (a, b) for k in w.keys() & start.keys()
                       if w[k].shape == start[k].shape)  # fmt: skip
        assert furthest > 1e-4, f"{name} does not train"
        for key in a.keys() & start.keys():
            if a[key].shape == start[key].shape:
                moved = a[key] - start[key]
                torch.testing.assert_close(
                    b[key] - start[key], moved, rtol=1e-3, atol=1e-3 * float(moved.abs().max()), msg=f"{name} {key}"
                )
        for x, y in zip(read(one), read(two), strict=True):
            assert x.keys() == y.keys()
            assert x["split"] == "eval" or x["padding_share"] == y["padding_share"] == 0
            for key in ("loss", "grad_norm", "kl", "rewards/margin"):
                if key in x:
                    assert x[key] == pytest.approx(y[key], rel=1e-3, abs=1e-4), (name, key)


def read(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_sharded_run_resumes_bit_for_bit_with_as_many_processes_and_no_others(world: World, tmp_path: Path) -> None:
    """Each is stopped after its first step (a checkpoint right after an evaluation) and run again."""
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "kto": ("kto", {"precision": "fp32"}),
        "ppo": ("ppo", {"humanline": True}),
        "lora": ("lora", {}),
        "rmsprop": ("dpo", {"optimizer": "RMSprop", "optimizer_args": {"momentum": 0.5}}),
        # the value head's last layer has one row, of which one of the processes has nothing
        **{
            name: ("ppo", {"optimizer": name, "optimizer_args": {"min_8bit_size": 256}})
            for name in ("AdamW8bit", "PagedAdamW8bit")
        },
    }
    commands = []
    for name, (stage, changes) in runs.items():
        changes = {"examples": 24, "eval_every": 1, **changes}
        changes.pop("precision", None)
        whole = command(world, tmp_path, f"{name}_whole", stage, changes)
        parts = command(world, tmp_path, name, stage, changes)
        commands += [whole, [*parts, "--time-limit", "0"], parts]
    stopped = command(world, tmp_path, "stopped", "dpo", {"examples": 24}, "--time-limit", "0")
    refused = command(world, tmp_path, "refused", "dpo", {"optimizer": "Adafactor", "optimizer_args": {}})
    assert run_verbs(tmp_path, [*commands, stopped, refused]) == [0, 1, 0] * len(runs) + [1, 1]
    assert not (tmp_path / "two/refused").exists()  # torch's Adafactor fails on shards in its first step
    for name in runs:
        whole, resumed = (load_file(tmp_path / f"two/{name}{end}/model/model.safetensors") for end in ("_whole", ""))
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items()), name
    from halos.errors import HalosError

    with pytest.raises(HalosError, match="holds 2 shards and this run has none: launch it as before"):
        world.train(tmp_path / "two/stopped", "dpo", changes={"examples": 24})


STATES = """
import torch
from accelerate import Accelerator
from torch import nn
from halos.distributed.sharding import local, shard
from halos.train.optimizer import make_optimizer
from halos.train.stage import Stage

def trained(name, sharded):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
    net = shard(net, Accelerator()) if sharded else net
    optimizer = make_optimizer(net, Stage(loss="sft", lr=0.01, optimizer=name, optimizer_args={}))
    for _ in range(3):
        net(torch.linspace(-1, 1, 64)[None]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = [local(v) for kept in optimizer.state.values() for v in kept.values() if isinstance(v, torch.Tensor)]
    weights = [p.full_tensor() if sharded else p for p in net.parameters()]
    return sum({v.data_ptr(): v.nbytes for v in state if v.ndim}.values()), weights

(whole, one), (shards, two) = trained("AdamW8bit", False), trained("AdamW8bit", True)
same = all(map(torch.equal, one, two))
print(json.dumps({"same": same, "shards": shards, "float32": trained("AdamW", True)[0], "whole": whole}))
"""


@pytest.mark.slow
def test_states_in_8_bits_are_sharded_and_train_the_same_weights_as_whole_ones(tmp_path: Path) -> None:
    """Bit for bit, as each shard is whole blocks of 256 numbers. A process has half of the states, which are a quarter
    of AdamW's but for the scales of blocks, the vectors and the two tables of 256 numbers."""
    for output in in_processes(tmp_path, 2, STATES, None):
        [line] = [json.loads(line) for line in output if line.startswith("{")]
        assert line["same"]
        tables, vectors = 2 * 256 * 4, (256 + 64) // 2 * 4 * 2
        assert line["shards"] == 16384 * 2 // 2 * (2 + 2 * 4 / 256) + tables + vectors
        assert (line["shards"] - tables) / line["float32"] == pytest.approx(0.26, abs=0.01)
        assert line["shards"] - tables == (line["whole"] - tables) / 2


@pytest.mark.slow
def test_sharded_bf16_computes_in_bfloat16_and_keeps_float32(world: World, tmp_path: Path) -> None:
    """Log-probabilities in bfloat16 would be a hundredth off: the first evaluation must agree with float32's."""
    changes = {**PLAIN, "optimizer": "AdamW", "lr": 5e-7, "optimizer_args": {}}
    runs = {"fp32": "fp32", "bf16": "bf16"}
    for name, precision in runs.items():
        words = command(world, tmp_path, name, "ppo", changes)
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump({**read_slice(path), "precision": precision, "save_precision": "fp32"}))
        assert run_verbs(tmp_path, [words]) == [0]
    full, half = (read(tmp_path / "two" / name) for name in runs)
    assert full[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert 1e-6 < abs(half[0]["kl"]) < 0.05
    assert half[0]["value_error"] == pytest.approx(full[0]["value_error"], rel=1e-2)
    start = load_file(world.base / "model/model.safetensors")
    end = load_file(tmp_path / "two/bf16/model/model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in end.values())
    moved = [float((end[key] != start[key]).float().mean()) for key in start]
    assert sum(moved) / len(moved) > 0.5  # with weights in bfloat16, steps of 5e-7 would move few


@pytest.mark.slow
def test_a_sharded_optimiser_goes_on_in_the_next_round(world: World, tmp_path: Path) -> None:
    """As that of one process does, which would train to other weights from moments of zero."""
    changes = {"lr": 1e-3, "examples": 24, "optimizer_args": {"eps": 1e-3}}
    world.slice("runs/d/m/sft/seed1")

    def round_of(number: int, rounds: int, output: Path, parent: Path) -> list[str]:
        words = command(world, tmp_path, f"round{number}", "simpo", changes)
        path = tmp_path / f"round{number}.yaml"
        path.write_text(dump({**read_slice(path), "round": number, "rounds": rounds}))
        words[words.index("--parent") + 1], words[words.index("--output") + 1] = str(parent), str(output)
        return words

    from halos.cli import main

    ends = {}
    for name, rounds in (("one", 2), ("anew", 0)):
        folder = tmp_path / name
        assert main(round_of(1, rounds, folder / "round1", world.base)) == 0
        assert main(round_of(2, rounds, folder / "round2", folder / "round1")) == 0
        ends[name] = load_file(folder / "round2/model/model.safetensors")
    two = tmp_path / "two"
    first = run_verbs(tmp_path, [round_of(1, 2, two / "round1", world.base)])
    assert {path.name for path in (two / "round1/optimizer").iterdir()} == {
        "meta.json", "optimizer-0.safetensors", "optimizer-1.safetensors"
    }  # fmt: skip
    assert first + run_verbs(tmp_path, [round_of(2, 2, two / "round2", two / "round1")]) == [0, 0]
    ends["two"] = load_file(two / "round2/model/model.safetensors")
    assert (two / "round1/optimizer").exists()  # until round 3 begins, so that round 2 can run again

    def distance(a: str, b: str) -> float:
        return max(float((ends[a][key] - ends[b][key]).abs().max()) for key in ends[a])

    assert distance("one", "two") < 0.02 * distance("one", "anew")
