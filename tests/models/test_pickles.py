"""A folder with PyTorch's pickles becomes one with safetensors, and what is no pickle of weights is never run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from halos.errors import HalosError
from halos.models.adapters import check_origin
from halos.models.convert import convert
from halos.models.load import load


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """Its output layer is tied to its embeddings."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def pickled(model: GPT2LMHeadModel, folder: Path, parts: int = 1, **how: Any) -> Path:
    """A folder as older versions of transformers wrote it."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = list(model.state_dict().items())
    names = (
        ["pytorch_model.bin"] if parts == 1 else [f"pytorch_model-{n + 1:05}-of-{parts:05}.bin" for n in range(parts)]
    )
    place = {}
    for n, name in enumerate(names):
        torch.save(dict(state[n::parts]), folder / name, **how)
        place |= dict.fromkeys(dict(state[n::parts]), name)
    if parts > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": place}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_folder_holds_the_same_model(model: GPT2LMHeadModel, tmp_path: Path, parts: int, how: Any) -> None:
    source = pickled(model.to(torch.bfloat16), tmp_path / "in", parts, **how)
    with pytest.raises(HalosError, match=rf"`python -m halos convert --source {source} --output models/NAME`"):
        check_origin(source)
    with pytest.raises(HalosError, match="python -m halos convert"):
        load(source, "auto")
    convert(source, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    weights = {"model.safetensors"} if parts == 1 else {
        "model.safetensors.index.json", *(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))
    }  # fmt: skip
    assert files == weights | {"config.json", "generation_config.json", "tokenizer_config.json"}
    check_origin(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True, dtype="auto").eval()
    assert found.dtype == torch.bfloat16
    assert found.lm_head.weight is found.transformer.wte.weight
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)
    load(tmp_path / "out", "auto")


def test_views_of_one_memory_and_transposed_weights_are_written_whole(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    source = pickled(model, tmp_path / "in")
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole[:2], "b": whole[1:].T, "c": whole}, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert {name: weight.tolist() for name, weight in found.items()} == {
        "a": whole[:2].tolist(), "b": whole[1:].T.tolist(), "c": whole.tolist()
    }  # fmt: skip


def test_adapters_are_converted_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/adapter_config.json").write_text("{}")
    torch.save({"base_model.model.x.lora_A.weight": torch.ones(2, 3)}, tmp_path / "in/adapter_model.bin")
    convert(tmp_path / "in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


class Program:
    """Pickled, it runs a command when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


def test_a_pickle_that_could_run_a_program_is_refused_and_not_run(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    source = pickled(model, tmp_path / "in")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Program(tmp_path / "ran"), protocol=2))
    with pytest.raises(
        HalosError, match=r"pytorch_model.bin is refused: it is no pickle of weights alone \(\w+.system\)"
    ):
        convert(source, tmp_path / "out")
    torch.save({"x": Program(tmp_path / "ran")}, source / "pytorch_model.bin")
    with pytest.raises(HalosError, match="could run any program; ask its authors for safetensors"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Program(tmp_path / "ran")))  # the witness would have seen it
    assert (tmp_path / "ran").exists()


def test_what_is_no_such_folder_is_one_sentence(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    source = pickled(model, tmp_path / "in", parts=2)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(HalosError, match=r"pytorch_model-00002-of-00002.bin is missing, which pytorch_model.bin.index"):
        convert(source, tmp_path / "out")
    for content, says in (("{", "is not valid JSON"), ("{}", r"names no files of weights \(weight_map\)")):
        (source / "pytorch_model.bin.index.json").write_text(content)
        with pytest.raises(HalosError, match=rf"pytorch_model.bin.index.json {says}"):
            convert(source, tmp_path / "out")
    shutil.rmtree(source)
    with pytest.raises(HalosError, match=r"there is no .*in; name a .gguf file, or a folder with pytorch_model.bin"):
        convert(source, tmp_path / "out")
    source.mkdir()
    with pytest.raises(HalosError, match="holds no weights as pytorch_model"):
        convert(source, tmp_path / "out")
    (source / "pytorch_model.bin").write_bytes(b"no pickle at all")
    with pytest.raises(HalosError, match="pytorch_model"):
        convert(source, tmp_path / "out")
    torch.save([torch.ones(1)], source / "pytorch_model.bin")
    with pytest.raises(HalosError, match="does not hold weights by their names"):
        convert(source, tmp_path / "out")
    with pytest.raises(HalosError, match="--template is for GGUF files"):
        convert(source, tmp_path / "out", "turns")
