"""A GGUF file becomes a model folder with the same weights, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from halos.errors import HalosError
from halos.models.convert import convert
from halos.tokens.chat import read_template

SPECIAL = ["<unk>", "<|start|>", "<|end|>"]
MERGED = "th"
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), MERGED]
TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""transformers' names of a Llama's modules -> GGUF's; "model.layers.N." is "blk.N."."""


def gguf_name(name: str) -> str:
    head, _, rest = name.removesuffix(".weight").partition("model.layers.")
    layer, _, module = rest.partition(".")
    return f"blk.{layer}.{NAMES[module]}.weight" if rest else f"{NAMES[head]}.weight"


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in GGUF's order, which keeps the two halves of a rotation side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def write(path: Path, model: LlamaForCausalLM, kind: GGMLQuantizationType, template: str | None = TEMPLATE) -> Path:
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in TOKENS])
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = paired(weight, heads)
        quantised = kind if weight.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(weight.numpy(), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        pytest.param(GGMLQuantizationType.F32, 1e-6, id="full"),
        pytest.param(GGMLQuantizationType.Q8_0, 0.02, id="quantised"),
    ],
)
def test_the_folder_holds_the_files_model(
    tmp_path: Path, model: LlamaForCausalLM, kind: GGMLQuantizationType, tolerance: float
) -> None:
    convert(write(tmp_path / "tiny.gguf", model, kind), tmp_path / "out")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert not hasattr(found.config, "quantization_config")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, logits = model(ids).logits, found.eval()(ids).logits
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)


def test_special_tokens_and_the_chat_template_come_along(tmp_path: Path, model: LlamaForCausalLM) -> None:
    convert(write(tmp_path / "tiny.gguf", model, GGMLQuantizationType.F32), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.pad_token_id is not None
    assert (generation.eos_token_id, generation.pad_token_id) == (2, tokenizer.pad_token_id)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert text == "<|start|>user: Why?<|end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("that") == ["th", "a", "t"]


def test_another_chat_template_can_be_named(tmp_path: Path, model: LlamaForCausalLM) -> None:
    source = write(tmp_path / "tiny.gguf", model, GGMLQuantizationType.F32, template=None)
    with pytest.raises(HalosError, match="has no chat template"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", template="turns")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == read_template("turns")


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"there is no .*nowhere\.gguf"):
        convert(tmp_path / "nowhere.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("this is no GGUF file, though it is long enough to look for a header in it")
    with pytest.raises(HalosError, match=r"transformers cannot read .*text\.gguf"):
        convert(tmp_path / "text.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(HalosError, match="exists already"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
