"""A reference of another model: its tokens must be the policy's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from halos.errors import HalosError
from halos.reference.cache import PARTS
from halos.reference.compute import reference
from halos.train.inputs import Inputs
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import base_of

OTHER = {"model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


@pytest.fixture
def other(world: World, tmp_path: Path) -> Path:
    """Another model with the same tokenizer."""
    (tmp_path / "world/data").mkdir(parents=True)
    shutil.copytree(world.results / "data/d", tmp_path / "world/data/d")
    return base_of(world, tmp_path / "world", OTHER)


def test_another_model_of_the_same_vocabulary_is_a_reference(world: World, other: Path, tmp_path: Path) -> None:
    by, file = world.slice("runs/d/m/base/seed0"), tmp_path / "responses.safetensors"
    reference(by, other, world.store, PARTS[0], file, 2048, vocabulary=[world.base / "model"])
    config = world.slice("runs/d/m/dpo/seed1", reference="other")
    inputs = Inputs.open(config, world.base, world.store, [file], reference_of=other)
    assert inputs.hashes["reference"] == json.loads((other / "manifest.json").read_text())["weights"]
    assert abs(Trainer(inputs, tmp_path / "run", 2048).step(0)["kl"]) > 0.01


def test_one_of_another_vocabulary_is_refused_before_it_is_run(world: World, other: Path, tmp_path: Path) -> None:
    file = other / "model/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token in vocabulary if len(token) > 1][:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(tokenizer))
    by, output = world.slice("runs/d/m/base/seed0"), tmp_path / "responses.safetensors"
    with pytest.raises(HalosError, match=r"cannot be the reference of .*: 2 of their tokens differ \(the first: "):
        reference(by, other, world.store, PARTS[0], output, vocabulary=[world.base / "model"])
    assert not output.exists()
