"""Global batches and their cutting into microbatches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from halos.data.batches import Examples, GlobalBatches, Microbatch, collate, cut
from halos.data.store import Store
from halos.reference import Reference, expected_hashes
from tests.conftest import World

LENGTHS = np.random.default_rng(0).lognormal(5, 0.7, 300).astype(int) + 1


def padded(parts: list[np.ndarray], lengths: np.ndarray = LENGTHS) -> list[int]:
    return [len(part) * int(lengths[part].max(initial=0)) for part in parts]


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


def test_a_filler_has_no_weight_and_the_shares_of_all_processes_make_the_batch(world: World) -> None:
    examples = Examples(Store(world.store), "train", "unpaired")
    indices = np.array([5, 3, 8])
    shares = [list(examples.microbatches(indices, ("response",), 4096, rank, 4)) for rank in range(4)]
    assert {len(share) for share in shares} == {1}
    weights = [float(batch.weight.sum()) for [batch] in shares]
    assert sorted(weights) == [0, 1, 1, 1]


def test_a_batch_is_a_part_of_the_epochs_permutation() -> None:
    batches = GlobalBatches(n=50, batch_size=8, epochs=3, examples=None, seed=1)
    assert len(batches) == 3 * 7
    epochs = [np.concatenate([batches[7 * e + k] for k in range(7)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert [len(batches[k]) for k in (0, 6, 7, 13)] == [8, 2, 8, 2]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forward = GlobalBatches(50, 8, 3, None, 1)
    backward = GlobalBatches(50, 8, 3, 100, 1)
    in_order = [forward[k].tolist() for k in range(12)]
    assert [backward[k].tolist() for k in reversed(range(12))] == in_order[::-1]
    assert GlobalBatches(50, 8, 3, None, 2)[0].tolist() != in_order[0]


@pytest.mark.parametrize(
    ("examples", "steps", "seen"),
    [(1, 1, 8), (8, 1, 8), (9, 2, 16), (50, 7, 50), (51, 8, 58), (56, 8, 58), (100, 14, 100), (600, 84, 600)],
)
def test_a_limit_of_examples_is_reached_and_overshot_by_less_than_a_batch(examples: int, steps: int, seen: int) -> None:
    batches = GlobalBatches(50, 8, 1, examples, 1)
    assert len(batches) == steps
    assert batches.examples_until(steps) == seen == sum(len(batches[k]) for k in range(steps))


def test_examples_until_counts_what_the_batches_hold() -> None:
    batches = GlobalBatches(50, 8, 3, None, 1)
    for step in range(len(batches) + 1):
        assert batches.examples_until(step) == sum(len(batches[k]) for k in range(step))


def test_sequences_are_padded_on_the_right_and_their_responses_masked(world: World) -> None:
    store = Store(world.store)
    rows = np.array([0, 7, 20])
    batch = collate(store, rows)
    assert batch.input_ids.shape == (3, store.lengths[rows].sum(-1).max())
    assert batch.mask.shape == (3, store.lengths[rows, 1].max())
    for i, row in enumerate(rows):
        prompt, response = store.sequence(row)
        whole = [*prompt, *response]
        ids = batch.input_ids[i].tolist()
        assert ids == whole + [0] * (len(ids) - len(whole))
        assert int(batch.prompt_lengths[i]) == len(prompt)
        mask = batch.mask[i].tolist()
        assert mask == [True] * len(response) + [False] * (len(mask) - len(response))
    assert batch.tokens == store.lengths[rows].sum()


def test_reference_values_stand_under_their_tokens(world: World) -> None:
    store = Store(world.store)
    reference = Reference(world.reference(), expected_hashes(world.base, store))
    examples = Examples(store, "train", "unpaired", reference)
    indices = np.array([0, 3, 11, 40])
    for role in ("response", "mismatched"):
        for batch in examples.microbatches(indices, (role,), 200):
            assert batch.reference is not None
            assert (batch.reference[~batch.mask] == 0).all()
            for ids, start, mask, values in zip(
                batch.input_ids, batch.prompt_lengths, batch.mask, batch.reference, strict=True
            ):
                whole = ids[: int(start + mask.sum())].tolist()
                [row] = [
                    row for row in examples.rows[role][indices]
                    if np.concatenate(store.sequence(row)).tolist() == whole
                ]  # fmt: skip
                assert values[mask].tolist() == reference[row].tolist()


def test_roles_stand_one_below_the_other(world: World) -> None:
    store = Store(world.store)
    examples = Examples(store, "train", "paired")
    indices = np.arange(6)
    seen = {"chosen": set[int](), "rejected": set[int]()}
    for batch in examples.microbatches(indices, ("chosen", "rejected"), 600):
        assert batch.input_ids.numel() <= 600
        parts = batch.by_role(batch.input_ids)
        assert list(parts) == ["chosen", "rejected"]
        starts = batch.by_role(batch.prompt_lengths)
        for k in range(len(batch.weight)):  # both are responses to the same prompt
            prompts = [parts[role][k, : starts[role][k]].tolist() for role in parts]
            assert prompts[0] == prompts[1]
        masks = batch.by_role(batch.mask)
        for role, ids in parts.items():
            for k in range(len(ids)):
                whole = ids[k, : int(starts[role][k] + masks[role][k].sum())].tolist()
                seen[role] |= {
                    int(i) for i in indices if np.concatenate(store.sequence(examples.rows[role][i])).tolist() == whole
                }
    assert seen == {"chosen": set(range(6)), "rejected": set(range(6))}


def test_desirable_labels_stay_with_their_responses(world: World) -> None:
    store = Store(world.store)
    examples = Examples(store, "train", "unpaired")
    assert examples.desirable is not None
    labels = {tuple(np.concatenate(store.sequence(row)).tolist()): bool(label)
              for row, label in zip(examples.rows["response"], examples.desirable, strict=True)}  # fmt: skip
    assert set(labels.values()) == {True, False}
    for batch in examples.microbatches(np.arange(30), ("response",), 400):
        assert batch.desirable is not None
        for ids, start, mask, label in zip(
            batch.input_ids, batch.prompt_lengths, batch.mask, batch.desirable, strict=True
        ):
            assert labels[tuple(ids[: int(start + mask.sum())].tolist())] == bool(label)


def test_moving_a_microbatch_moves_every_tensor(world: World) -> None:
    batch = next(Examples(Store(world.store), "train", "unpaired").microbatches(np.arange(4), ("response",), 4096))
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Microbatch)
    tensors = [v for v in moved.__dict__.values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 5
    assert {t.device.type for t in tensors} == {"meta"}
