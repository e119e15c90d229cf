"""The floating-point operations that a step cannot do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halos.forward.operations import Operations


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

    @property
    def operations(self) -> Operations:
        """What all of it costs where all of it is trained."""
        output = self.hidden * self.vocabulary
        return Operations(self.matrices, output, self.layers * self.queries, self.matrices, output)


@dataclass(frozen=True)
class Example:
    """Tokens of a prompt, of the responses to it that are trained on, and of those that are only scored (the mismatched
    responses of KTO's KL)."""

    prompt: int
    trained: tuple[int, ...]
    scored: tuple[int, ...] = ()


def useful_flops(operations: Operations, examples: Iterable[Example], shared: bool) -> float:
    """Operations of a training step that a perfect implementation does, without padding or recomputation.

    Logits are those of response tokens alone, the only ones that are read.

    Args:
        operations: of the model.
        examples: of the global batch.
        shared: count the prompt of an example once; else once for each of its responses.
    """
    total = 0.0
    for example in examples:
        prompts = 1 if shared else len(example.trained)
        prompt = _part(0, example.prompt, read=0)
        trained = [prompt] * prompts + [_part(example.prompt, n, read=n) for n in example.trained]
        total += sum(operations.forward(*part) + operations.backward(*part) for part in trained)
        scored = [_part(example.prompt, n, read=n) for n in example.scored]
        total += sum(operations.forward(*part) for part in (scored if shared else scored + [prompt] * len(scored)))
    return total


def _part(before: int, tokens: int, read: int) -> tuple[int, int, int]:
    """(positions, pairs, read) of `tokens` after `before` others, and of the logits of `read` of them."""
    return tokens, tokens * before + tokens * (tokens + 1) // 2, read
