"""Layers in faster forms: compiled ones give what they gave, and what cannot be had here is refused in a sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig

from halos.errors import HalosError
from halos.forward.layout import packed
from halos.forward.networks import ResponseLogps
from halos.forward.packable import enable_packing
from halos.models.fused import check_liger, compile_layers
from tests.forward.test_attention import LONGEST, RANDOM, assert_right, checkpointed, make


def compiled(network: ResponseLogps, monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Compile a network's layers to graphs of torch's operations, and no further, and count them."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compile_(module, backend=counter, **options)
    )
    assert compile_layers(network) == 2
    return counter


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda model: model, checkpointed], ids=["", "checkpointed"])
def test_compiled_layers_are_right_on_packed_rows_and_not_compiled_for_each_length(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("llama")
    network = ResponseLogps(copy.deepcopy(model)).eval()
    assert enable_packing(network, LONGEST) is None
    change(network.model)
    counter = compiled(network, monkeypatch)
    for seed in range(2):
        texts = RANDOM[f"random {seed}"]
        model.zero_grad()
        network.zero_grad()
        assert_right(model, network, texts, packed(texts))
        if seed == 0:
            graphs = counter.frame_count
    assert graphs > 0
    assert counter.frame_count == graphs  # the second row has other lengths


def test_compiled_layers_keep_the_names_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ResponseLogps(make("llama"))
    names = list(network.state_dict())
    compiled(network, monkeypatch)
    assert list(network.state_dict()) == names


def test_a_model_that_does_not_name_its_layers_is_not_compiled() -> None:
    network = ResponseLogps(make("llama"))
    network._no_split_modules = []
    with pytest.raises(HalosError, match="does not say which its layers are: take out `compile`"):
        compile_layers(network)


def test_liger_is_refused_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(HalosError, match="need a GPU, and there is none here: take out `liger`"):
        check_liger(AutoConfig.for_model("llama"))
