"""How sequences lie in rows: each whole, each prompt once, and its states picked where they predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halos.forward.layout import Gather, Layout, Segments, Text, follow, packed, padded


def text(key: int, prompt: int, tail: int, lead: int = 0, seed: int = 0) -> Text:
    """Random ids, the prompt's the same for the same key."""
    ids = np.random.default_rng([key, prompt]).integers(3, 60, prompt)
    return Text(key, ids, np.random.default_rng([seed, key, prompt, tail, lead]).integers(3, 60, tail), lead)


def ids_of(layout: Layout, row: Layout | None = None) -> list[tuple[int, ...]]:
    """The ids of each sequence, without padding; `row` holds the prompts, if it is another."""
    if layout.segments is None:
        return [tuple(ids[:n]) for ids, n in zip(layout.input_ids.tolist(), layout.lengths.tolist(), strict=True)]
    s, own = layout.segments, layout.input_ids[0].tolist()
    prompts = own if row is None else row.input_ids[0].tolist()
    spans = zip(s.prompt_start, s.prompt_length, s.start, s.length, strict=True)
    return [(*prompts[p : p + n], *own[b : b + length]) for p, n, b, length in spans]


TREES: dict[str, list[Text]] = {
    "one": [text(0, 3, 4)],
    "pairs": [text(0, 3, 4), text(1, 5, 2), text(0, 3, 6, seed=1), text(1, 5, 1, seed=1)],
    "group": [text(7, 2, n, seed=n) for n in (3, 9, 1, 4)],
    "empty": [text(0, 3, 0), text(0, 3, 5), text(1, 4, 2), text(1, 4, 0), text(2, 2, 0)],
    "nothing": [text(0, 3, 0), text(1, 2, 0)],
    "short prompts": [text(0, 1, 4), text(0, 1, 30, seed=1), text(1, 1, 1)],
    "led": [text(0, 3, 4, lead=1), text(0, 3, 4, lead=1, seed=1), text(1, 5, 3, lead=2)],
}


def whole(text: Text) -> tuple[int, ...]:
    return (*text.prompt.tolist(), *text.tail.tolist())


@pytest.mark.parametrize("make", [padded, packed])
@pytest.mark.parametrize("name", TREES)
def test_every_sequence_is_there_whole_with_the_positions_it_has_alone(
    name: str, make: Callable[[list[Text]], Layout]
) -> None:
    texts = TREES[name]
    layout = make(texts)
    assert ids_of(layout) == [whole(t) for t in texts]
    assert layout.lengths.tolist() == [len(t) for t in texts]
    positions = Layout(**{**vars(layout), "input_ids": layout.position_ids})
    assert ids_of(positions) == [tuple(range(len(t))) for t in texts]


@pytest.mark.parametrize("make", [padded, packed])
@pytest.mark.parametrize("name", TREES)
def test_each_response_token_is_predicted_by_the_state_of_the_token_before_it(
    name: str, make: Callable[[list[Text]], Layout]
) -> None:
    """Every position has its own number, so a state tells where it is from."""
    texts = TREES[name]
    layout = make(texts)
    place = torch.arange(layout.input_ids.numel())
    at = ids_of(Layout(**{**vars(layout), "input_ids": place.view(layout.input_ids.shape)}))
    starts = [len(t.prompt) + t.lead for t in texts]
    expected = [p for path, start in zip(at, starts, strict=True) for p in path[start - 1 : -1]]
    assert layout.before(place[:, None].double())[:, 0].tolist() == expected
    assert layout.targets.tolist() == [t for s, start in zip(texts, starts, strict=True) for t in whole(s)[start:]]
    assert layout.ends(place[:, None].double())[:, 0].tolist() == [path[-1] for path in at]
    lengths = [len(t) - start for t, start in zip(texts, starts, strict=True)]
    slots = [k * layout.width + i for k, length in enumerate(lengths) for i in range(length)]
    assert (layout.width, layout.slots.tolist()) == (max(lengths), slots)


@pytest.mark.parametrize("name", TREES)
def test_a_packed_row_holds_each_prompt_once_and_no_padding(name: str) -> None:
    texts = TREES[name]
    layout = packed(texts)
    prompts = {t.key: len(t.prompt) for t in texts}
    tokens = sum(prompts.values()) + sum(len(t.tail) for t in texts)
    assert layout.segments is not None
    assert layout.input_ids.shape == layout.position_ids.shape == (1, tokens)
    assert (layout.segments.total, layout.padding) == (tokens, 0)
    assert layout.segments.longest == max(map(len, texts))
    firsts = [k for k, t in enumerate(texts) if t.key not in {other.key for other in texts[:k]}]
    assert np.flatnonzero(layout.segments.first).tolist() == firsts
    behind = layout.segments.prompt_start + layout.segments.prompt_length
    assert layout.segments.start[firsts].tolist() == behind[firsts].tolist()


@pytest.mark.parametrize("name", TREES)
def test_padding_is_counted_and_stands_on_the_right(name: str) -> None:
    texts = TREES[name]
    layout = padded(texts)
    width = max(map(len, texts))
    assert layout.input_ids.shape == (len(texts), width)
    assert layout.padding == sum(width - len(t) for t in texts)
    assert layout.segments is None
    for ids, t in zip(layout.input_ids, texts, strict=True):
        assert (ids[len(t) :] == 0).all()


def test_sequences_with_equal_prompts_and_other_keys_share_nothing() -> None:
    prompt = np.arange(3, 7)
    layout = packed([Text(0, prompt, prompt), Text(1, prompt, prompt)])
    assert layout.input_ids.shape == (1, 16)
    assert layout.segments is not None
    assert layout.segments.prompt_start.tolist() == [0, 8]


FOLLOWING = [text(1, 5, 7, seed=5), text(0, 3, 2, seed=5), text(0, 3, 0, seed=6)]


@pytest.mark.parametrize("lead", [0, 1])
def test_a_row_that_follows_holds_its_branches_and_the_last_tokens_of_their_prompts(lead: int) -> None:
    texts = [*FOLLOWING, text(1, 5, 4, lead=lead, seed=6)]
    row = packed(TREES["pairs"])
    assert row.segments is not None
    layout = follow(texts, TREES["pairs"], row.segments)
    assert layout.segments is not None
    assert layout.segments.key_offset == row.segments.total
    assert layout.input_ids.shape == (1, sum(1 + len(t.tail) for t in texts))
    assert ids_of(layout, row) == [whole(t) for t in texts]
    positions = Layout(**{**vars(layout), "input_ids": layout.position_ids})
    before = Layout(**{**vars(row), "input_ids": row.position_ids})
    assert ids_of(positions, before) == [tuple(range(len(t))) for t in texts]
    assert layout.lengths.tolist() == [len(t) for t in texts]
    assert layout.targets.tolist() == [token for t in texts for token in t.tail[t.lead :].tolist()]
    known = layout.input_ids[0][layout.before.index].tolist()
    assert known == [token for t in texts for token in whole(t)[len(t.prompt) + t.lead - 1 : -1]]
    assert layout.input_ids[0][layout.ends.index].tolist() == [whole(t)[-1] for t in texts]


def test_moving_a_layout_moves_every_tensor() -> None:
    layout = packed(TREES["pairs"]).to(torch.device("meta"))
    tensors = [v for v in vars(layout).values() if isinstance(v, Tensor)]
    gathers = [v for v in vars(layout).values() if isinstance(v, Gather)]
    tensors += [v for gather in gathers for v in (gather.index, gather.order, gather.offsets)]
    assert (len(gathers), len(tensors)) == (2, 4 + 2 * 3)
    assert {t.device.type for t in tensors} == {"meta"}
    assert isinstance(layout.segments, Segments)


# ---- gathering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[3, 0, 3, 3, 5], [2], [0, 1, 2, 3, 4, 5, 6], [6, 6], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gathering_is_index_select_in_value_and_gradient(index: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-8, 8, (7, 3), generator=generator).to(dtype)
    upstream = torch.randint(-8, 8, (len(index), 3), generator=generator).to(dtype)  # sums are exact in any type
    found, expected = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    picked = np.array(index, dtype=np.int64)
    values = Gather.of(picked, 7)(found)
    wanted = expected.index_select(0, torch.from_numpy(picked))
    assert torch.equal(values, wanted)
    values.backward(upstream)
    wanted.backward(upstream)
    assert found.grad is not None
    assert found.grad.dtype == dtype
    assert torch.equal(found.grad, expected.grad)


def test_padding_that_is_gathered_has_no_gradient() -> None:
    rows = torch.ones(4, 2, requires_grad=True)
    Gather.of(np.array([-1, 2, -1, 2, 3]), 4)(rows).backward(torch.full((5, 2), 10.0))
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [0, 0, 20, 10]


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_a_gradient_that_is_no_contiguous_array_is_summed_all_the_same(upstream: str) -> None:
    rows = torch.zeros(4, 3, requires_grad=True)
    values: Any = Gather.of(np.array([1, 1, 3]), 4)(rows)
    if upstream == "expanded":
        (5 * values.sum()).backward()
        expected = torch.tensor([0.0, 10, 0, 5])[:, None].expand(4, 3)
    else:
        gradient = torch.arange(9.0).view(3, 3)
        values.backward(gradient.T)
        expected = torch.zeros(4, 3).index_add(0, torch.tensor([1, 1, 3]), gradient.T)
    torch.testing.assert_close(rows.grad, expected)
