"""The floating-point operations that a step cannot do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What of a decoder's shape costs operations."""

    layers: int
    hidden: int
    queries: int
    keys: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Of a Llama's transformers config."""
        head = config["hidden_size"] // config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            queries=head * config["num_attention_heads"],
            keys=head * config["num_key_value_heads"],
            mlp=config["intermediate_size"],
            vocabulary=config["vocab_size"],
        )

    @property
    def matrices(self) -> int:
        """Parameters of the matrices of all layers: projections of queries and output, of keys and values, the MLP."""
        return self.layers * self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.mlp)


@dataclass(frozen=True)
class Example:
    """Tokens of a prompt, of the responses to it that are trained on, and of those that are only scored (the mismatched
    responses of KTO's KL)."""

    prompt: int
    trained: tuple[int, ...]
    scored: tuple[int, ...] = ()


def useful_flops(shape: Shape, examples: Iterable[Example], shared: bool) -> float:
    """Operations of a training step that a perfect implementation does, without padding or recomputation.

    Forward, 2 for each matrix parameter and token; 2 * hidden * vocabulary for each response token, the only ones whose
    logits are read; 2 * 2 * queries for each layer and each pair of a token and one that it attends to (itself, and
    what comes before it). A backward pass costs twice the forward pass: so 6, 6 and 12 where there is one. The
    embedding, norms and softmax are left out.

    Args:
        shape: of the model.
        examples: of the global batch.
        shared: count the prompt of an example once; else once for each of its responses.
    """
    total = 0.0
    for example in examples:
        prompts = 1 if shared else len(example.trained)
        total += 3 * prompts * _forward(shape, 0, example.prompt, read=0)
        total += sum(3 * _forward(shape, example.prompt, n, read=n) for n in example.trained)
        again = 0 if shared else len(example.scored)
        total += again * _forward(shape, 0, example.prompt, read=0)
        total += sum(_forward(shape, example.prompt, n, read=n) for n in example.scored)
    return total


def _forward(shape: Shape, before: int, tokens: int, read: int) -> float:
    """Of `tokens` after `before` others, the logits of `read` of them."""
    attended = tokens * before + tokens * (tokens + 1) // 2
    return (
        2.0 * shape.matrices * tokens + 2.0 * shape.hidden * shape.vocabulary * read
        + 4.0 * shape.layers * shape.queries * attended
    )  # fmt: skip
