"""Attention implementations of model classes, and whether they can be computed here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.hub import remedy
from halos.models.architectures import language_class
from halos.pretrained import read_config

AUTO = "auto"
"""The best that a class has on any hardware: sdpa, or else eager. It is what transformers takes by itself."""
ON_CPU = (AUTO, "eager", "sdpa")
"""Implementations that need no GPU."""
FLAGS = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn",
         "flash_attention_3": "_supports_flash_attn", "flex_attention": "_supports_flex_attn"}  # fmt: skip
"""Implementation -> the flag by which a class of transformers says that it has it."""
PACKAGES = {
    "flash_attention_2": ("flash-attn", "flash_attn"),
    "flash_attention_3": ("flash-attn-3", "flash_attn_interface"),
}
"""Implementation -> the package that computes it, and the name that it is imported by."""


def implementations(kind: type) -> list[str]:
    """The attention implementations of a model class, by the names of `attention`."""
    return ["eager", *(name for name, flag in FLAGS.items() if getattr(kind, flag, False))]


def is_kernel(attention: str) -> bool:
    """Whether an attention implementation is a prebuilt kernel of the hub, OWNER/NAME@COMMIT."""
    return "/" in attention


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
    known = implementations(kind)
    if ("flash_attention_2" if is_kernel(attention) else attention) not in known:
        raise HalosError(
            f"attention {attention}: {kind.__name__} has {' and '.join(known)}; set `attention: auto`, which takes the "
            "best of them"
        )


def check_here(attention: str) -> None:
    """Check that this machine and environment can compute an attention implementation, before weights are read.

    Where flash-attn is not installed, transformers would take whatever version of a kernel the hub has: only one that
    is named by its commit is taken here.

    Raises:
        HalosError: there is no GPU, a package is missing, or the kernel is not in the hub's cache or not for this GPU.
    """
    if attention in ON_CPU:
        return
    import torch

    if not torch.accelerator.is_available():
        raise HalosError(f"attention {attention} needs a GPU, and there is none here: set `attention: auto`")
    if attention in PACKAGES and find_spec(PACKAGES[attention][1]) is None:
        raise HalosError(
            f"attention {attention} is not installed here: install {PACKAGES[attention][0]}, name a prebuilt kernel "
            "(`attention: kernels-community/flash-attn2@COMMIT`), or set `attention: auto`"
        )
    if is_kernel(attention):
        load_kernel(attention)


def load_kernel(attention: str) -> Any:
    """The module of a prebuilt attention kernel, from the hub's cache.

    Args:
        attention: OWNER/NAME@COMMIT.

    Raises:
        HalosError: the package `kernels` is missing, or the kernel cannot be loaded or is no flash attention.
    """
    if find_spec("kernels") is None:
        raise HalosError(
            f"attention {attention} is loaded by the package kernels, which is not installed here: install it, or set "
            "`attention: auto`"
        )
    from kernels import get_kernel

    repository, _, commit = attention.partition("@")
    try:
        kernel = get_kernel(repository, revision=commit)
    except Exception as error:  # of the hub, of its HTTP library, or of the kernel's own code
        why = " ".join(str(error).split())
        raise HalosError(f"the attention kernel {attention} cannot be loaded ({why}); {remedy()}") from error
    if not hasattr(kernel, "flash_attn_varlen_func"):
        raise HalosError(f"{attention} is no kernel of flash attention (it has no flash_attn_varlen_func): set another")
    return kernel
