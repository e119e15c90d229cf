"""Weights and margins of examples in training: from the data to the gradient, however a batch is cut."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from halos.data import feedback
from halos.errors import HalosError
from halos.tokens.selection import select
from halos.tokens.store import Store, check
from halos.train.batches import Examples
from halos.train.run import train
from halos.train.stage import Stage
from halos.train.trainer import Trainer
from halos.views import VIEWS
from tests.conftest import World
from tests.tokens.test_store import OTHER, PAIR, ask, make
from tests.train.runs import setup
from tests.train.test_invariance import ROOT, SHORT, assert_close, assert_same_log

BATCH = np.array([3, 17, 5, 40, 8, 21])
WEIGHTS = [0.5, 2.0, 0.1, 1.0, 30.0, 1e-3]


def with_columns(trainer: Trainer, **columns: list[Any]) -> Examples:
    """The trainer's examples with more columns, whose values are those of BATCH; null elsewhere."""
    inputs, old = trainer.inputs, trainer.examples
    table = select(inputs.store, "train", trainer.stage.reads, trainer.stage.selection, trainer.seed)
    cells: list[Any]
    for name, values in columns.items():
        grouped = trainer.loss.view.grouped
        cells = [[None] * size if grouped else None for size in np.diff(old.offsets).tolist()]
        for row, value in zip(BATCH.tolist(), values, strict=True):
            cells[row] = value
        table = table.append_column(name, pa.array(cells))
    return Examples(inputs.store, table, trainer.loss.view, old.reference, None, old.control, old.packed)


def gradient(trainer: Trainer, examples: Examples, indices: np.ndarray, processes: int = 1) -> tuple[float, Tensor]:
    """Loss and gradient of a global batch, the shares of its processes run one after the other."""
    trainer.policy.train().zero_grad()
    loss = 0.0
    for rank in range(processes):
        share = examples.local_batch(indices, trainer.loss, trainer.budget, rank, processes)
        loss += trainer.objective(share.to(trainer.accelerator.device), backward=True)[0]["loss"]
    return loss, torch.cat([p.grad.flatten() for p in trainer.policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["bradley_terry", "csft", "dpo", "grpo", "sft"])
def test_the_objective_is_the_weighted_mean_however_it_is_cut(name: str, world: World, tmp_path: Path) -> None:
    """Of examples, and for a loss per token of tokens; the mean is made of batches of one example each."""
    trainer = setup(world, tmp_path, name)
    plain = trainer.examples
    column = trainer.loss.view.weight
    weights: list[Any] = WEIGHTS
    counts = np.array(WEIGHTS)
    if trainer.loss.view.grouped:
        sizes = np.diff(plain.offsets)[BATCH]
        weights = [[weight] * int(size) for weight, size in zip(WEIGHTS, sizes, strict=True)]
    if trainer.loss.per_token:
        counts = counts * [plain.response_tokens(np.array([i]), trainer.loss.view.roles) for i in BATCH]
    alone = [gradient(trainer, plain, np.array([i])) for i in BATCH]
    shares = counts / counts.sum()
    expected = sum(share * grad for share, (_, grad) in zip(shares.tolist(), alone, strict=True))
    loss = sum(share * value for share, (value, _) in zip(shares.tolist(), alone, strict=True))
    examples = with_columns(trainer, **{column: weights})
    unweighted = gradient(trainer, plain, BATCH)[1]
    for trainer.budget, processes in ((1, 1), (10**6, 1), (100, 2)):
        found, actual = gradient(trainer, examples, BATCH, processes)
        assert found == pytest.approx(loss, rel=1e-5, abs=1e-6)  # 0 for equal policies of grpo
        largest = float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * largest)
        assert float((actual - unweighted).abs().max()) > 0.1 * largest


def test_each_response_of_a_group_has_its_own_weight(world: World, tmp_path: Path) -> None:
    """A response's loss counts by its weight, and its group by the mean of them; the advantages stay the group's."""
    trainer = setup(world, tmp_path, "grpo")
    sizes = np.diff(trainer.examples.offsets)[BATCH]
    weights = [[float(1 + k) for k in range(size)] for size in sizes]
    examples = with_columns(trainer, weights=weights)
    responses = examples.responses(BATCH)
    expected = [w / size for ws, size in zip(weights, sizes, strict=True) for w in ws]
    assert examples.weight[responses].tolist() == pytest.approx(expected)
    assert examples.total_weight(BATCH) == pytest.approx(sum(map(np.mean, weights)))
    assert np.array_equal(examples.labels["advantages"], trainer.examples.labels["advantages"])


@pytest.mark.parametrize("name", ["kto", "ppo", "simpo", "sft"])
def test_weights_that_are_all_scaled_change_nothing(name: str, world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, name)
    loss, expected = gradient(trainer, trainer.examples, BATCH)
    for scale in (1e-6, 8.0):
        scaled = with_columns(trainer, weight=[scale] * len(BATCH))
        found, actual = gradient(trainer, scaled, BATCH)
        assert found == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_examples_without_weights_are_counted_exactly(world: World, tmp_path: Path) -> None:
    for name in ("dpo", "grpo"):
        trainer = setup(world, tmp_path, name)
        assert trainer.examples.total_weight(np.arange(len(trainer.examples))) == len(trainer.examples)


# ---- margins


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_where_policy_and_reference_are_equal_only_the_margins_are_left_of_dpo(
    scale: float, world: World, tmp_path: Path
) -> None:
    trainer = setup(world, tmp_path, "dpo")
    margins = [0.0, 1.5, -2.0, None, 0.5, 3.0]
    trainer.objective = replace(trainer.objective, loss=replace(trainer.loss, margin_weight=scale))
    loss, _ = gradient(trainer, with_columns(trainer, margin=margins), BATCH)
    assert loss == pytest.approx(np.mean([math.log1p(math.exp(scale * (m or 0))) for m in margins]), rel=1e-4)


@pytest.mark.parametrize("name", ["dpo", "bradley_terry"])
def test_margins_that_the_data_does_not_have_are_refused(name: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=rf"dataset d has no margins, and the loss {name} reads them"):
        setup(world, tmp_path, name, margin_weight=1.0)


def test_margins_that_the_data_does_not_have_are_refused_before_a_grid_runs(world: World, tmp_path: Path) -> None:
    sentence = (
        r"^dataset d has no margins, and dpo, rm read them \(margin_weight\): give its pairs a `margin`, or take out"
    )
    with pytest.raises(HalosError, match=sentence):
        check(world.store, ["paired"], tmp_path / "no.json", margins_for=["dpo", "rm"])
    assert not (tmp_path / "no.json").exists()
    store, _ = make(tmp_path, world, [replace(PAIR, margins=[2.0])])
    check(store.folder, ["paired"], tmp_path / "yes.json", margins_for=["dpo"])
    assert (tmp_path / "yes.json").exists()


def test_margins_that_no_labeller_gives_are_refused_with_the_config() -> None:
    online = {"rounds": 2, "prompts_per_round": 8, "label": "l"}
    with pytest.raises(ValidationError, match="a labeller gives no margins: take out margin_weight"):
        Stage(loss="dpo", online=online, margin_weight=1.0)


# ---- from records to examples


def test_a_store_holds_the_weights_and_margins_of_its_records(world: World, tmp_path: Path) -> None:
    three = replace(
        PAIR, responses=["Yes it is.", "No.", "Perhaps."], scores=[1.0, 0.0, 0.5], pairs=[(0, 1), (2, 1), (0, 2)],
        desirable=[True, False, True], target=1, weights=[2.0, 0.5, 0.0], pair_weights=[3.0, 0.0, 1.0],
        margins=[None, 1.0, -0.5],
    )  # fmt: skip
    silent = replace(three, prompt=ask("Which?"), weights=[1.0, 0.0, 1.0])
    store, _ = make(tmp_path, world, [three, OTHER, silent])
    assert store.view("train", "sft").to_pylist() == [{"sequence": 1, "weight": 0.5}]
    pairs = [{"chosen": 0, "rejected": 1, "weight": 3.0, "margin": None},
             {"chosen": 0, "rejected": 2, "weight": 1.0, "margin": -0.5}]  # fmt: skip
    assert store.view("train", "paired").to_pylist()[:2] == pairs
    unpaired = store.view("train", "unpaired")
    assert unpaired["weight"].to_pylist() == [2.0, 0.5, None, 1.0, 1.0]
    assert unpaired.column_names == list(VIEWS["unpaired"].schema)
    assert store.view("train", "grouped").to_pylist()[0] == {
        "sequences": [0, 1], "scores": [1.0, 0.0], "weights": [2.0, 0.5]
    }  # fmt: skip
    examples = Examples(store, store.view("train", "paired"), VIEWS["paired"])
    assert examples.labels["margins"].tolist() == [0.0, -0.5] * 2
    assert examples.weight.tolist() == [3.0, 1.0] * 2
    assert Examples(store, unpaired, VIEWS["unpaired"]).weight.tolist() == [2.0, 0.5, 1.0, 1.0, 1.0]


def test_a_store_of_records_without_any_has_no_such_columns(world: World) -> None:
    assert not any(record.weights for record in feedback.read(world.results / "data/d/train.parquet"))
    for view in VIEWS.values():
        found = Store(world.store).view("train", view.name).column_names
        assert found == [name for name in view.schema if name not in view.optional]


@pytest.mark.slow
def test_two_processes_weigh_examples_as_one(world: World, tmp_path: Path) -> None:
    """From weighted records to trained weights, in batches of seven, which two processes cannot share equally."""
    records = list(islice(feedback.read(world.results / "data/d/train.parquet"), 60))
    weighted = [
        replace(record, weights=[0.1 + (3 * i + k) % 5 for k in range(len(record.responses))])
        for i, record in enumerate(records)
    ]
    store, _ = make(tmp_path, world, weighted, max_length=100, max_prompt_length=60)
    config = world.slice("runs/d/m/sft/seed1", **SHORT)
    train(config, world.base, store.folder, tmp_path / "one", tokens_per_microbatch=10**6)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "halos",
         "train", "--config", config, "--parent", world.base, "--store", store.folder, "--output", tmp_path / "two",
         "--tokens-per-microbatch", "400"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(tmp_path / "one", tmp_path / "two", world.base, rtol=3e-4)
    assert_same_log(tmp_path / "one", tmp_path / "two")
