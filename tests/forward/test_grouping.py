"""Models whose outputs depend on the sequences beside one: they are run so that each is as if it were alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from halos.errors import HalosError
from halos.forward import layout as layouts
from halos.forward.grouping import ALONE, EQUAL_LENGTHS, Grouping
from halos.forward.layout import Text
from halos.forward.microbatch import Microbatch
from halos.forward.networks import ResponseLogps, SequenceScores
from halos.forward.packable import enable_packing

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
                         "eos_token_id": 2, "initializer_range": 0.3}  # fmt: skip
LONGROPE = {"original_max_position_embeddings": 12, "max_position_embeddings": 48, "rope_parameters": {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12,
    "short_factor": [1.0 + k / 9 for k in range(8)], "long_factor": [2.0**k for k in range(8)]}}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": 12,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
LENGTHS = [(4, 3), (9, 3), (9, 4), (10, 12), (3, 2), (10, 12), (6, 6), (11, 20)]
"""Tokens of prompts and responses: 7, 12, 13, 22, 5, 22, 12 and 31 together."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", LONGROPE),
    "longrope of experts": ("phimoe", {**LONGROPE, "num_local_experts": 4, "rope_parameters": {
        **LONGROPE["rope_parameters"], "short_mscale": 1.0, "long_mscale": 1.2}}),  # type: ignore[dict-item]
    "dynamic": ("llama", DYNAMIC),
    "dynamic, logits scaled": ("cohere", {**DYNAMIC, "logit_scale": 0.5}),
    "dynamic, by kind of layer": ("gemma3_text", {"max_position_embeddings": 12, "head_dim": 16, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": DYNAMIC["rope_parameters"]}}),
    "selected keys": ("doge", {"keep_window_size": 6}),
}  # fmt: skip


def make(name: str) -> Any:
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields})).eval()


def texts_of(lengths: list[tuple[int, int]] = LENGTHS) -> list[Text]:
    generator = np.random.default_rng(0)
    return [Text(k, *(generator.integers(3, 60, n) for n in pair)) for k, pair in enumerate(lengths)]


def batch_of(texts: list[Text]) -> Microbatch:
    layout = layouts.padded(texts)
    mask = torch.zeros(len(texts) * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    batch = Microbatch(("response",), layout, mask.view(len(texts), -1), None, torch.ones(len(texts)), 1)
    return batch.to(torch.device("cpu"))


def alone(model: Any, text: Text) -> Tensor:
    """(T,) log-probabilities of a response by a fresh copy of the model: it has seen no other sequence."""
    ids = torch.from_numpy(np.concatenate([text.prompt, text.tail]))[None]
    logps = copy.deepcopy(model)(ids).logits[0, len(text.prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.from_numpy(text.tail)[:, None])[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_has_the_log_probabilities_that_it_has_alone(name: str) -> None:
    """Also in the second batch, whose lengths the first one must not have changed anything for."""
    model, texts = make(name), texts_of()
    with torch.no_grad():
        expected = [alone(model, text) for text in texts]
        beside = model(batch_of(texts).layout.input_ids).logits.log_softmax(-1)
    side_by_side = [beside[k, len(t.prompt) - 1 : len(t) - 1].gather(1, torch.from_numpy(t.tail)[:, None])[:, 0]
                    for k, t in enumerate(texts)]  # fmt: skip
    assert max(float((a - b).abs().max()) for a, b in zip(side_by_side, expected, strict=True)) > 1e-2  # the danger
    network = ResponseLogps(model).eval()
    assert enable_packing(network, max(map(len, texts))) is not None
    for order in (range(len(texts)), reversed(range(len(texts)))):
        chosen = list(order)
        with torch.no_grad():
            found = network(batch_of([texts[k] for k in chosen]))["logps"]
        for k, row in zip(chosen, found, strict=True):
            torch.testing.assert_close(row[: len(expected[k])], expected[k], rtol=1e-4, atol=1e-5)
            assert (row[len(expected[k]) :] == 0).all()


@pytest.mark.parametrize("name", ["longrope", "dynamic, logits scaled"])
def test_gradients_are_those_of_sequences_alone(name: str) -> None:
    model, texts = make(name), texts_of()
    network = ResponseLogps(copy.deepcopy(model)).eval()
    enable_packing(network, max(map(len, texts)))
    network(batch_of(texts))["logps"].square().sum().backward()
    expected: dict[str, Tensor] = {}
    for text in texts:
        fresh = copy.deepcopy(model)
        ids = torch.from_numpy(np.concatenate([text.prompt, text.tail]))[None]
        logps = fresh(ids).logits[0, len(text.prompt) - 1 : -1].log_softmax(-1)
        logps.gather(1, torch.from_numpy(text.tail)[:, None]).square().sum().backward()
        for key, p in fresh.named_parameters():
            expected[key] = expected.get(key, torch.zeros_like(p)) + (0 if p.grad is None else p.grad)
    for key, p in network.model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[key], rtol=1e-3, atol=1e-5 * float(expected[key].abs().max()))


def test_positions_that_no_sequence_leaves_are_packed() -> None:
    for name in ("longrope", "dynamic"):
        network = ResponseLogps(make(name)).eval()
        assert enable_packing(network, 12) is None
        assert network.grouping == Grouping()


def test_a_classifier_that_sees_padding_scores_sequences_of_equal_length_together() -> None:
    """BERT attends to all tokens of a row."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SIZES, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    texts = texts_of()
    with torch.no_grad():
        expected = [model(torch.from_numpy(np.concatenate([t.prompt, t.tail]))[None]).logits[0, 0] for t in texts]
        network = SequenceScores(model).eval()
        danger = network(batch_of(texts))["scores"] - torch.stack(expected)
        assert danger.abs().max() > 1e-2
        said = enable_packing(network, 40)
        assert said == EQUAL_LENGTHS.because
        torch.testing.assert_close(network(batch_of(texts))["scores"], torch.stack(expected), rtol=1e-4, atol=1e-5)


class Neighbours(torch.nn.Module):
    """A layer that adds the mean over a batch, as experts of a limited capacity may."""

    def __init__(self, layer: torch.nn.Module, noise: float = 0.0) -> None:
        super().__init__()
        self.layer, self.noise = layer, noise

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer(hidden)
        return out + out.mean(0, keepdim=True) + self.noise * torch.randn_like(out)


@pytest.mark.parametrize("scale", [0.3, 0.02])
def test_a_model_that_mixes_a_batch_is_run_on_each_sequence_alone(scale: float) -> None:
    """With the small weights of a random model, too, where the difference is far below 1e-2 nats."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **{**SIZES, "initializer_range": scale})
    )
    model.model.layers[0].mlp = Neighbours(model.model.layers[0].mlp)
    model.eval()
    network = ResponseLogps(model)
    texts = texts_of()
    assert enable_packing(network, 40) == ALONE.because
    with torch.no_grad():
        found = network(batch_of(texts))["logps"]
    for row, text in zip(found, texts, strict=True):
        expected = alone(model, text)
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_random_is_refused() -> None:
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    model.model.layers[0].mlp = Neighbours(model.model.layers[0].mlp, noise=1.0)
    with pytest.raises(HalosError, match="computes the same sequence otherwise each time"):
        enable_packing(ResponseLogps(model.eval()), 40)


@pytest.mark.parametrize(("kind", "fields"), [("bert", {}), ("xlnet", {"d_inner": 32, "d_head": 16})])
def test_a_model_that_sees_the_future_is_refused(kind: str, fields: dict[str, Any]) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **fields})).eval()
    with pytest.raises(HalosError, match="not causal"):
        enable_packing(ResponseLogps(model), 40)


def test_small_weights_do_not_hide_what_packed_rows_would_change() -> None:
    """The convolutions of random weights of 0.02 reach over to the next sequence by 2e-5 nats."""
    torch.manual_seed(0)
    fields = {**SIZES, "initializer_range": 0.02, "layer_types": ["conv", "full_attention"], "num_experts": 4,
              "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1}  # fmt: skip
    network = ResponseLogps(AutoModelForCausalLM.from_config(AutoConfig.for_model("lfm2_moe", **fields)).eval())
    assert enable_packing(network, 40) == "the model gives other results on packed rows"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("weight", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_weights_that_are_not_finite_are_named(weight: str, broken: float) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).eval()
    network = ResponseLogps(model)
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[3] = broken
    with pytest.raises(HalosError, match=rf"weights are not finite \({weight}\)"):
        enable_packing(network, 40)


def test_groups_are_a_partition_by_length() -> None:
    lengths = np.array([7, 12, 13, 22, 5, 22])
    groups = {
        "any": Grouping(),
        "apart": Grouping(apart=(12,), because="-"),
        "dynamic": Grouping(equal_above=12, because="-"),
        "both": Grouping(apart=(6,), equal_above=12, because="-"),
        "equal": EQUAL_LENGTHS,
        "alone": ALONE,
    }
    found = {name: sorted(map(list, grouping.groups(lengths))) for name, grouping in groups.items()}
    assert found == {
        "any": [[0, 1, 2, 3, 4, 5]],
        "apart": [[0, 1, 4], [2, 3, 5]],
        "dynamic": [[0, 1, 4], [2], [3, 5]],
        "both": [[0, 1], [2], [3, 5], [4]],
        "equal": [[0], [1], [2], [3, 5], [4]],
        "alone": [[0], [1], [2], [3], [4], [5]],
    }
