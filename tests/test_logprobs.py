"""Log-probabilities of responses against the plain way: all logits of one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from halos import logprobs
from halos.data.batches import Microbatch
from halos.logprobs import ResponseLogps

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
                         "eos_token_id": 2}  # fmt: skip
LENGTHS = [(3, 6), (9, 1), (1, 4), (5, 0), (2, 9)]


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3, **settings))


def sequences(lengths: list[tuple[int, int]] = LENGTHS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(3, 50, (p,), generator=generator), torch.randint(3, 50, (r,), generator=generator))
            for p, r in lengths]  # fmt: skip


def batch_of(pairs: list[tuple[Tensor, Tensor]], padding: int = 0) -> Microbatch:
    """The sequences side by side, padded on the right, by `padding` tokens more than they need."""
    width = max(len(p) + len(r) for p, r in pairs) + padding
    longest = max(len(r) for _, r in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    for row, (prompt, response) in zip(ids, pairs, strict=True):
        row[: len(prompt) + len(response)] = torch.cat([prompt, response])
    return Microbatch(
        roles=("response",),
        input_ids=ids,
        prompt_lengths=torch.tensor([len(p) for p, _ in pairs]),
        mask=torch.arange(longest) < torch.tensor([len(r) for _, r in pairs])[:, None],
        reference=None,
        weight=torch.ones(len(pairs)),
    )


def plain(model: Any, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(S, T): a log-softmax over all the logits of each sequence alone."""
    out = torch.zeros(len(pairs), max(len(r) for _, r in pairs))
    rows = []
    for row, (prompt, response) in zip(out, pairs, strict=True):
        logps = model(torch.cat([prompt, response])[None]).logits[0].log_softmax(-1)
        taken = [logps[len(prompt) - 1 + t, token] for t, token in enumerate(response.tolist())]
        rows.append(torch.stack([*taken, *row[len(taken) :]]) if taken else row)
    return torch.stack(rows)


def gradients(model: Any, values: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum in which every token counts differently."""
    model.zero_grad()
    (values * torch.linspace(0.5, 2, values.numel()).view_as(values)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, wrapped: ResponseLogps, padding: int = 0) -> None:
    pairs = sequences()
    expected, found = plain(model, pairs), wrapped(batch_of(pairs, padding))["logps"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wanted, got = gradients(model, expected), gradients(model, wrapped(batch_of(pairs, padding))["logps"])
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("chunk", [2048, 3])
def test_values_and_gradients_equal_the_plain_way(padding: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    model = llama()
    wrapped = ResponseLogps(model)
    assert wrapped.head_is_plain
    assert_same(model, wrapped, padding)


def test_no_more_than_a_chunk_of_logits_exists_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 3)
    model = llama()
    wrapped = ResponseLogps(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    wrapped(batch_of(sequences()))["logps"].sum().backward()
    assert sum(seen) == 2 * 20  # twice each of the response tokens: the backward pass makes the logits again
    assert max(seen) == 3
    seen.clear()
    with torch.no_grad():
        wrapped(batch_of(sequences()))
    assert sum(seen) == 20
    assert max(seen) == 3


def test_a_sequences_values_do_not_depend_on_its_neighbours() -> None:
    wrapped = ResponseLogps(llama())
    pairs = sequences()
    with torch.no_grad():
        together = wrapped(batch_of(pairs))["logps"]
        for row, pair in zip(together, pairs, strict=True):
            alone = wrapped(batch_of([pair], padding=3))["logps"][0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-5, atol=1e-6)


def test_no_token_beyond_a_response_counts() -> None:
    wrapped = ResponseLogps(llama())
    batch = batch_of(sequences())
    values = wrapped(batch)["logps"]
    assert (values[~batch.mask] == 0).all()
    assert (values[batch.mask] < 0).all()


@pytest.mark.parametrize("chunk", [2048, 2])
def test_a_batch_of_empty_responses_gives_zeros(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    values = ResponseLogps(llama())(batch_of(sequences([(3, 0), (5, 0)])))["logps"]
    assert values.shape == (2, 0)
    assert ResponseLogps(llama())(batch_of(sequences([(3, 0), (5, 2)])))["logps"][0].tolist() == [0, 0]


def capped() -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=16, initializer_range=0.3, final_logit_softcapping=2.0)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def scaled() -> Any:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SIZES, initializer_range=0.3, logit_scale=0.25))


@pytest.mark.parametrize("make", [capped, scaled])
def test_a_model_that_changes_its_logits_goes_through_its_own_forward(make: Any) -> None:
    model = make()
    wrapped = ResponseLogps(model)
    assert not wrapped.head_is_plain
    assert_same(model, wrapped, padding=2)


def test_a_cap_that_random_weights_do_not_reach_is_seen_all_the_same() -> None:
    """The usual cap of 30 changes the tiny logits of an untrained model by nothing that a comparison would see."""
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=16, initializer_range=0.001)
    assert config.final_logit_softcapping == 30
    assert not ResponseLogps(Gemma2ForCausalLM(config)).head_is_plain


def test_without_a_value_head_there_are_log_probabilities_and_nothing_else() -> None:
    for model in (llama(), capped()):
        assert list(ResponseLogps(model)(batch_of(sequences()))) == ["logps"]


def test_looking_at_the_head_leaves_the_model_as_it_was() -> None:
    model = llama().train()
    before = model(torch.arange(9)[None]).logits
    ResponseLogps(model)
    assert model.training
    assert torch.equal(model(torch.arange(9)[None]).logits, before)


def test_a_model_with_lora_keeps_the_short_way() -> None:
    from halos.models import with_lora

    model = with_lora(llama(), {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"})
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n), std=0.5)
    wrapped = ResponseLogps(model)
    assert wrapped.head_is_plain
    assert_same(model, wrapped)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_that_peft_trains_keep_the_short_way(tied: bool) -> None:
    """With tied weights, the new rows are part of the output layer, too."""
    from halos.models import with_lora

    settings = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
    model = with_lora(llama(tie_word_embeddings=tied), settings, tokens=[7, 8])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.5)
    wrapped = ResponseLogps(model)
    assert wrapped.head_is_plain
    assert_same(model, wrapped)
