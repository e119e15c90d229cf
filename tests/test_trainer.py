"""The training loop: exact resumption, gradients that do not depend on how a batch is cut, and an honest end."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halos import config as C
from halos import trainer as T
from halos.cli import main
from halos.config import read_slice
from halos.data.store import Store
from halos.errors import HalosError
from halos.models import load
from halos.provenance import hash_weights
from halos.reference import Reference, expected_hashes, parts_for
from halos.trainer import Stopped, Trainer, learning_rate
from tests.conftest import World

ROOT = Path(__file__).parent.parent
UNLIKE = {"split", "padding_share", "rewards/accuracy"}
"""What may differ in the log of a batch that is cut otherwise: rounding decides the accuracy where policy and reference
are equal."""
TIMING = {"seconds", "tokens_per_second", "peak_memory_gb"}
PLAIN = {"optimizer": "SGD", "optimizer_args": {}, "lr": 0.3}
"""An optimiser whose step is its gradient: AdamW would blow rounding errors of tiny gradients up to full steps."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Give pytest its signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def log(run: Path) -> list[dict[str, Any]]:
    """train.jsonl, or the unfinished run's, without what differs from run to run."""
    path = run / "train.jsonl" if (run / "train.jsonl").exists() else run / "checkpoints/train.jsonl"
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model/model.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_close(one: Path, other: Path, parent: Path, rtol: float = 1e-4) -> None:
    """The changes that two trainings made to the parent's weights are the same, and are some."""
    a, b, start = weights(one), weights(other), weights(parent)
    for name in start:
        moved = a[name] - start[name]
        assert moved.abs().max() > 0, name
        torch.testing.assert_close(b[name] - start[name], moved, rtol=rtol, atol=rtol * float(moved.abs().max()))


class StopAfter:
    """Stops the run after so many of its own steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, steps: int, run: Any) -> None:
        calls = 0

        def reason(trainer: Trainer) -> str | None:
            nonlocal calls
            calls += 1
            return "a test" if calls == steps else None

        with self.monkeypatch.context() as patch:
            patch.setattr(Trainer, "_stop_reason", reason)
            with pytest.raises(Stopped, match=r"stopped by a test after step .* with a checkpoint"):
                run()


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    return StopAfter(monkeypatch)


def setup(world: World, output: Path, stage: str, budget: int = 2048, **changes: Any) -> Trainer:
    """A trainer that has not begun."""
    config = world.slice(f"runs/d/m/{stage}/seed1", **changes)
    loss = T.make_loss(read_slice(config)["stage"])
    files = dict(zip(("responses", "mismatched"), world.reference(), strict=True))
    return Trainer(config, world.base, world.store, output, [files[p] for p in parts_for(loss)], budget, None)


# ---- resumption ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["dpo", "kto", "simpo", "lora", "sft"])
def test_a_stopped_and_resumed_run_is_bit_for_bit_as_never_stopped(
    stage: str, world: World, tmp_path: Path, stop_after: StopAfter
) -> None:
    changes = {"eval_every": 3, "scheduler": "cosine"}
    whole = world.train(tmp_path / "whole", stage, changes=changes)
    run = tmp_path / "stopped"
    stop_after(2, lambda: world.train(run, stage, changes=changes))
    assert not (run / "model").exists()
    assert not (run / "manifest.json").exists()
    stop_after(3, lambda: world.train(run, stage, changes=changes))
    assert [p.name for p in (run / "checkpoints").glob("step*")] == ["step5"]
    world.train(run, stage, changes=changes)
    assert_equal(whole, run)
    assert log(whole) == log(run)
    tokens = [json.loads((r / "manifest.json").read_text())["tokens"] for r in (whole, run)]
    assert tokens[0] == tokens[1] > 0


def test_a_killed_run_goes_on_from_its_last_checkpoint_whatever_its_log_says(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 5, after the checkpoint of step 3, with a line half-written."""
    whole = world.train(tmp_path / "whole", "kto")
    run, step = tmp_path / "killed", Trainer.step

    def killed(trainer: Trainer, k: int) -> dict[str, Any]:
        if k == 4:
            raise KeyboardInterrupt
        return step(trainer, k)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        world.train(run, "kto")
    monkeypatch.undo()
    assert [line["step"] for line in log(run)] == [0, 1, 2, 3, 4]
    with (run / "checkpoints/train.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    world.train(run, "kto")
    assert_equal(whole, run)
    assert log(whole) == log(run)


def test_a_run_that_dies_while_it_publishes_ends_the_same_and_has_no_manifest_before(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.train(tmp_path / "whole", "dpo")
    run = tmp_path / "dying"

    def dies(path: Path, content: Any) -> None:
        assert path == run / "manifest.json"
        assert_equal(whole, run)
        assert log(run) == log(whole)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(T, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            world.train(run, "dpo")
    assert not (run / "manifest.json").exists()
    world.train(run, "dpo")
    assert_equal(whole, run)
    assert log(whole) == log(run)


def test_a_checkpoint_of_another_config_is_not_resumed(world: World, tmp_path: Path, stop_after: StopAfter) -> None:
    run = tmp_path / "run"
    stop_after(4, lambda: world.train(run, "dpo", changes={"beta": 0.5}))
    world.train(run, "dpo")
    fresh = world.train(tmp_path / "fresh", "dpo")
    assert_equal(fresh, run)
    assert log(fresh) == log(run)


def test_a_time_limit_stops_with_a_checkpoint_and_the_command_fails(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = world.slice("runs/d/m/simpo/seed1")
    command = ["train", "--config", config, "--parent", world.base, "--store", world.store, "--output", run]
    assert main([*map(str, command), "--time-limit", "0"]) == 1
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert message.startswith("error: stopped by its time limit after step 1 of 8, with a checkpoint; run the same")
    assert (run / "checkpoints/step1/meta.json").is_file()
    assert not (run / "manifest.json").exists()
    assert main([*map(str, command), "--time-limit", "60"]) == 0
    assert_equal(world.train(tmp_path / "whole", "simpo"), run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    number: signal.Signals, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def signalled(trainer: Trainer, k: int) -> dict[str, Any]:
        if k == 1:
            os.kill(os.getpid(), number)
        return step(trainer, k)

    monkeypatch.setattr(Trainer, "step", signalled)
    with pytest.raises(Stopped, match="stopped by a signal after step 2 of 8"):
        world.train(tmp_path / "run", "dpo")
    assert (tmp_path / "run/checkpoints/step2/meta.json").is_file()


# ---- what a batch's gradient depends on ------------------------------------------------------------------------


def plain_gradient(trainer: Trainer, world: World) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the first global batch: every sequence alone, the loss written out from the papers."""
    model, store = load(world.base / "model", "sdpa").train(), Store(world.store)
    reference = Reference(world.reference(), expected_hashes(world.base, store))
    indices, rows, s = trainer.batches[0], trainer.examples.rows, trainer.stage

    def logps(row: int) -> Tensor:
        prompt, response = store.sequence(row)
        ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
        found = model(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        taken: Tensor = found.gather(1, ids[len(prompt) :, None])[:, 0]
        return taken

    def ratio(role: str, i: int) -> Tensor:
        row = rows[role][i]
        return (logps(row) - torch.tensor(reference[row])).sum()

    log_sigmoid = torch.nn.functional.logsigmoid
    if s["loss"] == "sft":
        every = torch.cat([logps(rows["response"][i]) for i in indices])
        loss = -every.mean()
    elif s["loss"] == "dpo":
        margins = [ratio("chosen", i) - ratio("rejected", i) for i in indices]
        loss = -log_sigmoid(s["beta"] * torch.stack(margins)).mean()
    elif s["loss"] == "simpo":
        margins = [logps(rows["chosen"][i]).mean() - logps(rows["rejected"][i]).mean() for i in indices]
        loss = -log_sigmoid(s["beta"] * (torch.stack(margins) - s["gamma_beta_ratio"])).mean()
    else:
        with torch.no_grad():
            z = torch.stack([ratio("mismatched", i) for i in indices]).mean().clamp(min=0)
        assert trainer.examples.desirable is not None
        signs = torch.tensor([1.0 if trainer.examples.desirable[i] else -1.0 for i in indices])
        rewards = torch.stack([ratio("response", i) for i in indices])
        loss = (1 - torch.sigmoid(s["beta"] * signs * (rewards - z))).mean()
    loss.backward()
    return float(loss), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def moved(world: World, tmp_path: Path) -> World:
    """The same world with better weights than its reference was made from, so that log-ratios and z are not 0."""
    world.reference()
    other = copy.copy(world)
    other.results = tmp_path / "moved"
    shutil.copytree(world.results, other.results)
    better = world.train(tmp_path / "better", "sft", changes={"lr": 3e-3})
    shutil.copy(better / "model/model.safetensors", other.base / "model")  # but not its manifest: the reference fits
    return other


@pytest.mark.parametrize("stage", ["sft", "dpo", "simpo", "kto"])
def test_the_gradient_of_a_global_batch_is_the_plain_one_however_it_is_cut(
    stage: str, world: World, tmp_path: Path
) -> None:
    other = moved(world, tmp_path)
    found: dict[int, int] = {}
    for budget in (1, 250, 10**6):
        trainer = setup(other, tmp_path / "run", stage, budget)
        loss, expected = plain_gradient(trainer, other)
        metrics, sizes = trainer._over_batch(trainer.examples, trainer.batches[0], backward=True)
        found[budget] = sizes["padded"]
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        if stage == "kto":
            assert metrics["batch/kl"] > 0.1  # or z would be 0, and prove nothing
        actual = {n.removeprefix("model."): p.grad for n, p in trainer.policy.named_parameters()}
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5 * scale)
    assert found[1] <= found[250] < found[10**6]  # one row at a time has least padding


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "simpo"])
def test_trained_weights_do_not_depend_on_the_token_budget(stage: str, world: World, tmp_path: Path) -> None:
    one = world.train(tmp_path / "one", stage, changes=PLAIN, tokens_per_microbatch=1)
    all_ = world.train(tmp_path / "all", stage, changes=PLAIN, tokens_per_microbatch=10**6)
    assert_close(one, all_, world.base)
    for a, b in zip(log(one), log(all_), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - UNLIKE:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), key


def test_gradients_are_clipped_by_their_global_norm(world: World, tmp_path: Path) -> None:
    """A step of plain SGD of rate 1 is as long as the norm that was allowed."""
    changes = {**PLAIN, "lr": 1.0, "warmup": 0.0, "examples": 8, "max_grad_norm": 0.01}
    run = world.train(tmp_path / "run", "dpo", changes=changes, tokens_per_microbatch=300)
    start, end = weights(world.base), weights(run)
    length = math.sqrt(sum(float((end[n] - start[n]).double().square().sum()) for n in start))
    [line] = [line for line in log(run) if line["split"] == "train"]
    assert line["grad_norm"] > 0.01  # before clipping
    assert length == pytest.approx(0.01, rel=1e-3)


SCRIPT = """
import json, sys
from halos.cli import main

codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
print("codes", codes)
"""


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(world: World, tmp_path: Path) -> None:
    """`single` has one example in a batch, so that one process always has a filler; `stopped` is resumed."""
    runs: dict[str, tuple[str, dict[str, Any], int]] = {
        "kto": ("kto", {"batch_size": 7}, 1),
        "dpo": ("dpo", {"batch_size": 7}, 1),
        "sft": ("sft", {}, 1),
        "single": ("kto", {"batch_size": 1, "examples": 4}, 1),
        "stopped": ("dpo", {"batch_size": 7}, 2),
    }
    commands, expected = [], {}
    for name, (stage, changes, times) in runs.items():
        changes = {**PLAIN, **changes, "eval_every": 4}
        expected[name] = world.train(tmp_path / "one" / name, stage, changes=changes, tokens_per_microbatch=400)
        config = tmp_path / f"{name}.yaml"
        config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
        files = {"kto": world.reference(), "dpo": world.reference()[:1], "sft": []}[stage]
        command = ["train", "--config", config, "--parent", world.base, "--store", world.store, "--output",
                   tmp_path / "two" / name, "--tokens-per-microbatch", 400, "--reference", *files]  # fmt: skip
        commands += [[*map(str, command), *(["--time-limit", "0"] if k + 1 < times else [])] for k in range(times)]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "profiles/accelerate/ddp.yaml",
         "--num_processes", "2", script, json.dumps(commands)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("codes [0, 0, 0, 0, 1, 0]") == 2
    for name, one in expected.items():
        two = tmp_path / "two" / name
        manifests = [json.loads((run / "manifest.json").read_text()) for run in (one, two)]
        assert [m["processes"] for m in manifests] == [1, 2]
        assert manifests[0]["tokens"] == manifests[1]["tokens"]
        assert_close(one, two, world.base, rtol=3e-4)
        for a, b in zip(log(one), log(two), strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - UNLIKE:
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), (name, key)


@pytest.mark.slow
def test_torchrun_connects_its_processes_without_a_gpu(world: World, tmp_path: Path) -> None:
    changes = {**PLAIN, "examples": 8, "batch_size": 8}
    config = world.slice("runs/d/m/simpo/seed1", **changes)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "halos",
         "train", "--config", config, "--parent", world.base, "--store", world.store, "--output", tmp_path / "two"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two/manifest.json").read_text())["processes"] == 2
    assert_close(world.train(tmp_path / "one", "simpo", changes=changes), tmp_path / "two", world.base, rtol=3e-4)


def test_a_filler_counts_in_no_metric(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes, three examples, each process looked at alone: the fourth has nothing to tell."""
    trainer = setup(world, tmp_path / "run", "dpo")
    found = []
    for rank in range(4):
        alone = type("Alone", (), {"process_index": rank, "num_processes": 4, "device": torch.device("cpu"),
                                   "reduce": staticmethod(lambda total, reduction: total)})()  # fmt: skip
        monkeypatch.setattr(trainer, "accelerator", alone)
        with torch.no_grad():
            found.append(trainer._over_batch(trainer.examples, np.array([0, 1, 2]), backward=False))
    assert [set(metrics) == {"loss"} for metrics, _ in found] == [False, False, False, True]
    assert [sizes["tokens"] > 0 for _, sizes in found] == [True, True, True, False]
    assert sum(metrics["loss"] for metrics, _ in found) == pytest.approx(math.log(2), abs=1e-4)


def test_processes_that_do_not_find_each_other_are_refused(world: World, tmp_path: Path) -> None:
    """Launched as two, but connected to none: without the refusal, two runs would write over each other."""
    from halos.models import accelerator_for

    with pytest.MonkeyPatch.context() as patch:
        accelerator_for("fp32")
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(HalosError, match="2 processes were launched but 1 found each other"):
            accelerator_for("fp32")


# ---- what is logged and left behind ----------------------------------------------------------------------------


def test_the_log_has_a_line_for_each_step_and_evaluations_before_during_and_after(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"eval_every": 3})
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    found = [(line["split"], line["step"]) for line in lines]
    assert [step for split, step in found if split == "train"] == list(range(1, 9))
    assert [step for split, step in found if split == "eval"] == [0, 3, 6, 8]
    assert [line["examples"] for line in lines if line["split"] == "train"] == list(range(8, 65, 8))
    same = {"split", "step", "examples", "loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margin",
            "rewards/accuracy"}  # fmt: skip
    more = {"lr", "grad_norm", "tokens_per_second", "padding_share", "peak_memory_gb", "seconds"}
    for line in lines:
        assert set(line) == same | (more if line["split"] == "train" else set())
        assert all(math.isfinite(v) for k, v in line.items() if k != "split")
        assert line["rewards/margin"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"])
        assert 0 <= line["rewards/accuracy"] <= 1
        assert line["split"] == "eval" or 0 <= line["padding_share"] < 1


def test_the_first_step_from_the_reference_has_loss_log_2_and_no_kl(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"examples": 8})
    before, first = log(run)[:2]
    for line in (before, first):
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)
        for key in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margin"):
            assert line[key] == pytest.approx(0, abs=1e-4)


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


def test_the_manifest_ties_the_model_to_what_made_it(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "kto")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["weights"] == hash_weights(run / "model") != hash_weights(world.base / "model")
    assert manifest["inputs"] == expected_hashes(world.base, Store(world.store))
    assert manifest["config"] == read_slice(world.results / "runs/d/m/kto/seed1/config.yaml")
    assert (manifest["steps"], manifest["processes"], manifest["gpu_hours"]) == (8, 1, 0)
    assert manifest["parameters"] == sum(v.numel() for v in weights(run).values())
    assert {"packages", "commit", "hardware", "python", "seconds", "tokens", "peak_memory_gb"} <= set(manifest)
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "model", "train.jsonl"]
    times = {p.name: p.stat().st_mtime_ns for p in (run / "manifest.json", run / "train.jsonl", run / "model")}
    assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_a_trained_model_is_a_parent_like_the_base_model(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft")
    child = world.train(tmp_path / "sft-simpo", "simpo", parent=parent)
    manifest = json.loads((child / "manifest.json").read_text())
    assert manifest["inputs"]["weights"] == json.loads((parent / "manifest.json").read_text())["weights"]
    parents = {p.name for p in (parent / "model").iterdir()}
    assert {p.name for p in (child / "model").iterdir()} == parents
    assert "chat_template.jinja" in parents


def test_the_seed_decides_the_order_of_examples(world: World, tmp_path: Path) -> None:
    one, again, other = (world.train(tmp_path / name, "dpo", seed=seed, changes={"examples": 16})
                         for name, seed in (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    assert_equal(one, again)
    assert any(not torch.equal(v, weights(other)[n]) for n, v in weights(one).items())


# ---- what is refused -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("stage", "count"), [("dpo", 0), ("dpo", 2), ("kto", 1), ("simpo", 1)])
def test_a_wrong_number_of_reference_files_is_refused(stage: str, count: int, world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=f"the loss {stage} reads .* of the reference"):
        world.train(tmp_path / "run", stage, reference=world.reference()[:count])


def test_the_wrong_part_of_the_reference_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="is in no part of the reference"):
        world.train(tmp_path / "run", "dpo", reference=world.reference()[1:])


def test_a_reference_of_other_weights_is_refused(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft", changes={"examples": 16})
    with pytest.raises(HalosError, match="was made from other weights than this training uses"):
        world.train(tmp_path / "run", "dpo", parent=parent)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [{"momentum": 2}, {"betas": [2, 3]}, {"eps": "tiny"}])
def test_optimiser_arguments_that_cannot_be_are_one_sentence(
    arguments: dict[str, Any], world: World, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match="optimizer_args of AdamW: "):
        world.train(tmp_path / "run", "simpo", changes={"optimizer_args": arguments})


def test_a_parent_that_is_not_finished_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="the parent model is not finished"):
        world.train(tmp_path / "run", "simpo", parent=tmp_path)


# ---- the schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "scheduler", "expected"),
    [
        (0, "constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        (0.5, "constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (4, "constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (1, "constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        (0, "linear", [1 - k / 8 for k in range(8)]),
        (4, "linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        (0, "cosine", [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
        (4, "cosine", [0.25, 0.5, 0.75, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]),
        (8, "linear", [k / 8 for k in range(1, 9)]),
        (16, "cosine", [k / 16 for k in range(1, 9)]),
    ],
)
def test_the_schedule_equals_its_closed_form(warmup: float, scheduler: str, expected: list[float]) -> None:
    assert [learning_rate(k, 8, warmup, scheduler) for k in range(8)] == pytest.approx(expected)


def test_unpaired_data_is_warmed_up_too(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "kto", warmup=0.5)
    assert learning_rate(0, len(trainer.batches), trainer.stage["warmup"], "constant") == 0.25


def test_every_scheduler_that_the_catalogue_allows_is_known() -> None:
    from typing import get_args

    for name in get_args(C.Stage.model_fields["scheduler"].annotation):
        assert 0 <= learning_rate(3, 8, 0.1, name) <= 1
