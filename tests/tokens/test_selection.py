"""What a training uses of a store's views. What is expected is worked out from the records, not from the store."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.settings import dump
from halos.tokens.selection import Selection, select
from halos.tokens.store import Store
from halos.tokens.tokenize import tokenize
from halos.views import VIEWS
from tests.conftest import World

ROOT = Path(__file__).parents[2]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def many(name: str, sizes: list[int], labels: dict[bool | None, int], shift: float) -> list[Feedback]:
    """Records with `sizes` responses each; exactly `labels` of each label among all; every sixth has no scores."""
    rng = np.random.default_rng(len(sizes))
    shuffled = rng.permutation([label for label, n in labels.items() for _ in range(n)]).tolist()
    records = []
    for i, n in enumerate(sizes):
        records.append(
            Feedback(
                ask(f"Of {name} {i // 2 if i < 10 else i}?"),  # ten records on five prompts
                [f"It is {j}." for j in range(n)],
                "x",
                scores=[] if i % 6 == 5 else (rng.integers(0, 4, n) + shift).tolist(),
                pairs=[(j, k) for k in range(n) for j in range(k)],
                desirable=[shuffled.pop() for _ in range(n)],
                target=0,
            )
        )
    assert not shuffled
    return records


TRAIN = many("train", [1, 2, 3, 4, 5, 6, 7] * 8, {True: 60, False: 137, None: 27}, shift=0.0)
VALIDATION = many("validation", [2, 3, 1, 4] * 5, {True: 20, False: 20, None: 10}, shift=1.5)
SPLITS = {"train": TRAIN, "validation": VALIDATION}


class Fact(NamedTuple):
    """A response: its sequence's row, and what its record says of it."""

    row: int
    prompt: str
    label: bool | None
    score: float | None


def facts(split: str) -> list[Fact]:
    """Sequences are numbered in the order of the records, train first."""
    row = 0 if split == "train" else sum(len(record.responses) for record in TRAIN)
    found = []
    for record in SPLITS[split]:
        for j, label in enumerate(record.desirable):
            found.append(Fact(row, record.prompt[0]["content"], label, record.scores[j] if record.scores else None))
            row += 1
    return found


def build(folder: Path, world: World, train: list[Feedback], validation: list[Feedback]) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    lengths = {"max_length": 60, "max_prompt_length": 40, "eval_examples": 1000}
    config.write_text(dump({"dataset": "d", "model": "m", **lengths}))
    for split, records in (("train", train), ("validation", validation)):
        feedback.write(records, folder / f"{split}.parquet")
    tokenize(config, folder / "train.parquet", folder / "validation.parquet", world.base / "model", folder / "store",
             folder / "report.json")  # fmt: skip
    return Store(folder / "store")


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("selection"), world, TRAIN, VALIDATION)


def rows(table: pa.Table) -> list[int]:
    found: list[int] = table["sequence"].to_pylist()
    return found


def kept(store: Store, selection: Selection, seed: int = 1, view: str = "unpaired") -> list[int]:
    """Sequence rows of the train split that are used."""
    return rows(select(store, "train", view, selection, seed))


def counts(table: pa.Table) -> tuple[int, int]:
    """(desirable, undesirable)."""
    labels = Counter(table["desirable"].to_pylist())
    assert set(labels) <= {True, False}
    return labels[True], labels[False]


def labels(table: pa.Table) -> dict[int, bool]:
    return dict(zip(rows(table), table["desirable"].to_pylist(), strict=True))


# ---- fractions -------------------------------------------------------------------------------------------------------

FRACTIONS = {  # of 60 desirable and 137 undesirable examples
    0.001: (1, 1),
    0.01: (1, 1),
    0.05: (3, 7),
    0.1: (6, 14),
    0.25: (15, 34),
    1 / 3: (20, 46),
    0.5: (30, 68),
    0.8: (48, 110),
    0.99: (59, 136),
    1.0: (60, 137),
}


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_exactly_the_asked_fraction_of_either_label_is_kept(store: Store, fraction: float) -> None:
    desirable, undesirable = FRACTIONS[fraction]
    for selection, expected in (
        (Selection(keep_desirable=fraction), (desirable, 137)),
        (Selection(keep_undesirable=fraction), (60, undesirable)),
        (Selection(fraction, fraction), (desirable, undesirable)),
    ):
        assert counts(select(store, "train", "unpaired", selection, 1)) == expected


def test_what_is_kept_are_whole_rows_of_the_view_in_its_order(store: Store) -> None:
    rest = iter(store.view("train", "unpaired").to_pylist())
    table = select(store, "train", "unpaired", Selection(0.5, 0.3), 1)
    assert all(row in rest for row in table.to_pylist())  # `in` uses the iterator up: a subsequence


def test_a_smaller_fraction_keeps_a_part_of_what_a_larger_one_keeps(store: Store) -> None:
    for first, second in zip(list(FRACTIONS)[:-1], list(FRACTIONS)[1:], strict=True):
        assert set(kept(store, Selection(first, 1.0))) <= set(kept(store, Selection(second, 1.0)))
        assert set(kept(store, Selection(1.0, first))) <= set(kept(store, Selection(1.0, second)))


def test_the_fraction_of_one_label_does_not_move_what_is_kept_of_the_other(store: Store) -> None:
    one = labels(select(store, "train", "unpaired", Selection(0.25, 0.1), 1))
    other = labels(select(store, "train", "unpaired", Selection(0.25, 0.8), 1))
    assert {row for row, label in one.items() if label} == {row for row, label in other.items() if label}


# ---- seeds and splits ------------------------------------------------------------------------------------------------

DRAWS = {
    "keep_desirable": ("unpaired", Selection(keep_desirable=0.5)),
    "keep_undesirable": ("unpaired", Selection(keep_undesirable=0.5)),
    "one_per_prompt": ("unpaired", Selection(one_per_prompt=True)),
    "one_per_prompt_scored": ("scored", Selection(one_per_prompt=True)),
    "pairs_per_prompt": ("paired", Selection(pairs_per_prompt=2)),
    "keep_pairs": ("paired", Selection(keep_pairs=0.5)),
}
NOISE = [0.01, 0.2, 0.4, 0.99]


@pytest.mark.parametrize("name", DRAWS)
def test_the_draw_follows_the_seed(store: Store, name: str) -> None:
    view, selection = DRAWS[name]
    one, again, other = (select(store, "train", view, selection, seed) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)
    assert one.num_rows == other.num_rows


@pytest.mark.parametrize("name", DRAWS)
def test_every_example_has_its_chance(store: Store, name: str) -> None:
    view, selection = DRAWS[name]
    drawn = {tuple(row.items()) for seed in range(100)
             for row in select(store, "train", view, selection, seed).to_pylist()}  # fmt: skip
    assert drawn == {tuple(row.items()) for row in store.view("train", view).to_pylist()}


@pytest.mark.parametrize("name", DRAWS)
def test_nothing_is_taken_from_the_test_split(store: Store, name: str) -> None:
    view, selection = DRAWS[name]
    assert select(store, "train", view, selection, 1).num_rows < store.view("train", view).num_rows
    assert select(store, "validation", view, selection, 1).equals(store.view("validation", view))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("view", list(VIEWS))
def test_by_default_a_training_uses_the_whole_view(store: Store, split: str, view: str) -> None:
    assert select(store, split, view, Selection(), 1).equals(store.view(split, view))


@pytest.mark.parametrize("view", ["sft", "grouped", "paired"])
def test_settings_of_unpaired_examples_leave_the_other_views_alone(store: Store, view: str) -> None:
    unpaired = Selection(keep_desirable=0.1, keep_undesirable=0.1, one_per_prompt=True, label_by="mean")
    assert select(store, "train", view, unpaired, 1).equals(store.view("train", view))


# ---- wrong labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", NOISE)
def test_exactly_the_asked_fraction_of_pairs_is_swapped_where_it_is(store: Store, fraction: float) -> None:
    whole = store.view("train", "paired").to_pylist()
    noisy = select(store, "train", "paired", Selection(label_noise=fraction), 1).to_pylist()
    swapped = [row for row, new in zip(whole, noisy, strict=True) if row != new]
    assert len(swapped) == round(fraction * len(whole))
    assert noisy == [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if row in swapped else row for row in whole
    ]


@pytest.mark.parametrize("fraction", NOISE)
@pytest.mark.parametrize("kept", [Selection(), Selection(keep_desirable=0.5, label_by="mean")])
def test_exactly_the_asked_fraction_of_labels_is_turned_round(store: Store, fraction: float, kept: Selection) -> None:
    right = labels(select(store, "train", "unpaired", kept, 1))
    wrong = labels(select(store, "train", "unpaired", replace(kept, label_noise=fraction), 1))
    assert list(right) == list(wrong)
    assert sum(right[row] != wrong[row] for row in right) == round(fraction * len(right))


@pytest.mark.parametrize("view", ["paired", "unpaired"])
def test_more_noise_turns_what_less_does_and_other_seeds_turn_others(store: Store, view: str) -> None:
    whole = store.view("train", view).to_pylist()

    def turned(fraction: float, seed: int) -> set[int]:
        noisy = select(store, "train", view, Selection(label_noise=fraction), seed).to_pylist()
        return {i for i, (row, new) in enumerate(zip(whole, noisy, strict=True)) if row != new}

    for less, more in pairwise(NOISE):
        assert turned(less, 1) < turned(more, 1)
    assert turned(0.2, 1) != turned(0.2, 2)
    assert select(store, "validation", view, Selection(label_noise=0.4), 1).equals(store.view("validation", view))


@pytest.mark.parametrize("view", ["sft", "grouped"])
def test_views_without_labels_have_no_wrong_ones(store: Store, view: str) -> None:
    assert select(store, "train", view, Selection(label_noise=0.4), 1).equals(store.view("train", view))


# ---- pairs, and the weights of labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_exactly_the_asked_fraction_of_pairs_is_kept_in_their_order(store: Store, fraction: float) -> None:
    whole = store.view("train", "paired").to_pylist()
    table = select(store, "train", "paired", Selection(keep_pairs=fraction), 1)
    assert table.num_rows == max(1, round(fraction * len(whole)))
    rest = iter(whole)
    assert all(row in rest for row in table.to_pylist())


@pytest.mark.parametrize("selection", [Selection(), Selection(keep_desirable=0.1), Selection(label_noise=0.3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_labels_weigh_the_same_in_total(
    world: World, tmp_path: Path, store: Store, selection: Selection, weighted: bool
) -> None:
    if weighted:
        records = [replace(r, weights=[1.0 + i for i, _ in enumerate(r.responses)]) for r in TRAIN]
        store = build(tmp_path, world, records, VALIDATION)
    table = select(store, "train", "unpaired", selection, 1)
    balanced = select(store, "train", "unpaired", replace(selection, balance_labels=True), 1)
    assert balanced["desirable"].equals(table["desirable"])
    labels = np.array(balanced["desirable"].to_pylist())
    before = np.array(table["weight"].to_pylist() if weighted else np.ones(len(labels)))
    after = np.array(balanced["weight"].to_pylist())
    assert after[labels].sum() == pytest.approx(after[~labels].sum()) == pytest.approx(before.sum() / 2)
    for one in (labels, ~labels):
        assert after[one] / after[one][0] == pytest.approx(before[one] / before[one][0])


def test_one_label_alone_keeps_its_weights(world: World, tmp_path: Path) -> None:
    records = [replace(r, desirable=[True] * len(r.responses)) for r in TRAIN if r.desirable]
    store = build(tmp_path, world, records, VALIDATION)
    whole = select(store, "train", "unpaired", Selection(), 1)
    assert select(store, "train", "unpaired", Selection(balance_labels=True), 1).equals(whole)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def pairs_by_prompt(table: pa.Table) -> dict[str, set[tuple[int, int]]]:
    prompts = {fact.row: fact.prompt for fact in facts("train")}
    found = defaultdict(set)
    for pair in table.to_pylist():
        found[prompts[pair["chosen"]]].add((pair["chosen"], pair["rejected"]))
    return dict(found)


@pytest.mark.parametrize("k", [1, 2, 5, 1000])
def test_each_prompt_keeps_at_most_so_many_of_its_pairs(store: Store, k: int) -> None:
    whole = pairs_by_prompt(store.view("train", "paired"))
    assert max(map(len, whole.values())) > 21  # one prompt in two records has more pairs than any record
    some = pairs_by_prompt(select(store, "train", "paired", Selection(pairs_per_prompt=k), 1))
    assert {prompt: len(pairs) for prompt, pairs in some.items()} == {p: min(k, len(o)) for p, o in whole.items()}
    more = pairs_by_prompt(select(store, "train", "paired", Selection(pairs_per_prompt=k + 1), 1))
    assert all(pairs <= more[prompt] <= whole[prompt] for prompt, pairs in some.items())


def test_each_prompt_keeps_one_of_its_labelled_responses(store: Store) -> None:
    labelled = {fact.row: fact.prompt for fact in facts("train") if fact.label is not None}
    used = [labelled[row] for row in kept(store, Selection(one_per_prompt=True))]
    assert sorted(used) == sorted(set(labelled.values()))


def test_fractions_are_of_what_is_left_with_one_response_of_each_prompt(store: Store) -> None:
    whole = select(store, "train", "unpaired", Selection(one_per_prompt=True), 1)
    part = select(store, "train", "unpaired", Selection(0.5, 0.2, one_per_prompt=True), 1)
    desirable, undesirable = counts(whole)
    assert counts(part) == (round(0.5 * desirable), round(0.2 * undesirable))
    assert set(rows(part)) < set(rows(whole))


def test_a_scored_response_without_a_label_is_in_no_fraction(store: Store) -> None:
    found = Counter(select(store, "train", "scored", Selection(0.5, 0.25), 1)["desirable"].to_pylist())
    scored = Counter(fact.label for fact in facts("train") if fact.score is not None)
    assert found == {True: round(scored[True] / 2), False: round(scored[False] / 4), None: scored[None]}
    assert found[None] > 0


# ---- labels from scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("threshold", [2.0, 2.5, 0, -1.0])
def test_a_response_is_desirable_if_it_scores_more_than_a_number(store: Store, split: str, threshold: float) -> None:
    found = labels(select(store, split, "unpaired", Selection(label_by=threshold), 1))
    assert found == {f.row: f.score > threshold for f in facts(split) if f.score is not None}


@pytest.mark.parametrize(
    ("label_by", "train_labels", "validation_labels"),
    [
        ("mean", [False, False, False, True, False], [False, True, True]),  # 3; of the test split itself it is 5.5
        ("median", [False, False, True, True, False], [True, True, True]),  # 2; of the test split itself it is 4
    ],
)
def test_both_splits_are_labelled_by_the_mean_or_median_score_of_train(
    tmp_path: Path, world: World, label_by: str, train_labels: list[bool], validation_labels: list[bool]
) -> None:
    train = [
        Feedback(ask("Is it so?"), ["a", "b", "c", "d"], "x", scores=[1.0, 2.0, 3.0, 7.0]),
        Feedback(ask("And this?"), ["e"], "x", scores=[2.0], desirable=[True]),
        Feedback(ask("Unscored?"), ["f"], "x", desirable=[True]),
    ]
    validation = [
        Feedback(ask("Or that?"), ["g", "h"], "x", scores=[2.5, 4.0]),
        Feedback(ask("So?"), ["i"], "x", [10.0]),
    ]
    made = build(tmp_path, world, train, validation)
    for split, expected in (("train", train_labels), ("validation", validation_labels)):
        table = select(made, split, "unpaired", Selection(label_by=label_by), 1)
        assert table["desirable"].to_pylist() == expected


def extremes(split: str) -> Iterator[tuple[Fact, Fact]]:
    """(worst, best) response of each prompt that has both."""
    prompts = defaultdict(list)
    for fact in facts(split):
        if fact.score is not None:
            prompts[fact.prompt].append(fact)
    for responses in prompts.values():
        ranked = sorted(responses, key=lambda f: (f.score, f.row))
        if ranked[0].score != ranked[-1].score:
            yield ranked[0], ranked[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_the_best_and_the_worst_response_of_a_prompt_are_labelled_and_no_other(store: Store, split: str) -> None:
    expected = {fact.row: fact is best for worst, best in extremes(split) for fact in (worst, best)}
    assert labels(select(store, split, "unpaired", Selection(label_by="best_worst"), 1)) == expected
    assert 0 < len(expected) < len({f.prompt for f in facts(split)}) * 2  # some prompts have nothing to tell apart


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 3.0, 2.0], {0: False, 1: True}),
        ([2.0, 2.0, 1.0, 1.0], {1: True, 2: False}),
        ([-0.5, -2.0], {0: True, 1: False}),
        ([1.0, 1.0, 1.0], {}),
        ([4.0], {}),
    ],
)
def test_best_and_worst_of_a_prompt_by_hand(
    tmp_path: Path, world: World, scores: list[float], expected: dict[int, bool]
) -> None:
    plain = Feedback(ask("Is it so?"), [f"It is {j}." for j in range(len(scores))], "x", scores=scores)
    other = Feedback(ask("And this?"), ["Yes.", "No."], "x", scores=[9.0, 8.0])
    made = build(tmp_path, world, [plain, other], [other])
    found = labels(select(made, "train", "unpaired", Selection(label_by="best_worst"), 1))
    assert found == {**expected, len(scores): True, len(scores) + 1: False}


def test_labels_from_scores_come_before_the_draw_and_the_draw_before_fractions(store: Store) -> None:
    selection = Selection(label_by="best_worst", one_per_prompt=True)
    expected = {fact.row: fact is best for worst, best in extremes("train") for fact in (worst, best)}
    whole = select(store, "train", "unpaired", selection, 1)
    assert whole.num_rows == len(expected) // 2  # drawn first, a prompt would have no best and worst
    assert labels(whole).items() <= expected.items()
    desirable, undesirable = counts(whole)
    part = select(store, "train", "unpaired", Selection(0.25, 1.0, one_per_prompt=True, label_by="best_worst"), 1)
    assert counts(part) == (round(0.25 * desirable), undesirable)
    assert labels(part).items() <= labels(whole).items()


def test_labels_from_scores_keep_the_mismatched_sequence_of_each_row(store: Store) -> None:
    table = select(store, "train", "unpaired", Selection(label_by="best_worst"), 1)
    scored = {row["sequence"]: row for row in store.view("train", "scored").to_pylist()}
    assert table.schema.equals(store.view("train", "unpaired").schema)
    assert all({**row, "desirable": None} == {**scored[row["sequence"]], "desirable": None}
               for row in table.to_pylist())  # fmt: skip


# ---- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_by", ["best_worst", "mean", "median", 0])
def test_labels_from_scores_without_scores_are_refused(tmp_path: Path, world: World, label_by: str | float) -> None:
    records = [Feedback(ask(f"Of {i}?"), ["Yes."], "x", desirable=[True]) for i in range(3)]
    made = build(tmp_path, world, records, records)
    with pytest.raises(HalosError, match=r"dataset d has no rows for the scored view .*it has unpaired\).*label_by"):
        select(made, "train", "unpaired", Selection(label_by=label_by), 1)


def test_labels_from_scores_need_no_labels_in_the_data(tmp_path: Path, world: World) -> None:
    records = [Feedback(ask(f"Of {i}?"), ["Yes.", "No."], "x", scores=[1.0, 2.0]) for i in range(3)]
    made = build(tmp_path, world, records, records)
    for label_by in ("best_worst", "mean", 0):
        unpaired, scored = (select(made, "train", v, Selection(label_by=label_by), 1) for v in ("unpaired", "scored"))
        assert unpaired.equals(scored)
        assert unpaired.num_rows == 6


def test_best_and_worst_where_no_scores_differ_are_refused(tmp_path: Path, world: World) -> None:
    records = [Feedback(ask(f"Of {i}?"), ["Yes.", "No."][:n], "x", scores=[1.0] * n) for i, n in enumerate((2, 1, 2))]
    made = build(tmp_path, world, records, records)
    with pytest.raises(HalosError, match=r"^label_by best_worst leaves nothing of the train split of dataset d"):
        select(made, "train", "unpaired", Selection(label_by="best_worst"), 1)


def test_a_selection_can_be_declared_without_importing_what_trains() -> None:
    code = "import sys, halos.tokens.selection; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_best_and_the_worst_of_a_prompt_are_left_out_where_they_are_the_same_tokens(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that only differ behind the cut, and two that are equal in full, beside others of the same length."""
    long = "word " * 80
    records = [
        Feedback(ask("Which?"), [long + "yes", long + "no"], "x", scores=[1.0, 0.0]),
        Feedback(ask("Why?"), ["So.", "So."], "x", scores=[1.0, 0.0]),
        Feedback(ask("How?"), ["So.", "No."], "x", scores=[1.0, 0.0]),
        Feedback(ask("Who?"), ["No.", "So."], "x", scores=[1.0, 0.0]),
    ]
    made = build(tmp_path, world, records, records)
    for split, first in (("train", 0), ("validation", 8)):
        found = labels(select(made, split, "unpaired", Selection(label_by="best_worst"), 1))
        assert found == {first + 4: True, first + 5: False, first + 6: True, first + 7: False}
        assert f"{split}: 4 responses are left out: the best and the worst of a prompt" in capsys.readouterr().err
