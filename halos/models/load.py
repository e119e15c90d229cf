"""Loading of a model folder as a language model or a reward model, and what its small files say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from halos.errors import HalosError
from halos.models.download import ADAPTERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or LoRA adapters that name their base model."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTERS))


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's model scores sequences instead of predicting tokens."""
    kinds = json.loads((folder / "config.json").read_text()).get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def freeze(network: PreTrainedModel, precision: str) -> None:
    """Reduce the memory of a model that is not trained: no gradients and, with bf16, linear weights in bfloat16.

    Autocast rounds the inputs of matrix products in the same way, so outputs do not change. It would keep its bfloat16
    copies beside the float32 weights as long as those require gradients.

    Args:
        network: the model, changed in place.
        precision: `bf16` or `fp32`.
    """
    import torch
    from torch import nn

    network.requires_grad_(False)
    if precision != "bf16":
        return
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    for module in network.modules():
        if type(module) is nn.Linear and id(module.weight) not in embeddings:
            module.to(torch.bfloat16)


def load(folder: Path, attention: str, score: bool = False) -> PreTrainedModel:
    """A language model or reward model with float32 weights, from safetensors only.

    Args:
        folder: the model's folder.
        attention: attention implementation.
        score: load a sequence classifier with one label, a reward model; a language model gets a new score layer
            instead of its output layer.

    Raises:
        HalosError: the folder holds no such model, or its attention implementation is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no model in {folder} (no config.json); put one there or name another folder")
    if is_reward_model(folder) and not score:
        raise HalosError(f"the model in {folder} is a reward model, which has no log-probabilities")
    kind, options = (AutoModelForSequenceClassification, {"num_labels": 1}) if score else (AutoModelForCausalLM, {})
    try:
        model: PreTrainedModel = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, use_safetensors=True, **options
        )
    except ImportError as error:
        raise HalosError(f"attention {attention} is not installed here; set `attention: sdpa` ({error})") from error
    return model


def check_reward_model(folder: Path) -> None:
    """Check that a folder holds a reward model. Only small files are read, so it is quick enough to do before any run.

    Raises:
        HalosError: there is no model, it is of another kind, it has several labels, or it has no chat template.
    """
    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no reward model in {folder} (no config.json); put one there or name another folder")
    config = json.loads((folder / "config.json").read_text())
    kind = next(iter(config.get("architectures") or ["a model of no known kind"]))
    if not kind.endswith("ForSequenceClassification"):
        raise HalosError(f"{folder} holds {kind}, and a reward model is a sequence classifier with one label")
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)  # transformers' own default is two
    if labels != 1:
        raise HalosError(f"{folder} is a classifier with {labels} labels, and a reward model has one")
    tokenizer = folder / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text()) if tokenizer.is_file() else {}
    if not settings.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        raise HalosError(f"the reward model in {folder} has no chat template; put one there as chat_template.jinja")
