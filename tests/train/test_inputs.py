"""The inputs of a run: what is opened, hashed and refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halos.errors import HalosError
from halos.files import hash_files
from halos.reference.cache import expected_hashes
from halos.reference.compute import reference
from halos.registry import LOSSES
from halos.settings import read_slice
from halos.tokens.store import Store
from halos.train.inputs import Inputs
from tests.conftest import World
from tests.train.runs import open_inputs


@pytest.mark.parametrize("changes", [{"humanline": True}, {"sync_reference": 3}])
def test_a_cached_reference_for_a_live_one_is_refused(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"the reference of this stage is live .* give no --reference"):
        world.train(tmp_path / "run", "dpo", changes=changes, reference=world.reference()[:1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("dpo", [], "dpo needs the reference's responses, and got none: pass these by"),
        ("dpo", [1], "dpo needs the reference's responses, and got mismatched: pass these by"),
        ("dpo", [0, 1], "dpo needs the reference's responses, and got responses and mismatched: pass these by"),
        ("kto", [0], "kto needs the reference's responses and mismatched, and got responses: pass these by"),
        ("simpo", [0], "simpo needs no reference, and got responses: leave out"),
    ],
)
def test_other_parts_of_the_reference_than_the_loss_reads_are_refused(
    stage: str, given: list[int], message: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match=f"^{re.escape(f'the loss {message} --reference')}$"):
        world.train(tmp_path / "run", stage, reference=[world.reference()[part] for part in given])


def test_one_file_may_hold_both_parts_of_the_reference(world: World, tmp_path: Path) -> None:
    config, file = world.slice("runs/d/m/kto/seed1"), tmp_path / "both.safetensors"
    reference(config, world.base, world.store, "both", file, 2048)
    apart = Inputs.open(config, world.base, world.store, world.reference()[::-1]).reference
    both = Inputs.open(config, world.base, world.store, [file]).reference
    assert apart is not None
    assert both is not None
    for row in range(len(Store(world.store))):
        np.testing.assert_allclose(both[row], apart[row], rtol=1e-4, atol=1e-5)


def test_a_reference_of_other_weights_is_refused(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft", changes={"examples": 16})
    with pytest.raises(HalosError, match="was made from other weights than this training uses"):
        world.train(tmp_path / "run", "dpo", parent=parent)
    assert not (tmp_path / "run").exists()


def test_a_parent_that_is_not_finished_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=f"there is no {tmp_path}/manifest.json"):
        world.train(tmp_path / "run", "simpo", parent=tmp_path)


@pytest.mark.parametrize("name", list(LOSSES))
def test_inputs_are_what_the_stage_reads_and_cannot_be_changed(name: str, world: World) -> None:
    inputs = open_inputs(world, world.slice(f"runs/d/m/{name}/seed3"))
    assert inputs.loss == inputs.stage.make_loss()
    assert (inputs.reference is not None) == LOSSES[name].needs_reference
    assert inputs.scores is None
    assert inputs.hashes == expected_hashes(world.base, Store(world.store))
    assert (inputs.settings.seed, inputs.settings.method, inputs.parent) == (3, name, world.base / "model")
    with pytest.raises(FrozenInstanceError):
        inputs.hashes = {}  # type: ignore[misc]


def test_a_reference_that_is_not_the_parent_is_hashed_too(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft", changes={"examples": 16})
    config, files = world.slice("runs/d/m/dpo/seed1"), world.reference()[:1]
    inputs = Inputs.open(config, parent, world.store, files, reference_of=world.base)
    weights = [expected_hashes(folder, Store(world.store))["weights"] for folder in (parent, world.base)]
    assert [inputs.hashes["weights"], inputs.hashes["reference"]] == weights
    assert weights[0] != weights[1]


def test_scores_of_a_reward_model_are_read_and_hashed(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "rewards", "bradley_terry", changes={"examples": 16})
    file = run / "scores.safetensors"
    reference(world.slice("runs/d/m/bradley_terry/seed1"), run, world.store, "scores", file, 2048)
    config = world.slice("runs/d/m/grpo/seed1", reward_model="bradley_terry")
    inputs = Inputs.open(config, world.base, world.store, world.reference()[:1], scores=[file])
    assert inputs.hashes["scores"] == hash_files([file])
    assert inputs.scores is not None
    assert len(inputs.scores) == Store(world.store).n_responses
    with pytest.raises(HalosError, match="the stage reads the scores of bradley_terry and got 0 files: pass one by"):
        Inputs.open(config, world.base, world.store, world.reference()[:1])
    with pytest.raises(HalosError, match="the stage has no reward_model and got 1 files of scores: leave out --scores"):
        Inputs.open(world.slice("runs/d/m/simpo/seed1"), world.base, world.store, scores=[file])


def test_a_base_model_is_not_trained(world: World) -> None:
    config = world.slice("runs/d/m/base/seed0")
    with pytest.raises(HalosError, match=r"belongs to a base model, which is not trained: give the config\.yaml of a"):
        Inputs.open(config, world.base, world.store)


def test_a_slice_with_a_setting_that_there_is_not_is_refused(world: World) -> None:
    config = world.slice("runs/d/m/simpo/seed1", learning_rate=1)
    assert read_slice(config)["stage"]["learning_rate"] == 1
    with pytest.raises(HalosError, match=r"config.yaml: stage: 'learning_rate' is neither .* `python -m halos config"):
        Inputs.open(config, world.base, world.store)


def test_sequences_longer_than_the_model_has_positions_for_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.base, tmp_path / "short")
    file = tmp_path / "short/model/config.json"
    file.write_text(json.dumps({"model_type": "gpt2", "n_positions": 20}))  # learned positions: there are no more
    with pytest.raises(HalosError, match="tokens does not fit the model's 20 positions: lower the dataset's max_len"):
        Inputs.open(world.slice("runs/d/m/simpo/seed1"), tmp_path / "short", world.store)
