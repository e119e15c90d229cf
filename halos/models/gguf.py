"""From a GGUF file, the format of llama.cpp, to a model folder that can be trained."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from halos.errors import HalosError
from halos.tokens.template import read_template


def gguf(source: Path, output: Path, template: str | None = None) -> None:
    """The verb: turn a GGUF file into a transformers folder, with safetensors in float32, tokenizer and chat template.

    Quantised weights come out as the numbers they stand for, which are not those that the model was released with.

    Args:
        source: the GGUF file.
        output: the folder to write; it appears when it is complete.
        template: a chat template in place of the file's own: a name in halos/tokens/templates or a .jinja file.

    Raises:
        HalosError: there is no such file, transformers cannot read it, it brings no chat template, or `output` exists.
    """
    source, output = Path(source).resolve(), Path(output)
    if not source.is_file():
        raise HalosError(f"there is no file {source}; name a .gguf file")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise HalosError(f"{output} exists already; remove it or name another folder")
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
    tokenizer.chat_template = chat or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise HalosError(f"{source} brings no chat template; name one by --template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        written = Path(temporary) / "model"
        written.mkdir()  # with the usual permissions: the temporary folder is the owner's alone
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        os.replace(written, output)
