"""Faster forms of a model's layers: Liger's fused kernels, and layers that torch.compile has compiled."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from halos.errors import HalosError

WITHOUT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""What is left out of Liger: a rotary embedding that would be that of every model of this class, and losses, for which
this package has its own."""


def check_liger(config: Any) -> None:
    """Check that Liger can be used here, and with this type of model, before weights are read.

    Args:
        config: the model's transformers config.

    Raises:
        HalosError: there is no GPU, a package is missing, or Liger has no layers of this type.
    """
    import torch

    if not torch.accelerator.is_available():
        raise HalosError("liger: its layers need a GPU, and there is none here: take out `liger`")
    for package, name in (("triton", "triton"), ("liger-kernel", "liger_kernel")):
        if find_spec(name) is None:
            raise HalosError(f"liger: {package} is not installed here: install it, or take out `liger`")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise HalosError(f"liger: it has no layers of {config.model_type}: take out `liger`")


def apply_liger(model: Any) -> int:
    """Replace the norms and feed-forward layers of a model by Liger's fused ones (Hsu et al. 2024, arXiv 2410.10989).

    Liger replaces classes of the model's code as well, which would change models that are made later: these are put
    back.

    Args:
        model: a model of transformers, also within one of peft, changed in place.

    Returns:
        The number of layers that were replaced.

    Raises:
        HalosError: there was none.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    code = vars(sys.modules[type(model).__module__])
    before = dict(code)
    _apply_liger_kernel_to_instance(model=model, **WITHOUT)
    code.update(before)
    forwards = filter(None, (vars(module).get("forward") for module in model.modules()))
    replaced: int = sum(forward.__module__.startswith("liger_kernel") for forward in forwards)
    if not replaced:
        raise HalosError(f"liger: it replaces no layer of {type(model).__name__}: take out `liger`")
    return replaced


def compile_layers(network: Any) -> int:
    """Have torch.compile compile each decoder layer, for rows of any length.

    A layer is compiled where it stands, so that hooks (of FSDP) and the names of weights stay as they are. Of one whose
    activations are checkpointed, the parts are: the compiler does not enter a checkpoint around the attention of packed
    rows, which it leaves as it is (halos/forward/attention.py).

    Args:
        network: a module around a model of transformers; its `_no_split_modules` names the classes of its layers.

    Returns:
        The number of layers.

    Raises:
        HalosError: the model does not say which its layers are.
    """
    kinds = set(network._no_split_modules or ())
    layers = [module for module in network.modules() if type(module).__name__ in kinds]
    if not layers:
        raise HalosError("compile: the model's class does not say which its layers are: take out `compile`")
    for layer in layers:
        for part in layer.children() if getattr(layer, "gradient_checkpointing", False) else (layer,):
            part.compile(dynamic=True)
    return len(layers)
