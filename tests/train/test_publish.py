"""The outputs of a run: its model, log and manifest."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.files import hash_weights
from halos.forward.attention import counterpart
from halos.forward.layout import Text
from halos.manifest import Manifest
from halos.reference.cache import expected_hashes
from halos.settings import dump, read_slice
from halos.tokens.store import Store
from halos.train.reloaded import Probe, _values
from halos.train.run import train
from tests.conftest import World
from tests.forward.test_attention import variable_length_attention
from tests.models.test_models import LORA, tied
from tests.train.runs import assert_equal, setup, weights


def test_the_manifest_ties_the_model_to_what_made_it(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "kto")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["weights"] == hash_weights(run / "model") != hash_weights(world.base / "model")
    assert manifest["inputs"] == expected_hashes(world.base, Store(world.store))
    assert manifest["config"] == read_slice(world.results / "runs/d/m/kto/seed1/config.yaml")
    assert (manifest["steps"], manifest["processes"], manifest["gpu_hours"]) == (8, 1, 0)
    assert manifest["parameters"] == sum(v.numel() for v in weights(run).values())
    assert manifest == Manifest.read(run / "manifest.json").model_dump(mode="json")
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


# ---- the published model is the trained one ----------------------------------------------------------------------


def tied_parent(world: World, folder: Path) -> Path:
    """The base model with one matrix for its input and its output."""
    shutil.copytree(world.base, folder)
    shutil.rmtree(folder / "model")
    tied(world, folder / "model")
    manifest = Manifest.read(world.base / "manifest.json")
    manifest.model_copy(update={"weights": hash_weights(folder / "model")}).write(folder / "manifest.json")
    return folder


@pytest.mark.parametrize("stage", ["sft", "csft", "bradley_terry"])
@pytest.mark.parametrize("lora", [None, {**LORA, "target_modules": ["lm_head", "q_proj"]}], ids=["full", "lora"])
def test_a_tied_model_is_published_as_it_was_trained(
    stage: str, lora: dict[str, Any] | None, world: World, tmp_path: Path
) -> None:
    """The run checks it itself: it fails where the published model gives other values."""
    if stage == "bradley_terry" and lora is not None:
        lora = {**lora, "target_modules": ["embed_tokens", "q_proj"]}
    parent = tied_parent(world, tmp_path / "tied")
    changes = {"examples": 16, "batch_size": 8, "lr": 1e-2, "warmup": 0, "lora": lora}
    run = world.train(tmp_path / "run", stage, parent=parent, changes=changes)
    manifest = Manifest.read(run / "manifest.json")
    assert manifest.trained
    assert manifest.adapted is not None
    assert (manifest.adapted == 1) == (lora is None) == (manifest.not_adapted == ())


def test_a_model_that_loads_as_another_is_not_published(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of a head that is tied to the embeddings change both once they are merged."""
    monkeypatch.setattr("halos.models.lora.untie", lambda model: None)
    lora = {**LORA, "target_modules": ["lm_head"]}
    changes = {"examples": 16, "batch_size": 8, "lr": 1e-2, "warmup": 0, "lora": lora}
    with pytest.raises(HalosError, match=r"^the trained model is not published: .* gives other values") as caught:
        world.train(tmp_path / "run", "sft", parent=tied_parent(world, tmp_path / "tied"), changes=changes)
    assert "\n" not in str(caught.value)
    assert "train with other layers in `lora`" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "refused"]


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.1}], ids=["full", "lora"])
def test_a_refused_model_loses_nothing(
    lora: dict[str, Any] | None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint and its folder are kept, and the same command publishes what an undisturbed run does."""
    changes = {
        "examples": 16,
        "batch_size": 8,
        "lr": 1e-2,
        "warmup": 0,
        "lora": lora,
    }  # fewer steps than checkpoint_every
    whole = world.train(tmp_path / "whole", "sft", changes=changes)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("halos.train.reloaded.TOLERANCE", {"fp32": -1.0})
        with pytest.raises(HalosError, match=r"^the trained model is not published: .* nothing is lost") as caught:
            world.train(run, "sft", changes=changes)
    assert ("`lora`" in str(caught.value)) == (lora is not None)
    refused = load_file(run / "refused/model.safetensors")
    assert all(torch.equal(value, refused[name]) for name, value in weights(whole).items())
    monkeypatch.setattr("halos.train.trainer.Trainer.step", None)  # nothing is trained again
    world.train(run, "sft", changes=changes)
    assert_equal(run, whole)
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "model", "train.jsonl"]


def test_rounding_is_no_other_model(world: World) -> None:
    """Values that are all alike have no deviation that rounding could be related to: one token, or texts by heart."""
    text = Text(0, np.arange(5, 9), np.array([9]))
    model = AutoModelForCausalLM.from_pretrained(world.base / "model")
    value = _values(model, text, torch.device("cpu"))[0]
    probe = Probe([text], value + 2e-6, "fp32", False, False, torch.device("cpu"))
    probe.check(world.base / "model")
    with pytest.raises(HalosError, match="not published"):
        replace(probe, values=value + 1e-3).check(world.base / "model")
    replace(probe, texts=[replace(text, tail=np.array([], np.int64))], values=value[:0]).check(world.base / "model")


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_attention_in_half_precision_is_no_other_model(
    attention: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention rounds to half precision, on packed rows too, where the published model is run in float32."""
    stand_in = SimpleNamespace(flash_attn_varlen_func=variable_length_attention)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    trainer = setup(world, tmp_path / "run", "sft")
    trainer.accelerator.unwrap_model(trainer.policy).model.set_attn_implementation(counterpart(attention))
    probe = Probe.of(trainer.policy, trainer.examples, trainer.accelerator)
    assert probe.precision == {"sdpa": "fp32", "flash_attention_2": "bf16"}[attention]
    probe.check(world.base / "model")


def test_a_token_that_is_sent_to_an_equally_good_expert_is_no_other_model(world: World) -> None:
    text = Text(0, np.arange(5, 9), np.arange(10, 40))
    values = _values(AutoModelForCausalLM.from_pretrained(world.base / "model"), text, torch.device("cpu"))[0]
    probe = Probe([text], values, "fp32", True, False, torch.device("cpu"))
    some = torch.arange(len(values)) % 4 == 0
    replace(probe, values=values + 0.3 * some).check(world.base / "model")
    for other in (replace(probe, values=values + 0.3 * ~some),
                  replace(probe, values=values + 0.3 * some, has_experts=False)):  # fmt: skip
        with pytest.raises(HalosError, match="not published"):
            other.check(world.base / "model")


def test_weights_that_a_class_changes_when_evaluated_are_published_as_trained(world: World, tmp_path: Path) -> None:
    """RWKV halves weights of deep layers in evaluation mode, where its config asks for it."""
    config = AutoConfig.for_model(
        "rwkv", vocab_size=512, hidden_size=32, attention_hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        rescale_every=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, context_length=128,
    )  # fmt: skip
    parent = tmp_path / "rwkv"
    shutil.copytree(world.base, parent)
    (parent / "model/model.safetensors").unlink()
    (parent / "model/config.json").unlink()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(parent / "model")
    manifest = Manifest.read(world.base / "manifest.json")
    manifest.model_copy(update={"weights": hash_weights(parent / "model")}).write(parent / "manifest.json")
    before = load_file(parent / "model/model.safetensors")
    for name, lora in (("full", None), ("lora", {**LORA, "target_modules": ["output", "key"]})):
        changes = {"examples": 16, "batch_size": 8, "lr": 1e-3, "warmup": 0, "lora": lora}
        slice_ = world.slice("runs/d/m/sft/seed1", **changes)
        slice_.write_text(dump({**read_slice(slice_), "attention": "eager"}))
        run = tmp_path / name
        train(slice_, parent, world.store, run, tokens_per_microbatch=2048)
        assert json.loads((run / "model/config.json").read_text())["rescale_every"] == 1
        after = weights(run)
        deepest = "rwkv.blocks.2.attention.output.weight"
        assert (after[deepest] - before[deepest]).norm() < 0.5 * before[deepest].norm()
