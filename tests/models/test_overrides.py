"""`config:` of a model's entry: fields of a hub or local model's transformers config that are changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from halos.errors import HalosError
from halos.models.load import load
from tests.conftest import CATALOGUE, World
from tests.models.test_models import made, slice_of

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"rope_scaling": YARN}, {"rope_theta": 10000.0, **YARN}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}),
        ({"rope_parameters": {"rope_theta": 500000.0}}, {"rope_theta": 500000.0, "rope_type": "default"}),
        ({"rope_theta": 500000.0}, {"rope_theta": 500000.0, "rope_type": "default"}),
    ],
)  # fmt: skip
def test_rotary_positions_are_changed_and_the_rest_of_them_is_kept(
    config: dict[str, Any], kept: dict[str, Any], world: World, tmp_path: Path
) -> None:
    origin = world.base / "model"
    model = made(tmp_path, [], path=str(origin), config={**config, "max_position_embeddings": 1024}) / "model"
    changed, before = AutoConfig.from_pretrained(model), AutoConfig.from_pretrained(origin)
    assert changed.rope_parameters == kept
    assert changed.max_position_embeddings == 1024
    changes = {"rope_parameters", "max_position_embeddings", "transformers_version", "_name_or_path"}
    assert {k: v for k, v in changed.to_dict().items() if k not in changes} == {
        k: v for k, v in before.to_dict().items() if k not in changes
    }
    ids = torch.arange(200)[None]
    with torch.no_grad():
        assert (load(model, "sdpa")(ids).logits - load(origin, "sdpa")(ids).logits).abs().max() > 1e-4
    assert json.loads((origin / "config.json").read_text())["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layer": 2}, "config: num_hidden_layer is no field of LlamaConfig; did you mean 'num_hid"),
        ({"vocab_size": 600}, "config: the saved weights would not fit: "),
        ({"hidden_size": 64}, "config: the saved weights would not fit: "),
        ({"num_hidden_layers": 3}, "config: the saved weights would not fit: "),
        ({"tie_word_embeddings": "maybe"}, "config: "),
        ({"rope_scaling": {"factr": 2.0}}, "config: rope_scaling.factr is no field of rotary positions; did you mean"),
        ({"model_type": "mistral"}, "config: the model_type is that of the weights: take it out"),
        ({"hidden_act": 3}, "config: "),
    ],
)  # fmt: skip
def test_a_change_that_cannot_be_is_one_sentence(
    config: dict[str, Any], message: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(HalosError) as caught:
        made(tmp_path, [], path=str(world.base / "model"), config=config)
    assert str(caught.value).startswith(f"models.x: {message}")
    assert "\n" not in str(caught.value)


def test_learned_positions_cannot_be_more_than_were_learned(world: World, tmp_path: Path) -> None:
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=8, n_layer=1, n_head=1, n_positions=64, **ends))
    network.save_pretrained(tmp_path / "gpt2")
    tokenizer: Any = AutoTokenizer.from_pretrained(world.base / "model")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(HalosError, match=r"would not fit: transformer\.wpe\.weight has the shape \(64, 8\) and would"):
        made(tmp_path, [], path=str(tmp_path / "gpt2"), config={"n_positions": 128})
    model = made(tmp_path, [], path=str(tmp_path / "gpt2"), config={"attn_pdrop": 0.5}) / "model"
    assert AutoConfig.from_pretrained(model).attn_pdrop == 0.5


def test_an_architecture_holds_its_fields_itself(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="write these fields under architecture"):
        slice_of(tmp_path, **CATALOGUE["models"]["m"], config={"rope_theta": 1.0})
