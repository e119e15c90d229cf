"""Conversion of a GGUF file, the format of llama.cpp, to a model folder that can be trained."""

from __future__ import annotations

import logging
from pathlib import Path

from halos.errors import HalosError
from halos.files import whole
from halos.tokens.chat import one_template, read_template


def from_gguf(source: Path, output: Path, template: str | None = None) -> None:
    """Turn a GGUF file into a model folder with float32 safetensors, tokenizer and chat template.

    Args:
        source: GGUF file.
        output: model folder to write; it must not exist, or be empty.
        template: chat template to use instead of the file's: a name in halos/tokens/templates, or a .jinja file.

    Raises:
        HalosError: transformers cannot read the file, or it has no chat template.
    """
    chat = None if template is None else read_template(template)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    folder, file = source.parent, source.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        # without GgufConfig the model counts as quantised, and cannot be saved
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    # NotImplementedError: a quantisation that gguf cannot undo
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise HalosError(f"transformers cannot read {source} ({reason}); choose a file of a model it knows") from error
    if not (chat or tokenizer.chat_template):
        raise HalosError(f"{source} has no chat template; name one with --template")
    tokenizer.chat_template = one_template(chat or tokenizer.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(special)
    model.generation_config = GenerationConfig(**special)

    with whole(output) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
