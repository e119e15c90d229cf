"""Weights and margins of records: from rows, through files, and into the index tables of a store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from halos.data import feedback
from halos.data.feedback import SCHEMA, WEIGHTED, Feedback
from halos.data.pairs import joined, labelled
from halos.data.rows import Drop
from halos.data.sound import sound
from halos.tokens.learned import distinct, without
from tests.data.sources.test_layouts import TALK, read, refused

PROMPT = [{"role": "user", "content": "Why?"}]
PLAIN = Feedback(PROMPT, ["a", "b", "c"], "test", [3.0, 2.0, 1.0], [(0, 1), (0, 2), (1, 2)], [True, None, False], 0)
WEIGHED = replace(PLAIN, weights=[1.0, 0.5, 2.0], pair_weights=[1.0, 2.0, 3.0], margins=[0.5, None, -1.0])


# ---- from rows


def test_neighbouring_rows_keep_the_weight_and_the_margin_of_each_pair(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 2, "margin": "0.5"},
        {"prompt": "q", "chosen": "b", "rejected": "c"},
        {"prompt": "q", "chosen": "a", "rejected": "c", "margin": -3},
        {"prompt": "q", "chosen": "a", "rejected": "c", "margin": 9},
    ]
    record, drop = sorted(read(tmp_path, *rows), key=lambda found: isinstance(found, Drop))
    assert drop == Drop("repeats another row of the same prompt")
    assert isinstance(record, Feedback)
    assert (record.pairs, record.responses) == ([(0, 1), (1, 2), (0, 2)], ["a", "b", "c"])
    assert (record.pair_weights, record.margins) == ([2, 1, 1], [0.5, None, -3])
    assert record.weights == [2, 2, 1]  # b is first in a row of weight 2


def test_rows_that_say_nothing_of_weights_make_records_without_any(tmp_path: Path) -> None:
    [record] = read(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 1.0, "margin": None})
    [plain] = read(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    assert record == plain
    assert isinstance(record, Feedback)
    assert (record.weights, record.pair_weights, record.margins) == ([], [], [])


def test_each_target_of_a_conversation_has_its_weight(tmp_path: Path) -> None:
    records = read(tmp_path, {"messages": TALK, "weight": 0.5}, every_turn=True)
    assert [record.weights for record in records if isinstance(record, Feedback)] == [[0.5], [0.5]]


def test_a_plugins_records_keep_them_where_they_are_joined_or_listed_twice() -> None:
    first = Feedback(PROMPT, ["a", "b"], "x", pairs=[(0, 1)], weights=[2.0, 3.0], margins=[0.5])
    second = Feedback(PROMPT, ["b", "c"], "x", pairs=[(0, 1)], pair_weights=[4.0])
    [record] = joined([first, second])
    assert isinstance(record, Feedback)
    assert (record.responses, record.pairs) == (["a", "b", "c"], [(0, 1), (1, 2)])
    assert (record.weights, record.pair_weights, record.margins) == ([2, 3, 1], [1, 4], [0.5, None])
    twice = labelled(record, both_labels=True)
    assert (twice.responses, twice.desirable) == (["a", "b", "c", "b"], [True, True, False, False])
    assert (twice.weights, twice.problem()) == ([2, 3, 1, 3], None)
    mapped = sound({"prompt": PROMPT, "responses": ["a"], "weights": np.array([0.5], np.float32)}, "mine", 1)
    assert isinstance(mapped, Feedback)
    assert mapped.weights == [0.5]


def test_samples_of_a_group_have_a_weight_each(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text, "reward": i, "weight": 1 + i} for i, text in enumerate("aab")]
    [record] = read(tmp_path, *rows)
    assert isinstance(record, Feedback)
    assert (record.responses, record.weights) == (["a", "a", "b"], [1, 2, 3])


def test_a_record_in_a_file_keeps_its_own_and_cannot_have_both(tmp_path: Path) -> None:
    row = {name: value for name, value in WEIGHED.row().items() if value is not None and name != "prompt_id"}
    assert read(tmp_path, row) == [WEIGHED]
    assert "both weight and the weights of a record" in refused(tmp_path, {**row, "weight": 2})
    without_its_own = {name: value for name, value in row.items() if "weights" not in name}
    assert read(tmp_path, {**without_its_own, "weight": 2}) == [
        replace(WEIGHED, weights=[2.0] * 3, pair_weights=[2.0] * 3)
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weights": [1.0]}, "weights and responses differ in number"),
        ({"weights": [1.0, -0.5, 1.0]}, "a weight is not a finite number of at least 0"),
        ({"pair_weights": [1.0]}, "pair_weights and pairs differ in number"),
        ({"pair_weights": [1.0, float("inf"), 1.0]}, "a weight is not a finite number of at least 0"),
        ({"margins": [1.0, None]}, "margins and pairs differ in number"),
        ({"margins": [1.0, None, float("nan")]}, "a margin is not a finite number"),
    ],
)
def test_unsound_weights_and_margins_say_what_is_wrong(change: dict[str, list[float]], problem: str) -> None:
    assert WEIGHED.problem() is None
    assert replace(WEIGHED, **change).problem() == problem


# ---- through files


def test_a_record_without_them_is_written_and_hashed_as_if_there_were_none(tmp_path: Path) -> None:
    feedback.write([PLAIN], tmp_path / "plain.parquet")
    assert pq.read_schema(tmp_path / "plain.parquet").remove_metadata() == SCHEMA
    columns = {name: getattr(PLAIN, name) for name in SCHEMA.names}
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    assert PLAIN.digest == hashlib.sha256(text.encode()).digest()[:16] != WEIGHED.digest


@pytest.mark.parametrize("name", ["f.parquet", "f.jsonl"])
@pytest.mark.parametrize("first", [0, 3, 25, 29])
def test_weights_that_begin_at_any_record_survive_a_file(first: int, name: str, tmp_path: Path) -> None:
    records = [replace(WEIGHED if i == first else PLAIN, responses=[str(i), "b", "c"]) for i in range(30)]
    assert feedback.write(iter(records), tmp_path / name, chunk=10) == 30
    assert list(feedback.read(tmp_path / name, chunk=7)) == records
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    if name.endswith("parquet"):
        assert pq.read_schema(tmp_path / name).remove_metadata() == WEIGHTED
        assert feedback.records_at(tmp_path / name, [first])[first] == records[first]


# ---- to what is learned


def test_what_is_left_out_takes_its_weights_and_margins_along() -> None:
    shorter = without(WEIGHED, [1])
    assert shorter is not None
    assert (shorter.pairs, shorter.pair_weights, shorter.margins) == ([(0, 1)], [2.0], [None])
    assert shorter.weights == [1.0, 2.0]
    apart = distinct(WEIGHED, [0, 0, 2])
    assert (apart.pairs, apart.pair_weights, apart.margins) == ([(0, 2), (1, 2)], [2.0, 3.0], [None, -1.0])
