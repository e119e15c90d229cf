"""Trainings that hold their weights and their optimiser's states in fewer bits."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.models.load import load
from halos.models.lora import is_quantised, quantisable, quantised_share, with_lora
from halos.models.quantised import quantise
from halos.reference.cache import parts_for
from halos.reference.compute import reference
from halos.settings import dump, read_slice
from halos.train.inputs import Inputs
from halos.train.optimizer import make_optimizer
from halos.train.slices import RunSlice
from halos.train.stage import Stage
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
    """A cell's config.yaml, of a model with another precision and quantisation, in a file of its own.

    Weights are saved in float32, to be compared."""
    content = {**read_slice(world.slice(folder, **changes)), "precision": precision, "save_precision": "fp32"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(content | ({} if quantization is None else {"quantization": quantization})))
    return file


def opened(
    world: World, folder: Path, stage: str, precision: str = "bf16", quantization: str | None = None, **changes: Any
) -> Inputs:
    """The inputs of a run, with a reference that is computed as the policy is."""
    changes = {"examples": 16, "batch_size": 8, "lora": LORA, **changes}
    config = sliced(world, f"runs/d/m/{stage}/seed1", folder / "config.yaml", precision, quantization, **changes)
    of_base = sliced(world, "runs/d/m/base/seed0", folder / "base.yaml", precision, quantization)
    settings = RunSlice.read(config).stage
    assert settings is not None
    files = []
    for part in parts_for(settings.make_loss(), live=settings.sync_every is not None):
        files.append(folder / f"{part}.safetensors")
        reference(of_base, world.base, world.store, part, files[-1], 2048)
    return Inputs.open(config, world.base, world.store, files)


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
    """In float32 equally; in bf16 up to the rounding of the embeddings, of a response's sum of log-probabilities."""
    inputs = opened(world, tmp_path, "dpo", precision, kind)
    Trainer(inputs, tmp_path / "run", 2048).run()
    lines = [line for line in log(tmp_path / "run") if line["split"] == "eval"]
    assert abs(lines[0]["kl"]) < (1e-6 if precision == "fp32" else 2e-3)
    assert lines[-1]["loss"] < lines[0]["loss"] - 5e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"lora": {**LORA, "dora": True, "rslora": True}}], ids=["lora", "dora"])
def test_a_resumed_run_has_the_weights_of_an_undisturbed_one(
    kind: str | None, changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    inputs = opened(world, tmp_path, "dpo", "bf16", kind, **changes)
    Trainer(inputs, tmp_path / "whole", 2048).run()
    assert_equal(tmp_path / "whole", resumed(inputs, tmp_path / "parts"))


def test_a_base_in_the_compute_type_is_published_as_its_parent_has_it(world: World, tmp_path: Path) -> None:
    """Its rounding is of the training alone: adapters that have not moved leave float32 weights as they were."""
    inputs = opened(world, tmp_path, "sft", lr=1e-30)
    trainer = Trainer(inputs, tmp_path / "run", 2048)
    kept = [p for p in trainer.policy.parameters() if p.dtype == torch.bfloat16]
    assert {p.numel() for p in kept} == {512 * 32, 32 * 32, 32 * 64}
    assert all(p.dtype == torch.float32 for p in trainer.policy.parameters() if p.requires_grad or p.ndim == 1)
    trainer.run()
    parent = load_file(world.base / "model/model.safetensors")
    child = load_file(tmp_path / "run/model/model.safetensors")
    assert parent.keys() == child.keys()
    assert all(torch.equal(child[name], tensor) for name, tensor in parent.items())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in parent.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_published_as_the_adapters_were_trained_beside_it(
    kind: str, world: World, tmp_path: Path
) -> None:
    Trainer(opened(world, tmp_path, "sft", quantization=kind, lr=1e-30), tmp_path / "run", 2048).run()
    parent = load_file(world.base / "model/model.safetensors")
    child = load_file(tmp_path / "run/model/model.safetensors")
    held: Any = load(world.base / "model", "sdpa", quantization=kind)
    layers = {f"{name}.weight": layer.dequantised() for name, layer in held.named_modules() if is_quantised(layer)}
    assert len(layers) == 2 * 7
    for name, tensor in parent.items():
        torch.testing.assert_close(child[name], layers.get(name, tensor), rtol=0, atol=1e-25)
        error = float((child[name] - tensor).std() / tensor.std()) if name in layers else 0.0
        assert (0.02 < error < 0.2 if kind == "nf4" else 0.001 < error < 0.02) == (name in layers)
    manifest = Manifest.read(tmp_path / "run/manifest.json")
    assert manifest.config["quantization"] == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["bradley_terry", "csft", "ppo"])
def test_heads_and_tokens_are_trained_above_such_a_base(
    stage: str, kind: str | None, world: World, tmp_path: Path
) -> None:
    """The run itself checks that the published model gives the policy's values."""
    run = tmp_path / "run"
    Trainer(opened(world, tmp_path, stage, quantization=kind, lr=1e-2, examples=16), run, 2048).run()
    losses = [line["loss"] for line in log(run) if line["split"] == "eval"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_reference_shares_the_base_and_kept_adapters_fit_their_parent(
    kind: str | None, world: World, tmp_path: Path
) -> None:
    inputs = opened(world, tmp_path, "dpo", quantization=kind, sync_reference=1, keep_every=1)
    trainer = Trainer(inputs, tmp_path / "run", 2048)
    assert trainer.live is not None
    own, policy = (sum(p.numel() * p.element_size() for p in m.parameters()) for m in (trainer.live, trainer.policy))
    both = {id(p): p for m in (trainer.live, trainer.policy) for p in m.parameters()}.values()
    assert sum(p.numel() * p.element_size() for p in both) - policy < 0.3 * own
    trainer.run()
    kept = load_file(tmp_path / "run/kept/step1/adapter_model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert all("lora_" in name for name in kept)
    assert log(tmp_path / "run")[1]["kl"] == 0


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_states_in_8_bits_are_resumed_bit_for_bit(name: str, world: World, tmp_path: Path) -> None:
    arguments = {"min_8bit_size": 256, "weight_decay": 0.01}
    changes = {"lora": None, "optimizer": name, "optimizer_args": arguments, "lr": 1e-3}
    inputs = opened(world, tmp_path, "sft", precision="fp32", **changes)
    trainer = Trainer(inputs, tmp_path / "whole", 2048)
    trainer.run()
    kinds = {value.dtype for kept in trainer.optimizer.state.values() for key, value in kept.items() if key == "state1"}
    assert kinds == {torch.uint8, torch.float32}
    assert_equal(tmp_path / "whole", resumed(inputs, tmp_path / "parts"))


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_quantised_model_is_trained_by_adapters_alone(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="`quantization: nf4` is trained by adapters alone: give the stage `lora"):
        Trainer(opened(world, tmp_path, "sft", quantization="nf4", lora=None), tmp_path / "run", 2048)


def test_a_quantised_layer_is_not_trained_in_full(world: World, tmp_path: Path) -> None:
    lora = {**LORA, "modules_to_save": ["q_proj"]}
    with pytest.raises(HalosError, match=r"modules_to_save: model\.layers\.0\.self_attn\.q_proj is quantised"):
        Trainer(opened(world, tmp_path, "sft", quantization="nf4", lora=lora), tmp_path / "run", 2048)


def test_without_bitsandbytes_it_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for module in ("halos.models.load", "halos.train.optimizer"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    with pytest.raises(HalosError, match="`quantization: int8` needs bitsandbytes: pip install bitsandbytes"):
        load(world.base / "model", "sdpa", quantization="int8")
    with pytest.raises(HalosError, match="the optimiser AdamW8bit needs bitsandbytes"):
        make_optimizer(torch.nn.Linear(2, 2), Stage(loss="sft", optimizer="AdamW8bit"))


def test_a_model_without_linear_layers_cannot_be_quantised() -> None:
    config = AutoConfig.for_model("openai-gpt", n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    model = AutoModelForCausalLM.from_config(config)
    for name in list(quantisable(model)):
        model.set_submodule(name, torch.nn.Identity())
    with pytest.raises(HalosError, match="OpenAIGPTLMHeadModel has no linear layers that bitsandbytes can quantise"):
        quantise(model, "nf4")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layers_whose_weights_lie_the_other_way_are_quantised_too(kind: str) -> None:
    """Those of GPT-2."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    quantised = copy.deepcopy(model)
    quantise(quantised, kind)
    with torch.no_grad():
        one, other = (m(torch.arange(20)[None]).logits for m in (model, quantised))
    assert quantised_share(quantised) > 0.2
    assert 0 < float((one - other).std() / one.std()) < (0.2 if kind == "nf4" else 0.02)


def test_dora_of_experts_is_refused() -> None:
    from tests.models.test_lora import MIXTURES, made

    with pytest.raises(HalosError, match=r"^lora\.dora: peft has no DoRA of model\.layers\.0\..*experts"):
        with_lora(made("mixtral", **MIXTURES["mixtral"]), {**LORA, "target_modules": "all-linear", "dora": True})
