"""Global batches and their cutting into microbatches."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from halos.forward.microbatch import Microbatch, collate
from halos.reference.cache import Reference, expected_hashes
from halos.registry import LOSSES
from halos.tokens.store import Store
from halos.train.batches import Examples, GlobalBatches, Prefetch, advantages
from halos.views import VIEWS
from tests.conftest import World
from tests.forward.test_layout import ids_of


def examples_of(world: World, view: str, **more: Any) -> Examples:
    store = Store(world.store)
    return Examples(store, store.view("train", view), VIEWS[view], **more)


def texts(batch: Microbatch) -> list[tuple[int, ...]]:
    """The ids of each sequence, without padding."""
    return ids_of(batch.layout)


def starts(batch: Microbatch) -> list[int]:
    """Where each response begins in its sequence."""
    found: list[int] = (batch.layout.lengths - batch.mask.sum(-1).numpy()).tolist()
    return found


def whole(store: Store, row: int) -> tuple[int, ...]:
    return tuple(np.concatenate(store.sequence(row)).tolist())


PACKED = pytest.mark.parametrize("packed", [True, False])


@PACKED
def test_a_filler_has_no_weight_and_the_shares_of_all_processes_make_the_batch(packed: bool, world: World) -> None:
    groups = examples_of(world, "grouped", packed=packed)
    pair = int(np.flatnonzero(np.diff(groups.offsets) == 2)[0])
    for examples, indices, expected in (
        (examples_of(world, "unpaired", packed=packed), [5, 3, 8], [0, 1, 1, 1]),
        (groups, [pair], [0, 0, 0.5, 0.5]),
    ):
        shares = [list(examples.microbatches(np.array(indices), ("response",), 4096, k, 4)) for k in range(4)]
        assert {len(share) for share in shares} == {1}
        weights = [float(batch.weight.sum()) for [batch] in shares]
        assert sorted(weights) == expected
        assert [batch.filler for [batch] in shares] == [weight == 0 for weight in weights]
        assert [batch.real == 0 for [batch] in shares] == [weight == 0 for weight in weights]
        assert all(batch.positions > 0 for [batch] in shares)


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


@pytest.mark.parametrize(
    ("epochs", "steps", "seen"), [(0.5, 4, 32), (0.001, 1, 8), (1.0, 7, 50), (2.5, 18, 132), (0.1 + 0.2, 2, 16)]
)
def test_a_part_of_an_epoch_is_so_many_of_its_examples_and_at_least_one_step(
    epochs: float, steps: int, seen: int
) -> None:
    batches = GlobalBatches(50, 8, epochs, None, 1)
    assert (len(batches), batches.examples_until(steps)) == (steps, seen)
    whole = GlobalBatches(50, 8, 3, None, 1)
    assert [batches[k].tolist() for k in range(steps)] == [whole[k].tolist() for k in range(steps)]


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


@PACKED
def test_sequences_are_collated_whole_and_their_responses_masked(packed: bool, world: World) -> None:
    store = Store(world.store)
    rows = np.array([0, 7, 20, 1])
    batch = collate(store, rows, packed)
    prompts = {store.prompt_of(rows)[k]: store.lengths[row, 0] for k, row in enumerate(rows)}
    width = store.lengths[rows].sum(-1).max()
    shape = (1, sum(prompts.values()) + store.lengths[rows, 1].sum()) if packed else (4, width)
    assert len(prompts) == 3
    assert batch.layout.input_ids.shape == shape
    assert batch.mask.shape == (4, store.lengths[rows, 1].max())
    assert texts(batch) == [whole(store, row) for row in rows]
    assert starts(batch) == store.lengths[rows, 0].tolist()
    for row, mask in zip(rows, batch.mask.tolist(), strict=True):
        response = int(store.lengths[row, 1])
        assert mask == [True] * response + [False] * (len(mask) - response)
    assert batch.tokens == store.lengths[rows].sum()
    assert batch.positions == shape[0] * shape[1]
    assert batch.real == (batch.positions if packed else batch.tokens)


@PACKED
def test_a_control_token_of_a_sequence_is_collated_as_no_part_of_its_response(packed: bool, world: World) -> None:
    store = Store(world.store)
    rows = np.array([0, 1, 7])
    batch = collate(store, rows, packed, control=np.array([77, -1, 78]))
    for text, start, row, token in zip(texts(batch), starts(batch), rows, (77, None, 78), strict=True):
        prompt, response = store.sequence(row)
        control = () if token is None else (token,)
        assert text == (*prompt.tolist(), *control, *response.tolist())
        assert start == len(prompt) + len(control)
    tokens = [token for row in rows for token in store.sequence(row)[1].tolist()]
    assert batch.layout.targets.tolist() == tokens


@PACKED
@pytest.mark.parametrize("control", [{}, {"response": 77, "mismatched": 78}])
def test_reference_values_stand_under_their_tokens(control: dict[str, int], packed: bool, world: World) -> None:
    store = Store(world.store)
    reference = Reference(world.reference(), expected_hashes(world.base, store))
    examples = examples_of(world, "unpaired", reference=reference, control=control, packed=packed)
    indices = np.array([0, 3, 11, 40])
    for role in ("response", "mismatched"):
        expected = {whole(store, row): reference[row].tolist() for row in examples.rows[role][indices]}
        seen = 0
        for batch in examples.microbatches(indices, (role,), 200):
            assert batch.reference is not None
            assert (batch.reference[~batch.mask] == 0).all()
            for text, start, mask, values in zip(texts(batch), starts(batch), batch.mask, batch.reference, strict=True):
                prompt = text[: start - 1] if control else text[:start]
                assert values[mask].tolist() == expected[(*prompt, *text[start:])]
                seen += 1
        assert seen == 4


@PACKED
def test_roles_stand_one_below_the_other(packed: bool, world: World) -> None:
    store, examples = Store(world.store), examples_of(world, "paired", packed=packed)
    seen = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
    for batch in examples.microbatches(np.arange(6), ("chosen", "rejected"), 600):
        assert batch.positions <= 600
        parts = batch.by_role(batch.mask)
        assert list(parts) == ["chosen", "rejected"]
        assert {len(ids) for ids in parts.values()} == {len(batch.weight)}
        half = len(batch.weight)
        seen.update(zip(texts(batch)[:half], texts(batch)[half:], strict=True))
    pairs = zip(examples.rows["chosen"][:6], examples.rows["rejected"][:6], strict=True)
    assert seen == Counter((whole(store, chosen), whole(store, rejected)) for chosen, rejected in pairs)


@PACKED
def test_labels_and_scores_stay_with_their_responses(packed: bool, world: World) -> None:
    store, examples = Store(world.store), examples_of(world, "unpaired", packed=packed)
    table = store.view("train", "unpaired").to_pylist()[:30]
    expected = Counter((whole(store, row["sequence"]), row["desirable"], np.float32(row["score"])) for row in table)
    assert {label for _, label, _ in expected} == {True, False}
    seen = Counter[tuple[tuple[int, ...], bool, np.float32]]()
    for batch in examples.microbatches(np.arange(30), ("response",), 400):
        assert batch.labels["desirable"].dtype == torch.bool
        labels, scores = batch.labels["desirable"].tolist(), batch.labels["scores"].numpy()
        seen.update(zip(texts(batch), labels, scores, strict=True))
    assert seen == expected


@PACKED
def test_moving_a_microbatch_moves_every_tensor(packed: bool, world: World) -> None:
    reference = Reference(world.reference(), expected_hashes(world.base, Store(world.store)))
    examples = examples_of(world, "unpaired", reference=reference, packed=packed)
    [batch] = examples.microbatches(np.arange(4), ("response",), 10**6, following=("mismatched",))
    moved = batch.to(torch.device("meta"))
    seen = [moved] if moved.following is None else [moved, moved.following]
    assert len(seen) == 1 + packed
    for part in seen:
        tensors = [v for v in (*vars(part).values(), *part.labels.values(), part.layout.input_ids)
                   if isinstance(v, torch.Tensor)]  # fmt: skip
        assert len(tensors) == 3 + 2 + 1
        assert {t.device.type for t in tensors} == {"meta"}
        assert (part.packing is not None) == packed
        assert part.packing is None or part.packing.device.type == "meta"
    if moved.following is not None:
        assert moved.following.packing is not None
        assert moved.following.packing.prompts is moved.packing


# ---- what follows ------------------------------------------------------------------------------------------------


def test_mismatched_responses_follow_a_row_that_is_all_of_a_processs_share(world: World) -> None:
    store, examples = Store(world.store), examples_of(world, "unpaired", packed=True)
    indices = np.array([5, 3, 8, 30, 2])
    for world_size, budget, follows in ((1, 10**6, True), (2, 10**6, True), (1, 60, False), (2, 30, False)):
        seen = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
        for rank in range(world_size):
            parts = list(examples.microbatches(indices, ("response",), budget, rank, world_size, ("mismatched",)))
            assert (len(parts) == 1) == follows
            for batch in parts:
                after = batch.following
                assert (after is not None) == follows
                if after is not None:
                    assert after.roles == ("mismatched",)
                    assert after.weight.tolist() == batch.weight.tolist()
                    assert {k: v.tolist() for k, v in after.labels.items()} == {
                        k: v.tolist() for k, v in batch.labels.items()
                    }
                    assert after.positions == len(after.weight) + after.mask.sum()  # of a prompt its last token only
                    seen.update(zip(texts(batch), ids_of(after.layout, batch.layout), strict=True))
        rows = (examples.rows[role][indices] for role in ("response", "mismatched"))
        expected = Counter((whole(store, one), whole(store, other)) for one, other in zip(*rows, strict=True))
        assert seen == (expected if follows else Counter())
    padded = examples_of(world, "unpaired").microbatches(indices, ("response",), 10**6, following=("mismatched",))
    assert [batch.following for batch in padded] == [None]


def test_what_follows_a_filler_counts_as_little(world: World) -> None:
    examples = examples_of(world, "unpaired", packed=True)
    for rank in range(2):
        [batch] = examples.microbatches(np.array([4]), ("response",), 10**6, rank, 2, ("mismatched",))
        assert batch.following is not None
        assert batch.filler == batch.following.filler == (rank == 1)
        assert float(batch.following.weight.sum()) == (rank == 0)


@PACKED
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_share_has_a_pass_before_it_only_where_statistics_cannot_be_had_otherwise(
    name: str, packed: bool, world: World
) -> None:
    loss = LOSSES[name]()
    examples = examples_of(world, loss.view.name, packed=packed)
    indices, roles = np.array([5, 3, 8, 30, 2]), loss.view.roles
    others = [role for role in loss.prepass if role not in roles]
    tokens = examples.response_tokens(indices, roles)
    for budget, processes in ((10**6, 1), (10**6, 2), (60, 1), (60, 2), (10**6, 7)):
        batches = [examples.local_batch(indices, loss, budget, rank, processes) for rank in range(processes)]
        assert {batch.count for batch in batches} == {tokens if loss.per_token else 5}
        assert len({(len(batch.parts), len(batch.before)) for batch in batches}) == 1
        for batch in batches:
            one = len(batch.parts) == 1
            assert all(part.roles == roles for part in batch.parts)
            assert all(part.roles == loss.prepass for part in batch.before)
            assert bool(batch.before) == bool(loss.prepass and not (one and (packed or not others)))
            assert [part.following is not None for part in batch.parts] == [bool(packed and one and others)] * len(
                batch.parts
            )
        if batches[0].before:
            assert sum(float(part.weight.sum()) for batch in batches for part in batch.before) == pytest.approx(5)


def test_the_next_steps_data_is_prepared_meanwhile_and_each_step_gets_its_own() -> None:
    class Data:
        def __init__(self, step: int) -> None:
            self.step = step

    made: list[tuple[int, bool]] = []
    alive: dict[int, weakref.ref[Data]] = {}
    done = [threading.Event() for _ in range(6)]

    def prepare(step: int) -> Any:
        made.append((step, threading.current_thread() is threading.main_thread()))
        done[step].set()
        if step == 4:
            raise ValueError("step 4")
        alive[step] = weakref.ref(data := Data(step))
        return data

    prefetch: Any = Prefetch(prepare, 6)
    assert prefetch(0).step == 0
    assert done[1].wait(10)
    assert [step for step, _ in made] == [0, 1]
    assert prefetch(1).step == 1
    assert done[2].wait(10)
    assert prefetch(3).step == 3  # not the next one, as in a run that goes on from a checkpoint
    assert done[4].wait(10)
    with pytest.raises(ValueError, match="step 4"):
        prefetch(4)
    assert prefetch(5).step == 5
    assert [alive[step]() for step in (0, 1, 2, 3)] == [None] * 4  # what was used, or never asked for, is let go
    assert [step for step, _ in made] == [0, 1, 2, 3, 4, 5]  # each once, and none after the last
    assert not any(in_main for _, in_main in made)


# ---- labels ----------------------------------------------------------------------------------------------------


def test_a_score_that_is_not_known_is_nan_and_labels_that_not_all_have_are_none(world: World) -> None:
    store = Store(world.store)
    rows = {"sequence": [0, 1, 2], "desirable": [True, None, False], "score": [0.5, 2.0, None], "mismatched": [638] * 3}
    table = pa.table(rows, store.view("train", "unpaired").schema)
    examples = Examples(store, table, VIEWS["unpaired"])
    assert set(examples.labels) == {"scores"}
    np.testing.assert_equal(examples.labels["scores"], np.array([0.5, 2, np.nan], np.float32))
    labelled = Examples(store, table.filter(table["desirable"].is_valid()), VIEWS["unpaired"])
    assert labelled.labels["desirable"].tolist() == [True, False]
    lists = {"sequences": [[0, 1], [2]], "scores": [[1.0, None], [3.0]]}
    grouped = Examples(store, pa.table(lists, store.view("train", "grouped").schema), VIEWS["grouped"])
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


@PACKED
@pytest.mark.parametrize(("budget", "processes"), [(10**6, 1), (300, 1), (60, 1), (300, 3)])
def test_a_global_batch_of_groups_holds_each_whole_however_it_is_cut(
    budget: int, processes: int, packed: bool, world: World
) -> None:
    """Prompts differ between groups, so the prompt tells a response's group. The weights of a group sum to 1."""
    store, examples = Store(world.store), examples_of(world, "grouped", packed=packed)
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
            of = [prompts[text[:start]] for text, start in zip(texts(batch), starts(batch), strict=True)]
            parts.update(set(of))
            for group, weight in zip(of, batch.weight.tolist(), strict=True):
                assert weight == pytest.approx(1 / len(groups[group]))
                weights[group] += weight
    assert held == Counter(whole(store, row) for i in indices for row in groups[i])
    assert weights == {i: pytest.approx(1) for i in indices}
    assert (max(parts.values()) > 1) == (budget == 60 or (budget == 300 and not packed))  # a group is split


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


@PACKED
def test_a_control_token_stands_between_prompt_and_response_of_its_role(packed: bool, world: World) -> None:
    store, control = Store(world.store), {"chosen": 600, "rejected": 601}
    examples = examples_of(world, "paired", control=control, packed=packed)
    expected = Counter[tuple[int, ...]]()
    for role, token in control.items():
        for row in examples.rows[role][:20]:
            prompt, response = store.sequence(row)
            expected[(*prompt.tolist(), token, *response.tolist())] += 1
    seen = Counter[tuple[int, ...]]()
    for batch in examples.microbatches(np.arange(20), ("chosen", "rejected"), 500):
        seen.update(texts(batch))
        roles = batch.by_role(torch.arange(len(batch.mask)))
        for role, rows in roles.items():
            for i in rows.tolist():
                assert texts(batch)[i][starts(batch)[i] - 1] == control[role]
    assert seen == expected


@PACKED
def test_a_control_token_of_one_role_leaves_the_other_alone(packed: bool, world: World) -> None:
    examples, plain = (
        examples_of(world, "paired", control=control, packed=packed) for control in ({"chosen": 600}, None)
    )
    [batch], [without] = (list(e.microbatches(np.arange(3), ("chosen", "rejected"), 10**6)) for e in (examples, plain))
    assert (batch.layout.lengths - without.layout.lengths).tolist() == [1] * 3 + [0] * 3
    assert texts(batch)[3:] == texts(without)[3:]


@PACKED
def test_control_tokens_count_in_the_budget(packed: bool, world: World) -> None:
    roles = ("chosen", "rejected")
    plain, *more = (
        examples_of(world, "paired", control=control, packed=packed)
        for control in (None, {"chosen": 600}, {"chosen": 600, "rejected": 601})
    )
    responses = np.arange(40)
    for k, examples in enumerate(more, 1):
        found = examples.lengths(responses, roles) - plain.lengths(responses, roles)
        assert found.tolist() == [[0, k]] * 40
    longest = int(plain.store.lengths.sum(-1).max()) + 1
    for budget in range(2 * longest, 700, 37):
        for examples in (plain, *more):
            sizes = [batch.positions for batch in examples.microbatches(responses, roles, budget)]
            assert max(sizes) <= budget


@PACKED
def test_a_microbatch_keeps_to_the_budget_in_all_its_roles_unless_one_example_is_larger(
    packed: bool, world: World
) -> None:
    examples = examples_of(world, "paired", packed=packed)
    for budget in (1, 150, 400, 2000):
        batches = list(examples.microbatches(np.arange(40), ("chosen", "rejected"), budget))
        assert all(batch.positions <= budget or len(batch.weight) == 1 for batch in batches)
        assert sum(len(batch.weight) for batch in batches) == 40
        assert (len(batches) == 40) == (budget == 1)


def test_the_number_of_response_tokens_counts_no_control_token(world: World) -> None:
    roles = ("chosen", "rejected")
    counts = {examples_of(world, "paired", control=control).response_tokens(np.arange(9), roles)
              for control in (None, {"chosen": 600, "rejected": 601})}  # fmt: skip
    assert len(counts) == 1
