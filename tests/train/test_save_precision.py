"""The type in which trained weights are saved: `save_precision` of a model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from halos.models.policy import halve
from halos.models.settings import saved_precision
from halos.plan.plan import Plan
from halos.reference.compute import reference
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.train.inputs import Inputs
from halos.train.trainer import Trainer
from tests.conftest import CATALOGUE, World
from tests.models.test_models import LORA
from tests.train.runs import base_of, log, weights

TIED = {**CATALOGUE["models"]["m"]["architecture"], "tie_word_embeddings": True}


def trained(
    world: World, output: Path, stage: str, parent: Path, reference: list[Path], changes: dict[str, Any], **more: Any
) -> Path:
    """A run in bf16, with further entries of its config."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = world.slice(f"runs/d/m/{stage}/seed1", **changes)
    config.write_text(dump({**read_slice(config), "precision": "bf16", **more}))
    Trainer(Inputs.open(config, parent, world.store, reference), output, 2048).run()
    return output


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["all weights", "adapters"])
def test_what_is_saved_in_bfloat16_are_the_trained_weights_rounded(
    changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    """Of a model with one matrix for its input and its output, which the file holds once."""
    base = base_of(world, tmp_path / "base", TIED)
    changes = {"examples": 32, "keep_every": 1, **changes}
    half, full = (trained(world, tmp_path / name, "sft", base, [], changes, **more)
                  for name, more in (("half", {}), ("full", {"save_precision": "fp32"})))  # fmt: skip
    exact, rounded = weights(full), weights(half)
    assert exact.keys() == rounded.keys()
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert all(torch.equal(rounded[name], tensor.bfloat16()) for name, tensor in exact.items())
    assert not all(torch.equal(rounded[name].float(), tensor) for name, tensor in exact.items())
    types = [json.loads((run / "model/config.json").read_text())["dtype"] for run in (half, full)]
    assert types == ["bfloat16", "float32"]
    sizes = [(run / "model/model.safetensors").stat().st_size for run in (half, full)]
    assert sizes[0] < 0.55 * sizes[1]
    file = "adapter_model.safetensors" if changes.get("lora") else "model.safetensors"
    kept = [(run / "kept/step1" / file).read_bytes() for run in (half, full)]
    assert (kept[0] == kept[1]) == bool(changes.get("lora"))  # adapters stay float32


@pytest.mark.usefixtures("_bf16")
def test_a_child_begins_at_the_very_weights_that_its_reference_was_made_of(world: World, tmp_path: Path) -> None:
    parent = trained(world, tmp_path / "sft", "sft", world.base, [], {"examples": 32})
    config, file = tmp_path / "config.yaml", tmp_path / "responses.safetensors"
    config.write_text(dump({**read_slice(world.slice("runs/d/m/sft/seed1")), "precision": "bf16"}))
    reference(config, parent, world.store, "responses", file, 2048)
    child = trained(world, tmp_path / "sft-dpo", "dpo", parent, [file], {"examples": 16})
    first = log(child)[0]
    assert first["split"] == "eval"
    assert [first["kl"], first["rewards/margin"]] == pytest.approx([0, 0], abs=1e-4)  # by other microbatches
    assert {tensor.dtype for tensor in weights(child).values()} == {torch.bfloat16}


def test_buffers_and_what_a_class_keeps_in_float32_are_not_rounded() -> None:
    class Model(torch.nn.Module):
        _keep_in_fp32_modules_strict = {"gate"}

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.gates = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.tied = self.gates
            self.register_buffer("bias", torch.ones(2))

    model = Model()
    state = model.state_dict()
    halve(model, state)
    halved = {name for name, tensor in state.items() if tensor.dtype == torch.bfloat16}
    assert halved == {"gates.weight", "gates.bias", "tied.weight", "tied.bias"}
    assert state["tied.weight"] is state["gates.weight"]


def test_by_default_it_is_the_compute_type_but_for_rounds_that_train_on_from_each_other() -> None:
    assert [saved_precision("auto", p, is_round=False) for p in ("bf16", "fp32")] == ["bf16", "fp32"]
    assert saved_precision("auto", "bf16", is_round=True) == "fp32"
    assert [saved_precision(p, "bf16", is_round=True) for p in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_a_finished_cell_is_not_run_again_for_the_default_nor_a_base_model_for_any() -> None:
    content = copy.deepcopy(CATALOGUE)
    content["models"]["m"]["precision"] = "bf16"
    before = C.load(content)
    content["models"]["m"]["save_precision"] = "fp32"
    after = C.load(content)
    cell, *others = "runs/d/m/sft-dpo/seed1", "runs/d/m/base/seed0", "models/m", "tokens/d/m"
    assert "save_precision" not in config_slice(before, cell)
    assert config_slice(after, cell) == {**config_slice(before, cell), "save_precision": "fp32"}
    assert all(config_slice(before, folder) == config_slice(after, folder) for folder in others)
    half, full = (sum(job.disk for job in Plan(config, "g", "a100-80gb", Path("none")).trainings())
                  for config in (before, after))  # fmt: skip
    assert half == full / 2
