"""Trial of a model before it is used: which sequences may share a forward pass, and whether they may share a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from halos.errors import HalosError
from halos.forward import layout as layouts
from halos.forward.attention import NAMES, Unsupported, counterpart, window_too_short
from halos.forward.grouping import ALONE, EQUAL_LENGTHS, Grouping, selected_keys
from halos.forward.layout import Layout, Text
from halos.forward.microbatch import Microbatch
from halos.forward.networks import OUTPUTS, ResponseLogps, cannot_run, plain

TOLERANCE = 1e-4
"""Largest difference between two ways to run a sequence, over the difference that another context makes. A tiny model
with random weights depends on its context a little only, so that an absolute tolerance would not show a wrong one."""
ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Largest difference by rounding, over the size of the values."""


def enable_packing(module: nn.Module, longest: int) -> str | None:
    """Find out how a model's sequences may be run together, and switch it to packed rows if it is packable.

    This is tried out on a few short sequences: alone, in padded rows and in packed rows. On padded rows, models differ
    whose attention or states depend on padding; `module.grouping` then says which sequences are run side by side. On
    packed rows, models differ that have recurrent states or biases by distance, or ask for more of their attention than
    causality (a window, a cap). What short sequences cannot show is read from the config: windows, and rotary positions
    that are scaled by length.

    Args:
        module: `ResponseLogps` or `SequenceScores`, on the CPU.
        longest: tokens of the longest sequence that the model will be run on, prompt included.

    Returns:
        None if the model now needs packed rows; else the reason why it stays as it was and needs padded ones.

    Raises:
        HalosError: the model cannot be run, its outputs are not finite or differ from run to run, or a token's
            log-probability depends on the tokens behind it.
    """
    wrapped: Any = module
    model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
    attention = model.config._attn_implementation
    ids = trial_ids(model)
    together, behind = TRIAL
    wrapped.grouping = Grouping.of(model, longest)
    own = getattr(module, "own", None)
    what = type(model).__name__ if own is None else f"the forward pass {type(own).__name__}"
    with _on_cpu(module, model, attention):
        try:
            expected = _stacked(module(_batch(layouts.padded([text]), None)) for text in _texts(together, ids))
        except HalosError:
            raise
        except Exception as error:  # any error that a model's own code raises
            raise HalosError(cannot_run(model, error) if own is None else f"{what} fails: {_text(error)}") from error
        check_finite(model, expected)
        same = _Same.of(module, expected, ids)
        side_by_side = _batch(layouts.padded(_texts(together, ids)), None)
        for grouping in (wrapped.grouping, EQUAL_LENGTHS, ALONE):
            wrapped.grouping = grouping
            if same(module(side_by_side), expected):
                break
        else:
            raise HalosError(f"{what} computes the same sequence otherwise each time, also alone: its "
                             "log-probabilities are none to train or compare with; "
                             + ("take another model" if own is None else "let it draw where network.training is true")
                             )  # fmt: skip
        if isinstance(module, ResponseLogps):
            _check_causal(module, ids, same)
        together_because: str | None = wrapped.grouping.because
        if together_because is not None:
            return together_because
        if own is not None and not own.packed:
            return f"{what} takes no packed rows"
        name = counterpart(attention)
        if name is None:
            return f"attention `{attention}` does not support packed rows"
        if selected_keys(model) is not None:
            return "the model's attention selects tokens of the whole row"
        window = _window(model.config.get_text_config())
        if window is not None and window < longest:
            return window_too_short(window, longest)
        try:
            expected_behind = _stacked(module(_batch(layouts.padded([text]), None)) for text in _texts(behind, ids))
            model.set_attn_implementation(NAMES["sdpa"])
            row = layouts.packed(_texts(together, ids))
            assert row.segments is not None
            following = layouts.follow(_texts(behind, ids), _texts(together, ids), row.segments)
            row = replace(row, segments=replace(row.segments, longest=longest))
            batch = _batch(row, _batch(following, None))
            packed = same(module(batch), expected) and same(module(batch.following), expected_behind)
            whose = "the model" if own is None else what
            reason = None if packed else f"{whose} gives other results on packed rows"
        except Unsupported as error:
            reason = str(error)
        except Exception as error:  # any error that a model's own code raises for arguments that it does not expect
            reason = f"the model takes no packed rows: {_text(error)}"
    if reason is None:
        model.set_attn_implementation(name)
    return reason


class Trial(NamedTuple):
    """The findings about a network that was tried out, for processes that build it without its weights.

    Attributes:
        unpacked_because: what `enable_packing` returned.
        grouping: which sequences are run side by side.
        head_is_plain: see `ResponseLogps`; None for scores.
    """

    unpacked_because: str | None
    grouping: Grouping
    head_is_plain: bool | None

    @classmethod
    def of(cls, module: nn.Module, longest: int) -> Trial:
        """Try a network out, see `enable_packing`."""
        because, wrapped = enable_packing(module, longest), cast(Any, module)
        return cls(because, wrapped.grouping, getattr(wrapped, "head_is_plain", None))

    def apply(self, module: nn.Module) -> None:
        """Set the same network in another process as the one that was tried."""
        wrapped: Any = module
        model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
        wrapped.grouping = self.grouping
        if self.head_is_plain is not None:
            wrapped.head_is_plain = self.head_is_plain
        if self.unpacked_because is None:
            model.set_attn_implementation(counterpart(model.config._attn_implementation))


def check_side_by_side(module: nn.Module) -> None:
    """Check that a network runs each microbatch in one forward pass, as the processes that share its weights do
    together.

    Raises:
        HalosError: its sequences are run in groups, or alone.
    """
    wrapped: Any = module
    if (apart := wrapped.grouping.because) is not None:
        raise HalosError(f"{apart}, which sharded weights cannot be: set `parallel: ddp` in its resources")


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def own_outputs(network: ResponseLogps) -> tuple[set[str], bool]:
    """The names of the outputs of a network with a plugin's forward pass, and whether its log-probabilities are those
    of the package's pass, in which those of a reference are cached.

    Args:
        network: on the CPU; it is given back as it was.
    """
    model = network.model.get_base_model() if hasattr(network.model, "get_base_model") else network.model
    ids = trial_ids(model)
    texts = _texts(TRIAL[0], ids)
    with _on_cpu(network, model, model.config._attn_implementation):
        outputs = _stacked(network(_batch(layouts.padded([text]), None)) for text in texts)
        with plain(network):
            expected = _stacked(network(_batch(layouts.padded([text]), None)) for text in texts)
            same = _Same.of(network, expected, ids)
    return outputs.keys() - set(OUTPUTS), same(outputs, {"logps": expected["logps"]})


def check_training_mode(module: nn.Module, longest: int) -> None:
    """Check that a network runs a sequence as it does in training; it is given back as it was.

    Args:
        module: `ResponseLogps` or `SequenceScores`, on the CPU.
        longest: tokens of the longest sequence that it will be run on.

    Raises:
        HalosError: the model cannot be run so (Reformer asks for whole chunks of 64 tokens there).
    """
    wrapped: Any = module
    model = wrapped.model.get_base_model() if hasattr(wrapped.model, "get_base_model") else wrapped.model
    length = min(longest, 131)  # of no chunks
    ids = np.resize(trial_ids(model), length)
    state = torch.random.get_rng_state()
    with _on_cpu(module, model, model.config._attn_implementation):
        module.train()
        try:
            module(_batch(layouts.padded([Text(0, ids[: length // 2], ids[length // 2 :])]), None))
        except HalosError:
            raise
        except Exception as error:  # any error that a model's own code raises
            own = getattr(module, "own", None)
            failed = f"the forward pass {type(own).__name__} fails: {_text(error)}"
            raise HalosError(cannot_run(model, error) if own is None else failed) from error
    torch.random.set_rng_state(state)


@contextmanager
def _on_cpu(module: nn.Module, model: Any, attention: str) -> Iterator[None]:
    """Without dropout or gradient, and with an attention implementation that the CPU has, in the meantime."""
    training = module.training
    module.eval()
    if attention not in ("sdpa", "eager"):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(attention)
        module.train(training)


class _Same:
    """Whether outputs are the same up to rounding, see TOLERANCE."""

    def __init__(self, tolerances: dict[str, float]) -> None:
        self.tolerances = tolerances

    @classmethod
    def of(cls, module: nn.Module, expected: dict[str, Tensor], ids: np.ndarray) -> _Same:
        """The tolerance of each output of a module: by how much its values change with the prompt's first tokens."""
        text = _texts(TRIAL[0], ids)[-1]
        other = replace(text, prompt=np.concatenate([ids[-len(text.prompt) + 1 :], text.prompt[-1:]]))
        one, two = (module(_batch(layouts.padded([t]), None)) for t in (text, other))
        return cls({
            name: max(TOLERANCE * float((one[name] - two[name]).abs().max()), ROUNDING * float(values.abs().max()))
            for name, values in expected.items()
        })  # fmt: skip

    def __call__(self, outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
        return all(
            outputs[name].shape == values.shape and float((outputs[name] - values).abs().max()) <= self.tolerances[name]
            for name, values in expected.items()
        )


def check_finite(model: nn.Module, outputs: dict[str, Tensor]) -> None:
    """Check the outputs of a model that nothing has trained yet.

    Raises:
        HalosError: one is not finite; the message names the first weight that is not.
    """
    if all(values.isfinite().all() for values in outputs.values()):
        return
    broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken is None:
        raise HalosError("the model's log-probabilities are not finite, though its weights are: take another model")
    raise HalosError(f"the model is broken: its weights are not finite ({broken}); take others")


def _check_causal(module: nn.Module, ids: np.ndarray, same: _Same) -> None:
    """Check that the log-probabilities of a response do not depend on its last token, but for that token's own.

    Raises:
        HalosError: they do.
    """
    text = _texts(TRIAL[0], ids)[-1]
    other = replace(text, tail=np.concatenate([text.tail[:-1], ids[:1]]))
    one, two = (module(_batch(layouts.padded([t]), None)) for t in (text, other))
    names = one.keys() & {"logps", "values"}  # what a plugin's pass gives beside these may be of a whole sequence
    if not same(*({name: outputs[name][:, :-1] for name in names} for outputs in (one, two))):
        raise HalosError(
            "the model is not causal: the log-probability of a token depends on the tokens behind it; set `attention: "
            "eager` if it is not, or `is_decoder: true` in its config, or take another model"
        )


def _window(config: Any) -> int | None:
    """The shortest attention window of a model's layers, in tokens; None without one.

    It is read from the config because some models apply it only in their mask, which no trial of short sequences shows.
    """
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    kinds = getattr(config, "layer_types", None) or names
    windows = [getattr(config, name, None) for kind, name in names.items() if kind in kinds]
    return min(filter(None, windows), default=None)


def trial_ids(model: Any) -> np.ndarray:
    """(37,) token ids that a model has, without those of padding and of the beginnings and ends of texts."""
    config = model.config.get_text_config()
    special = [getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    taken = {i for ids in special for i in (ids if isinstance(ids, list) else [ids])}
    known = [i for i in range(3, model.get_input_embeddings().weight.shape[0]) if i not in taken][:37]
    return np.resize(known, 37)


TRIAL = ([(0, 5, 4), (1, 3, 6), (0, 5, 7)], [(1, 3, 5), (0, 5, 3)])
"""The sequences of a packed row with two prompts, and those of a row of branches that follows it: the key of the
prompt, its tokens, those of the response. Two are equally long."""


def _texts(sequences: Sequence[tuple[int, int, int]], ids: np.ndarray) -> list[Text]:
    return [
        Text(key, ids[key : key + prompt], ids[::-1][2 * key + prompt : 2 * key + prompt + tail], lead=0)
        for key, prompt, tail in sequences
    ]


def _batch(layout: Layout, following: Microbatch | None) -> Microbatch:
    sequences = len(layout.lengths)
    mask = torch.zeros(sequences * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    batch = Microbatch(("response",), layout, mask.view(sequences, -1), None, torch.ones(sequences), 1)
    return replace(batch, following=following).to(torch.device("cpu"))


def _stacked(outputs: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of sequences that were run alone, as one microbatch would have them: 0 beyond each response."""
    rows = list(outputs)
    width = max(values.shape[-1] for row in rows for values in row.values())
    return {
        name: torch.cat(
            [row[name] if row[name].ndim == 1 else pad(row[name], (0, width - row[name].shape[1])) for row in rows]
        )
        for name in rows[0]
    }
