"""Log-probabilities of responses against the plain way: all logits of one sequence at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from halos.forward import layout as layouts
from halos.forward import logprobs
from halos.forward.layout import Text
from halos.forward.logprobs import pick, token_logps
from halos.forward.microbatch import Microbatch
from halos.forward.networks import ResponseLogps
from halos.forward.packable import enable_packing

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
                         "eos_token_id": 2}  # fmt: skip
LENGTHS = [(3, 6), (9, 1), (1, 4), (5, 0), (2, 9)]
PACKED = pytest.mark.parametrize("packed", [True, False])


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3, **settings))


def sequences(lengths: list[tuple[int, int]] = LENGTHS) -> list[tuple[Tensor, Tensor]]:
    """Prompts and responses of these lengths; two more responses to the first prompt and to the last."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n: int) -> Tensor:
        return torch.randint(3, 50, (n,), generator=generator)

    pairs = [(tokens(p), tokens(r)) for p, r in lengths]
    return [*pairs, *((pairs[k][0], tokens(n)) for k, n in ((0, 4), (-1, 3), (0, 2), (-1, 11)) if len(pairs) > 2)]


def batch_of(pairs: list[tuple[Tensor, Tensor]], packed: bool = False) -> Microbatch:
    """The sequences side by side, padded on the right, or in one row with each different prompt once."""
    keys = [next(k for k, (other, _) in enumerate(pairs) if torch.equal(other, prompt)) for prompt, _ in pairs]
    texts = [Text(key, prompt.numpy(), response.numpy()) for key, (prompt, response) in zip(keys, pairs, strict=True)]
    layout = (layouts.packed if packed else layouts.padded)(texts)
    lengths = torch.tensor([len(r) for _, r in pairs])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = int(layout.lengths.sum())
    return Microbatch(("response",), layout, mask, None, torch.ones(len(pairs)), tokens).to(torch.device("cpu"))


def wrap(model: Any, packed: bool, head: nn.Module | None = None) -> ResponseLogps:
    """The model as a function, set to packed rows if asked for."""
    wrapped = ResponseLogps(model, head)
    assert not packed or enable_packing(wrapped, 100) is None
    return wrapped


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


def assert_same(model: Any, packed: bool, plain_head: bool = True) -> None:
    pairs = sequences()
    alone = copy.deepcopy(model)
    wrapped = wrap(model, packed)
    assert wrapped.head_is_plain == plain_head
    expected, found = plain(alone, pairs), wrapped(batch_of(pairs, packed))["logps"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wanted, got = gradients(alone, expected), gradients(model, wrapped(batch_of(pairs, packed))["logps"])
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@PACKED
@pytest.mark.parametrize("rows", [2048, 3])
def test_values_and_gradients_equal_the_plain_way(rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 50 * rows)
    assert_same(llama(), packed)


@PACKED
def test_a_sequences_values_do_not_depend_on_its_neighbours(packed: bool) -> None:
    wrapped = wrap(llama(), packed)
    pairs = sequences()
    with torch.no_grad():
        together = wrapped(batch_of(pairs, packed))["logps"]
        for row, pair in zip(together, pairs, strict=True):
            alone = wrapped(batch_of([pair], packed))["logps"][0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-5, atol=1e-6)


@PACKED
def test_no_token_beyond_a_response_counts(packed: bool) -> None:
    wrapped = wrap(llama(), packed)
    batch = batch_of(sequences(), packed)
    values = wrapped(batch)["logps"]
    assert (values[~batch.mask] == 0).all()
    assert (values[batch.mask] < 0).all()


@PACKED
@pytest.mark.parametrize("rows", [2048, 2])
def test_a_batch_of_empty_responses_gives_zeros(rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 50 * rows)
    wrapped = wrap(llama(), packed)
    values = wrapped(batch_of(sequences([(3, 0), (5, 0)]), packed))["logps"]
    assert values.shape == (2, 0)
    values.sum().backward()
    assert wrapped(batch_of(sequences([(3, 0), (5, 2)]), packed))["logps"][0].tolist() == [0, 0]


def capped() -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=16, initializer_range=0.3, final_logit_softcapping=2.0)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def scaled() -> Any:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SIZES, initializer_range=0.3, logit_scale=0.25))


@pytest.mark.parametrize(("make", "packed"), [(capped, False), (scaled, False), (scaled, True)])
def test_a_model_that_changes_its_logits_goes_through_its_own_forward(make: Any, packed: bool) -> None:
    assert_same(make(), packed, plain_head=False)


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


@PACKED
def test_a_model_with_lora_keeps_the_short_way(packed: bool) -> None:
    from halos.models.policy import with_lora

    model = with_lora(llama(), {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"})
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n), std=0.5)
    assert_same(model, packed)


@PACKED
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_that_peft_trains_keep_the_short_way(tied: bool, packed: bool) -> None:
    """With tied weights, the new rows are part of the output layer, too."""
    from halos.models.policy import with_lora

    settings = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
    model = with_lora(llama(tie_word_embeddings=tied), settings, tokens=[7, 8])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.5)
    assert_same(model, packed)


# ---- the output layer --------------------------------------------------------------------------------------------

N, WIDTH, VOCABULARY = 13, 8, 50


def layer(bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """(hidden, head, labels, upstream gradient); the same numbers in any type."""
    generator = torch.Generator().manual_seed(4)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(N, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (N,), generator=generator)
    labels[:2] = torch.tensor([0, VOCABULARY - 1])
    return hidden, head, labels, torch.randn(N, generator=generator)


def full(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """All logits, their log-softmax, and what stands at the labels."""
    logps: Tensor = head(hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    return logps


def set_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, kept: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 4 * VOCABULARY * rows)
    monkeypatch.setattr(logprobs, "KEPT", kept)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100])
@pytest.mark.parametrize("rows", [1, 5, 13, 1000])
def test_the_output_layer_equals_all_logits_in_value_and_gradient(
    rows: int, kept: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunks(monkeypatch, rows, kept)
    hidden, head, labels, upstream = layer(bias)
    exact, exact_head, *_ = layer(bias, torch.float64)
    entropies = torch.empty(len(labels))
    found, expected = token_logps(hidden, head, labels, entropies), full(exact, exact_head, labels)
    drawn_from = torch.distributions.Categorical(logits=exact_head(exact).detach())
    torch.testing.assert_close(entropies.double(), drawn_from.entropy(), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.backward(upstream)
    expected.backward(upstream.double())
    for ours, theirs in zip((hidden, *head.parameters()), (exact, *exact_head.parameters()), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_a_token_that_cannot_come_adds_nothing_to_the_entropy() -> None:
    entropies = torch.empty(1)
    pick(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]), entropies)
    torch.testing.assert_close(entropies, torch.tensor([2.0]).log())


def test_a_row_has_the_same_bits_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for kept in (0, 2, 100):
        set_chunks(monkeypatch, 4, kept)
        hidden, head, labels, upstream = layer(bias=True)
        logps = token_logps(hidden, head, labels)
        logps.backward(upstream)
        found.append([logps.detach(), hidden.grad, *(p.grad for p in head.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_float64_states_keep_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(monkeypatch, 4, 1)
    hidden, head, labels, upstream = layer(dtype=torch.float64)
    found = token_logps(hidden, head, labels)
    torch.testing.assert_close(found.double(), full(hidden, head, labels), rtol=1e-6, atol=1e-6)
    found.backward(upstream)
    assert hidden.grad is not None
    assert head.weight.grad is not None
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float64


def test_tied_weights_get_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(monkeypatch, 4, 1)
    _, head, labels, upstream = layer()
    found = []
    for function in (token_logps, full):
        head.weight.grad = None
        embedded = nn.functional.embedding(labels.flip(0), head.weight)
        function(torch.tanh(embedded), head, labels).backward(upstream)
        assert head.weight.grad is not None
        found.append(head.weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_under_autocast_products_are_in_bf16_and_log_probabilities_in_float32() -> None:
    hidden, head, labels, _ = layer(bias=True)
    with torch.no_grad():
        logits = (hidden.bfloat16() @ head.weight.bfloat16().T).float() + head.bias
        expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(token_logps(hidden, head, labels), expected, rtol=1e-6, atol=1e-6)
    found = []
    for function in (token_logps, full):
        hidden, head, labels, upstream = layer(bias=True)
        with torch.autocast("cpu", torch.bfloat16):
            logps = function(hidden, head, labels)
        logps.backward(upstream)
        found.append([logps.detach().float(), hidden.grad, *(p.grad for p in head.parameters())])
    exact = full(*layer(bias=True)[:3]).detach()
    assert 1e-4 < float((found[0][0] - exact).abs().max()) < 0.1
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)


class Watched(TorchDispatchMode):
    """Bytes of logits, the most at one time, and how many rows of them were computed.

    Attributes:
        shapes: of all that was made.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.known = {p.untyped_storage().data_ptr() for p in head.parameters()}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = self.rows = 0
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage().data_ptr() in self.known:
                continue
            self.shapes.add(tuple(tensor.shape))
            if VOCABULARY in tensor.shape and tensor.ndim == 2 and WIDTH not in tensor.shape:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.rows += len(tensor) * ("mm" in str(function))
        self.alive = {k: (ref, size) for k, (ref, size) in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize(("kept", "made"), [(0, 13 + 13), (2, 13 + 5), (100, 13)])
def test_logits_take_no_more_memory_than_a_chunk_and_those_that_are_kept(
    kept: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 4, 4, 4 and 1 rows."""
    set_chunks(monkeypatch, 4, kept)
    hidden, head, labels, upstream = layer(bias=True)
    with Watched(head) as seen:
        token_logps(hidden, head, labels).backward(upstream)
    chunk = 4 * VOCABULARY * 4
    assert seen.most == min(chunk * (kept + 1), 4 * VOCABULARY * 13)
    assert seen.rows == made
    with torch.no_grad(), Watched(head) as seen:
        token_logps(hidden, head, labels)
    assert (seen.most, seen.rows) == (chunk, 13)


def test_a_frozen_output_layer_has_no_gradient_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(monkeypatch, 4, 2)
    shapes = []
    for frozen in (False, True):
        hidden, head, labels, upstream = layer(bias=True)
        head.requires_grad_(not frozen)
        with Watched(head) as seen:
            token_logps(hidden, head, labels).backward(upstream)
        shapes.append(seen.shapes)
        assert hidden.grad is not None
        assert all((p.grad is None) == frozen for p in head.parameters())
    assert (VOCABULARY, WIDTH) in shapes[0] - shapes[1]


def test_an_output_layer_of_another_kind_is_called_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    set_chunks(monkeypatch, 3, 4)
    hidden, head, labels, upstream = layer()
    scaled = Scaled(WIDTH, VOCABULARY, bias=False)
    scaled.weight = nn.Parameter(head.weight.detach() / 3)
    seen: list[int] = []
    scaled.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    entropies = torch.empty(N)
    found = token_logps(hidden, scaled, labels, entropies)
    torch.testing.assert_close(found, full(hidden, head, labels), rtol=1e-5, atol=1e-5)
    drawn_from = torch.distributions.Categorical(logits=head(hidden).detach())
    torch.testing.assert_close(entropies, drawn_from.entropy(), rtol=1e-5, atol=1e-5)
    found.backward(upstream)
    assert sum(seen) == 2 * N  # the backward pass makes the logits again
    assert max(seen) == 3
    assert scaled.weight.grad is not None
    seen.clear()
    with torch.no_grad():
        token_logps(hidden, scaled, labels)
    assert (sum(seen), max(seen)) == (N, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 50), (5, 1023), (4, 1025), (2, 50257), (64, 4096)])
def test_a_log_softmax_into_its_own_input_is_that_into_another_tensor(shape: tuple[int, int]) -> None:
    """Which the output layer relies on, and torch does not promise."""
    logits = 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.log_softmax(logits, -1)
    torch.log_softmax(logits, -1, out=logits)
    assert torch.equal(logits, expected)
