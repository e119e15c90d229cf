"""The training loop: its steps, what it logs, and when it refuses to go on."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaMLP

from halos.errors import HalosError
from halos.models.load import load
from halos.seeds import derive
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import PLAIN, are_equal, assert_equal, log, setup, values, weights


def length(changes: list[Tensor]) -> float:
    return math.sqrt(sum(float(change.double().square().sum()) for change in changes))


def test_gradients_are_clipped_by_their_global_norm(world: World, tmp_path: Path) -> None:
    """A step of plain SGD of rate 1 is as long as the norm that was allowed, or as the gradient itself."""
    lengths, norms = [], []
    for limit in (0.01, 1e6):
        trainer = setup(world, tmp_path, "dpo", 300, **{**PLAIN, "lr": 1.0, "warmup": 0, "max_grad_norm": limit})
        before = values(trainer.policy)
        norms.append(trainer.step(0)["grad_norm"])
        lengths.append(length([p - before[n] for n, p in values(trainer.policy).items()]))
    assert norms[0] == norms[1] > 0.01
    assert lengths == pytest.approx([0.01, norms[0]], rel=1e-3)


def test_a_value_heads_gradient_is_clipped_apart(world: World, tmp_path: Path) -> None:
    found = []
    for value_limit, weight in ((0.004, 1.0), (1e6, 2.0)):
        changes = {"lr": 1.0, "warmup": 0, "max_grad_norm": 0.01, "value_max_grad_norm": value_limit}
        trainer = setup(world, tmp_path, "ppo", **{**PLAIN, **changes, "value_weight": weight})
        before = values(trainer.policy)
        norm = trainer.step(0)["grad_norm"]
        moved = {n: p - before[n] for n, p in values(trainer.policy).items()}
        own = length([change for name, change in moved.items() if name.startswith("model.")])
        head = length([change for name, change in moved.items() if name.startswith("value_head.")])
        found.append((norm, own, head))
    assert found[0] == pytest.approx((found[1][0], 0.01, 0.004), rel=1e-3)
    assert found[1][2] > 0.1


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_inner_epochs_are_steps_on_one_batch_whose_examples_count_once(
    stage: str, world: World, tmp_path: Path
) -> None:
    changes = {"inner_epochs": 3, "batch_size": 8, "examples": 16}
    batches = setup(world, tmp_path / "other", stage, **changes).batches
    assert [np.array_equal(batches[k], batches[k + 1]) for k in range(5)] == [True, True, False, True, True]
    run = world.train(tmp_path / "run", stage, changes=changes)
    lines = [line for line in log(run) if line["split"] == "train"]
    assert [line["examples"] for line in lines] == [8, 8, 8, 16, 16, 16]
    assert abs(lines[0]["kl"]) < 1e-4 < abs(lines[1]["kl"])  # the second step goes on from the first
    assert lines[0]["lr"] <= lines[2]["lr"]


@pytest.mark.parametrize("stage", ["dpo", "lora", "ppo", "bradley_terry"])
def test_gradient_checkpointing_changes_no_weight(
    stage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same layers run again in the backward pass, with the same dropout."""
    calls, forward = [0], LlamaMLP.forward
    changes = {**PLAIN, "examples": 24}

    def counted(self: Any, x: Tensor) -> Tensor:
        calls[0] += 1
        return forward(self, x)

    world.reference()  # else the first training would count what makes it
    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain = world.train(tmp_path / "plain", stage, changes=changes)
    once, calls[0] = calls[0], 0
    run = world.train(tmp_path / "run", stage, changes=changes, gradient_checkpointing=True)
    assert calls[0] >= once + 6  # two layers, three steps
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-5, atol=1e-7)
    for a, b in zip(log(plain), log(run), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("_bf16")
def test_small_steps_move_weights_in_bf16(world: World, tmp_path: Path) -> None:
    """Weights in bfloat16 would stay where they are: a step of 5e-7 is below what 0.02 is rounded to."""
    trainer = setup(world, tmp_path, "simpo", precision="bf16", lr=5e-7, warmup=0, optimizer_args={"weight_decay": 0})
    before = values(trainer.policy)
    for k in range(3):
        trainer.step(k)
    after = values(trainer.policy)
    moved = {name: float((value != before[name]).float().mean()) for name, value in after.items()}
    layers = [share for name, share in moved.items() if ".layers." in name]  # others have rows of unseen tokens
    assert min(layers) > 0.8
    assert {value.dtype for value in after.values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["kto", "ppo", "grpo"])
def test_unpaired_data_is_warmed_up_too(stage: str, world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", stage, changes={"warmup": 0.5, "lr": 1e-3, "examples": 32})
    assert [line["lr"] for line in log(run) if line["split"] == "train"] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


def test_the_log_has_a_line_for_each_step_and_evaluations_before_during_and_after(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"eval_every": 3})
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    found = [(line["split"], line["step"]) for line in lines]
    assert [step for split, step in found if split == "train"] == list(range(1, 9))
    assert [step for split, step in found if split == "eval"] == [0, 3, 6, 8]
    assert [line["examples"] for line in lines if line["split"] == "train"] == list(range(8, 65, 8))
    same = {"split", "step", "examples", "loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margin",
            "rewards/accuracy", "logps/chosen", "logps/rejected"}  # fmt: skip
    more = {"lr", "grad_norm", "tokens_per_second", "examples_per_second", "padding_share", "shared_share",
            "peak_memory_gb", "seconds"}  # fmt: skip
    for line in lines:
        assert set(line) == same | (more if line["split"] == "train" else set())
        assert all(math.isfinite(v) for k, v in line.items() if k != "split")
        assert line["rewards/margin"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"])
        assert 0 <= line["rewards/accuracy"] <= 1
        assert line["split"] == "eval" or (line["padding_share"] == 0 < line["shared_share"] < 1)


def test_the_first_step_from_the_reference_has_loss_log_2_and_no_kl(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"examples": 8})
    before, first = log(run)[:2]
    for line in (before, first):
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)
        for key in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margin"):
            assert line[key] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "grpo"])
def test_every_evaluation_is_of_the_same_examples_whatever_the_seed(stage: str, world: World, tmp_path: Path) -> None:
    one, other = (setup(world, tmp_path, stage, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.batches[0], other.batches[0])
    found = one.evaluate(0)
    assert found == one.evaluate(0) == other.evaluate(0)
    one.step(0)
    assert one.evaluate(1) != found


def test_sft_logs_the_mean_over_tokens(world: World, tmp_path: Path) -> None:
    """An untrained model says every token with about the same probability."""
    run = world.train(tmp_path / "run", "sft", changes={"examples": 16})
    vocabulary = load(world.base / "model", "sdpa").config.vocab_size
    assert log(run)[0]["loss"] == pytest.approx(math.log(vocabulary), rel=0.02)


@pytest.mark.parametrize(("stage", "key"), [("sft", "loss"), ("dpo", "loss"), ("kto", "loss"), ("simpo", "loss")])
def test_training_lowers_the_loss_on_held_out_examples(stage: str, key: str, world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", stage, changes={"lr": 3e-3, "examples": 160, "batch_size": 8})
    evaluations = [line[key] for line in log(run) if line["split"] == "eval"]
    assert evaluations[-1] < 0.98 * evaluations[0]


def test_the_learning_rate_of_the_log_is_the_schedules(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "simpo", changes={"scheduler": "linear", "warmup": 2, "lr": 1e-3})
    rates = [line["lr"] for line in log(run) if line["split"] == "train"]
    assert rates == pytest.approx([5e-4, 1e-3, *(1e-3 * (1 - k / 6) for k in range(6))])


def test_the_seed_decides_the_order_of_examples(world: World, tmp_path: Path) -> None:
    one, again, other = (world.train(tmp_path / name, "dpo", seed=seed, changes={"examples": 16})
                         for name, seed in (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    assert_equal(one, again)
    assert any(not torch.equal(v, weights(other)[n]) for n, v in weights(one).items())


def test_a_learning_rate_that_is_far_too_high_stops_the_run_with_a_sentence(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(HalosError, match=r"is (nan|inf) at step 2; lower the learning rate \(now 1e\+30\)"):
        world.train(run, "dpo", changes={"lr": 1e30, "warmup": 0.0})
    assert [p.name for p in run.iterdir()] == ["checkpoints"]
    assert not list((run / "checkpoints").glob("step*"))


@pytest.mark.parametrize("examples", [8, 64])
def test_weights_that_diverge_in_the_last_step_are_not_published(
    examples: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the evaluation at the end sees them: no step follows."""
    run, step = tmp_path / "run", Trainer.step

    def breaking(trainer: Trainer, k: int) -> dict[str, Any]:
        metrics = step(trainer, k)
        if k == len(trainer.batches) - 1:
            next(trainer.policy.parameters()).data.fill_(math.nan)
        return metrics

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(HalosError, match=f"the loss is nan at step {examples // 8}; lower the learning rate"):
        world.train(run, "dpo", changes={"examples": examples})
    assert [p.name for p in run.iterdir()] == ["checkpoints"]
    assert all(math.isfinite(line["loss"]) for line in log(run))


def broken(world: World, folder: Path, name: str) -> Path:
    """The base model with one value of a weight that is no number."""
    shutil.copytree(world.base, folder)
    tensors = load_file(folder / "model/model.safetensors")
    tensors[name][0] = math.nan
    save_file(tensors, folder / "model/model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_named_before_training(name: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="the model is broken: its weights are not finite") as error:
        world.train(tmp_path / "run", "sft", parent=broken(world, tmp_path / "base", name))
    assert name in str(error.value)
    assert "learning rate" not in str(error.value)


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize(("precision", "advised"), [("fp32", False), ("bf16", True)])
def test_a_first_loss_of_sound_weights_that_is_no_number_is_not_the_learning_rates_fault(
    precision: str, advised: bool, world: World, tmp_path: Path
) -> None:
    """Before any update: in an evaluation, or in the first step, whose loss is that of the weights before it."""
    trainer = setup(world, tmp_path / "run", "dpo", precision=precision)
    infinite: Any = defaultdict(lambda: np.full(1, np.inf, np.float32))
    for examples in filter(None, (trainer.examples, trainer.held_out)):
        examples.reference = infinite
    for attempt in (lambda: trainer.evaluate(0), lambda: trainer.step(0)):
        with pytest.raises(HalosError, match="no weight has changed yet, so the learning rate is not the") as error:
            attempt()
        assert ("precision: fp32" in str(error.value)) == advised


# ---- seeds -----------------------------------------------------------------------------------------------------


def test_new_weights_and_the_dropout_of_each_step_have_seeds_of_their_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    plant = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plant(seed))
    trainer = setup(world, tmp_path, "ppo", seed=3)
    trainer.step(0)
    trainer.step(1)
    assert seeds == [derive(3, "weights"), derive(3, "dropout", 0, 0), derive(3, "dropout", 1, 0)]


def test_new_weights_are_those_of_the_seed(world: World, tmp_path: Path) -> None:
    one, again, other = (values(setup(world, tmp_path, "ppo", seed=seed).policy.value_head) for seed in (1, 1, 2))
    assert are_equal(one, again)
    assert not are_equal(one, other)
