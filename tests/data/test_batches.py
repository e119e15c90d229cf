"""Global batches and their cutting into microbatches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from halos.data.batches import Examples, GlobalBatches, Microbatch, advantages, collate, cut
from halos.data.store import Store
from halos.reference import Reference, expected_hashes
from tests.conftest import World

LENGTHS = np.random.default_rng(0).lognormal(5, 0.7, 300).astype(int) + 1


def examples_of(world: World, view: str, **more: Any) -> Examples:
    store = Store(world.store)
    return Examples(store, store.view("train", view), view, **more)


def texts(batch: Microbatch) -> list[tuple[int, ...]]:
    """The ids of each sequence, without padding."""
    rows = zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)
    return [tuple(ids[:length]) for ids, length in rows]


def whole(store: Store, row: int) -> tuple[int, ...]:
    return tuple(np.concatenate(store.sequence(row)).tolist())


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
    groups = examples_of(world, "grouped")
    pair = int(np.flatnonzero(np.diff(groups.offsets) == 2)[0])
    for examples, indices, expected in (
        (examples_of(world, "unpaired"), [5, 3, 8], [0, 1, 1, 1]),
        (groups, [pair], [0, 0, 0.5, 0.5]),
    ):
        shares = [list(examples.microbatches(np.array(indices), ("response",), 4096, k, 4)) for k in range(4)]
        assert {len(share) for share in shares} == {1}
        weights = [float(batch.weight.sum()) for [batch] in shares]
        assert sorted(weights) == expected
        assert [batch.filler for [batch] in shares] == [weight == 0 for weight in weights]


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


@pytest.mark.parametrize("inner", [1, 2, 3])
def test_each_global_batch_is_repeated_as_often_as_asked_before_the_next(inner: int) -> None:
    once, batches = GlobalBatches(50, 8, 1, 108, 1), GlobalBatches(50, 8, 1, 108, 1, inner)
    assert len(batches) == inner * len(once) == inner * 15
    for step in range(len(batches)):
        assert batches[step].tolist() == once[step // inner].tolist()
        assert batches.examples_until(step + 1) == once.examples_until(step // inner + 1)  # seen again is not more
    assert batches.examples_until(0) == 0


def test_sequences_are_padded_on_the_right_and_their_responses_masked(world: World) -> None:
    store = Store(world.store)
    rows = np.array([0, 7, 20])
    batch = collate(store, rows)
    assert batch.input_ids.shape == (3, store.lengths[rows].sum(-1).max())
    assert batch.mask.shape == (3, store.lengths[rows, 1].max())
    for i, row in enumerate(rows):
        prompt, response = store.sequence(row)
        ids = batch.input_ids[i].tolist()
        assert ids == [*whole(store, row)] + [0] * (len(ids) - len(prompt) - len(response))
        assert int(batch.prompt_lengths[i]) == len(prompt)
        mask = batch.mask[i].tolist()
        assert mask == [True] * len(response) + [False] * (len(mask) - len(response))
    assert batch.lengths.tolist() == store.lengths[rows].sum(-1).tolist()


@pytest.mark.parametrize("control", [{}, {"response": 77, "mismatched": 78}])
def test_reference_values_stand_under_their_tokens(control: dict[str, int], world: World) -> None:
    store = Store(world.store)
    reference = Reference(world.reference(), expected_hashes(world.base, store))
    examples = examples_of(world, "unpaired", reference=reference, control=control)
    indices = np.array([0, 3, 11, 40])
    for role in ("response", "mismatched"):
        expected = {whole(store, row): reference[row].tolist() for row in examples.rows[role][indices]}
        seen = 0
        for batch in examples.microbatches(indices, (role,), 200):
            assert batch.reference is not None
            assert (batch.reference[~batch.mask] == 0).all()
            for text, start, mask, values in zip(
                texts(batch), batch.prompt_lengths.tolist(), batch.mask, batch.reference, strict=True
            ):
                prompt = text[: start - 1] if control else text[:start]
                assert values[mask].tolist() == expected[(*prompt, *text[start:])]
                seen += 1
        assert seen == 4


def test_roles_stand_one_below_the_other(world: World) -> None:
    store, examples = Store(world.store), examples_of(world, "paired")
    seen = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
    for batch in examples.microbatches(np.arange(6), ("chosen", "rejected"), 600):
        assert batch.input_ids.numel() <= 600
        parts = batch.by_role(batch.input_ids)
        assert list(parts) == ["chosen", "rejected"]
        assert {len(ids) for ids in parts.values()} == {len(batch.weight)}
        half = len(batch.weight)
        seen.update(zip(texts(batch)[:half], texts(batch)[half:], strict=True))
    pairs = zip(examples.rows["chosen"][:6], examples.rows["rejected"][:6], strict=True)
    assert seen == Counter((whole(store, chosen), whole(store, rejected)) for chosen, rejected in pairs)


def test_labels_and_scores_stay_with_their_responses(world: World) -> None:
    store, examples = Store(world.store), examples_of(world, "unpaired")
    table = store.view("train", "unpaired").to_pylist()[:30]
    expected = Counter((whole(store, row["sequence"]), row["desirable"], np.float32(row["score"])) for row in table)
    assert {label for _, label, _ in expected} == {True, False}
    seen = Counter[tuple[tuple[int, ...], bool, np.float32]]()
    for batch in examples.microbatches(np.arange(30), ("response",), 400):
        assert batch.labels["desirable"].dtype == torch.bool
        labels, scores = batch.labels["desirable"].tolist(), batch.labels["scores"].numpy()
        seen.update(zip(texts(batch), labels, scores, strict=True))
    assert seen == expected


def test_moving_a_microbatch_moves_every_tensor(world: World) -> None:
    batch = next(examples_of(world, "unpaired").microbatches(np.arange(4), ("response",), 4096))
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Microbatch)
    tensors = [v for v in (*moved.__dict__.values(), *moved.labels.values()) if isinstance(v, torch.Tensor)]
    assert len(tensors) == 4 + 2
    assert {t.device.type for t in tensors} == {"meta"}


# ---- labels ----------------------------------------------------------------------------------------------------


def test_a_score_that_is_not_known_is_nan_and_labels_that_not_all_have_are_none(world: World) -> None:
    store = Store(world.store)
    rows = {"sequence": [0, 1, 2], "desirable": [True, None, False], "score": [0.5, 2.0, None], "mismatched": [638] * 3}
    table = pa.table(rows, store.view("train", "unpaired").schema)
    examples = Examples(store, table, "unpaired")
    assert set(examples.labels) == {"scores"}
    np.testing.assert_equal(examples.labels["scores"], np.array([0.5, 2, np.nan], np.float32))
    labelled = Examples(store, table.filter(table["desirable"].is_valid()), "unpaired")
    assert labelled.labels["desirable"].tolist() == [True, False]
    lists = {"sequences": [[0, 1], [2]], "scores": [[1.0, None], [3.0]]}
    grouped = Examples(store, pa.table(lists, store.view("train", "grouped").schema), "grouped")
    np.testing.assert_equal(grouped.labels["scores"], np.array([1, np.nan, 3], np.float32))


@pytest.mark.parametrize("view", ["sft", "paired", "unpaired", "grouped"])
def test_the_counts_are_those_of_the_stores_view(view: str, world: World) -> None:
    table = Store(world.store).view("train", view)
    expected = {"examples": table.num_rows, "responses": table.num_rows}
    if view == "grouped":
        expected["responses"] = sum(map(len, table["sequences"].to_pylist()))
    if view == "unpaired":
        labels = Counter(table["desirable"].to_pylist())
        expected |= {"desirable": labels[True], "undesirable": labels[False]}
    assert examples_of(world, view).counts() == expected


def test_views_without_labels_have_none(world: World) -> None:
    for view in ("sft", "paired"):
        assert examples_of(world, view).labels == {}
    assert set(examples_of(world, "unpaired").labels) == {"desirable", "scores"}
    assert set(examples_of(world, "grouped").labels) == {"scores", "advantages"}


@pytest.mark.parametrize("view", ["unpaired", "grouped"])
def test_a_reward_models_scores_replace_those_of_the_data(view: str, world: World) -> None:
    rewards = np.random.default_rng(0).normal(size=len(Store(world.store))).astype(np.float32)
    own, examples = examples_of(world, view), examples_of(world, view, scores=rewards)
    assert examples.labels["scores"].tolist() == [rewards[row] for row in examples.rows["response"]]
    assert examples.labels["scores"].tolist() != own.labels["scores"].tolist()
    if view == "grouped":
        expected = advantages(rewards[examples.rows["response"]], examples.offsets)
        assert examples.labels["advantages"].tolist() == expected.tolist()
    else:
        assert examples.labels["desirable"].tolist() == own.labels["desirable"].tolist()


# ---- groups ----------------------------------------------------------------------------------------------------


def test_an_advantage_is_the_score_less_its_groups_mean_over_its_population_deviation(world: World) -> None:
    examples = examples_of(world, "grouped")
    groups = Store(world.store).view("train", "grouped")["scores"].to_pylist()
    expected = []
    for scores in groups:
        deviation = pstdev(scores)
        expected += [(score - fmean(scores)) / deviation if deviation else 0 for score in scores]
    assert examples.labels["advantages"].dtype == np.float32
    np.testing.assert_allclose(examples.labels["advantages"], expected, rtol=1e-5, atol=1e-6)
    assert {len(scores) for scores in groups} >= {1, 2, 3, 4}


def test_advantages_worked_by_hand() -> None:
    """(1, 3): mean 2, deviation 1. (0, 0, 3): mean 1, deviation sqrt 2. Equal scores, or one alone, tell nothing."""
    scores = np.array([1, 3, 0, 0, 3, 0.1, 0.1, 0.1, 1e6], np.float32)
    found = advantages(scores, np.array([0, 2, 5, 8, 9]))
    root = 2**-0.5
    assert found.tolist() == pytest.approx([-1, 1, -root, -root, 2 * root, 0, 0, 0, 0])
    assert found[5:].tolist() == [0, 0, 0, 0]


def test_a_score_that_is_missing_makes_no_advantage_of_its_group_known_and_leaves_the_others() -> None:
    found = advantages(np.array([1, np.nan, 1, 3], np.float32), np.array([0, 2, 4]))
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [-1, 1]


@pytest.mark.parametrize(("budget", "processes"), [(10**6, 1), (300, 1), (100, 1), (300, 3)])
def test_a_global_batch_of_groups_holds_each_whole_however_it_is_cut(budget: int, processes: int, world: World) -> None:
    """Prompts differ between groups, so the prompt tells a response's group. The weights of a group sum to 1."""
    store, examples = Store(world.store), examples_of(world, "grouped")
    groups = store.view("train", "grouped")["sequences"].to_pylist()
    indices = np.array([4, 0, 9, 3, 20])
    prompts = {tuple(store.sequence(groups[i][0])[0].tolist()): i for i in indices}
    assert len(prompts) == len(indices)
    held, weights, parts = Counter[tuple[int, ...]](), Counter[int](), Counter[int]()
    for rank in range(processes):
        for batch in examples.microbatches(indices, ("response",), budget, rank, processes):
            if batch.filler:
                continue
            held.update(texts(batch))
            of = [prompts[text[:start]] for text, start in zip(texts(batch), batch.prompt_lengths, strict=True)]
            parts.update(set(of))
            for group, weight in zip(of, batch.weight.tolist(), strict=True):
                assert weight == pytest.approx(1 / len(groups[group]))
                weights[group] += weight
    assert held == Counter(whole(store, row) for i in indices for row in groups[i])
    assert weights == {i: pytest.approx(1) for i in indices}
    assert (max(parts.values()) > 1) == (budget < 10**6)  # a group is split


def test_a_global_batch_is_of_groups_and_not_of_responses(world: World) -> None:
    examples = examples_of(world, "grouped")
    assert len(examples) == Store(world.store).view("train", "grouped").num_rows < len(examples.weight)
    assert float(examples.weight.sum()) == pytest.approx(len(examples))
    assert examples.responses(np.array([2, 0])).tolist() == [
        *range(examples.offsets[2], examples.offsets[3]),
        *range(examples.offsets[1]),
    ]


def test_response_tokens_are_those_of_all_roles_and_of_whole_groups(world: World) -> None:
    store = Store(world.store)
    for view, roles in (("paired", ("chosen", "rejected")), ("unpaired", ("response",)), ("grouped", ("response",))):
        examples = examples_of(world, view)
        indices = np.array([7, 2, 30])
        batches = list(examples.microbatches(indices, roles, 500))
        assert examples.response_tokens(indices, roles) == sum(int(batch.mask.sum()) for batch in batches)
    pairs = store.view("train", "paired").slice(2, 1).to_pylist()[0]
    found = examples_of(world, "paired").response_tokens(np.array([2]), ("chosen", "rejected"))
    assert found == store.lengths[pairs["chosen"], 1] + store.lengths[pairs["rejected"], 1]


# ---- control tokens --------------------------------------------------------------------------------------------


def test_a_control_token_stands_between_prompt_and_response_of_its_role(world: World) -> None:
    store, control = Store(world.store), {"chosen": 600, "rejected": 601}
    examples = examples_of(world, "paired", control=control)
    expected = Counter[tuple[int, ...]]()
    for role, token in control.items():
        for row in examples.rows[role][:20]:
            prompt, response = store.sequence(row)
            expected[(*prompt.tolist(), token, *response.tolist())] += 1
    seen = Counter[tuple[int, ...]]()
    for batch in examples.microbatches(np.arange(20), ("chosen", "rejected"), 500):
        seen.update(texts(batch))
        roles = batch.by_role(torch.arange(len(batch.input_ids)))
        for role, rows in roles.items():
            for i in rows.tolist():
                start = int(batch.prompt_lengths[i])
                assert int(batch.input_ids[i, start - 1]) == control[role]
                assert int(batch.mask[i].sum()) == int(batch.lengths[i]) - start
    assert seen == expected


def test_a_control_token_of_one_role_leaves_the_other_alone(world: World) -> None:
    examples, plain = (examples_of(world, "paired", control=control) for control in ({"chosen": 600}, None))
    [batch], [without] = (list(e.microbatches(np.arange(3), ("chosen", "rejected"), 10**6)) for e in (examples, plain))
    assert (batch.by_role(batch.lengths)["chosen"] - without.by_role(without.lengths)["chosen"]).tolist() == [1] * 3
    assert texts(batch)[3:] == texts(without)[3:]


def test_control_tokens_count_in_the_budget(world: World) -> None:
    control, roles = {"chosen": 600, "rejected": 601}, ("chosen", "rejected")
    examples, plain = examples_of(world, "paired", control=control), examples_of(world, "paired")
    responses = np.arange(40)
    assert (examples.lengths(responses, roles) - plain.lengths(responses, roles)).tolist() == [1] * 40
    budget = 2 * 8 * int(plain.lengths(responses, roles)[:8].max())
    for examples_, at_most in ((plain, budget), (examples, budget)):
        sizes = [b.input_ids.numel() for b in examples_.microbatches(responses, roles, budget)]
        assert max(sizes) <= at_most


def test_the_number_of_response_tokens_counts_no_control_token(world: World) -> None:
    roles = ("chosen", "rejected")
    counts = {examples_of(world, "paired", control=control).response_tokens(np.arange(9), roles)
              for control in (None, {"chosen": 600, "rejected": 601})}  # fmt: skip
    assert len(counts) == 1
