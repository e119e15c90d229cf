"""Which sequences may be run side by side in padded rows, so that each has the outputs that it has alone.

In most causal models a sequence does not depend on those beside it. Exceptions are

- rotary positions that are scaled by the longest sequence of a batch. transformers has two types of them: `longrope`
  (Ding et al. 2024, arXiv 2402.13753) has one scale up to `original_max_position_embeddings` and another above, and
  `dynamic` scales each length above `max_position_embeddings` otherwise, and keeps the scale for the next batch;
- attention to a number of selected keys: of equally good ones, which are selected depends on the
  width of the row;
- attention, states or experts that padding or other sequences change, which a trial shows (halos/forward/packable.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from halos.forward.layout import Layout


@dataclass(frozen=True)
class Grouping:
    """Which sequences may be run side by side, by their lengths.

    Attributes:
        apart: sequences of up to so many tokens are apart from longer ones, for each of these numbers.
        equal_above: sequences of more tokens are only beside those of equal length; None for no such bound.
        alone: whether every sequence is run alone.
        because: the reason, as a clause; None where any sequences may be run side by side.
    """

    apart: tuple[int, ...] = ()
    equal_above: int | None = None
    alone: bool = False
    because: str | None = None

    @classmethod
    def of(cls, model: nn.Module, longest: int) -> Grouping:
        """What a model's rotary positions and its config ask for.

        Args:
            model: the model of transformers.
            longest: tokens of the longest sequence that it will be run on.
        """
        kinds = [kind for module in model.modules() for kind in _scaled(module)]
        apart = sorted({bound for kind, bound in kinds if kind == "longrope" and bound < longest})
        dynamic = [bound for kind, bound in kinds if kind != "longrope" and bound < longest]
        selected = selected_keys(model)
        selecting = [] if selected is None or selected >= longest else [selected]
        reasons = []
        if apart or dynamic:
            lengths = " and ".join(map(str, sorted({*apart, *dynamic})))
            reasons.append(f"scales rotary positions by the longest sequence of a batch above {lengths} tokens")
        if selecting:
            reasons.append(f"attends to {selected} selected tokens, by the width of the batch")
        if not reasons:
            return cls()
        because = f"the model {' and '.join(reasons)}: sequences for which that differs are run apart"
        return cls(tuple(apart), min([*dynamic, *selecting], default=None), because=because)

    def groups(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Indices of the sequences of each group, from the (S,) tokens of each sequence."""
        if self.because is None:
            return [np.arange(len(lengths))]
        if self.alone:
            return [np.array([k]) for k in range(len(lengths))]
        keys = [lengths > bound for bound in self.apart]
        if self.equal_above is not None:
            keys.append(np.maximum(lengths, self.equal_above))
        _, number = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
        return [np.flatnonzero(number == k) for k in range(number.max() + 1)]

    def parts(self, layout: Layout) -> list[Layout]:
        """The layouts that a layout is run in, one after the other: it alone, or the groups of its padded rows."""
        groups = [np.arange(0)] if layout.segments is not None else self.groups(layout.lengths)
        return [layout] if len(groups) == 1 else [layout.of_rows(rows) for rows in groups]


EQUAL_LENGTHS = Grouping(
    equal_above=0,
    because="the model computes a sequence otherwise beside longer ones: those of equal length are run together",
)
ALONE = Grouping(alone=True, because="the model computes a sequence otherwise beside others: each is run alone")


def _scaled(module: nn.Module) -> Iterable[tuple[str, int]]:
    """(type, tokens above which the scale is another) of a module's rotary positions, for each kind of layers."""
    kind, config = getattr(module, "rope_type", None), getattr(module, "config", None)
    for layers, name in kind.items() if isinstance(kind, dict) else [(None, kind)]:
        if name == "longrope":
            parameters: Any = config.rope_parameters if layers is None else config.rope_parameters[layers]  # type: ignore[union-attr]
            yield name, int(parameters["original_max_position_embeddings"])
        elif isinstance(name, str) and "dynamic" in name:
            yield name, int(module.original_max_seq_len)  # type: ignore[arg-type]


def scales_positions(model: nn.Module) -> bool:
    """Whether a model's rotary positions are scaled by the longest sequence of a batch, from some length on."""
    return any(True for module in model.modules() for _ in _scaled(module))


def selected_keys(model: nn.Module) -> int | None:
    """The most keys that a token attends to, of a model that selects them; None where it attends to all."""
    whole: Any = model.config
    config = whole.get_text_config()
    blocks, size = (getattr(config, name, None) for name in ("index_topk_blocks", "index_block_size"))
    numbers = [getattr(config, name, None) for name in ("keep_window_size", "index_topk", "indexer_budget")]
    return min(filter(None, [*numbers, blocks and size and blocks * size]), default=None)


def forget_lengths(model: nn.Module) -> None:
    """Make dynamic rotary positions forget the lengths that they have seen: they are scaled anew for the next batch."""
    for module in model.modules():
        if any("dynamic" in kind for kind, _ in _scaled(module)):
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, 0)
