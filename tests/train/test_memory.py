"""Trainings that hold their weights and their optimiser's states in fewer bits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.models.load import load
from halos.models.quantised import memory_of
from halos.reference.compute import reference
from halos.settings import dump, read_slice
from halos.train.inputs import Inputs
from halos.train.run import train
from halos.train.stopping import Stopped, Stopping
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import assert_equal, log

LORA: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0}
KINDS = [None, "nf4", "int8"]


@pytest.fixture(autouse=True)
def _precisions() -> Iterator[None]:
    """accelerate keeps one state for a process, its precision included."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def sliced(world: World, folder: str, file: Path, precision: str, quantization: str | None, **changes: Any) -> Path:
    """A cell's config.yaml, of a model with another precision and quantisation, in a file of its own."""
    content = {**read_slice(world.slice(folder, **changes)), "precision": precision}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(content | ({} if quantization is None else {"quantization": quantization})))
    return file


def opened(
    world: World, folder: Path, stage: str, precision: str = "bf16", quantization: str | None = None, **changes: Any
) -> Inputs:
    """The inputs of a run, with a reference that is computed as the policy is."""
    changes = {"examples": 24, "eval_every": 1, "lora": LORA, **changes}
    config = sliced(world, f"runs/d/m/{stage}/seed1", folder / "config.yaml", precision, quantization, **changes)
    of_base = sliced(world, "runs/d/m/base/seed0", folder / "base.yaml", precision, quantization)
    file = folder / "responses.safetensors"
    if stage != "sft":
        reference(of_base, world.base, world.store, "responses", file, 2048)
    return Inputs.open(config, world.base, world.store, [file] if stage != "sft" else [])


def resumed(inputs: Inputs, output: Path) -> Path:
    """A run that is stopped after its first step, and run again."""
    with pytest.raises(Stopped):
        Trainer(inputs, output, 2048, stopping=Stopping(0)).run()
    assert (output / "checkpoints/step1").is_dir()
    Trainer(inputs, output, 2048).run()
    return output


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_begins_as_its_reference_and_moves(
    kind: str | None, precision: str, world: World, tmp_path: Path
) -> None:
    """In float32 equally; in bf16 up to the rounding of the embeddings, that of a response's sum of log-probabilities."""
    inputs = opened(world, tmp_path, "dpo", precision, kind)
    Trainer(inputs, tmp_path / "run", 2048).run()
    lines = [line for line in log(tmp_path / "run") if line["split"] == "eval"]
    assert abs(lines[0]["kl"]) < (1e-6 if precision == "fp32" else 2e-3)
    assert lines[-1]["loss"] < lines[0]["loss"] - 5e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"lora": {**LORA, "dora": True, "rslora": True}}], ids=["lora", "dora"])
def test_a_resumed_run_has_the_weights_of_an_undisturbed_one(
    kind: str | None, changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    inputs = opened(world, tmp_path, "dpo", "bf16", kind, **changes)
    Trainer(inputs, tmp_path / "whole", 2048).run()
    assert_equal(tmp_path / "whole", resumed(inputs, tmp_path / "parts"))
