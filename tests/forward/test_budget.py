"""Global batches cut into microbatches: each example once, within the budget, little padding, equal shares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from halos.forward.budget import cut, pack

LENGTHS = np.random.default_rng(0).lognormal(5, 0.7, 300).astype(int) + 1


def padded(parts: list[np.ndarray], lengths: np.ndarray = LENGTHS) -> list[int]:
    return [len(part) * int(lengths[part].max(initial=0)) for part in parts]


# ---- padded microbatches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("budget", [1, 500, 2000, 10**9])
def test_every_example_is_in_one_microbatch(budget: int, world: int) -> None:
    parts = cut(LENGTHS, budget, world)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LENGTHS)))
    assert len(parts) % world == 0


@pytest.mark.parametrize("n", [1, 300, 1100])
def test_a_microbatch_keeps_to_the_budget_unless_one_example_is_larger(n: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 900, n)
    for part, tokens in zip(parts := cut(lengths, 700), padded(parts, lengths), strict=True):
        assert tokens <= 700 or len(part) == 1


def test_padding_and_microbatches_are_no_more_than_of_sorted_examples_cut_when_full() -> None:
    greedy: list[list[int]] = [[]]
    for i in np.argsort(-LENGTHS, kind="stable"):
        if (len(greedy[-1]) + 1) * max(LENGTHS[[*greedy[-1], i]]) > 2000:
            greedy.append([])
        greedy[-1].append(i)
    naive = padded([np.array(part) for part in greedy])
    found = padded(cut(LENGTHS, 2000))
    assert sum(found) + 128 * len(found) <= sum(naive) + 128 * len(naive)
    unsorted = [np.arange(start, min(start + 8, 300)) for start in range(0, 300, 8)]
    assert sum(found) < 0.8 * sum(padded(unsorted))
    assert sum(found) < 1.1 * LENGTHS.sum()


def test_the_largest_microbatches_come_first_so_that_processes_have_about_as_much_to_do() -> None:
    parts = cut(LENGTHS, 2000, world=2)
    sizes = padded(parts)
    assert all(a >= b for a, b in pairwise(sizes))
    work = sum(sizes[0::2]), sum(sizes[1::2])
    assert max(work) < 1.1 * min(work)


@pytest.mark.parametrize(("n", "world", "fillers"), [(1, 1, 0), (1, 4, 3), (3, 4, 1), (4, 4, 0), (5, 4, 3), (12, 4, 0)])
def test_there_are_fillers_only_where_no_microbatch_can_be_split(n: int, world: int, fillers: int) -> None:
    empty = [part for part in cut(np.full(n, 10), 10, world) if not len(part)]
    assert len(empty) == fillers
    assert not any(not len(part) for part in cut(np.full(8, 10), 10**6, 4))  # split rather than filled


# ---- packed microbatches -----------------------------------------------------------------------------------------

Examples = tuple[np.ndarray, np.ndarray]


def examples(groups: int, seed: int = 0, most: int = 6) -> Examples:
    """(prompts, lengths) of lognormal lengths, up to `most` examples for each prompt, in random order."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, groups)
    prompts = np.repeat(rng.permutation(10 * groups)[:groups], sizes)
    own = np.repeat(rng.lognormal(4, 0.7, groups).astype(int) + 1, sizes)
    lengths = np.stack([own, rng.lognormal(5, 0.7, len(prompts)).astype(int) + 1], axis=1)
    order = rng.permutation(len(prompts))
    return prompts[order], lengths[order]


def tokens(part: np.ndarray, prompts: np.ndarray, lengths: np.ndarray) -> int:
    """Of a microbatch, each prompt counted once."""
    return sum({prompts[k]: int(lengths[k, 0]) for k in part}.values()) + int(lengths[part, 1].sum())


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("budget", [1, 700, 4000, 10**9])
@pytest.mark.parametrize("groups", [1, 2, 80])
def test_every_example_is_packed_once(groups: int, budget: int, world: int) -> None:
    prompts, lengths = examples(groups)
    parts = pack(prompts, lengths, budget, world)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(prompts)))
    assert len(parts) % world == 0
    for part in parts:
        assert tokens(part, prompts, lengths) <= budget or len(part) == 1


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("budget", [300, 1500, 10**9])
def test_examples_with_one_prompt_stay_together_unless_they_are_more_than_a_budget(budget: int, world: int) -> None:
    prompts, lengths = examples(80)
    parts = pack(prompts, lengths, budget, world)
    split = 0
    for prompt in np.unique(prompts):
        group = np.flatnonzero(prompts == prompt)
        holding = [part for part in parts if np.isin(group, part).any()]
        size = tokens(group, prompts, lengths)
        assert (len(holding) > 1) == (size > budget and len(group) > 1)
        assert len(holding) <= 1 + 2 * size // budget  # and are cut no finer than that
        split += len(holding) > 1
    assert (split > 0) == (budget < 10**9)


@pytest.mark.parametrize(("budget", "world"), [(8192, 1), (4000, 2), (4000, 8), (10**9, 4)])
def test_packed_microbatches_are_of_about_equal_size(budget: int, world: int) -> None:
    """Pairs of realistic lengths: what the slowest process computes is what a step takes."""
    for seed in range(5):
        prompts, lengths = examples(128, seed, most=1)
        sizes = [tokens(part, prompts, lengths) for part in pack(prompts, lengths, budget, world)]
        assert max(sizes) < 1.1 * min(sizes)
        assert len(sizes) <= world + 1.2 * sum(sizes) / budget  # and no more than are needed


def test_the_fullest_packed_microbatch_comes_first() -> None:
    """Many short examples are more than a few long ones: a prompt that is another counts, too."""
    prompts, lengths = examples(80)
    sizes = [tokens(part, prompts, lengths) for part in pack(prompts, lengths, 1500, 2)]
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize(("n", "world", "fillers"), [(1, 1, 0), (1, 4, 3), (3, 4, 1), (4, 4, 0), (5, 4, 0), (12, 4, 0)])
@pytest.mark.parametrize("shared", [True, False])
def test_packed_fillers_are_only_for_processes_that_have_no_example_of_their_own(
    shared: bool, n: int, world: int, fillers: int
) -> None:
    """Even where all examples have one prompt, and fit into one microbatch."""
    prompts = np.zeros(n, dtype=int) if shared else np.arange(n)
    parts = pack(prompts, np.full((n, 2), 10), 10**6, world)
    assert len(parts) == world
    assert sum(not len(part) for part in parts) == fillers
    assert all(len(part) for part in parts[: world - fillers])


def test_packing_is_the_same_each_time_and_takes_no_account_of_what_prompts_are_called() -> None:
    prompts, lengths = examples(80)
    found = pack(prompts, lengths, 1500, 2)
    for other in (prompts, 7 * prompts + 5):
        again = pack(other, lengths, 1500, 2)
        assert [part.tolist() for part in again] == [part.tolist() for part in found]


def test_packs_worked_by_hand() -> None:
    """Prompts of 4 and 1 tokens. Within 10: 4 + 3 + 3 alone, the third of that prompt 4 + 5, and 1 + 6 and 1 + 2 where
    there is room."""
    prompts = np.array([8, 5, 8, 8, 3])
    lengths = np.array([[4, 3], [1, 6], [4, 3], [4, 5], [1, 2]])
    parts = [sorted(part.tolist()) for part in pack(prompts, lengths, 10)]
    assert parts == [[0, 2], [1, 4], [3]]
