"""Whether a model computes the same on packed rows, and its setting to them if it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halos.forward import layout as layouts
from halos.forward.attention import NAMES
from halos.forward.layout import Layout, Text
from halos.forward.microbatch import Microbatch

TOLERANCE = 1e-4
"""Of a log-probability or a score, in float32."""


def pack_rows(module: nn.Module, longest: int) -> str | None:
    """Set the model that `module` wraps to packed rows, if they give what sequences alone give.

    It is tried out: two prompts with their branches, in one row and each sequence by itself. What makes the difference
    is the kind of model (recurrent states, biases by distance) or what it asks of its attention (a window, a cap).

    Args:
        module: `ResponseLogps` or `SequenceScores`.
        longest: tokens of the longest sequence to come.

    Returns:
        None, or why the model stays with padded rows: what follows "because".
    """
    wrapped: Any = module
    model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
    attention = model.config._attn_implementation
    if attention not in NAMES:
        return f"attention `{attention}` knows no packed rows"
    window = _window(model.config.get_text_config())
    if window is not None and window < longest:
        return f"its attention slides over {window} tokens, and sequences have up to {longest}"
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            model.set_attn_implementation("sdpa")  # the trial is on the CPU, where it always is to be had
            expected = [module(_batch(layouts.padded(texts), None)) for texts in TRIAL]
            model.set_attn_implementation(NAMES["sdpa"])
            row = layouts.packed(TRIAL[0])
            assert row.segments is not None
            behind = layouts.follow(TRIAL[1], TRIAL[0], row.segments)
            row = replace(row, segments=replace(row.segments, longest=longest))
            batch = _batch(row, _batch(behind, None))
            found = [module(batch), module(batch.following)]
        reason = None if _same(expected, found) else "it computes something else on them"
    except Exception as error:  # whatever a model's own code raises for arguments it was not made for
        reason = " ".join(str(error).split()) or type(error).__name__
    finally:
        model.set_attn_implementation(attention)
        module.train(training)
    if reason is None:
        model.set_attn_implementation(NAMES[attention])
    return reason


def _window(config: Any) -> int | None:
    """Tokens that the attention of some layer reaches over: some models only make a mask of it, which no trial of short
    sequences shows."""
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    kinds = getattr(config, "layer_types", None) or names
    found = [getattr(config, name, None) for kind, name in names.items() if kind in kinds]
    return min(filter(None, found), default=None)


def _text(key: int, prompt: int, tail: int) -> Text:
    ids = np.arange(3, 40)
    return Text(key, ids[key : key + prompt], ids[::-1][2 * key + prompt : 2 * key + prompt + tail], lead=0)


TRIAL = ([_text(0, 5, 4), _text(1, 3, 6), _text(0, 5, 7)], [_text(1, 3, 5), _text(0, 5, 3)])
"""Sequences of one row, and of one that follows it."""


def _batch(layout: Layout, following: Microbatch | None) -> Microbatch:
    sequences = len(layout.lengths)
    mask = torch.zeros(sequences * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    batch = Microbatch(("response",), layout, mask.view(sequences, -1), None, torch.ones(sequences), 1)
    return replace(batch, following=following).to(torch.device("cpu"))


def _same(expected: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> bool:
    pairs = [(a[name], b[name]) for a, b in zip(expected, found, strict=True) for name in a]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=TOLERANCE) for a, b in pairs)
