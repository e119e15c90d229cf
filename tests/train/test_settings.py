"""A run's slice: equal to its file, and refused when it is another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.errors import HalosError
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.train.slices import RunSlice, stage_slice
from halos.train.stage import Stage
from tests.conftest import World

STAGES: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in LOSSES},
    "lora": {"loss": "dpo", "lora": {"target_modules": ["q_proj", "v_proj"]}},
    "optimizer": {"loss": "sft", "optimizer": "SGD", "optimizer_args": {"momentum": 0.9}},
    "text": {"loss": "dpo", "lr": "1e-5", "beta": "1e-1", "optimizer_args": {"eps": "1e-8"}},
    "labels": {"loss": "kto", "label_by": 0.5, "keep_desirable": 0.5},
    "noise": {"loss": "dpo", "label_noise": "2e-1"},
    "labelled": {"loss": "dpo", "label": "DPO"},
    "early": {"loss": "dpo", "early_stopping": {"patience": 2, "metric": "rewards/accuracy"}, "eval_every": 5},
    "average": {"loss": "dpo", "average": {"kind": "ema", "decay": "9e-1"}},
    "online": {"loss": "dpo", "online": {"rounds": 2, "prompts_per_round": 8, "label": "l"}},
}


@pytest.mark.parametrize("name", STAGES)
def test_the_slice_of_a_stage_is_a_stage_with_the_same_slice(name: str) -> None:
    stage = Stage(**STAGES[name])
    written = json.loads(json.dumps(stage_slice(stage)))
    again = Stage.model_validate(written)
    assert json.loads(json.dumps(stage_slice(again))) == written
    assert again.make_loss() == stage.make_loss()
    assert again.selection == stage.selection


@pytest.mark.parametrize("name", STAGES)
def test_a_runs_slice_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    ids = {"dataset": "d", "model": "m", "method": name, "seed": 1}
    settings = {"attention": "sdpa", "precision": "fp32", "plugins": {}}
    path = tmp_path / "config.yaml"
    path.write_text(dump({**ids, **settings, "stage": json.loads(json.dumps(stage_slice(Stage(**STAGES[name]))))}))
    run = RunSlice.read(path)
    assert run.content == read_slice(path)
    assert json.dumps(run.content, sort_keys=True) == json.dumps(read_slice(path), sort_keys=True)
    assert run.round == 0


def test_the_slice_of_a_base_model_or_a_round_is_one_too(world: World) -> None:
    base = RunSlice.read(world.slice("runs/d/m/base/seed0"))
    assert (base.stage, base.seed, base.precision) == (None, 0, "fp32")
    config = world.slice("runs/d/m/dpo/seed2")
    config.write_text(dump({**read_slice(config), "round": 3}))
    assert (RunSlice.read(config).round, RunSlice.read(config).content) == (3, read_slice(config))


def test_the_slice_of_another_folder_is_refused(world: World) -> None:
    with pytest.raises(HalosError, match=r"models/m/config.yaml: .* write it again with `python -m halos config"):
        RunSlice.read(world.slice("models/m"))
