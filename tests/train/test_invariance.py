"""What a training does not depend on: how a global batch is cut or padded, and how many processes share it."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from halos import losses as L
from halos.distributed.accelerator import accelerator_for
from halos.errors import HalosError
from halos.models.load import load
from halos.settings import read_slice
from halos.study import catalogue as C
from halos.tokens.store import Store
from halos.train.objective import Sizes
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import CASES, PLAIN, log, setup, weights

ROOT = Path(__file__).parents[2]
UNLIKE = {"split", "padding_share", "shared_share", "rewards/accuracy"}
"""What may differ in the log of a batch that is cut otherwise: rounding decides the accuracy where policy and reference
are equal."""


# ---- the gradient of a global batch ----------------------------------------------------------------------------

Forward = Callable[[Any, list[Tensor]], list[tuple[Tensor, Tensor]]]
"""A plain model and the ids of sequences -> of each its (L, V) logits, or its (1,) score, and its (L, H) states."""


def one_by_one(model: Any, sequences: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    outs = [model(input_ids=ids[None], output_hidden_states=True) for ids in sequences]
    return [(out.logits[0], out.hidden_states[-1][0]) for out in outs]


def padded_on_the_left(model: Any, sequences: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    width = max(map(len, sequences))
    padding = [width - len(ids) for ids in sequences]
    pad = model.config.pad_token_id
    ids = torch.stack([nn.functional.pad(x, (n, 0), value=pad) for x, n in zip(sequences, padding, strict=True)])
    mask = torch.arange(width) >= torch.tensor(padding)[:, None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, output_hidden_states=True)
    states = [hidden[n:] for hidden, n in zip(out.hidden_states[-1], padding, strict=True)]
    if out.logits.ndim == 3:
        return [(logits[n:], state) for logits, n, state in zip(out.logits, padding, states, strict=True)]
    return list(zip(out.logits, states, strict=True))


class PlainBatch:
    """The first global batch of a trainer, straight from the store: no microbatch, no cache, no chunk of logits.

    Attributes:
        rows: role -> sequence row of each response.
        labels: what a loss is told of the responses.
        share: (B,) of its example that a response is: 1, or 1 / the size of its group.
        examples: how many there are.
    """

    def __init__(self, trainer: Trainer, world: World) -> None:
        self.trainer, self.store = trainer, Store(world.store)
        found = self.store.view("train", trainer.stage.reads).take(trainer.batches[0]).to_pylist()
        self.examples, self.share = len(found), torch.ones(len(found))
        view, self.labels = trainer.loss.view.name, {}
        if view == "sft":
            self.rows = {"response": [row["sequence"] for row in found]}
        elif view == "paired":
            self.rows = {role: [row[role] for row in found] for role in ("chosen", "rejected")}
        elif view == "unpaired":
            self.rows = {"response": [row["sequence"] for row in found], "mismatched": [r["mismatched"] for r in found]}
            self.labels["desirable"] = torch.tensor([bool(row["desirable"]) for row in found])
            self.labels["scores"] = torch.tensor([math.nan if r["score"] is None else r["score"] for r in found])
        else:
            self.rows = {"response": [sequence for row in found for sequence in row["sequences"]]}
            groups = [torch.tensor(row["scores"], dtype=torch.float64) for row in found]
            self.share = torch.cat([torch.full((len(g),), 1 / len(g)) for g in groups])
            normalised = [(g - g.mean()) / g.std(correction=0).clamp(min=1e-6) for g in groups]
            self.labels["scores"], self.labels["advantages"] = torch.cat(groups).float(), torch.cat(normalised).float()

    def sequences(self, role: str) -> list[tuple[Tensor, int]]:
        """(ids, where the response begins) of each sequence."""
        control = self.trainer.loss.control.get(role)
        before = [] if control is None else [self.trainer.tokenizer.convert_tokens_to_ids(control)]
        pairs = [self.store.sequence(row) for row in self.rows[role]]
        return [(torch.tensor([*p, *before, *r], dtype=torch.long), len(p) + len(before)) for p, r in pairs]

    def read(self, forward: Forward, model: Any, head: Any = None, *, role: str) -> dict[str, Tensor]:
        """Of a role: (B, T) `mask` and `logps`, and `values` of a head; or the (B,) `rewards` of a reward model."""
        sequences = self.sequences(role)
        found: dict[str, list[Tensor]] = {"mask": [], "logps": [], "values": [], "rewards": []}
        for (ids, start), (out, states) in zip(sequences, forward(model, [ids for ids, _ in sequences]), strict=True):
            found["mask"].append(torch.ones(len(ids) - start, dtype=torch.bool))
            if self.trainer.loss.head == "score":
                found["rewards"].append(out[0])
            else:
                found["logps"].append(out.log_softmax(-1)[start - 1 : -1].gather(1, ids[start:, None])[:, 0])
            if head is not None:
                states = states[start - 1 : -1].detach().to(next(head.parameters()).device)
                found["values"].append(head(states)[:, 0].to(out.device))
        return {k: pad_sequence(v, True) if v[0].ndim else torch.stack(v) for k, v in found.items() if v}


def objective(plain: PlainBatch, policy: L.Logps, reference: L.Logps, batch: L.Batch) -> Tensor:
    """The loss called once on the whole batch, and its mean over tokens, examples or groups."""
    loss, stage = plain.trainer.loss, plain.trainer.stage

    def clamped(logps: L.Logps) -> dict[str, Tensor]:
        if not stage.humanline:
            return dict(logps)
        return {k: reference[k] + (logps[k] - reference[k]).clamp(stage.log_eps_p, stage.log_eps_r) for k in logps}

    with torch.no_grad():
        batch = replace(batch, statistics=loss.statistics(clamped(policy), reference, batch) if loss.prepass else {})
    losses = loss(clamped(policy), reference, batch).losses
    if loss.per_token:
        return losses.sum() / sum(mask.sum() for role, mask in batch.mask.items() if role != "mismatched")
    return (losses * plain.share).sum() / plain.examples


def assert_noise_decides_nothing(plain: PlainBatch, policy: L.Logps, reference: L.Logps, batch: L.Batch) -> None:
    """Log-probabilities of float32 are sure to about 1e-6. None of the batch is so near a kink (a hinge, a clip, a tie
    of ranks) that ten times as much moves it to the other side: a gradient would differ by a whole token or pair."""
    generator = torch.Generator().manual_seed(0)
    kinds = {"logps": policy, "values": batch.values, "rewards": batch.rewards}

    def gradient(noise: float) -> Tensor:
        moved = {
            kind: {role: (x.detach() + noise * torch.randn(x.shape, generator=generator).sign()).requires_grad_()
                   for role, x in values.items()}
            for kind, values in kinds.items()
        }  # fmt: skip
        batches = replace(batch, values=moved["values"], rewards=moved["rewards"])
        leaves = [x for values in moved.values() for x in values.values()]
        value = objective(plain, moved["logps"], reference, batches)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    expected = gradient(0.0)
    for _ in range(10):
        torch.testing.assert_close(gradient(1e-5), expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def plainly(model: Any) -> Any:
    """The model itself, with transformers' own attention."""
    (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation("sdpa")
    return model


def plain_gradient(trainer: Trainer, world: World, forward: Forward) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the first global batch, the reference run anew."""
    plain, loss, stage = PlainBatch(trainer, world), trainer.loss, trainer.stage
    modules = {"model.": plainly(copy.deepcopy(trainer.policy.model).train())}
    if loss.head == "value":
        modules["value_head.layers."] = copy.deepcopy(trainer.policy.value_head.layers)
    read = {role: plain.read(forward, *modules.values(), role=role) for role in plain.rows}
    out = {
        key: {role: found[key] for role, found in read.items() if key in found}
        for key in ("logps", "values", "rewards", "mask")
    }
    reference: L.Logps = {}
    if loss.needs_reference:
        base = load(world.base / "model", "sdpa")
        with torch.no_grad():
            reference = {role: plain.read(forward, base, role=role)["logps"] for role in plain.rows}
    batch = L.Batch(mask=out["mask"], values=out["values"], rewards=out["rewards"], **plain.labels)
    if stage.humanline:
        ratios = torch.cat([(out["logps"][role] - reference[role])[batch.mask[role]] for role in plain.rows])
        assert 0.05 < ((ratios < stage.log_eps_p) | (ratios > stage.log_eps_r)).float().mean() < 0.95
    assert_noise_decides_nothing(plain, out["logps"], reference, batch)
    value = objective(plain, out["logps"], reference, batch)
    value.backward()
    return value.item(), {p + n: w.grad for p, m in modules.items() for n, w in m.named_parameters()}


@pytest.fixture(scope="module")
def better(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights other than the reference's: with equal ones ratios, z and ranks are trivial, and clips out of reach."""
    return weights(world.train(tmp_path_factory.mktemp("better"), "sft", changes={"lr": 1e-3, "examples": 80}))


BEYOND = {
    "hinge": {"beta": 1.0},
    **{case: {"log_eps_p": -0.2, "log_eps_r": 0.3} for case in CASES if CASES[case][1].get("humanline")},
}
"""Settings that put some of this small batch beyond a kink that nothing would reach by default."""


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_global_batch_is_the_plain_one_however_it_is_cut(
    case: str, world: World, better: dict[str, Tensor], tmp_path: Path
) -> None:
    stage, changes = CASES[case]
    trainer = setup(world, tmp_path / "run", stage, **changes, **BEYOND.get(case, {}))
    with torch.no_grad():
        for name, parameter in trainer.policy.model.named_parameters():
            if name in better:  # control tokens and a score layer have new ones of their own
                parameter[: len(better[name])] = better[name]
    loss, expected = plain_gradient(trainer, world, one_by_one)
    padded, same = plain_gradient(trainer, world, padded_on_the_left)
    assert padded == pytest.approx(loss, rel=1e-5, abs=1e-6)
    found: dict[Any, dict[str, Tensor]] = {"padded on the left": same}
    assert trainer.examples.packed
    sizes: dict[bool, list[Sizes]] = {True: [], False: []}
    for packed, budget in product((True, False), (1, 250, 10**6)):
        if not packed:
            for wrapped in filter(None, (trainer.policy, trainer.live)):
                plainly(wrapped.model)
        trainer.budget, trainer.examples.packed = budget, packed
        trainer.policy.train().zero_grad()
        metrics, size = trainer.objective(trainer._prepare(trainer.examples, trainer.batches[0]), backward=True)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert metrics.get("batch/kl", 1) > 0.1  # or the z of KTO would be 0, and prove nothing
        found[packed, budget] = {n: p.grad.clone() for n, p in trainer.policy.named_parameters()}
        sizes[packed].append(size)
    padding = [1 - size.real / size.positions for size in sizes[False]]
    assert padding[0] <= padding[1] < padding[2]  # one row at a time has least
    assert all(size.positions == size.real <= size.tokens for size in sizes[True])
    for actual in found.values():
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            largest = float(gradient.abs().max())
            assert largest > 0
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5 * largest)


# ---- trained weights ---------------------------------------------------------------------------------------------

SHORT = {**PLAIN, "batch_size": 7, "examples": 21}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: (stage, {**SHORT, **changes}) for case, (stage, changes) in CASES.items()},
    # after a small step many ratios are about 1.01: rounding would decide which of them its own clip lets through
    "grpo": ("grpo", {**SHORT, "epsilon": 0.5}),
    "humanline_grpo": ("grpo", {**SHORT, "epsilon": 0.5, "humanline": True}),
}
"""Three steps on batches of seven, which two processes cannot share equally."""
TWICE: dict[str, tuple[str, dict[str, Any]]] = {
    "filler": ("kto", {**SHORT, "batch_size": 1, "examples": 3}),
    "clipped": ("ppo", {**SHORT, "max_grad_norm": 0.01, "value_max_grad_norm": 0.01}),
    "resumed": ("dpo", {**SHORT, "optimizer_args": {"momentum": 0.9}}),
    "adapters": ("dpo", {**SHORT, "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}),
    "adapters_with_control_tokens": ("csft", {**SHORT, "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}),
}
"""More for two processes: one has nothing but a filler; a norm that is of both shares; a stop after the first step."""


def assert_close(one: Path, other: Path, parent: Path, rtol: float = 1e-4) -> None:
    """The changes that two trainings made to the parent's weights are the same, and most weights have changed."""
    a, b, start = weights(one), weights(other), weights(parent)
    assert a.keys() == b.keys()
    moved = []
    for name in a:
        begun = torch.zeros_like(a[name])  # control tokens and score layers are not the parent's
        if name in start:
            begun[: len(start[name])] = start[name]
        change = a[name] - begun
        largest = float(change.abs().max())
        moved.append(largest > 0)
        rounded = 4 * torch.finfo(torch.float32).eps * float(a[name].abs().max())
        torch.testing.assert_close(b[name] - begun, change, rtol=rtol, atol=rtol * largest + rounded)
    assert sum(moved) > len(moved) / 2  # adapters are of linear layers only


def assert_same_log(one: Path, other: Path) -> None:
    for a, b in zip(log(one), log(other), strict=True):
        assert a.keys() == b.keys()
        for key in {key for key in a if key not in UNLIKE and not key.endswith("/rewards/accuracy")}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), key


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run in one process, its microbatches as large as can be, trained once."""
    folder = tmp_path_factory.mktemp("alone")

    def run(name: str) -> Path:
        if not (folder / name / "manifest.json").exists():
            stage, changes = {**RUNS, **TWICE}[name]
            world.train(folder / name, stage, changes=changes, tokens_per_microbatch=10**6)
        return folder / name

    return run


@pytest.mark.parametrize("name", RUNS)
def test_trained_weights_do_not_depend_on_the_token_budget(
    name: str, world: World, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    stage, changes = RUNS[name]
    one = world.train(tmp_path / "one", stage, changes=changes, tokens_per_microbatch=1)
    assert_close(one, alone(name), world.base)
    assert_same_log(one, alone(name))


SCRIPT = """
import json, sys
from halos.cli import main

codes = [main(arguments) for arguments in json.load(open(sys.argv[1]))]
print("codes", codes)
"""


@pytest.fixture(scope="module")
def together(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in two processes, in one launch, one after the other."""
    folder = tmp_path_factory.mktemp("together")
    commands, codes = [], []
    for name, (stage, changes) in {**RUNS, **TWICE}.items():
        config = folder / f"{name}.yaml"
        config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
        command = ["train", "--config", config, "--parent", world.base, "--store", world.store, "--output",
                   folder / name, "--tokens-per-microbatch", 400, "--reference",
                   *world.parts(C.Stage(**read_slice(config)["stage"]))]  # fmt: skip
        if name == "resumed":
            commands.append([*map(str, command), "--time-limit", "0"])
            codes.append(1)
        commands.append([*map(str, command)])
        codes.append(0)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "profiles/accelerate/ddp.yaml",
         "--num_processes", "2", folder / "script.py", folder / "commands.json"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"codes {codes}") == 2, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, *TWICE])
def test_two_processes_train_the_same_weights_as_one(
    name: str, world: World, alone: Callable[[str], Path], together: Path
) -> None:
    one, two = alone(name), together / name
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (one, two)]
    assert [m["processes"] for m in manifests] == [1, 2]
    assert manifests[0]["tokens"] == manifests[1]["tokens"] > 0
    assert_close(one, two, world.base, rtol=3e-4)
    assert_same_log(one, two)


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
            share = trainer._prepare(trainer.examples, np.array([0, 1, 2]))
            found.append(replace(trainer.objective, accelerator=alone)(share, backward=False))
    assert [set(metrics) == {"loss"} for metrics, _ in found] == [False, False, False, True]
    assert [sizes.tokens > 0 for _, sizes in found] == [True, True, True, False]
    assert sum(metrics["loss"] for metrics, _ in found) == pytest.approx(math.log(2), abs=1e-4)


def test_processes_that_do_not_find_each_other_are_refused(world: World, tmp_path: Path) -> None:
    """Launched as two, but connected to none: without the refusal, two runs would write over each other."""
    with pytest.MonkeyPatch.context() as patch:
        accelerator_for("fp32")
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(HalosError, match="2 processes were launched but 1 found each other"):
            accelerator_for("fp32")
        patch.setenv("HALOS_PROCESSES", "16")
        with pytest.raises(HalosError, match="16 processes were launched but 1 found each other"):
            accelerator_for("fp32")
