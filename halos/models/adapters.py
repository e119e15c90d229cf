"""Base models that are given as adapters of peft: merged with the model to which they belong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.files import read_json
from halos.models.architectures import check_causal, check_known, check_weights, language_class
from halos.models.download import ADAPTERS, check_not_pickled, local_base
from halos.models.lora import untie
from halos.pretrained import read_config

TOLERANCE = 1e-3
"""Largest change of a logit by merging, over the logits' standard deviation."""


def check_adapters(folder: Path) -> None:
    """Check that a folder's adapters can be merged into a language model. Only their config is read.

    Raises:
        HalosError: they are of a kind that stays beside the weights, or of a model for another task.
    """
    config = read_json(folder / ADAPTERS)
    kind = str(config.get("peft_type"))
    if config.get("num_virtual_tokens") is not None or kind == "ADAPTION_PROMPT":
        raise HalosError(
            f"the adapters in {folder} are of the kind {kind}, which cannot be merged into weights: give those of LoRA "
            "or another kind that changes weights, or a model"
        )
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise HalosError(f"the adapters in {folder} are those of a model for {task}, and a base model is for CAUSAL_LM")


def check_origin(folder: Path) -> None:
    """Check that a local folder's model or adapters can be trained, as far as its small JSON files tell.

    Raises:
        HalosError: the weights are quantised or pickles alone, or the adapters cannot be merged.
    """
    if (folder / ADAPTERS).is_file():
        check_adapters(folder)
        base = local_base(folder)
        if base is not None and (base / "config.json").is_file():
            check_weights(base)
    else:
        check_weights(folder)
    check_not_pickled(folder)


def merge(adapters: Path, base: Path, folder: Path, tokenizer: Any) -> None:
    """Merge adapters into their base model and write the result, in float32.

    Args:
        adapters: folder of the adapters.
        base: folder of the model to which they belong.
        folder: model folder to write.
        tokenizer: the merged model's, which may have more tokens than the base model.

    Raises:
        HalosError: the base model cannot be trained, the adapters do not fit it, or merging changes what they compute.
    """
    import torch
    from peft import PeftConfig, PeftModel

    check_adapters(adapters)
    check_weights(base)
    check_known(base)
    base_config = read_config(base, trusted=False)
    check_causal(base_config)
    ids = torch.arange(3, 11)[None]

    def adapted(apart: bool) -> tuple[Any, torch.Tensor]:
        """The model with its adapters, its input and output layer a matrix each with `apart`; and its logits."""
        network: Any = language_class(base_config).from_pretrained(base, dtype=torch.float32, use_safetensors=True)
        rows = network.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:  # adapters may bring new tokens
            network.resize_token_embeddings(len(tokenizer))
        if apart:
            untie(network)
        model: Any = PeftModel.from_pretrained(network, str(adapters)).eval()
        with torch.no_grad():
            return model, model(input_ids=ids % rows, use_cache=False).logits

    try:
        model, wanted = adapted(apart=False)  # as peft itself runs it
        if _change_an_end(model.get_base_model(), PeftConfig.from_pretrained(str(adapters))):
            model, _ = adapted(apart=True)
        merged = model.merge_and_unload()
        with torch.no_grad():
            found = merged(input_ids=ids % merged.get_input_embeddings().num_embeddings, use_cache=False).logits
    except Exception as error:  # peft and its kinds of adapters raise whatever they like
        why = " ".join(str(error).split())
        raise HalosError(f"the adapters in {adapters} cannot be merged into {base} ({why})") from error
    if not (found - wanted).abs().max() <= TOLERANCE * wanted.std():
        raise HalosError(f"merged into {base}, the adapters in {adapters} compute something else: give a merged model")
    merged.save_pretrained(folder)


def _change_an_end(network: Any, config: Any) -> bool:
    """Whether adapters change a model's embeddings or its output layer, and not the other, with which it may be one."""
    if config.peft_type == "TRAINABLE_TOKENS":  # changes both alike
        return False
    targets, saved = getattr(config, "target_modules", None), getattr(config, "modules_to_save", None)
    names = [*(() if isinstance(targets, str) else targets or ()), *(saved or ())]
    pattern = targets if isinstance(targets, str) else None
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    return any(
        f".{name}".endswith(tuple(f".{other}" for other in names)) or (pattern and re.fullmatch(pattern, name))
        for name, module in network.named_modules()
        if any(module is end for end in ends)
    )
