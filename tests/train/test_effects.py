"""Settings that cannot take effect are said before training, and settings that can are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from halos.data.feedback import Feedback
from halos.registry import LOSSES
from halos.tokens.selection import select
from halos.tokens.store import Store
from halos.train.batches import Examples
from halos.train.effects import without_effect
from halos.train.stage import Stage
from tests.conftest import World
from tests.tokens.test_store import OTHER, ask, make
from tests.train.runs import setup


def said(world: World, loss: str, steps: int = 40, columns: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    """The lines about a stage on the world's data, in which some columns have one value throughout, or are new."""
    stage, store = Stage(loss=loss, **settings), Store(world.store)
    table = select(store, "train", stage.reads, stage.selection, seed=1)
    for name, values in (columns or {}).items():
        column = pa.array(values if isinstance(values, list) else [values] * table.num_rows)
        at = table.column_names.index(name) if name in table.column_names else table.num_columns
        table = (table.set_column if at < table.num_columns else table.add_column)(at, name, column)
    return without_effect(stage, store, Examples(store, table, stage.make_loss().view), steps, steps, seed=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_said_of_settings_that_take_effect(loss: str, world: World) -> None:
    settings: dict[str, Any] = {"scheduler": "wsd", "min_lr_ratio": 0.1, "keep_every": 39, "warmup": 36, "decay": 4}
    settings |= {"decay_norms_and_biases": False, "epochs": 0.5}
    if LOSSES[loss].view.labelled:
        settings |= {"keep_desirable": 0.9, "one_per_prompt": True}
        settings |= {} if LOSSES[loss].needs_scores else {"label_noise": 0.2, "balance_labels": True}
    if LOSSES[loss].view.paired:
        settings |= {"keep_pairs": 0.8, "label_noise": 0.2}
    if LOSSES[loss].needs_reference:
        settings |= {"sync_reference": 39}
    assert said(world, loss, **settings) == []
    assert said(world, loss) == []


RUN = {  # name -> steps, settings, what is said
    "a warm-up of 150 steps in a run of 4": (4, {"warmup": 150}, "warmup: 150 steps in a run of 4: the learning rate "
                                             "ends at 2.7 % of lr"),
    "and a decay after it": (4, {"warmup": 5, "scheduler": "cosine"}, "ends at 80 % of lr and never decays"),
    "a warm-up that is the run": (8, {"warmup": 8, "scheduler": "linear"}, "linear begins after the warm-up"),
    "a warm-up that is no step": (4, {"warmup": 0.05}, "warmup: 0.05 of 4 steps is less than half a step"),
    "a decay that is no step": (4, {"scheduler": "wsd", "warmup": 0}, "decay: 0.1 of 4 steps is less than half a step"),
    "a decay cut by the warm-up": (10, {"scheduler": "wsd", "warmup": 7, "decay": 5}, "the decay has 3"),
    "a decay to the peak": (40, {"scheduler": "cosine", "min_lr_ratio": 1}, "leaves the scheduler cosine nothing"),
    "models that are never kept": (40, {"keep_every": 40}, "keep_every: 40 keeps no model of a run of 40 steps"),
    "a patience that never ends": (40, {"early_stopping": {"patience": 3}}, "patience 3 never ends a run of 3 "
                                   "evaluations early; the weights of the best one are published"),
    "an average of one step": (4, {"average": {"kind": "uniform", "start": 0.9}, "warmup": 0}, "it is of the weights "
                               "after the last step alone"),
    "a reference that is never synced": (40, {"sync_reference": 40}, "the reference stays as it began"),
    "humanline in one step": (1, {"humanline": True, "warmup": 0}, "humanline: nothing is clamped"),
    "epochs beside examples": (40, {"epochs": 2, "examples": 900}, "epochs: 2 is not read"),
    "a batch of more than the data": (1, {"batch_size": 4096, "warmup": 0}, "batch_size: 4096 is more than the"),
    "examples of less than a batch": (1, {"examples": 4, "warmup": 0}, "4 examples are less than a batch: the run is "
                                      "one step on 32"),
    "an epoch of less than a batch": (1, {"epochs": 0.01, "warmup": 0}, "less than a batch: the run is one step on"),
    "no weight decay": (40, {"decay_norms_and_biases": False, "optimizer": "SGD"}, "there is no weight decay"),
    "a weight decay of 0": (40, {"decay_norms_and_biases": False, "optimizer_args": {"weight_decay": 0}},
                            "there is no weight decay"),
    "adapters of the policy alone": (40, {"lora": {"path": "somewhere"}}, "they differ before the first step"),
    "noise in no label": (40, {"label_noise": 1e-6}, "label_noise: 1e-06 turns round none of the"),
    "a share of almost all pairs": (40, {"keep_pairs": 0.9999}, "keep_pairs: 0.9999 leaves out none of the"),
    "as many pairs as there are": (40, {"pairs_per_prompt": 500}, "pairs_per_prompt: 500 leaves nothing out: no prompt "
                                   "has more than"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "settings", "sentence"), RUN.values(), ids=RUN)
def test_a_setting_that_the_run_is_too_short_or_the_data_too_small_for_is_one_line(
    steps: int, settings: dict[str, Any], sentence: str, world: World
) -> None:
    [line] = said(world, "dpo", steps, **settings)
    assert sentence in line
    assert "\n" not in line


DATA = {  # name -> loss, settings, columns, what is said
    "equal scores in all groups": ("grpo", {}, {}, "the responses of each group have equal scores"),
    "desirable alone": ("kto", {}, {"desirable": True}, "examples are desirable, and there is nothing to tell apart"),
    "undesirable alone": ("ppo", {}, {"desirable": False}, "examples are undesirable, and there is nothing to tell"),
    "a weight that leaves out a label": ("kto", {"desirable_weight": 0}, {}, "desirable_weight: 0 takes the"),
    "equal scores": ("ppo", {"reward": "score"}, {"score": 0.5}, "are 0.5, so that no response is better"),
    "a share of almost all": ("kto", {"keep_undesirable": 0.9999}, {}, "keep_undesirable: 0.9999 leaves out none of"),
    "margins that the loss could read": ("dpo", {}, {"margin": 0.5}, "does not read them as it is set; margin_weight"),
    "margins that the loss cannot read": ("ipo", {}, {"margin": 0.5}, "the loss ipo does not read them as it is set"),
    "margins of 0": ("bradley_terry", {"margin_weight": 1}, {"margin": 0.0}, "the margins of all examples are 0"),
    "equal weights": ("sft", {}, {"weight": 3.0}, "weights: all examples have 3, and only their ratios count"),
}


def of_groups(world: World, score: float | None) -> dict[str, Any]:
    """Columns of the grouped view: all scores the same, or without one (None) groups of a single response."""
    table = Store(world.store).view("train", "grouped").to_pydict()
    if score is None:
        return {name: [row[:1] for row in table[name]] for name in ("sequences", "scores")}
    return {"scores": [[score] * len(row) for row in table["scores"]]}


@pytest.mark.parametrize(("loss", "settings", "columns", "sentence"), DATA.values(), ids=DATA)
def test_data_that_gives_a_loss_nothing_to_tell_apart_is_one_line(
    loss: str, settings: dict[str, Any], columns: dict[str, Any], sentence: str, world: World
) -> None:
    columns = columns or (of_groups(world, 2.0) if loss == "grpo" else {})
    [line] = said(world, loss, columns=columns, **settings)
    assert sentence in line


def test_groups_of_one_response_have_nothing_to_be_compared_with(world: World) -> None:
    [line] = said(world, "grpo", columns=of_groups(world, None))
    assert line == "scores: every group has one response, so that all advantages are 0"


def test_one_response_per_prompt_is_said_where_there_is_no_other(world: World, tmp_path: Path) -> None:
    store, _ = make(tmp_path, world, [OTHER, Feedback(ask("What?"), ["So."], "x", desirable=[True])])
    stage = Stage(loss="kto", one_per_prompt=True, keep_desirable=0.1, batch_size=2)
    examples = Examples(store, store.view("train", "unpaired"), stage.make_loss().view)
    assert without_effect(stage, store, examples, steps=40, scheduled=40, seed=1) == [
        "one_per_prompt leaves nothing out: no prompt has more than one response",
        "keep_desirable: 0.1 leaves out none of the 1 desirable examples",
    ]


def test_weights_say_nothing_in_batches_of_one(world: World) -> None:
    n = len(Store(world.store).view("train", "sft"))
    weights = [1.0 + i for i in range(n)]
    assert said(world, "sft", columns={"weight": weights}) == []
    [line] = said(world, "sft", columns={"weight": weights}, batch_size=1)
    assert line.startswith("weights: with batch_size: 1 they have no effect")


def test_adapters_that_the_reference_has_too_differ_from_it_only_later(world: World) -> None:
    lora = {"path": "somewhere"}
    assert said(world, "dpo", lora=lora, sync_reference=1) == []  # the live reference is a copy of the policy
    assert said(world, "simpo", lora=lora) == []


def test_the_log_says_it_before_training(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup(world, tmp_path, "simpo", warmup=150, examples=32)
    assert "warmup: 150 steps in a run of 4: the learning rate ends at 2.7 % of lr\n" in capsys.readouterr().err
