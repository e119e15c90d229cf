"""What a base model's folder keeps of its origin, and weights that are not those of a class."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from halos.errors import HalosError
from halos.models.load import load
from halos.models.policy import save
from halos.reference.cache import expected_hashes
from halos.tokens.store import Store
from tests.conftest import World
from tests.models.test_models import made

PROCESSOR = {"preprocessor_config.json": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 8}},
             "processor_config.json": {"processor_class": "Gemma3Processor"},
             "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"}}  # fmt: skip


def copy_of(world: World, folder: Path, **config: Any) -> Path:
    """The base model with other fields in its config.json."""
    shutil.copytree(world.base / "model", folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


def without(folder: Path, *names: str) -> Path:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(names)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_settings_of_pictures_are_kept_and_published(world: World, tmp_path: Path) -> None:
    origin = copy_of(world, tmp_path / "origin")
    for name, content in PROCESSOR.items():
        (origin / name).write_text(json.dumps(content))
    (origin / "training_args.json").write_text("{}")
    model = made(tmp_path, [], path=str(origin)) / "model"
    network = load(model, "sdpa")
    save(network, network.state_dict(), model, tmp_path / "published")
    for folder in (model, tmp_path / "published"):
        assert {name: json.loads((folder / name).read_text()) for name in PROCESSOR} == PROCESSOR
        assert not (folder / "training_args.json").exists()


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
         {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}),
        ({"do_sample": True, "min_p": 0.05}, {"do_sample": True, "min_p": 0.05}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": False, "top_k": 5}, {}),
    ],
)  # fmt: skip
def test_the_models_own_sampling_parameters_are_published_where_they_mean_something(
    saved: dict[str, Any], kept: dict[str, Any], world: World, tmp_path: Path
) -> None:
    origin = copy_of(world, tmp_path / "origin")
    ends = json.loads((origin / "generation_config.json").read_text())
    (origin / "generation_config.json").write_text(json.dumps({**ends, **saved}))
    model = made(tmp_path, [], path=str(origin)) / "model"
    network = load(model, "sdpa")
    save(network, network.state_dict(), model, tmp_path / "published")
    published = GenerationConfig.from_pretrained(tmp_path / "published").to_diff_dict()
    names = {"do_sample", "temperature", "top_p", "top_k", "min_p"}
    assert {name: value for name, value in published.items() if name in names and value not in (None, False)} == kept
    assert published["eos_token_id"] == ends["eos_token_id"]


# ---- weights that are not those of the class ---------------------------------------------------------------------


@pytest.mark.parametrize("names", [("lm_head",), ("model.layers.1",)])
def test_weights_that_are_not_all_there_are_refused(names: tuple[str, ...], world: World, tmp_path: Path) -> None:
    """transformers would draw them anew: an embedding model has no output layer, a broken download no last shard."""
    folder = without(copy_of(world, tmp_path / "model"), *names)
    with pytest.raises(HalosError, match=rf"^the weights in \S+ are not all those of LlamaForCausalLM: .* {names[0]}"):
        load(folder, "sdpa")


def test_a_broken_file_of_weights_is_one_sentence(world: World, tmp_path: Path) -> None:
    folder = copy_of(world, tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(HalosError, match=r"^cannot load the model in \S+ \(") as caught:
        load(folder, "sdpa")
    assert "\n" not in str(caught.value)


# ---- reward models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_base_of_five_labels_becomes_a_reward_model_of_one(kind: Any, world: World, tmp_path: Path) -> None:
    """A language model whose config lists labels, and a classifier, whose score layer cannot be kept."""
    labels = {"id2label": {str(i): f"grade {i}" for i in range(5)}, "label2id": {f"grade {i}": i for i in range(5)},
              "problem_type": "single_label_classification"}  # fmt: skip
    folder = copy_of(world, tmp_path / "model", **labels)
    kind.from_pretrained(folder).save_pretrained(folder)
    assert len(json.loads((folder / "config.json").read_text())["id2label"]) == 5
    model: Any = load(folder, "sdpa", score=True)
    assert model.score.weight.shape == (1, 32)
    base = load_file(world.base / "model/model.safetensors")
    assert torch.equal(model.model.embed_tokens.weight, base["model.embed_tokens.weight"])
    save(model, model.state_dict(), folder, tmp_path / "saved")
    again: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert (again.config.num_labels, again.config.problem_type) == (1, None)
    ids = torch.tensor([[5, 6, 7]])
    again.config.pad_token_id = model.config.pad_token_id = 0
    torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)


def test_a_reward_model_keeps_its_own_score_layer(world: World, tmp_path: Path) -> None:
    folder = copy_of(world, tmp_path / "model", id2label={"0": "reward"}, label2id={"reward": 0})
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    scorer.save_pretrained(folder)
    assert torch.equal(load(folder, "sdpa", score=True).score.weight, scorer.score.weight)


def test_a_reward_model_without_its_layers_is_refused(world: World, tmp_path: Path) -> None:
    folder = without(copy_of(world, tmp_path / "model"), "model.layers.1")
    with pytest.raises(HalosError, match=r"^LlamaForSequenceClassification needs .* model\.layers\.1"):
        load(folder, "sdpa", score=True)


def test_a_package_that_is_missing_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("TimmWrapperModel requires the timm library")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(HalosError, match=r"^cannot load the model in \S+ \(TimmWrapper.* timm library\)$"):
        load(world.base / "model", "sdpa")


# ---- weights that were replaced ----------------------------------------------------------------------------------


def test_a_reference_of_replaced_weights_is_refused(world: World, tmp_path: Path) -> None:
    """Also without snakemake, and by weights that are older than the model; a touched file is read, and is the same."""
    origin = copy_of(world, tmp_path / "origin")
    weights = origin / "model.safetensors"
    base, store = made(tmp_path, [], path=str(origin)), Store(world.store)
    before = expected_hashes(base, store)
    os.utime(weights, (10**9, 10**9))
    assert expected_hashes(base, store) == before
    other = bytearray(weights.read_bytes())
    other[-1] ^= 1
    weights.write_bytes(other)
    os.utime(weights, (9 * 10**8, 9 * 10**8))
    with pytest.raises(HalosError, match=r"^\S+origin/model\.safetensors changed since \S+ was made from it: run"):
        expected_hashes(base, store)
    weights.unlink()
    with pytest.raises(HalosError, match=r"^\S+origin/model\.safetensors changed since"):
        expected_hashes(base, store)
