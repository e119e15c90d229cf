"""Parameters that no text reaches, such as a vision tower's, which get no gradient and for which DDP would wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from transformers import PreTrainedModel

from halos.forward import layout as layouts
from halos.forward.layout import Text
from halos.forward.microbatch import Microbatch


def settle_unreached(network: nn.Module, accelerator: Accelerator, drops_layers: bool = False) -> str | None:
    """Freeze what no text reaches beside the language model, and let DDP look for what is not reached within it.

    Beside it (towers and projectors of multimodal models, adapters on them) nothing depends on the text, so the
    parameters stay as they are for good. Within it that may depend on the tokens; to look costs DDP some time in each
    step, and is done for no other models.

    Args:
        network: `ResponseLogps` or `SequenceScores`, on the CPU.
        accelerator: the processes.
        drops_layers: whether layers are skipped at random in training.

    Returns:
        One line for the log; None where text reaches everything.
    """
    wrapped: Any = network
    model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
    text = model.config.get_text_config()
    waits = accelerator.num_processes > 1 and not accelerator.is_fsdp2
    if text is model.config and not waits:
        return None
    inside = {id(p) for m in model.modules() if _is_language_model(m, text) for p in m.parameters()}
    left = None if drops_layers else unreached(network, model)
    names = left or []
    beside = [name for name in names if inside and id(network.get_parameter(name)) not in inside]
    total = _size(network, _trained(network))
    for name in beside:
        network.get_parameter(name).requires_grad_(False)
    if waits and (left is None or len(beside) < len(names)):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    if not names:
        return None
    return (
        f"text reaches all but {_size(network, names):,} of {total:,} trained parameters, and those stay as they are "
        f"(the first: {names[0]})"
    )


def _size(network: nn.Module, names: list[str]) -> int:
    return sum(network.get_parameter(name).numel() for name in names)


def _trained(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def _is_language_model(module: nn.Module, config: Any) -> bool:
    return isinstance(module, PreTrainedModel) and isinstance(module.config, type(config))


def unreached(network: nn.Module, model: Any) -> list[str] | None:
    """Names of the trained parameters on which no output for a short text depends in training.

    The graph of a forward pass is followed; nothing is run backward, so no gradient takes memory.

    Args:
        network: the network, on the CPU.
        model: the model of transformers within it.

    Returns:
        None if the model cannot be tried here, because its code needs another device.
    """
    ids = np.arange(3, 15)
    layout = layouts.padded([Text(0, ids[:5], ids[5:])])
    batch = Microbatch(("response",), layout, torch.ones(1, 7, dtype=torch.bool), None, torch.ones(1), len(ids))
    attention = model.config._attn_implementation
    training = network.training
    network.train()  # some models compute otherwise in evaluations
    try:
        if attention != "eager":
            model.set_attn_implementation("sdpa")  # the trial is on the CPU, where sdpa always exists
        with torch.enable_grad():
            outputs = list(network(batch).values())
    except Exception:  # any error that a model's own code raises where it misses its device
        return None
    finally:
        model.set_attn_implementation(attention)
        network.train(training)
    reached: set[int] = set()
    seen: set[Any] = set()
    nodes = [output.grad_fn for output in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))  # that of a leaf
        nodes += [following for following, _ in node.next_functions]
    return [name for name in _trained(network) if id(network.get_parameter(name)) not in reached]
