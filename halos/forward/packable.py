"""Packing of a model's sequences, if the model is packable: if it computes the same on packed rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halos.forward import layout as layouts
from halos.forward.attention import NAMES, window_too_short
from halos.forward.layout import Layout, Text
from halos.forward.microbatch import Microbatch

TOLERANCE = 1e-4
"""Largest difference, in float32, of a log-probability or a score between packed and padded rows of the trial."""


def enable_packing(module: nn.Module, longest: int) -> str | None:
    """Switch the model that `module` wraps to attention over packed rows, if it is packable.

    This is tried out on a few short sequences, which are run in packed and in padded rows. Models that differ have
    recurrent states or biases by distance, or ask for more of their attention than causality (a window, a cap).

    Args:
        module: `ResponseLogps` or `SequenceScores`, on the CPU.
        longest: tokens of the longest sequence that the model will be run on, prompt included.

    Returns:
        None if the model now needs packed rows; else the reason why it stays as it was and needs padded ones.
    """
    wrapped: Any = module
    model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
    attention = model.config._attn_implementation
    if attention not in NAMES:
        return f"attention `{attention}` does not support packed rows"
    window = _window(model.config.get_text_config())
    if window is not None and window < longest:
        return window_too_short(window, longest)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            model.set_attn_implementation("sdpa")  # the trial is on the CPU, where sdpa always exists
            expected = [module(_batch(layouts.padded(texts), None)) for texts in TRIAL]
            model.set_attn_implementation(NAMES["sdpa"])
            row = layouts.packed(TRIAL[0])
            assert row.segments is not None
            following = layouts.follow(TRIAL[1], TRIAL[0], row.segments)
            row = replace(row, segments=replace(row.segments, longest=longest))
            batch = _batch(row, _batch(following, None))
            outputs = [module(batch), module(batch.following)]
        reason = None if _close(outputs, expected) else "the model gives other results on packed rows"
    except Exception as error:  # any error that a model's own code raises for arguments that it does not expect
        reason = " ".join(str(error).split()) or type(error).__name__
    finally:
        model.set_attn_implementation(attention)
        module.train(training)
    if reason is None:
        model.set_attn_implementation(NAMES[attention])
    return reason


def _window(config: Any) -> int | None:
    """The shortest attention window of a model's layers, in tokens; None without one.

    It is read from the config because some models apply it only in their mask, which no trial of short sequences shows.
    """
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    kinds = getattr(config, "layer_types", None) or names
    windows = [getattr(config, name, None) for kind, name in names.items() if kind in kinds]
    return min(filter(None, windows), default=None)


def _text(key: int, prompt: int, tail: int) -> Text:
    ids = np.arange(3, 40)
    return Text(key, ids[key : key + prompt], ids[::-1][2 * key + prompt : 2 * key + prompt + tail], lead=0)


TRIAL = ([_text(0, 5, 4), _text(1, 3, 6), _text(0, 5, 7)], [_text(1, 3, 5), _text(0, 5, 3)])
"""The sequences of a packed row with two prompts, and those of a row of branches that follows it."""


def _batch(layout: Layout, following: Microbatch | None) -> Microbatch:
    sequences = len(layout.lengths)
    mask = torch.zeros(sequences * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    batch = Microbatch(("response",), layout, mask.view(sequences, -1), None, torch.ones(sequences), 1)
    return replace(batch, following=following).to(torch.device("cpu"))


def _close(outputs: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> bool:
    pairs = [(a[name], b[name]) for a, b in zip(outputs, expected, strict=True) for name in b]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=TOLERANCE) for a, b in pairs)
