"""Base models that are given as adapters of peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    LoraModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from halos.errors import HalosError
from halos.models.load import load
from tests.conftest import World
from tests.models.test_models import made, tied

IDS = torch.arange(3, 20)[None]
LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
HEAD: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "lm_head"]}


def saved(base: Path, folder: Path, config: Any, **changes: Any) -> torch.Tensor:
    """Save adapters of a base model that change it; returns the logits that they give."""
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        logits: torch.Tensor = model(IDS).logits
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base), **changes}))
    return logits


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA),
        LoraConfig(**LORA, use_dora=True),
        LoraConfig(**LORA, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 32}),
        LoraConfig(**LORA, modules_to_save=["lm_head", "embed_tokens"]),
        LoraConfig(**LORA, trainable_token_indices=[5, 6]),
        LoraConfig(**{**LORA, "target_modules": "all-linear"}),
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
        LoHaConfig(target_modules=["q_proj"]),
    ],
    ids=["lora", "dora", "ranks", "whole modules", "tokens", "all linear", "ia3", "loha"],
)
def test_adapters_that_change_weights_are_merged_and_the_bases_tokenizer_is_taken(
    config: Any, world: World, tmp_path: Path
) -> None:
    base = world.base / "model"
    wanted = saved(base, tmp_path / "adapters", config)
    model = made(tmp_path, [], path=str(tmp_path / "adapters")) / "model"
    with torch.no_grad():
        found = load(model, "sdpa")(IDS).logits
        before = load(base, "sdpa")(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-3 * before.std()
    assert AutoTokenizer.from_pretrained(model).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert AutoTokenizer.from_pretrained(model).chat_template == AutoTokenizer.from_pretrained(base).chat_template


TOKENS = {"alone": TrainableTokensConfig(token_indices=[5, 6]),
          "lora": LoraConfig(**LORA, trainable_token_indices=[5, 6])}  # fmt: skip


@pytest.mark.parametrize("config", TOKENS.values(), ids=TOKENS)
def test_tokens_of_tied_embeddings_are_changed_at_both_ends(config: Any, world: World, tmp_path: Path) -> None:
    """As peft runs them: its own logits are what the merged model has to give."""
    base = tied(world, tmp_path / "tied")
    wanted = saved(base, tmp_path / "adapters", config)
    model = made(tmp_path, [], path=str(tmp_path / "adapters")) / "model"
    with torch.no_grad():
        torch.testing.assert_close(load(model, "sdpa")(IDS).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [["lm_head"], ["embed_tokens"], r".*\.(q_proj|embed_tokens)|lm_head"], ids=str)
def test_adapters_of_one_end_of_tied_embeddings_leave_the_other_as_it_was(
    changed: Any, world: World, tmp_path: Path
) -> None:
    base = tied(world, tmp_path / "tied")
    wanted = saved(base, tmp_path / "adapters", LoraConfig(**{**HEAD, "target_modules": changed}))
    model = made(tmp_path, [], path=str(tmp_path / "adapters")) / "model"
    with torch.no_grad():
        torch.testing.assert_close(load(model, "sdpa")(IDS).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_adapters_that_stay_beside_the_weights_are_refused(config: Any, world: World, tmp_path: Path) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(world.base / "model")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapters")
    with pytest.raises(
        HalosError, match=r"^models\.x: the adapters in \S+ are of the kind \S+, which cannot be merged"
    ):
        made(tmp_path, [], path=str(tmp_path / "adapters"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "do not say which model they belong to: set base_model_name_or_path in"),
        ({"task_type": "SEQ_CLS"}, "are those of a model for SEQ_CLS, and a base model is for CAUSAL_LM"),
        ({"r": 3}, "cannot be merged into"),
        ({"target_modules": ["other_proj"]}, "cannot be merged into"),
    ],
)
def test_adapters_that_do_not_fit_are_one_sentence(
    changes: dict[str, Any], message: str, world: World, tmp_path: Path
) -> None:
    saved(world.base / "model", tmp_path / "adapters", LoraConfig(**LORA))
    path = tmp_path / "adapters/adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    with pytest.raises(HalosError, match=message) as caught:
        made_of(tmp_path, config)
    assert "\n" not in str(caught.value)


def made_of(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "adapters/adapter_config.json").write_text(json.dumps(config))
    made(tmp_path, [], path=str(tmp_path / "adapters"))


def test_adapters_of_a_quantised_base_are_refused(world: World, tmp_path: Path) -> None:
    """As those of QLoRA name one."""
    base = tmp_path / "base"
    shutil.copytree(world.base / "model", base)
    saved(base, tmp_path / "adapters", LoraConfig(**LORA))
    config = json.loads((base / "config.json").read_text())
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": four_bits}))
    with pytest.raises(HalosError, match=r"^models\.x: the weights in \S+base are quantised \(bitsandbytes\)"):
        made(tmp_path, [], path=str(tmp_path / "adapters"))


def test_merging_that_changes_what_adapters_compute_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(world.base / "model", tmp_path / "adapters", LoraConfig(**LORA))
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(HalosError, match="compute something else: give a merged model"):
        made(tmp_path, [], path=str(tmp_path / "adapters"))
