"""Attention of model classes: `auto` takes what a class has, and what it lacks is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.models.attention import check_attention
from halos.models.load import load

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("sdpa", {"intermediate_size": 32}),
    "gemma2": ("eager", {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 16}),
    "gpt_oss": ("eager", {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2,
                          "num_experts_per_tok": 1, "layer_types": ["full_attention", "sliding_attention"]}),
    "bloom": ("eager", {}),
    "mamba": ("eager", {"state_size": 4}),
    "gptj": ("eager", {"rotary_dim": 8}),
}  # fmt: skip
"""Type -> the attention that `auto` takes, and fields of a small config."""


def folder_of(kind: str, folder: Path) -> Path:
    fields = {key: value for key, value in SIZES.items() if kind != "mamba" or "attention" not in key}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields, **KINDS[kind][1]))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_what_the_class_has(kind: str, tmp_path: Path) -> None:
    model = load(folder_of(kind, tmp_path), "auto")
    assert model.config._attn_implementation == KINDS[kind][0]
    logits = model(input_ids=torch.arange(3, 12)[None]).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind, (attention, _) in KINDS.items() if attention == "eager"])
def test_an_attention_that_the_class_lacks_is_refused_by_what_it_has(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path)
    (folder / "model.safetensors").unlink()  # the config alone says it
    for check in (check_attention, load):
        with pytest.raises(HalosError, match=r"^attention sdpa: \w+ForCausalLM has eager.*; set `attention: auto`"):
            check(folder, "sdpa")


def test_every_class_has_eager(tmp_path: Path) -> None:
    for kind in ("llama", "gemma2", "bloom"):
        assert load(folder_of(kind, tmp_path / kind), "eager").config._attn_implementation == "eager"
