"""Attention over packed rows: each sequence has the states and gradients that it has alone, or packing is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from halos.forward.attention import Packing, Unsupported, packed_flex, packed_sdpa, packed_varlen
from halos.forward.layout import Layout, Text, follow, packed, padded
from halos.forward.microbatch import Microbatch
from halos.forward.networks import ResponseLogps, SequenceScores
from halos.forward.packable import enable_packing
from tests.forward.test_layout import FOLLOWING, TREES, text

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
    "max_position_embeddings": 128,
}  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
"""Sizes under the names that GPT-2 gave them."""
LONGEST = 40
"""Tokens of the longest sequence of `RANDOM`."""


def make(model_type: str, **fields: Any) -> Any:
    """A model with random weights, none of them so small that a difference would be lost; dropout off."""
    attention = fields.pop("attention", None)
    config = AutoConfig.for_model(model_type, **{**SIZES, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():  # biases and norms begin as 0 and 1, with which much would go unseen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def random_tree(seed: int) -> list[Text]:
    """Prompts of 1 to 12 tokens, each with 1 to 5 branches of up to 28 tokens, some empty, in any order."""
    rng = np.random.default_rng(seed)
    found = []
    for key in range(4):
        prompt = int(rng.choice([1, 3, 12]))
        tails = [*rng.integers(0, 29, rng.integers(0, 5)).tolist(), 0 if key == 1 else 28]
        found += [text(key, prompt, tail, seed=100 * seed + n) for n, tail in enumerate(tails)]
    return [found[k] for k in rng.permutation(len(found))]


RANDOM = {f"random {seed}": random_tree(seed) for seed in range(3)}


def batch_of(layout: Layout) -> Microbatch:
    mask = torch.zeros(len(layout.lengths) * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    weight = torch.ones(len(layout.lengths))
    return Microbatch(("response",), layout, mask.view(len(layout.lengths), -1), None, weight, 1)


def row_of(layout: Layout, prompts: Packing | None = None) -> dict[str, Any]:
    """What a model set to packed rows is called with."""
    assert layout.segments is not None
    packing = Packing(layout.segments, CPU, prompts)
    return {"input_ids": layout.input_ids, "position_ids": layout.position_ids, "packing": packing, "use_cache": False}


def own(states: Tensor, layout: Layout, k: int, prompts: Tensor | None = None) -> Tensor:
    """The states of one sequence of a packed row; `prompts` are those of the row that holds its prompt."""
    s = layout.segments
    assert s is not None
    before = states if prompts is None else prompts
    begin, start = int(s.prompt_start[k]), int(s.start[k])
    return torch.cat([before[0, begin : begin + s.prompt_length[k]], states[0, start : start + s.length[k]]])


def whole(t: Text) -> Tensor:
    return torch.from_numpy(np.concatenate([t.prompt, t.tail]))[None]


def upstream(states: Tensor) -> Tensor:
    """A weight for each number of a state, the same for the same number of states."""
    return torch.linspace(-1, 2, states.numel()).cos().view_as(states).to(states)


def states_and_gradients(model: Any, run: Callable[[Any], list[Tensor]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """States of each sequence, and gradients of a sum in which every one of their numbers counts."""
    model.zero_grad()
    found = run(model)
    sum((states.float() * upstream(states).float()).sum() for states in found).backward()
    return [x.detach() for x in found], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def alone(model: Any, texts: list[Text]) -> list[Tensor]:
    return [model.get_decoder()(input_ids=whole(t), use_cache=False).last_hidden_state[0] for t in texts]


def in_a_row(model: Any, texts: list[Text]) -> list[Tensor]:
    layout = packed(texts)
    states = model.get_decoder()(**row_of(layout)).last_hidden_state
    return [own(states, layout, k) for k in range(len(texts))]


def assert_same(model: Any, texts: list[Text], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Of a model with transformers' own attention, and the same set to packed rows."""
    expected, wanted = states_and_gradients(model, lambda m: alone(m, texts))
    model.set_attn_implementation("packed_sdpa")
    found, got = states_and_gradients(model, lambda m: in_a_row(m, texts))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * float(b.abs().max()))
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=rtol, atol=atol * float(gradient.abs().max()))


# ---- a model whose attention is known --------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("name", [*TREES, *RANDOM])
def test_states_and_gradients_of_a_packed_row_are_those_of_its_sequences_alone(name: str, heads: int) -> None:
    assert_same(make("llama", num_key_value_heads=heads), {**TREES, **RANDOM}[name])


def test_rows_of_more_than_a_block_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from halos.forward import attention

    texts = RANDOM["random 0"]
    row = packed(texts).segments
    assert row is not None
    assert len(Packing(row, CPU).blocks) == 2
    monkeypatch.setattr(attention, "BLOCK", 60)
    blocks = Packing(row, CPU).blocks
    assert len(blocks) > 5
    assert all(sequences * keys <= 60 or sequences == 1 for sequences, _, keys in (block.shape for block in blocks))
    assert_same(make("llama"), texts)


def test_a_prompts_queries_are_asked_once_and_no_sequence_is_padded_to_the_longest() -> None:
    """Of 20 responses to a prompt of 30, one comes with the prompt; the others ask for themselves alone."""
    texts = [text(0, 30, 4, seed=k) for k in range(20)]
    row = packed(texts).segments
    assert row is not None
    shapes = [block.shape for block in Packing(row, CPU).blocks]
    assert shapes == [(1, 34, 34), (19, 4, 34)]


def test_packed_rows_are_nearly_the_same_under_bf16_autocast() -> None:
    texts, found = RANDOM["random 1"], []
    for implementation, run in (("sdpa", alone), ("packed_sdpa", in_a_row)):
        model = make("llama")
        model.set_attn_implementation(implementation)

        def half(m: Any, run: Any = run) -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return run(m, texts)

        found.append(states_and_gradients(model, half))
    (expected, wanted), (states, got) = found
    for a, b in zip(states, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=0.05 * float(b.abs().max()))
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm() / gradient.norm()) < 0.05, name


def test_dropout_of_the_attention_is_applied_in_training_alone() -> None:
    model = make("llama", attention_dropout=0.5)
    model.set_attn_implementation("packed_sdpa")
    texts = TREES["pairs"]
    with torch.no_grad():
        one, other = (in_a_row(model.eval(), texts) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        dropped = in_a_row(model.train(), texts)
    assert not any(torch.allclose(a[-1], b[-1], atol=1e-3) for a, b in zip(one, dropped, strict=True))


# ---- model families --------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("llama", "qwen2", "olmo2", "phi", "phi3", "gpt_neox", "granite", "cohere")},
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window that holds all": ("mistral", {"sliding_window": LONGEST}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": LONGEST,
                               "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("gpt2", {**OLD, "n_positions": 128}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
}  # fmt: skip
"""What packed rows are for: name -> (model type, its fields)."""
OTHERWISE = "the model gives other results on packed rows"
WINDOW = "the model's attention has a window of 16 tokens, and sequences have up to 40"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("mistral", {"sliding_window": 16}, WINDOW),
    "mistral one short": ("mistral", {"sliding_window": LONGEST - 1}, WINDOW.replace("16", "39")),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 16,
                               "layer_types": ["sliding_attention", "full_attention"]}, WINDOW),
    "phimoe": ("phimoe", {"sliding_window": 16, "num_local_experts": 2}, WINDOW),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
                                "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, WINDOW),
    "gemma2 as it comes": ("gemma2", {"head_dim": 8}, "attention `eager` does not support packed rows"),
    "llama eager": ("llama", {"attention": "eager"}, "attention `eager` does not support packed rows"),
    "bloom": ("bloom", OLD, "attention `eager` does not support packed rows"),
    "mamba": ("mamba", {"state_size": 8}, "attention `eager` does not support packed rows"),
    "falcon with alibi": ("falcon", {"alibi": True}, OTHERWISE),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, OTHERWISE),
    "stablelm": ("stablelm", {}, "the model's attention has a mask of its own or does not receive `packing`"),
}  # fmt: skip
"""name -> (model type, its fields, what is said of it)."""


def plain_logps(model: Any, texts: list[Text]) -> list[Tensor]:
    """Of each response by itself, by the model's own forward pass."""
    found = []
    for t in texts:
        logps = model(input_ids=whole(t), use_cache=False).logits[0].log_softmax(-1)[len(t.prompt) + t.lead - 1 : -1]
        found.append(logps.gather(1, torch.from_numpy(t.tail[t.lead :])[:, None])[:, 0])
    return found


def assert_right(model: Any, wrapped: nn.Module, texts: list[Text], layout: Layout) -> None:
    """Log-probabilities and gradients of the wrapped model are those of `model`, a copy, on each sequence alone."""
    batch = batch_of(layout).to(CPU)
    found, expected = wrapped(batch)["logps"], plain_logps(model, texts)
    for row, values in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], values, rtol=1e-4, atol=1e-4)
        assert (row[len(values) :] == 0).all()
    upstreams = [upstream(values) for values in expected]
    sum((v * u).sum() for v, u in zip(expected, upstreams, strict=True)).backward()
    sum((row[: len(u)] * u).sum() for row, u in zip(found, upstreams, strict=True)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, p in wrapped.model.named_parameters():
        assert (p.grad is None) == (name not in gradients), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=3e-6 * largest, msg=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_is_set_to_packed_rows_is_right_on_them(name: str) -> None:
    model_type, fields = FAMILIES[name]
    model = make(model_type, **fields)
    wrapped = ResponseLogps(copy.deepcopy(model)).eval()
    assert enable_packing(wrapped, LONGEST) is None
    texts = RANDOM["random 2"]
    assert max(map(len, texts)) == LONGEST
    assert_right(model, wrapped, texts, packed(texts))


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_packed_rows_are_not_for_says_why_and_stays_as_it_was(name: str) -> None:
    model_type, fields, reason = REFUSED[name]
    model = make(model_type, **fields)
    wrapped = ResponseLogps(copy.deepcopy(model)).eval()
    said = enable_packing(wrapped, LONGEST)
    assert said is not None
    assert said.startswith(reason)
    assert wrapped.model.config._attn_implementation == model.config._attn_implementation
    texts = RANDOM["random 2"]
    assert_right(model, wrapped, texts, padded(texts))


def test_a_model_of_few_tokens_is_tried_out_with_those_that_it_has() -> None:
    """A byte or character model's vocabulary is smaller than the trial's sequences are long."""
    model = make("llama", vocab_size=20)
    wrapped = ResponseLogps(copy.deepcopy(model)).eval()
    assert enable_packing(wrapped, LONGEST) is None
    texts = [Text(0, np.arange(3, 6), np.arange(4, 20)[::-1].copy()), Text(1, np.arange(7, 9), np.arange(3, 12))]
    assert_right(model, wrapped, texts, packed(texts))


@pytest.mark.parametrize("asked", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}])
def test_an_attention_that_takes_more_than_queries_keys_and_values_is_refused_and_what_it_takes_is_named(
    asked: dict[str, Any],
) -> None:
    """Caps and sinks of logits, and biases."""
    packing, keys = packing_of("pairs")
    layer, parts = heads_of(packing, keys)
    for function in (packed_sdpa, partial(packed_varlen, variable_length_attention), packed_flex):
        with pytest.raises(Unsupported, match=f"^the model's attention takes {next(iter(asked))}$"):
            function(layer, *parts, None, packing=packing, **asked)
        with pytest.raises(Unsupported, match="has a mask of its own"):
            function(layer, *parts, torch.zeros(1), packing=packing)
        with pytest.raises(Unsupported, match="a window of 8 tokens, and sequences have up to 9"):
            function(layer, *parts, None, packing=packing, sliding_window=8)


def test_trying_out_leaves_weights_mode_and_gradients_as_they_were() -> None:
    for training in (True, False):
        wrapped = ResponseLogps(make("llama", attention_dropout=0.5)).train(training)
        before = copy.deepcopy(wrapped.state_dict())
        assert enable_packing(wrapped, LONGEST) is None
        assert {module.training for module in wrapped.modules()} == {training}
        assert all(p.grad is None for p in wrapped.parameters())
        assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())


def test_a_packed_row_without_its_packing_is_refused() -> None:
    """Also a plain call of a model that was set to packed rows: it would attend to all before."""
    model = make("llama")
    model.set_attn_implementation("packed_sdpa")
    with pytest.raises(Unsupported, match="does not receive `packing`"):
        model(input_ids=whole(TREES["one"][0]))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_a_reward_model_scores_packed_rows_as_sequences_alone(model_type: str) -> None:
    fields = {**SIZES, **({**OLD, "n_positions": 128} if model_type == "gpt2" else {}), "pad_token_id": 63}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, num_labels=1, **fields)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    texts = [t for t in RANDOM["random 0"] if len(t) > 1]
    with torch.no_grad():
        expected = torch.cat([model(input_ids=whole(t)).logits[:, 0] for t in texts])
        wrapped = SequenceScores(model).eval()
        assert enable_packing(wrapped, LONGEST) is None
        found = wrapped(batch_of(packed(texts)).to(CPU))["scores"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.01


def with_adapters(model: Any) -> Any:
    from halos.models.policy import with_lora

    adapted = with_lora(model, {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"})
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return adapted


def checkpointed(model: Any) -> Any:
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


# ---- a row that follows another --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda model: model, checkpointed, with_adapters], ids=["", "checkpointed", "lora"])
def test_a_row_that_follows_has_the_states_of_whole_sequences_and_leaves_the_first_ones_gradient_alone(
    change: Callable[[Any], Any],
) -> None:
    """It is run between the first one's forward and backward passes, and may read nothing but keys and values of it."""
    texts = TREES["pairs"]
    model = change(make("llama"))
    with torch.no_grad():
        expected = alone(model, FOLLOWING)
    _, wanted = states_and_gradients(model, lambda m: alone(m, texts))
    (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation("packed_sdpa")
    row = packed(texts)
    after = follow(FOLLOWING, texts, row.segments)
    behind: list[Tensor] = []

    def run(m: Any) -> list[Tensor]:
        first = row_of(row)
        second = row_of(after, first["packing"])
        states = m.get_decoder()(**first).last_hidden_state
        with torch.no_grad():
            found = m.get_decoder()(**second).last_hidden_state
        behind.extend(own(found, after, k, states.detach()) for k in range(len(FOLLOWING)))
        return [own(states, row, k) for k in range(len(texts))]

    _, got = states_and_gradients(model, run)
    for found, states in zip(behind, expected, strict=True):
        torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-5 * float(states.abs().max()))
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_two_models_that_share_a_row_keep_their_own_prompts() -> None:
    """A policy and its live reference, one after the other on the same microbatch."""
    policy, reference = (ResponseLogps(make("llama")).eval() for _ in range(2))
    with torch.no_grad():
        reference.model.model.layers[0].self_attn.k_proj.weight.mul_(-1)
    texts = TREES["pairs"]
    row = packed(texts)
    batch = replace(batch_of(row), following=batch_of(follow(FOLLOWING, texts, row.segments))).to(CPU)
    with torch.no_grad():
        expected = [plain_logps(module.model, FOLLOWING) for module in (policy, reference)]
        for module in (policy, reference):
            module.model.set_attn_implementation("packed_sdpa")
            module(batch)
        found = [module(batch.following)["logps"] for module in (policy, reference)]
    assert not torch.allclose(expected[0][0], expected[1][0], atol=0.1)
    for rows, wanted in zip(found, expected, strict=True):
        for row_, values in zip(rows, wanted, strict=True):
            torch.testing.assert_close(row_[: len(values)], values, rtol=1e-4, atol=1e-5)


# ---- the other kinds of attention ------------------------------------------------------------------------------------

ROWS: dict[str, tuple[list[Text], list[Text]]] = {
    **{name: (texts, []) for name, texts in {**TREES, **RANDOM}.items()},
    "following": (TREES["pairs"], FOLLOWING),
    "following a random tree": (
        RANDOM["random 0"], [Text(t.key, t.prompt, t.tail[::-1].copy(), 0) for t in RANDOM["random 0"][::2]],
    ),
}  # fmt: skip


def packing_of(name: str) -> tuple[Packing, int]:
    """The packing of a row, and how many keys its layers have; with keys and values kept for the row that follows."""
    texts, behind = ROWS[name]
    row = packed(texts).segments
    assert row is not None
    if not behind:
        return Packing(row, CPU), row.total
    after = follow(behind, texts, row).segments
    assert after is not None
    return Packing(after, CPU, Packing(row, CPU)), row.total + after.total


def heads_of(packing: Packing, keys: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Tensor]]:
    """(layer, [query, key, value]) with 4 heads of queries and 2 of keys, those of the row before kept in place."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Module()
    layer.num_key_value_groups = 2
    layer.training = False
    queries = packing.segments.total
    query, key, value = (
        torch.randn(1, heads, n, 16, generator=generator, dtype=dtype)
        for heads, n in ((4, queries), (2, keys), (2, keys))
    )
    if packing.prompts is not None:
        assert packing.prompts.kept is not None
        before = keys - queries
        packing.prompts.kept[layer] = key[:, :, :before], value[:, :, :before]
        key, value = key[:, :, before:], value[:, :, before:]
    return layer, [query, key, value]


def sees(name: str) -> np.ndarray:
    """(queries, keys) bool, worked out token by token: a token sees its prompt and its branch as far as itself."""
    texts, behind = ROWS[name]
    visible: list[list[int]] = []
    prompts: dict[int, list[int]] = {}
    for key in dict.fromkeys(t.key for t in texts):
        siblings = [t for t in texts if t.key == key]
        prompts[key] = list(range(len(visible), len(visible) + len(siblings[0].prompt)))
        visible += [prompts[key][: n + 1] for n in range(len(prompts[key]))]
        for t in siblings:
            start = len(visible)
            visible += [[*prompts[key], *range(start, start + n + 1)] for n in range(len(t.tail))]
    total = len(visible)
    if behind:
        visible = []
        for t in behind:  # the prompt's last token is run again
            start = total + len(visible)
            visible += [[*prompts[t.key][:-1], *range(start, start + n + 1)] for n in range(1 + len(t.tail))]
        total += len(visible)
    mask = np.zeros((len(visible), total), dtype=bool)
    for query, keys in enumerate(visible):
        mask[query, keys] = True
    return mask


def expected_of(name: str) -> tuple[Packing, nn.Module, list[Tensor], Tensor]:
    """(packing, layer, [query, key, value], output of one attention with the mask worked out by hand)."""
    packing, keys = packing_of(name)
    layer, parts = heads_of(packing, keys)
    query, key, value = parts[0], *packing.all_keys(layer, *parts[1:])
    mask = torch.from_numpy(sees(name))
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True, scale=0.3)
    return packing, layer, parts, out.transpose(1, 2)


@pytest.mark.parametrize("name", ROWS)
def test_blocks_of_sequences_attend_as_the_mask_worked_out_by_hand(name: str) -> None:
    packing, layer, parts, expected = expected_of(name)
    found, _ = packed_sdpa(layer, *parts, None, packing=packing, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def variable_length_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, softmax_scale: float | None, causal: bool,
) -> Tensor:  # fmt: skip
    """What flash-attn documents, sequence by sequence: (N, H, D) in and out, the mask aligned to the bottom right."""
    query_begins, key_begins, most_queries, most_keys = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    assert query_begins.dtype == key_begins.dtype == torch.int32
    assert (query_begins[0], key_begins[0], query_begins[-1], key_begins[-1]) == (0, 0, len(q), len(k))
    assert causal
    assert len(query_begins) == len(key_begins)
    assert most_queries == int(query_begins.diff().max())
    assert most_keys == int(key_begins.diff().max())
    out, group = torch.empty_like(q), q.shape[1] // k.shape[1]
    spans = (pairwise(begins.tolist()) for begins in (query_begins, key_begins))
    for (a, b), (c, d) in zip(*spans, strict=True):
        queries, keys, values = q[a:b], k[c:d].repeat_interleave(group, 1), v[c:d].repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (softmax_scale or 1 / math.sqrt(q.shape[-1]))
        unseen = torch.arange(d - c) > torch.arange(b - a)[:, None] + (d - c) - (b - a)
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, -math.inf).softmax(-1), values)
    return out


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("returns", [lambda out: out, lambda out: (out, None)], ids=["", "with more"])
def test_variable_lengths_are_those_that_flash_attention_needs(name: str, returns: Callable[[Tensor], Any]) -> None:
    """On a stand-in for its one function, in plain torch; some versions return more than the output."""
    packing, layer, parts, expected = expected_of(name)

    def function(*tensors: Tensor, **options: Any) -> Any:
        return returns(variable_length_attention(*tensors, **options))

    found, _ = packed_varlen(function, layer, *parts, None, packing=packing, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_the_block_mask_is_the_one_worked_out_by_hand(name: str) -> None:
    from torch.nn.attention.flex_attention import create_mask

    packing, keys = packing_of(name)
    queries = packing.segments.total
    mask = packing.block_mask
    assert (mask.shape[-2], mask.shape[-1]) == (queries, keys)
    dense = create_mask(mask.mask_mod, None, None, queries, keys, device="cpu")[0, 0]
    assert np.array_equal(dense.numpy(), sees(name))
    blocks = mask.to_dense()[0, 0].bool().numpy()  # none that has something to see is left out
    size = mask.BLOCK_SIZE[0]
    for query, key in zip(*np.nonzero(sees(name)), strict=True):
        assert blocks[query // size, key // size]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["pairs", "random 0", "following a random tree"])
def test_flex_attention_attends_as_the_mask_worked_out_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward pass, without the compiler: transformers' wrapping of it, and the layout of its arguments."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as integration

    def uncompiled(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        return flex_attention(query, key, value, **{k: v for k, v in options.items() if k != "training"})

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
    packing, layer, parts, expected = expected_of(name)
    with torch.no_grad():
        found, _ = packed_flex(layer, *parts, None, packing=packing, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
