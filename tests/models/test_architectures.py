"""Architectures that cannot be trained as causal language models, or that are misspelt, are refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from halos.data.feedback import Feedback, write
from halos.errors import HalosError
from halos.models.architectures import check_attends_to_the_past, check_causal, check_fields
from halos.models.base import make
from halos.models.load import load
from halos.seeds import derive
from halos.settings import dump
from tests.zoo.architectures import tiny

LLAMA = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2"}


def made(folder: Path, **entry: Any) -> Path:
    """The folder of a base model of an entry of `models`."""
    texts = folder / "feedback.parquet"
    write([Feedback([{"role": "user", "content": "how are you"}], ["fine, thanks"], "s", target=0)], texts)
    content = {"model": "m", "chat_template": "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"}
    if "architecture" in entry:
        entry |= {"tokenizer": {"train_on": "d", "vocab_size": 300}}
    (folder / "config.yaml").write_text(dump({**content, **entry}))
    make(folder / "config.yaml", folder / "made", [texts] if "architecture" in entry else [])
    return folder / "made/model"


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("llama", {"num_hidden_layer": 2}, "num_hidden_layer is no field of LlamaConfig; did you mean 'num_hidden_l"),
        ("gpt2", {"n_heads": 2}, "n_heads is no field of GPT2Config; did you mean 'n_head'?"),
        ("gemma3", {"text_config": {"head_dims": 4}}, "text_config.head_dims is no field of Gemma3TextConfig; did you"),
        (
            "llama",
            {"rope_parameters": {"rope_typ": "yarn"}},
            "rope_parameters.rope_typ is no field of rotary positions",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"factr": 2.0}}},
            "rope_parameters.full_attention.factr",
        ),
        ("lama", {}, "unknown model_type 'lama'; did you mean 'llama'?"),
        ("llava", {"text_config": {"model_type": "lama"}}, "text_config: unknown model_type 'lama'; did you mean"),
        ("gemma3", {"vision_config": {"hiden_size": 8}}, "vision_config.hiden_size is no field of SiglipVisionConfig"),
        ("llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type ['yarn'] is no type"),
        ("llama", {"rope_parameters": {"rope_type": "yarm"}}, "rope_parameters.rope_type 'yarm' is no type of rotary"),
        ("gemma3_text", {"rope_parameters": {"full_atention": {"factor": 2.0}}}, "rope_parameters.full_atention is no"),
        # words of the code that read no field
        ("llama", {"layers": 2}, "layers is no field of LlamaConfig"),
        ("llama", {"hidden": 2}, "hidden is no field of LlamaConfig"),
        ("llama", {"size": 2}, "size is no field of LlamaConfig"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_closest_one(
    model_type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(HalosError) as refused:
        check_fields(model_type, fields)
    assert str(refused.value).startswith(message)


def test_fields_of_a_class_by_other_names_and_of_old_files_are_known() -> None:
    check_fields("gpt2", {"num_hidden_layers": 2, "hidden_size": 8, "n_inner": 8})
    check_fields("llama", {"rope_theta": 1e4, "rope_scaling": None, "tie_word_embeddings": True})
    check_fields("nemotron_h_omni", {"audio_config": {"hidden_size": 64}})  # of a part that is None by default
    check_fields("gemma4_text", {"global_head_dim": 8})
    check_fields("dots3_note_text", tiny("dots3_note_text", 64))
    check_fields("dots3_note_text", {"swa_num_attention_heads": 4})  # whose value its class refuses beside its defaults
    check_fields("gemma3", {"vision_config": {"hidden_size": 8}})
    check_fields("dbrx", {"attn_config": {"rope_theta": 1e4}})


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "t5"}, "transformers has no causal language model of the type t5; choose another"),
        ({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
          "intermediate_size": 8}, "bert without is_decoder: true attends to tokens that follow"),
        ({"model_type": "xlnet", "d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8},
         "XLNetLMHeadModel predicts tokens from those that follow"),
        ({**LLAMA, "bos_token_id": 1}, "bos_token_id comes from the tokenizer: take it out"),
        ({**LLAMA, "vocab_size": 100}, "vocab_size comes from the tokenizer: take it out"),
    ],
)  # fmt: skip
def test_an_architecture_that_cannot_be_trained_is_refused(
    tmp_path: Path, architecture: dict[str, Any], message: str
) -> None:
    with pytest.raises(HalosError, match=r"^models\.m\.architecture: ") as refused:
        made(tmp_path, architecture=architecture)
    assert message in str(refused.value)


@pytest.mark.parametrize("architecture", [LLAMA, QWEN2, {**QWEN2, "model_type": "qwen3"}])
def test_the_embeddings_have_a_row_for_each_token_of_the_tokenizer_as_it_is_read(
    tmp_path: Path, architecture: dict[str, Any]
) -> None:
    folder = made(tmp_path, architecture=architecture)
    tokenizer, network = AutoTokenizer.from_pretrained(folder), load(folder, "sdpa")
    assert network.get_input_embeddings().num_embeddings == len(tokenizer) == network.config.vocab_size


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised (gptq), and cannot be trained"),
        ({"quantization_config": {"load_in_4bit": True}}, "are quantised (some method), and cannot be trained"),
        ({"model_type": "t5"}, "transformers has no causal language model of the type t5"),
        (
            {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}},
            "brings code of its own (code.Config), wh",
        ),
        ({"model_type": "other"}, "is of a type that transformers does not know (other)"),
        ({"model_type": None}, "is of a type that transformers does not know (None)"),
        ({"model_type": "bart"}, "bart is an encoder with a decoder"),
        ({"model_type": "roberta"}, "roberta without is_decoder: true attends to tokens that follow"),
    ],
)
def test_a_local_model_that_cannot_be_trained_is_refused_by_its_config(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = made(tmp_path, architecture=LLAMA)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(HalosError, match=r"^models\.m: ") as refused:
        made(other, path=str(folder))
    assert message in str(refused.value)


def test_a_reward_model_of_a_type_without_a_classifier_is_refused(tmp_path: Path) -> None:
    cohere = {**LLAMA, "model_type": "cohere"}
    folder = made(tmp_path, architecture=cohere)
    with pytest.raises(HalosError, match="has no sequence classifier of the type cohere"):
        load(folder, "sdpa", score=True)


def test_trying_a_model_out_leaves_its_weights_as_they_were(tmp_path: Path) -> None:
    """RWKV divides some in evaluation mode."""
    fields = {"hidden_size": 16, "num_hidden_layers": 4, "attention_hidden_size": 16, "intermediate_size": 16,
              "context_length": 64, "rescale_every": 2}  # fmt: skip
    folder = made(tmp_path, architecture={"model_type": "rwkv", **fields})
    torch.manual_seed(derive(0, "weights"))
    drawn: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    loaded: Any = load(folder, "eager")
    assert loaded.config.rescale_every == 2
    for name, value in drawn.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_model_that_sees_the_future_is_found_and_one_that_does_not_is_not() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "vocab_size": 40, "pad_token_id": 0}  # fmt: skip
    for kind, extra, sees in (("bert", {}, True), ("bert", {"is_decoder": True}, False), ("llama", {}, False)):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small, **extra))
        if sees:
            with pytest.raises(HalosError, match="from those that follow"):
                check_attends_to_the_past(network)
            with pytest.raises(HalosError, match="is_decoder: true"):
                check_causal(network.config)
        else:
            check_attends_to_the_past(network)
            check_causal(network.config)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bart"])
def test_a_reward_model_that_does_not_read_the_last_token_is_refused(kind: str, tmp_path: Path) -> None:
    """The first token of a causal model sees no other: every text would have the same score."""
    folder = made(tmp_path, architecture=tiny(kind, 300))
    load(folder, "eager")
    message = r"does not depend on the last token|that no language model has"
    with pytest.raises(HalosError, match=message) as refused:
        load(folder, "eager", score=True)
    assert "\n" not in str(refused.value)


def test_a_class_that_fails_on_the_fields_is_said_to_need_others(tmp_path: Path) -> None:
    """Emu3's takes its ids of pictures from a map of the vocabulary, which a config of its sizes alone has not."""
    says = r"^models\.m\.architecture: transformers cannot make the type emu3 of these fields \(AttributeError: "
    with pytest.raises(HalosError, match=says) as refused:
        made(tmp_path, architecture=tiny("emu3", 300))
    assert "\n" not in str(refused.value)


def test_code_that_a_tokenizer_brings_is_not_run(tmp_path: Path) -> None:
    folder = made(tmp_path, architecture=LLAMA)
    (folder / "code.py").write_text("raise SystemExit('run')")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    mine = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, **mine}))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(HalosError, match=r"^models\.m: there is no tokenizer in \S+ that transformers can read"):
        made(other, path=str(folder))
