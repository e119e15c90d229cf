"""Greedy text of prompts that are padded on the left is that of each prompt alone, whatever the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from halos.errors import HalosError
from tests.conftest import World
from tests.sample.test_sample import GREEDY, run
from tests.train.runs import base_of
from tests.train.test_forward import SIZES, scaled

RECURRENT = {"model_type": "recurrent_gemma", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
             "num_attention_heads": 2, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 128,
             "block_types": ["recurrent", "recurrent", "attention"], "w_init_variance_scale": 1.0}  # fmt: skip
RWKV = {"model_type": "rwkv", "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2}  # fmt: skip
DYNAMIC = {**SIZES, "model_type": "llama", "max_position_embeddings": 40,
           "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}  # fmt: skip
LLAMA = {**SIZES, "model_type": "llama", "max_position_embeddings": 256}
MIXTRAL = {**SIZES, "model_type": "mixtral", "num_local_experts": 4, "max_position_embeddings": 256}
MODELS: dict[str, tuple[dict[str, Any], str | None]] = {
    "states that run through the padding": (RECURRENT, "in batches of equal length"),
    "longrope": (scaled(), "in batches of equal length"),
    "dynamic": (DYNAMIC, ""),  # no request goes beyond the length from which it is scaled
    "no padding at all": (RWKV, None),
    "llama": (LLAMA, ""),
    "output_router_logits": ({**MIXTRAL, "output_router_logits": True}, ""),
    "use_cache: false": ({**LLAMA, "use_cache": False}, ""),
}
"""Name -> architecture, and how its prompts are answered; empty for all side by side, None for any way."""


def filled(folder: Path) -> Path:
    """A model's folder, with an embedding of the padding token, which is 0 in random weights alone."""
    file = folder / "model/model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "embed" in name:
            tensor[0] = torch.randn(tensor.shape[1:], generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder / "model"


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_each_prompt_alone(
    name: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture, how = MODELS[name]
    model = filled(base_of(world, tmp_path / "base", architecture))
    capsys.readouterr()
    settings = {"samples": 1, "max_new_tokens": 32, "model": model, **GREEDY}
    lines = run(world, tmp_path / "a.jsonl", batch=6, **settings)
    said = capsys.readouterr().err
    assert how is None or (f"prompts are answered {how}" in said if how else "prompts are answered" not in said)
    assert len({line["prompt_tokens"] for line in lines}) > 2
    assert run(world, tmp_path / "b.jsonl", batch=1, **settings) == lines


def test_a_model_that_is_not_finite_answers_nothing(world: World, tmp_path: Path) -> None:
    """Greedily, it would answer token 0 without an error."""
    model = base_of(world, tmp_path / "base", LLAMA) / "model"
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalosError, match=r"weights are not finite \(model.norm.weight\)"):
        run(world, tmp_path / "a.jsonl", model=model, **GREEDY)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_model_that_cannot_generate_says_so(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_of(world, tmp_path / "base", LLAMA) / "model"

    def broken(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> None:
        raise AttributeError("no attribute 'num_hidden_layers'")

    monkeypatch.setattr("transformers.LlamaForCausalLM.prepare_inputs_for_generation", broken)
    with pytest.raises(HalosError, match=r"^LlamaForCausalLM cannot generate: no attribute 'num_hidden_layers'; take"):
        run(world, tmp_path / "a.jsonl", model=model, **GREEDY)
