"""The floating-point operations that a decoder cannot do without, for its model FLOPs utilisation (MFU)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from halos.forward.microbatch import Microbatch


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a decoder's forward and backward pass (Chowdhery et al. 2022, PaLM, appendix B).

    A forward pass takes 2 for each parameter of a matrix and position. A backward pass takes as many for the gradient
    of the activations, and as many again for that of the matrices that are trained: 6 in all where all are, 4 with
    LoRA. Attention takes twice as many backward as forward. Embeddings, norms, biases and softmax are left out.

    Attributes:
        matrices: parameters of the matrices that a position passes through; of experts, of those that it is sent to.
        output: parameters of the output layer, which only the states before response tokens pass through.
        attention: size of all query heads of all layers; attending to a position takes 4 for each of it.
        trained: those of `matrices` that are trained.
        trained_output: those of `output` that are trained.
    """

    matrices: float
    output: float
    attention: float
    trained: float
    trained_output: float

    @classmethod
    def of(cls, model: Any) -> Operations | None:
        """The operations of a language or reward model, also within one of peft.

        Args:
            model: with whole weights, not yet sharded.

        Returns:
            None for a mixture of experts whose config does not say to how many of them a token is sent.
        """
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = model.config.get_text_config()
        decoder = model.get_decoder()
        head = model.get_output_embeddings()
        share = _share_of_experts(decoder, config)
        if share is None:
            return None
        matrices = trained = 0.0
        for module in decoder.modules():
            for size, is_trained in () if isinstance(module, nn.Embedding) else _matrices(module, share):
                matrices += size
                trained += size * is_trained
        output = 0 if head is None else head.weight.shape[0] * head.weight.shape[1]
        heads = getattr(config, "num_attention_heads", None) or 0
        width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        return cls(
            matrices, output, config.num_hidden_layers * heads * width, trained,
            output if head is not None and head.weight.requires_grad else 0,
        )  # fmt: skip

    def forward(self, positions: float, pairs: float, read: float) -> float:
        """Operations of a forward pass.

        Args:
            positions: positions that are computed, padding left out.
            pairs: pairs of a position and one that it attends to, itself included.
            read: positions whose logits are read.
        """
        return 2.0 * self.matrices * positions + 2.0 * self.output * read + 4.0 * self.attention * pairs

    def backward(self, positions: float, pairs: float, read: float) -> float:
        """Operations of a backward pass; arguments as for `forward`."""
        matrices, output = self.matrices + self.trained, self.output + self.trained_output
        return 2.0 * matrices * positions + 2.0 * output * read + 8.0 * self.attention * pairs


def work(batch: Microbatch) -> tuple[int, int, int]:
    """(positions, pairs, read) of a microbatch, as `Operations.forward` takes them; 0 of a filler."""
    return (0, 0, 0) if batch.filler else (batch.real, batch.layout.pairs, len(batch.layout.targets))


def _matrices(module: nn.Module, share: float) -> list[tuple[float, bool]]:
    """(parameters, whether they are trained) of each matrix of a module itself, without its parts.

    Args:
        share: the share of a layer's experts that a token is sent to.
    """
    if isinstance(module, nn.Linear):  # whose weight may be quantised, and then hold several numbers in one
        return [(module.in_features * module.out_features, module.weight.requires_grad)]
    own = [p for p in module.parameters(recurse=False) if p.ndim > 1]
    of_experts = [p.ndim == 3 and not isinstance(module, _ConvNd) for p in own]
    return [(p.numel() * (share if e else 1), p.requires_grad) for p, e in zip(own, of_experts, strict=True)]


def _share_of_experts(decoder: nn.Module, config: Any) -> float | None:
    """The share of a layer's experts that a token is sent to, 1 where there are none; None if it is not known."""
    stacks = {p.shape[0] for m in decoder.modules() if not isinstance(m, _ConvNd)
              for p in m.parameters(recurse=False) if p.ndim == 3}  # fmt: skip
    chosen = getattr(config, "num_experts_per_tok", None)
    if not stacks:
        return None if chosen else 1.0
    return chosen / stacks.pop() if chosen and len(stacks) == 1 else None
