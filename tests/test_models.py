"""Base models, LoRA, and what a saved model's folder holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from halos import config as C
from halos.config import dump
from halos.errors import HalosError
from halos.models import accelerator_for, fingerprint, load, make, save, with_lora
from halos.provenance import hash_weights
from tests.conftest import CATALOGUE, World

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


def made(tmp_path: Path, feedback: list[Path], **settings: Any) -> Path:
    """Make a model from an entry; returns its folder."""
    entry = C.Model(**settings)
    (tmp_path / "config.yaml").write_text(dump({"model": "x", **C.identity(entry)}))
    make(tmp_path / "config.yaml", feedback, tmp_path / "x")
    return tmp_path / "x"


def test_an_architecture_has_the_same_weights_for_the_same_seed_only(world: World, tmp_path: Path) -> None:
    feedback = [world.results / "data/d/train.parquet"]
    entry = CATALOGUE["models"]["m"]
    hashes = []
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        hashes.append(hash_weights(made(tmp_path / name, feedback, **entry, seed=seed) / "model"))
    assert hashes[0] == hash_weights(world.base / "model") != hashes[1]


def test_the_tokenizer_gives_every_text_back(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    for text in ("The answer is 4.", "  indented\n\n\tcode  ", "Grüße, 世界 🙂", "a\u2028b\u0085c\r\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= 512


def test_generation_ends_at_the_end_of_a_turn(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    generation = GenerationConfig.from_pretrained(world.base / "model")
    assert generation.eos_token_id == [tokenizer.convert_tokens_to_ids("<|end|>")]
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in generation.eos_token_id


def test_the_named_template_is_saved_with_the_model(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    assert tokenizer.chat_template == (Path(C.__file__).parent / "templates/turns.jinja").read_text()


def test_the_manifest_tells_the_weights(world: World) -> None:
    manifest = json.loads((world.base / "manifest.json").read_text())
    assert manifest["weights"] == hash_weights(world.base / "model")


def test_a_local_models_weights_are_linked_and_its_own_tokenizer_kept(world: World, tmp_path: Path) -> None:
    origin = world.base / "model"
    model = made(tmp_path, [], path=str(origin)) / "model"
    [weights] = model.glob("*.safetensors")
    assert weights.is_symlink()
    assert weights.resolve() == (origin / "model.safetensors").resolve()
    assert AutoTokenizer.from_pretrained(model).chat_template == AutoTokenizer.from_pretrained(origin).chat_template
    ids = torch.arange(9)[None]
    assert torch.equal(load(model, "sdpa")(ids).logits, load(origin, "sdpa")(ids).logits)


def test_a_template_can_be_a_file_of_ones_own(world: World, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(text)
    model = made(tmp_path, [], path=str(world.base / "model"), template=str(tmp_path / "own.jinja")) / "model"
    assert AutoTokenizer.from_pretrained(model).chat_template == text
    assert AutoTokenizer.from_pretrained(world.base / "model").chat_template != text  # the origin is left alone


def test_a_folder_without_safetensors_is_refused(world: World, tmp_path: Path) -> None:
    origin = tmp_path / "pickled"
    origin.mkdir()
    for path in (world.base / "model").iterdir():
        if path.suffix != ".safetensors":
            (origin / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(world.base / "model" / "model.safetensors"), origin / "pytorch_model.bin")
    with pytest.raises(HalosError, match="holds no safetensors weights"):
        made(tmp_path, [], path=str(origin))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"models\.x: there is no model in"):
        made(tmp_path, [], path=str(tmp_path))
    with pytest.raises(HalosError, match="there is no model in"):
        load(tmp_path, "sdpa")


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    entry = C.Model(hub="someone/something", revision="v1")
    (tmp_path / "config.yaml").write_text(dump({"model": "x", **C.identity(entry)}))
    done = subprocess.run(
        [sys.executable, "-m", "halos", "model", "--config", tmp_path / "config.yaml", "--output", tmp_path / "x"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: models.x: cannot get someone/something at v1 from the Hugging Face hub")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "lama"},
        {"model_type": "llama", "hidden_size": "large"},
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
    ],
)
def test_an_architecture_that_cannot_be_is_one_sentence(
    architecture: dict[str, Any], world: World, tmp_path: Path
) -> None:
    entry = {**CATALOGUE["models"]["m"], "architecture": architecture}
    with pytest.raises(HalosError, match=r"^models\.x\.architecture: ") as caught:
        made(tmp_path, [world.results / "data/d/train.parquet"], **entry)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_feedback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="give --feedback"):
        made(tmp_path, [], **CATALOGUE["models"]["m"])


def test_an_attention_that_is_not_installed_is_refused(world: World) -> None:
    with pytest.raises(HalosError, match="set `attention: sdpa`"):
        load(world.base / "model", "flash_attention_2")


def test_weights_are_loaded_as_float32_and_saved_as_they_are(world: World, tmp_path: Path) -> None:
    model = load(world.base / "model", "sdpa")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    before, after = (load_file(f / "model.safetensors") for f in (world.base / "model", tmp_path / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_model_has_its_parents_tokenizer_template_and_generation_config(world: World, tmp_path: Path) -> None:
    model = load(world.base / "model", "sdpa")
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    kept = [p.name for p in (world.base / "model").iterdir() if p.name not in ("config.json", "model.safetensors")]
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(kept)
    for name in kept:
        assert (tmp_path / "model" / name).read_bytes() == (world.base / "model" / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_tied_weights_survive_saving(tmp_path: Path, world: World) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    again = load(tmp_path / "model", "sdpa")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again(torch.arange(9)[None]).logits, model.eval()(torch.arange(9)[None]).logits)


def test_lora_trains_its_adapters_only(world: World) -> None:
    model = with_lora(load(world.base / "model", "sdpa"), LORA)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_saved_lora_model_is_the_merged_one(world: World, tmp_path: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        model = with_lora(load(world.base / "model", "sdpa"), LORA)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        return model

    ids = torch.arange(20)[None]
    with torch.no_grad():
        unmerged = adapted().eval()(ids).logits
        save(adapted(), adapted().state_dict(), world.base / "model", tmp_path / "model")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
        base = load(world.base / "model", "sdpa")(ids).logits
    expected = adapted().merge_and_unload().state_dict()
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    torch.testing.assert_close(saved, unmerged, rtol=1e-4, atol=1e-5)
    assert (saved - base).abs().max() > 0.01
    assert not list((tmp_path / "model").glob("adapter*"))


def test_a_fingerprint_tells_configs_and_inputs_apart() -> None:
    one = fingerprint({"lr": 1e-3, "betas": (0.9, 0.95)}, {"weights": "a"})
    assert one == fingerprint({"betas": [0.9, 0.95], "lr": 1e-3}, {"weights": "a"})
    assert one != fingerprint({"lr": 1e-3, "betas": (0.9, 0.95)}, {"weights": "b"})
    assert one != fingerprint({"lr": 2e-3, "betas": (0.9, 0.95)}, {"weights": "a"})


def test_sharded_training_is_refused_and_not_saved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(HalosError, match=r"ddp\.yaml"):
        accelerator_for("fp32")
