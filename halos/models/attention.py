"""Attention implementations of model classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.models.architectures import language_class
from halos.pretrained import read_config

AUTO = "auto"
"""The best that a class has on any hardware: sdpa, or else eager. It is what transformers takes by itself."""


def implementations(kind: type) -> list[str]:
    """The attention implementations of a model class, by the names of `attention`."""
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    return ["eager", *(name for name, flag in flags.items() if getattr(kind, flag, False))]


def check_attention(folder: Path, attention: str, score: bool = False) -> None:
    """Check that a model's class has an attention implementation. Only the config is read.

    Args:
        folder: the model's folder.
        attention: the implementation, or `auto`.
        score: whether the class is the sequence classifier instead of the language model.

    Raises:
        HalosError: the class does not have it; the message names what it has.
    """
    from transformers import AutoModelForSequenceClassification

    if attention == AUTO:
        return
    config = read_config(folder)
    auto: Any = AutoModelForSequenceClassification if score else language_class(config)
    if type(config) not in auto._model_mapping:  # another class, which says so itself when it is loaded
        return
    kinds = auto._model_mapping[type(config)]
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    if attention not in (known := implementations(kind)):
        raise HalosError(
            f"attention {attention}: {kind.__name__} has {' and '.join(known)}; set `attention: auto`, which takes the "
            "best of them"
        )
