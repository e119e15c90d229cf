"""The frozen base of QLoRA: linear layers in 4 or 8 bits, by bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314).

This module imports bitsandbytes; `halos.models.load` imports it where a model's entry has a `quantization`.
"""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from halos.errors import HalosError
from halos.models.lora import quantisable

KINDS: dict[str, str] = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}
"""Kind of quantisation -> attribute of a model by which peft knows it."""


class _Product(torch.autograd.Function):
    """Product with a weight that is dequantised for it, and once more for the gradient, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return nn.functional.linear(x, layer.dequantised().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised().to(gradient.dtype), None


def _run(layer: Any, x: Tensor) -> Tensor:
    """The output of a quantised layer, in the autocast type as that of any linear layer.

    bitsandbytes' own layers compute in a type that is set beforehand, pack their weights anew in evaluations on some
    CPUs, and in 8 bits round the inputs as well, by a rule that depends on the other sequences of a batch.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    out: Tensor = _Product.apply(x, layer)
    return out


class NF4(bnb.nn.Linear4bit):
    """A linear layer of 4-bit NormalFloat weights in blocks of 64, whose scales are in 8 bits."""

    @classmethod
    def of(cls, weight: Tensor, bias: nn.Parameter | None) -> NF4:
        """The layer of an (out, in) weight."""
        made = cls(weight.shape[1], weight.shape[0], bias is not None, torch.float32, quant_type="nf4", device="meta")
        values: Any = bnb.nn.Params4bit(
            weight.float().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        made.weight = values.to(weight.device)  # which quantises them
        made.register_parameter("bias", bias)
        return made

    def dequantised(self) -> Tensor:
        """(out, in) float32, the weight that the layer multiplies by."""
        weight: Any = self.weight
        state = copy.copy(weight.quant_state)
        # as one row: bitsandbytes (0.50) on a CPU with AVX-512 mistakes the blocks where rows are shorter than one
        state.shape = torch.Size((1, state.shape.numel()))
        found: Tensor = bnb.functional.dequantize_4bit(weight.data, state)
        return found.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return _run(self, x)


class Int8(bnb.nn.Linear8bitLt):
    """A linear layer of 8-bit weights with a scale for each output; inputs are not rounded."""

    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: nn.Parameter | None) -> Int8:
        """The layer of an (out, in) weight."""
        made = cls(weight.shape[1], weight.shape[0], bias is not None, has_fp16_weights=False, device="meta")
        values, scale, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
        made.weight = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False, SCB=scale)
        made.register_buffer("scale", (scale / 127)[:, None], persistent=False)
        made.register_parameter("bias", bias)
        return made

    def dequantised(self) -> Tensor:
        """(out, in) float32, the weight that the layer multiplies by."""
        return self.weight.data * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return _run(self, x)


def quantise(model: Any, kind: str) -> None:
    """Quantise the linear layers of a model but its output layer, one after the other and in place.

    Args:
        model: a model of transformers, on the CPU.
        kind: `nf4` or `int8`.

    Raises:
        HalosError: it has none.
    """
    layer = NF4 if kind == "nf4" else Int8
    names = list(quantisable(model))
    if not names:
        raise HalosError(
            f"{type(model).__name__} has no linear layers that bitsandbytes can quantise: take out `quantization`"
        )
    for name in names:
        module = model.get_submodule(name)
        weight = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T  # of a Conv1D
        model.set_submodule(name, layer.of(weight, module.bias))
    setattr(model, KINDS[kind], True)


def memory_of(model: nn.Module) -> int:
    """Bytes of a model's weights and of what belongs to quantised ones, each tensor once."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, Int8):
            tensors.append(weight.SCB)
        if isinstance(module, NF4):
            state = weight.quant_state
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
