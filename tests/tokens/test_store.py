from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.files import hash_files
from halos.settings import dump
from halos.tokens.builder import StoreBuilder
from halos.tokens.index import mismatch
from halos.tokens.settings import StoreSlice
from halos.tokens.store import Store, check
from halos.tokens.template import Template
from halos.tokens.tokenize import tokenize
from halos.train.batches import Examples
from halos.views import VIEWS, View
from tests.conftest import World


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def make(tmp_path: Path, world: World, records: list[Feedback], **settings: float) -> tuple[Store, dict[str, Any]]:
    """A store with `records` in both splits."""
    config = tmp_path / "config.yaml"
    config.write_text(dump({"dataset": "d", "model": "m", "max_length": 60, "max_prompt_length": 40,
                            "eval_examples": 100, **settings}))  # fmt: skip
    feedback.write(records, tmp_path / "data.parquet")
    data = tmp_path / "data.parquet"
    tokenize(config, data, data, world.base / "model", tmp_path / "store", tmp_path / "report.json")
    return Store(tmp_path / "store"), json.loads((tmp_path / "report.json").read_text())


PAIR = Feedback(ask("Is it so?"), ["Yes it is.", "No."], "x", scores=[1.0, 0.0], pairs=[(0, 1)],
                desirable=[True, None], target=1)  # fmt: skip
OTHER = Feedback(ask("And this?"), ["Never."], "x", desirable=[False])


def test_the_views_hold_what_the_records_say(tmp_path: Path, world: World) -> None:
    store, _ = make(tmp_path, world, [PAIR, OTHER])
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")

    def text(row: int) -> str:
        return str(tokenizer.decode(store.sequence(row)[1]))

    [target] = store.view("train", "sft")["sequence"].to_pylist()
    assert text(target) == "No.<|end|>"
    [pair] = store.view("train", "paired").to_pylist()
    assert (text(pair["chosen"]), text(pair["rejected"])) == ("Yes it is.<|end|>", "No.<|end|>")
    unpaired = store.view("train", "unpaired").to_pylist()
    assert [(text(r["sequence"]), r["desirable"], r["score"]) for r in unpaired] == [
        ("Yes it is.<|end|>", True, 1.0),
        ("Never.<|end|>", False, None),
    ]
    [group] = store.view("train", "grouped").to_pylist()
    assert [text(row) for row in group["sequences"]] == ["Yes it is.<|end|>", "No.<|end|>"]
    assert group["scores"] == [1.0, 0.0]


def test_a_group_holds_its_own_responses_wherever_it_stands(tmp_path: Path, world: World) -> None:
    three = Feedback(ask("What?"), ["One.", "Two.", "Three."], "x", scores=[3.0, 1.0, 2.0])
    store, _ = make(tmp_path, world, [OTHER, PAIR, OTHER, three])
    groups = store.view("train", "grouped").to_pylist()
    assert groups == [
        {"sequences": [1, 2], "scores": [1.0, 0.0]},
        {"sequences": [4, 5, 6], "scores": [3.0, 1.0, 2.0]},
    ]


def test_responses_with_a_label_are_unpaired_and_those_with_a_score_scored(tmp_path: Path, world: World) -> None:
    neither = Feedback(ask("What?"), ["So.", "Thus."], "x", pairs=[(0, 1)])
    store, _ = make(tmp_path, world, [PAIR, neither, OTHER])
    columns = ["sequence", "desirable", "score"]
    unpaired, scored = (store.view("train", view).select(columns).to_pylist() for view in ("unpaired", "scored"))
    assert [tuple(row.values()) for row in unpaired] == [(0, True, 1.0), (4, False, None)]
    assert [tuple(row.values()) for row in scored] == [(0, True, 1.0), (1, None, 0.0)]
    assert store.meta.views["train"] == {"sft": 1, "paired": 2, "unpaired": 2, "scored": 2, "grouped": 1}
    assert len(store) - store.n_responses == 2 * 3  # three of five have a mismatched sequence, in either split


def test_a_mismatched_sequence_has_its_own_prompt_and_the_response_of_another(tmp_path: Path, world: World) -> None:
    store, _ = make(tmp_path, world, [PAIR, OTHER])
    rows = {row["sequence"]: row["mismatched"] for view in ("unpaired", "scored")
            for row in store.view("train", view).to_pylist()}  # fmt: skip
    assert set(rows) == {0, 1, 2}  # labelled and scored, scored, labelled
    for sequence, mismatched in rows.items():
        others = [row for row in rows if store.prompt_of(np.array([row])) != store.prompt_of(np.array([sequence]))]
        prompt, response = store.sequence(mismatched)
        assert prompt.tolist() == store.sequence(sequence)[0].tolist()
        assert response.tolist() in [store.sequence(row)[1].tolist() for row in others]
        assert mismatched >= store.n_responses


def test_records_of_one_prompt_share_its_row(tmp_path: Path, world: World) -> None:
    again = Feedback(PAIR.prompt, ["Perhaps."], "y", desirable=[True])
    system = Feedback([{"role": "system", "content": "Be brief."}, *PAIR.prompt], ["Yes."], "x", desirable=[True])
    store, _ = make(tmp_path, world, [PAIR, OTHER, again, system])
    assert store.prompt_of(np.arange(5)).tolist() == [0, 0, 1, 0, 2]
    assert store.meta.n_prompts == 3
    for first, row in ((0, 3), (0, 1)):
        assert store.sequence(first)[0].tolist() == store.sequence(row)[0].tolist()
    for row in store.view("train", "unpaired").to_pylist():  # another record of the same prompt is no mismatch
        own, mismatched = store.sequence(row["sequence"])[0].tolist(), store.sequence(row["mismatched"])[1].tolist()
        assert mismatched not in [
            store.sequence(i)[1].tolist() for i in range(5) if store.sequence(i)[0].tolist() == own
        ]


def test_no_example_is_mismatched_with_its_own_prompt() -> None:
    rng = np.random.default_rng(0)
    prompts, keys = np.sort(rng.integers(0, 8, 200)), rng.integers(0, 2**63, 200, dtype=np.uint64)
    other = mismatch(prompts, keys)
    assert other is not None
    assert (prompts[other] != prompts).all()


def test_the_mismatched_draw_follows_the_examples_and_not_their_order() -> None:
    rng = np.random.default_rng(1)
    prompts, keys = np.arange(50), rng.integers(0, 2**63, 50, dtype=np.uint64)
    shuffled = rng.permutation(50)
    plain, moved = mismatch(prompts, keys), mismatch(prompts[shuffled], keys[shuffled])
    assert plain is not None
    assert moved is not None
    assert {int(shuffled[i]): int(shuffled[j]) for i, j in enumerate(moved)} == dict(enumerate(plain.tolist()))


def test_an_example_is_mismatched_with_the_next_one_of_another_prompt_round_the_circle() -> None:
    prompts, keys = np.array([0, 0, 1, 0, 1, 0]), np.array([60, 20, 30, 40, 50, 10], dtype=np.uint64)
    other = mismatch(prompts, keys)  # in the circle: 5 1 2 3 4 0, whose prompts are 0 0 1 0 1 0
    assert other is not None
    assert other.tolist() == [2, 2, 3, 4, 0, 2]


def test_one_prompt_alone_has_no_mismatch() -> None:
    assert mismatch(np.zeros(3, dtype=int), np.arange(3, dtype=np.uint64)) is None
    assert mismatch(np.zeros(0, dtype=int), np.zeros(0, dtype=np.uint64)) is None


def test_a_truncated_response_has_no_end_of_turn_and_is_counted(tmp_path: Path, world: World) -> None:
    long = Feedback(ask("Go on?"), ["word " * 80, "Short."], "x", pairs=[(1, 0)])
    store, report = make(tmp_path, world, [long, OTHER])
    [pair] = store.view("train", "paired").to_pylist()
    end = AutoTokenizer.from_pretrained(world.base / "model").convert_tokens_to_ids("<|end|>")
    assert store.sequence(pair["chosen"])[1][-1] == end
    assert end not in store.sequence(pair["rejected"])[1]
    assert store.lengths[pair["rejected"]].sum() == 60
    assert report["train"]["truncated_responses"] == 1


def test_a_prompt_that_cannot_fit_is_dropped_with_its_reason(tmp_path: Path, world: World) -> None:
    store, report = make(tmp_path, world, [Feedback(ask("word " * 90), ["Yes."], "x", target=0), PAIR, OTHER])
    assert store.view("train", "sft").num_rows == 1
    assert list(report["train"]["dropped"].values()) == [1]


def test_a_view_without_rows_is_refused_with_what_there_is(tmp_path: Path, world: World) -> None:
    store, _ = make(tmp_path, world, [OTHER, Feedback(ask("What?"), ["So."], "x", desirable=[True])])
    with pytest.raises(HalosError, match=r"no rows for the paired view .*it has unpaired"):
        check(store.folder, ["paired", "unpaired"], tmp_path / "checked.json")
    assert not (tmp_path / "checked.json").exists()
    check(store.folder, ["unpaired"], tmp_path / "checked.json")
    assert json.loads((tmp_path / "checked.json").read_text()) == {"views": ["unpaired"], "prompts": 0}


def test_a_new_view_is_one_entry(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored responses with a mismatched one each, and lists of labels: all kinds of columns in new places."""
    scored = replace(
        VIEWS["unpaired"],
        name="regression",
        columns={"response": "row", "mismatched": "other"},
        schema={"score": "float64", "other": "int32", "row": "int32"},
        rows=lambda record: ((score, i) for i, score in enumerate(record.scores)),
        labels={"scores": "score"},
        having=None,
    )
    listed = View("listed", {"response": "all"}, {"all": "list<int32>", "good": "list<bool>"},
                  lambda record: [(range(len(record.responses)), record.desirable)] if record.desirable else [],
                  wants="label its responses", labels={})  # fmt: skip
    monkeypatch.setitem(VIEWS._entries, "regression", scored)
    monkeypatch.setitem(VIEWS._entries, "listed", listed)
    store, _ = make(tmp_path, world, [PAIR, replace(OTHER, scores=[0.5])])
    assert store.meta.views["train"].items() >= {"regression": 3, "listed": 2, "sft": 1}.items()
    rows = store.view("train", "regression").to_pylist()
    assert [list(row) for row in rows] == [["score", "other", "row"]] * 3
    assert [(row["score"], row["row"]) for row in rows] == [(1.0, 0), (0.0, 1), (0.5, 2)]
    assert all(row["other"] >= store.n_responses for row in rows)
    assert [mismatched_with(store, row["other"]) == 2 for row in rows] == [True, True, False]
    assert store.view("train", "listed").to_pylist() == [
        {"all": [0, 1], "good": [True, None]}, {"all": [2], "good": [False]}
    ]  # fmt: skip
    examples = Examples(store, store.view("train", "regression"), scored)
    assert (examples.rows["response"].tolist(), examples.labels["scores"].tolist()) == ([0, 1, 2], [1.0, 0.0, 0.5])
    assert set(examples.labels) == {"scores"}
    grouped = Examples(store, store.view("train", "listed"), listed)
    assert (grouped.offsets.tolist(), grouped.weight.tolist()) == ([0, 2, 3], [0.5, 0.5, 1.0])


def test_labels_and_scores_that_are_wanting_are_told_apart(tmp_path: Path, world: World) -> None:
    only: dict[str, list[Feedback]] = {
        "labelled": [OTHER, Feedback(ask("What?"), ["So."], "x", desirable=[True])],
        "scored": [Feedback(ask(f"{i}?"), ["So.", "No."], "x", scores=[1.0, 0.0]) for i in range(2)],
    }
    stores = {}
    for name, records in only.items():
        (tmp_path / name).mkdir()
        stores[name], _ = make(tmp_path / name, world, records)
    with pytest.raises(HalosError, match=r"no rows for the scored view .*it has unpaired\): give its records scores"):
        stores["labelled"].view("validation", "scored")
    with pytest.raises(HalosError, match=r"no rows for the unpaired view .*it has scored, grouped\): .*label_by"):
        check(stores["scored"].folder, ["scored", "unpaired"], tmp_path / "checked.json")
    check(stores["scored"].folder, ["scored"], tmp_path / "checked.json")
    assert json.loads((tmp_path / "checked.json").read_text()) == {"views": ["scored"], "prompts": 0}


def test_the_store_does_not_depend_on_how_many_records_are_added_at_once(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halos.tokens.builder.BATCH_ROWS", 16)
    rng = np.random.default_rng(0)
    records = [
        Feedback(ask(f"Number {rng.integers(20)}?"), [f"It is {i}, {j}." for j in range(1 + i % 3)], "x", target=0)
        for i in range(50)
    ]
    feedback.write(records, tmp_path / "data.parquet")
    template, hashes = Template(AutoTokenizer.from_pretrained(world.base / "model")), set()
    settings = StoreSlice(dataset="d", model="m", max_length=60, max_prompt_length=40, eval_examples=100)
    for chunk in (1, 7, 16, 1000):
        folder = tmp_path / str(chunk)
        folder.mkdir()
        builder = StoreBuilder(folder, template, settings)
        for split in ("train", "validation"):
            builder.add(split, feedback.read(tmp_path / "data.parquet"), chunk)
        builder.finish()
        hashes.add(hash_files(folder.iterdir()))
    assert len(hashes) == 1
    assert len(pa.ipc.open_file(str(tmp_path / "7/responses.arrow")).read_all()) == 2 * sum(
        1 + i % 3 for i in range(50)
    )


def labels(*kinds: bool | None) -> list[Feedback]:
    """A record for each label, on a prompt of its own, with a score."""
    return [
        Feedback(ask(f"Number {i}?"), [f"It is {i}."], "x", scores=[float(i)], desirable=[kind], target=0)
        for i, kind in enumerate(kinds)
    ]


def test_a_share_of_the_labels_is_kept_in_train_alone(tmp_path: Path, world: World) -> None:
    records = labels(*[True, False, False, None] * 11)
    kept: dict[float, set[int]] = {}
    for share in (1.0, 0.5, 0.2, 0.01):
        folder = tmp_path / str(share)
        folder.mkdir()
        store, _ = make(folder, world, records, keep_desirable=share)
        rows = store.view("train", "scored").to_pylist()
        found = Counter(row["desirable"] for row in rows)
        assert found == {True: max(1, round(share * 11)), False: 22, None: 11}
        assert store.view("validation", "scored").num_rows == 44
        assert store.view("train", "sft").num_rows == 44
        assert store.meta.views["train"]["unpaired"] == found[True] + found[False]
        sequences = {row["sequence"] for row in rows}
        for row in rows:  # what is left out is no mismatch of another either
            assert mismatched_with(store, row["mismatched"]) in sequences
        kept[share] = {row["sequence"] for row in rows if row["desirable"]}
    assert kept[0.01] < kept[0.2] < kept[0.5] < kept[1.0]


def mismatched_with(store: Store, row: int) -> int:
    """The real sequence whose response a mismatched one has."""
    response = store.sequence(row)[1].tolist()
    return next(i for i in range(store.n_responses) if store.sequence(i)[1].tolist() == response)


def test_the_share_of_one_label_does_not_move_what_is_kept_of_the_other(tmp_path: Path, world: World) -> None:
    records, kept = labels(*[True, False] * 10), []
    for name, settings in (("a", {}), ("b", {"keep_desirable": 0.3})):
        (tmp_path / name).mkdir()
        store, _ = make(tmp_path / name, world, records, keep_undesirable=0.5, **settings)
        rows = store.view("train", "unpaired").to_pylist()
        kept.append([row["sequence"] for row in rows if not row["desirable"]])
    assert len(kept[0]) == 5
    assert kept[0] == kept[1]


def test_equal_input_makes_an_equal_store_and_other_limits_another(tmp_path: Path, world: World) -> None:
    hashes = []
    for name, settings in (("a", {}), ("b", {}), ("c", {"eval_examples": 1})):
        (tmp_path / name).mkdir()
        hashes.append(make(tmp_path / name, world, [PAIR, OTHER], **settings)[0].hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_evaluation_subset_does_not_depend_on_the_order_of_the_records(tmp_path: Path, world: World) -> None:
    records = [Feedback(ask(f"Number {i}?"), [f"It is {i}."], "x", target=0) for i in range(20)]
    found = []
    for name, some in (("a", records), ("b", records[::-1])):
        (tmp_path / name).mkdir()
        store, _ = make(tmp_path / name, world, some, eval_examples=5)
        rows = store.view("validation", "sft")["sequence"].to_pylist()
        found.append(sorted(store.sequence(row)[0].tolist() for row in rows))
    assert len(found[0]) == 5
    assert found[0] == found[1]


def test_a_response_that_was_cut_is_not_taught_to_end(world: World, tmp_path: Path) -> None:
    """A sample that met its token limit, beside one that ended."""
    records = [Feedback(ask(f"Is it {i}?"), ["The opposite is", "Fast."], "s", scores=[0.0, 1.0], cut=[True, False])
               for i in range(2)]  # fmt: skip
    opened, report = make(tmp_path, world, records)
    template = Template(AutoTokenizer.from_pretrained(world.base / "model"))
    (cut, whole), *_ = opened.view("train", "grouped")["sequences"].to_pylist()
    assert opened.sequence(cut)[1].tolist() == template.responses(["The opposite is"])[0].ids[:-1]
    assert opened.sequence(whole)[1].tolist() == template.responses(["Fast."])[0].ids
    assert opened.sequence(whole)[1][-1] == template.end
    assert report["train"]["responses_without_end"] == 2
