"""Language models with a tower for pictures: trained on text, and kept and published whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from halos.errors import HalosError
from halos.models.architectures import language_class
from halos.models.load import load
from tests.conftest import World
from tests.train.runs import base_of
from tests.zoo.architectures import tiny

TOWER = ("vision", "visual", "multi_modal")


def of_tower(name: str) -> bool:
    return any(part in name for part in TOWER)


@pytest.mark.parametrize("name", ["mistral3", "qwen2_5_vl", "llama4", "mllama", "gemma3", "qwen3_5"])
def test_a_model_is_made_and_loaded_with_its_tower(name: str, world: World, tmp_path: Path) -> None:
    """`AutoModelForCausalLM` makes nothing of the first two, and only the text part of some others."""
    folder = base_of(world, tmp_path, tiny(name, 512)) / "model"
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == name
    assert any(map(of_tower, load_file(folder / "model.safetensors")))
    model = load(folder, "eager")
    assert type(model.config) is type(config)
    tokens = len(AutoTokenizer.from_pretrained(folder))
    assert model.get_input_embeddings().num_embeddings >= config.get_text_config().vocab_size >= tokens


@pytest.mark.parametrize("name", ["mistral3", "qwen2_5_vl"])
def test_text_trains_the_language_model_and_the_tower_is_published_as_it_was(
    name: str, world: World, tmp_path: Path
) -> None:
    base = base_of(world, tmp_path, tiny(name, 512))
    (base / "model/preprocessor_config.json").write_text(json.dumps({"size": 8}))
    run = world.train(tmp_path / "run", "sft", parent=base, changes={"examples": 32})
    before, after = (load_file(folder / "model/model.safetensors") for folder in (base, run))
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert not any(map(of_tower, moved))
    assert json.loads((run / "model/preprocessor_config.json").read_text()) == {"size": 8}
    AutoModelForImageTextToText.from_pretrained(run / "model")


@pytest.mark.parametrize("name", ["vit", "clip", "t5gemma", "paligemma"])
def test_a_model_that_is_no_language_model_or_sees_the_future_is_refused(
    name: str, world: World, tmp_path: Path
) -> None:
    fields = tiny(name, 512) if name == "paligemma" else {"model_type": name}
    with pytest.raises(HalosError, match=r"choose (another|a causal language model)$"):
        base_of(world, tmp_path, fields)


def test_plain_language_models_have_the_class_that_they_had() -> None:
    from transformers import AutoModelForCausalLM

    for name in ("llama", "gpt2", "gemma3", "gemma3_text", "internlm3"):
        assert language_class(AutoConfig.for_model(name)) is AutoModelForCausalLM
