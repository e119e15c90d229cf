"""PPO's value head, which goes on from run to run beside the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from halos.errors import HalosError
from halos.files import hash_file
from halos.manifest import VALUE_HEAD, Manifest
from halos.train.inputs import Inputs
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import log

CHANGES: dict[str, Any] = {"lr": 3e-3, "value_max_grad_norm": 0.0, "value_weight": 1.0, "examples": 320}


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.train(tmp_path_factory.mktemp("ppo") / "first", "ppo", changes=CHANGES)


def second(world: World, parent: Path, output: Path, **changes: Any) -> Trainer:
    config = world.slice("runs/d/m/ppo/seed2", **{**CHANGES, **changes})
    files = world.reference_of(parent)[:1]
    return Trainer(Inputs.open(config, parent, world.store, files), output, 2048)


@pytest.fixture(autouse=True)
def _config_of_references(world: World) -> None:
    world.slice("runs/d/m/sft/seed1")


def test_the_next_run_begins_with_the_head_that_the_last_one_ended_with(
    world: World, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = load_file(first / VALUE_HEAD)
    trainer = second(world, first, tmp_path / "second")
    assert f"the value head is {first / VALUE_HEAD}" in capsys.readouterr().err
    begins = trainer.policy.value_head.state_dict()
    assert begins.keys() == ended.keys()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in begins.items())
    error = trainer.step(0)["value_error"]
    fresh = Trainer(replace(trainer.inputs, value_head=None), tmp_path / "fresh", 2048)
    assert error < 0.9 * fresh.step(0)["value_error"]


def test_it_is_no_part_of_the_model(first: Path) -> None:
    files = {path.name for path in (first / "model").iterdir()}
    assert not any("head" in name for name in files)
    _, info = AutoModelForCausalLM.from_pretrained(first / "model", output_loading_info=True)
    assert not any(info.values())


def test_a_parent_without_one_is_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = world.train(tmp_path / "run", "ppo", changes={"examples": 8})
    assert "the value head is fresh: the parent has none" in capsys.readouterr().err
    assert Manifest.read(run / "manifest.json").value_head is not None
    again = world.train(run, "simpo", changes={"examples": 8})  # another loss in its folder
    assert Manifest.read(again / "manifest.json").value_head is None
    assert not (again / VALUE_HEAD).exists()


def test_one_that_is_gone_replaced_or_of_another_model_is_refused(world: World, first: Path, tmp_path: Path) -> None:
    file, content = first / VALUE_HEAD, (first / VALUE_HEAD).read_bytes()
    manifest = Manifest.read(first / "manifest.json")
    try:
        file.unlink()
        with pytest.raises(HalosError, match=r"value_head.safetensors, the value head of the run before, is gone: del"):
            second(world, first, tmp_path / "second")
        save_file(
            {name: tensor[..., :1].contiguous() for name, tensor in load_file_of(content, tmp_path).items()}, file
        )
        with pytest.raises(HalosError, match=r"the value head of the run before, was replaced: delete"):
            second(world, first, tmp_path / "second")
        manifest.model_copy(update={"value_head": hash_file(file)}).write(first / "manifest.json")
        with pytest.raises(HalosError, match=r"reads hidden states of 1 numbers, and this model's have 32; delete"):
            second(world, first, tmp_path / "second")
    finally:
        file.write_bytes(content)
        manifest.write(first / "manifest.json")


def load_file_of(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "head.safetensors").write_bytes(content)
    return load_file(folder / "head.safetensors")


def test_a_run_that_does_not_read_it_is_not_another_for_it(world: World, first: Path, tmp_path: Path) -> None:
    config = world.slice("runs/d/m/simpo/seed1")
    assert "value_head" not in Inputs.open(config, first, world.store).hashes
    run = world.train(tmp_path / "run", "simpo", parent=first, changes={"examples": 8}, reference=[])
    assert log(run)[-1]["step"] == 1
