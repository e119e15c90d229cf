"""Values for tokens and scores for sequences, against plain forward passes of one sequence at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from halos.forward.networks import ResponseLogps, SequenceScores, ValueHead
from halos.forward.packable import enable_packing
from tests.forward.test_logprobs import PACKED, SIZES, batch_of, capped, llama, scaled, sequences, wrap

Pairs = list[tuple[Tensor, Tensor]]
PAD = 49
"""The last token of the vocabulary: 0, which `batch_of` pads with, stands for a word here."""


def head(size: int = 32) -> ValueHead:
    torch.manual_seed(3)
    return ValueHead(size)


def plain_values(model: Any, value_head: ValueHead, pairs: Pairs) -> Tensor:
    """(S, T): the head on the states of each sequence alone, from its prompt's last token to its last but one."""
    out = torch.zeros(len(pairs), max(len(r) for _, r in pairs))
    for row, (prompt, response) in zip(out, pairs, strict=True):
        states = model.get_decoder()(input_ids=torch.cat([prompt, response])[None]).last_hidden_state[0]
        row[: len(response)] = value_head(states[len(prompt) - 1 : len(prompt) + len(response) - 1])[:, 0]
    return out


# ---- values ----------------------------------------------------------------------------------------------------


MODELS = pytest.mark.parametrize(
    ("make", "packed"), [(llama, False), (llama, True), (capped, False), (scaled, False), (scaled, True)]
)


@MODELS
def test_a_value_is_that_of_the_state_before_its_token(make: Any, packed: bool) -> None:
    model, value_head = make(), head()
    pairs = sequences()
    with torch.no_grad():
        expected = plain_values(model, value_head, pairs)
        distributions = [model(input_ids=torch.cat(pair)[None]).logits[0].log_softmax(-1) for pair in pairs]
        without = wrap(copy.deepcopy(model), packed)(batch_of(pairs, packed))
        found = wrap(model, packed, value_head)(batch_of(pairs, packed))
        assert list(found) == ["logps", "values", "entropies"]
        for row, (prompt, response), all_logps in zip(found["entropies"], pairs, distributions, strict=True):
            of_response = all_logps[len(prompt) - 1 : len(prompt) + len(response) - 1]
            entropy = -(of_response.exp() * of_response).sum(-1)
            torch.testing.assert_close(row[: len(response)], entropy, rtol=1e-4, atol=1e-5)
            assert not row[len(response) :].any()
        torch.testing.assert_close(found["values"], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["logps"], without["logps"])


@MODELS
def test_a_token_changes_the_values_of_those_after_it_and_no_others(make: Any, packed: bool) -> None:
    wrapped = wrap(make(), packed, head())
    [(prompt, response)] = sequences([(4, 7)])
    other = response.clone()
    other[3] = response[3] % 40 + 3
    assert other[3] != response[3]
    with torch.no_grad():
        a, b = (wrapped(batch_of([(prompt, r)], packed))["values"][0] for r in (response, other))
    torch.testing.assert_close(a[:4], b[:4], rtol=1e-5, atol=1e-6)
    assert ((a[4:] - b[4:]).abs() > 1e-4).all()


@PACKED
def test_values_beyond_a_response_are_0(packed: bool) -> None:
    batch = batch_of(sequences(), packed)
    values = wrap(llama(), packed, head())(batch)["values"]
    assert values.shape == batch.mask.shape
    assert (values[~batch.mask] == 0).all()
    assert (values[batch.mask] != 0).all()


@MODELS
def test_no_gradient_of_a_value_reaches_the_model(make: Any, packed: bool) -> None:
    model, value_head = make(), head()
    wrapped = wrap(model, packed, value_head)
    assert wrapped.head_is_plain == (make is llama)
    wrapped(batch_of(sequences(), packed))["values"].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in value_head.parameters())


@pytest.mark.parametrize("make", [llama, capped])
def test_the_models_gradient_is_the_same_with_a_value_head_and_without(make: Any) -> None:
    model, value_head = make(), head()
    gradients = []
    for wrapped in (ResponseLogps(model), ResponseLogps(model, value_head)):
        model.zero_grad()
        found = wrapped(batch_of(sequences()))
        (found["logps"].sum() + 3 * found["values"].sum() if "values" in found else found["logps"].sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


def test_values_are_computed_in_float32_whatever_the_compute_type() -> None:
    value_head = head()
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        expected = value_head(hidden.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert value_head.layers(hidden).dtype == torch.bfloat16  # what it is kept from
            found = value_head(hidden)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [llama, capped])
def test_values_of_a_bf16_model_are_float32(make: Any) -> None:
    """Equal to the float32 head on the very states that the model has under autocast."""
    model, value_head = make(), head()
    batch = batch_of(sequences([(3, 6)]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = ResponseLogps(model, value_head)(batch)
        states = model.get_decoder()(input_ids=batch.layout.input_ids).last_hidden_state[0, 2:8]
    assert {values.dtype for values in found.values()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(found["values"][0], value_head(states)[:, 0])


# ---- scores ----------------------------------------------------------------------------------------------------


def reward_model() -> Any:
    torch.manual_seed(0)
    sizes = SIZES | {"pad_token_id": PAD}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, initializer_range=0.3, num_labels=1)).eval()


def words(lengths: list[tuple[int, int]]) -> Pairs:
    """Sequences with the tokens 0 and `PAD` among their words, but for the last."""
    pairs = sequences(lengths)
    for k, (prompt, response) in enumerate(pairs):
        prompt[0], prompt[-1] = PAD, 0
        if len(response) > 1 and k % 2:
            response[-1] = 0
    return pairs


LENGTHS = [(3, 6), (9, 1), (2, 4), (5, 0), (2, 9)]


def scorer(model: Any, packed: bool) -> SequenceScores:
    wrapped = SequenceScores(model)
    assert not packed or enable_packing(wrapped, 100) is None
    return wrapped


@PACKED
def test_a_score_is_that_of_the_sequence_alone(packed: bool) -> None:
    """By transformers' own pooling, without any padding."""
    model, pairs = reward_model(), words(LENGTHS)
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.cat(pair)[None]).logits[:, 0] for pair in pairs])
        found = scorer(model, packed)(batch_of(pairs, packed))
    assert list(found) == ["scores"]
    assert len(set(expected.tolist())) == len(pairs)
    torch.testing.assert_close(found["scores"], expected, rtol=1e-4, atol=1e-6)


@PACKED
def test_a_score_is_read_off_the_last_token_as_vllm_reads_it(packed: bool) -> None:
    """vLLM knows of no padding: it applies the score layer to the state of the last token that it is given."""
    model, pairs = reward_model(), words(LENGTHS)
    alone = copy.deepcopy(model)
    with torch.no_grad():
        found = scorer(model, packed)(batch_of(pairs, packed))["scores"]
        for score, pair in zip(found, pairs, strict=True):
            states = alone.model(input_ids=torch.cat(pair)[None]).last_hidden_state
            torch.testing.assert_close(score, model.score(states[0, -1])[0], rtol=1e-4, atol=1e-6)


@PACKED
def test_a_score_is_float32_under_bf16_and_has_a_gradient(packed: bool) -> None:
    wrapped = scorer(model := reward_model(), packed)
    with torch.autocast("cpu", torch.bfloat16):
        scores = wrapped(batch_of(words(LENGTHS), packed))["scores"]
    assert scores.dtype == torch.float32
    (scores[0] - scores[1]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.score.weight.grad.abs().max() > 0
