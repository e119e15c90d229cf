"""Dropout of the model itself: none where a reference is computed without it, else the model's own or what is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.train.dropout import Dropout
from halos.train.inputs import Inputs
from halos.train.stage import Stage
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import base_of, log, references

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
"""Its own dropout is 0.1, of embeddings, attention and what is added to the residual stream."""
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
EXPERTS = {"intermediate_size": 32, "num_local_experts": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.3, "layerdrop": 0.5},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt_neo": {
        "attention_types": [[["global"], 2]],
        "resid_dropout": 0.3,
        "embed_dropout": 0.3,
        "attention_dropout": 0.3,
    },
    "biogpt": {
        "hidden_dropout_prob": 0.3,
        "attention_probs_dropout_prob": 0.3,
        "layerdrop": 0.5,
        "intermediate_size": 32,
    },
    "llama": {"intermediate_size": 32, "attention_dropout": 0.3},
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.3},
    "phimoe": {**EXPERTS, "input_jitter_noise": 0.3, "router_jitter_noise": 0.3},
}
"""Probabilities in dropout modules, beside them, of whole layers, and of routers' inputs and scores."""


def make(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {} if kind == "gpt2" else SIZES
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{"vocab_size": 64, **sizes, **FAMILIES[kind]}))


@torch.no_grad()
def logits(model: Any, seed: int) -> Tensor:
    torch.manual_seed(seed)
    out: Tensor = model(input_ids=torch.arange(3, 51).view(4, 12), use_cache=False).logits
    return out


@pytest.mark.parametrize("kind", FAMILIES)
def test_without_dropout_training_computes_what_evaluation_does(kind: str) -> None:
    model = make(kind)
    config = model.config.to_json_string()
    expected = logits(model.eval(), 0)
    model.train()
    assert not torch.allclose(logits(model, 1), logits(model, 2), rtol=0, atol=1e-3)
    dropout = Dropout(model, 0.0)
    dropout.train(model)
    torch.testing.assert_close(logits(model, 1), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(model, 1), logits(model, 2))
    with dropout.as_configured():
        assert model.config.to_json_string() == config
    assert torch.equal(logits(model, 1), logits(model, 2))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_probability_is_that_of_all_dropout_but_of_no_other_noise(kind: str) -> None:
    model = make(kind)
    other = {n: v for m in model.modules() for n, v in vars(m).items() if re.search("layerdrop|jitter", n)}
    dropout = Dropout(model, 0.2)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {0.2}
    places = {(n, v) for m in model.modules() for n, v in vars(m).items() if "drop" in n and isinstance(v, int | float)}
    assert {v for n, v in places if n not in other} <= {0.2}
    assert {n: v for m in model.modules() for n, v in vars(m).items() if n in other} == other
    assert dropout.text is not None
    assert dropout.text.startswith("dropout is 0.2 (the model's own: 0.3")


def test_a_model_without_dropout_is_refused_a_probability_and_says_nothing() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    assert Dropout(model, None).text is None
    assert Dropout(model, 0.0).text is None
    with pytest.raises(HalosError, match=r"no dropout that `dropout: 0\.2` would set"):
        Dropout(model, 0.2)


@pytest.fixture(scope="module")
def gpt2(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of(world, tmp_path_factory.mktemp("gpt2"), GPT2)


def setup(world: World, base: Path, output: Path, stage: str, **changes: Any) -> Trainer:
    config = world.slice(f"runs/d/m/{stage}/seed1", **changes)
    return Trainer(Inputs.open(config, base, world.store, references(world, base, config)), output, 2048)


@pytest.mark.parametrize(
    ("stage", "changes", "probabilities", "said"),
    [
        ("kto", {}, {0.0}, "dropout is off (the model's own: 0.1)"),
        ("kto", {"dropout": 0.3}, {0.3}, "dropout is 0.3 (the model's own: 0.1)"),
        ("sft", {}, {0.1}, "dropout is the model's own: 0.1"),
        ("sft", {"dropout": 0}, {0.0}, "dropout is off (the model's own: 0.1)"),
        ("bradley_terry", {}, {0.1}, "dropout is the model's own: 0.1"),
        ("kto", {"lora": {"r": 4, "dropout": 0.05}}, {0.0, 0.05}, "dropout is off (the model's own: 0.1)"),
    ],
)
def test_dropout_is_off_with_a_reference_and_the_models_own_without_and_said(
    stage: str, changes: dict[str, Any], probabilities: set[float], said: str, world: World, gpt2: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trainer = setup(world, gpt2, tmp_path / "run", stage, **changes)
    assert {m.p for m in trainer.policy.modules() if isinstance(m, nn.Dropout)} == probabilities
    assert said in capsys.readouterr().err


def test_the_first_step_from_the_reference_has_no_kl(world: World, gpt2: Path, tmp_path: Path) -> None:
    changes = {"examples": 16, "batch_size": 8, "keep_every": 1}
    reference = references(world, gpt2, world.slice("runs/d/m/kto/seed1"))
    run = world.train(tmp_path / "run", "kto", parent=gpt2, reference=reference, changes=changes)
    assert [line["kl"] for line in log(run)[:2]] == pytest.approx([0, 0], abs=1e-4)
    noisy = setup(world, gpt2, tmp_path / "noisy", "kto", **changes, dropout=0.1)
    assert abs(noisy.step(0)["kl"]) > 0.01
    for model in ("model", "kept/step1"):
        saved = json.loads((run / model / "config.json").read_text())
        assert [saved[f"{part}_pdrop"] for part in ("resid", "embd", "attn")] == [0.1, 0.1, 0.1]


def test_dropout_is_no_certainty() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        Stage(loss="sft", dropout=1.0)
