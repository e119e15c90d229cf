"""The feedback record: identity, soundness, the way to a file and back, and the choice of prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halos.data import feedback
from halos.data.feedback import Feedback, from_row, prompt_id
from halos.errors import HalosError

PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?\n\n    indented"},
]
SOUND = Feedback(PROMPT, ["because", "so"], "test", [1.0, 0.5], [(0, 1)], [True, None], 0)


def test_prompt_id_is_the_same_on_every_machine() -> None:
    expected = "1b665fc2e530b754053b4fda7767718dcd23e444cfc461f5b1d5674a4f582c3d"
    assert prompt_id([{"role": "user", "content": "Grüße?"}]) == expected


def test_prompt_id_depends_on_roles_and_not_on_key_order() -> None:
    turn = {"role": "user", "content": "a"}
    assert prompt_id([turn]) != prompt_id([{**turn, "role": "system"}])
    assert prompt_id([turn]) == prompt_id([dict(reversed(turn.items()))])


def test_prompt_id_tells_apart_the_same_text_in_other_turns() -> None:
    def users(*texts: str) -> str:
        return prompt_id([{"role": "user", "content": text} for text in texts])

    assert len({users("ab"), users("a", "b"), users("b", "a"), users("a,b"), users('a","b')}) == 5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"scores": [], "pairs": [], "desirable": [], "target": None}, None),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "a turn's role is not one of"),
        ({"prompt": [{"role": "user", "content": None}]}, "its content is not text"),
        ({"prompt": [{"role": "user"}]}, "its content is not text"),
        ({"prompt": [*PROMPT, {"role": "assistant", "content": "x"}]}, "does not end in a user turn"),
        ({"prompt": [{"role": "user", "content": " \n"}]}, "does not end in a user turn with text"),
        ({"responses": [], "scores": [], "pairs": [], "desirable": [], "target": None}, "no response"),
        ({"responses": ["because", " \n"]}, "empty response"),
        ({"scores": [1.0]}, "scores and responses differ"),
        ({"scores": [1.0, float("nan")]}, "a score is not a finite number"),
        ({"desirable": [True]}, "desirable and responses differ"),
        ({"pairs": [(0, 2)]}, "a pair names a response that does not exist"),
        ({"pairs": [(1, 1)]}, "the same one twice"),
        ({"pairs": [(-1, 0)]}, "a pair names a response that does not exist"),
        ({"target": 2}, "target names a response that does not exist"),
    ],
)
def test_unsound_records_say_what_is_wrong(change: dict[str, Any], problem: str | None) -> None:
    found = replace(SOUND, **change).problem()
    assert found is None if problem is None else found is not None and problem in found


BARE = Feedback([{"role": "user", "content": "x\u2028y\U0001f642"}], ["y"], "test")
FORMS = ("f.parquet", "f.jsonl")


@pytest.mark.parametrize("name", FORMS)
def test_records_survive_a_file(name: str, tmp_path: Path) -> None:
    records = [replace(SOUND, responses=[f"  {i}\n", "so"]) for i in range(25)] + [BARE]
    assert feedback.write(iter(records), tmp_path / name, chunk=10) == 26
    assert list(feedback.read(tmp_path / name, chunk=7)) == records


@pytest.mark.parametrize("name", FORMS)
def test_a_file_without_records_can_be_read(name: str, tmp_path: Path) -> None:
    assert feedback.write([], tmp_path / name) == 0
    assert list(feedback.read(tmp_path / name)) == []


def test_json_lines_leave_out_what_is_empty(tmp_path: Path) -> None:
    feedback.write([BARE], tmp_path / "f.jsonl")
    assert set(json.loads((tmp_path / "f.jsonl").read_text())) == {"prompt_id", "prompt", "responses", "source"}


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "x", "responses": ["y"]}', '{"prompt": []}'])
def test_a_line_that_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    feedback.write([BARE], tmp_path / "f.jsonl")
    with (tmp_path / "f.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(HalosError, match=r"line 2 of .*f\.jsonl is no feedback record"):
        list(feedback.read(tmp_path / "f.jsonl"))


def test_a_file_of_no_known_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("[]")
    with pytest.raises(HalosError, match=r"f\.json cannot be read .*must be a parquet file, or end in \.jsonl"):
        list(feedback.read(tmp_path / "f.json"))


def test_reading_a_long_file_holds_little_of_it_in_memory(tmp_path: Path) -> None:
    path, rng = tmp_path / "f.parquet", Random(0)
    records = (replace(BARE, responses=[rng.randbytes(3_000).hex()]) for _ in range(3_000))
    feedback.write(records, path, chunk=100)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in feedback.read(path, chunk=50)]
    assert len(held) == 3_000
    assert max(held) < path.stat().st_size / 4


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "f.parquet")
    with pytest.raises(HalosError, match="holds no feedback records"):
        list(feedback.read(tmp_path / "f.parquet"))


def numbered(i: int, answer: str = "yes") -> Feedback:
    return Feedback([{"role": "user", "content": f"Question {i}?"}], [f"{answer} {i}"], "a" if i % 2 else "b")


@pytest.fixture(params=FORMS)
def many(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """200 prompts in two records each, the second ones last and in another order."""
    path = tmp_path / str(request.param)
    feedback.write([*map(numbered, range(200)), *(numbered(i, "no") for i in range(199, -1, -1))], path, chunk=30)
    return path


def test_prompts_are_chosen_in_the_order_of_their_ids_with_the_first_record_of_each(many: Path) -> None:
    first = sorted(map(numbered, range(200)), key=lambda record: record.prompt_id)
    assert feedback.select_prompts(many, 7) == first[:7]
    assert feedback.select_prompts(many, 7, skip=5) == first[5:12]
    assert feedback.select_prompts(many, 10, skip=195) == first[195:]
    assert feedback.select_prompts(many, None, skip=4) == first[4:]


def test_a_seed_gives_another_order_that_does_not_depend_on_the_records_order(many: Path, tmp_path: Path) -> None:
    def order(seed: int, record: Feedback) -> bytes:
        return hashlib.sha256(f'[{seed}, "prompts", "{record.prompt_id}"]'.encode()).digest()[:6]

    for seed in (0, 1):
        expected = sorted(map(numbered, range(200)), key=lambda record: order(seed, record))
        assert feedback.select_prompts(many, 20, skip=3, seed=seed) == expected[3:23]
    turned = tmp_path / "turned.parquet"
    feedback.write([numbered(i) for i in range(199, -1, -1)], turned)
    assert feedback.select_prompts(turned, 20, seed=1) == feedback.select_prompts(many, 20, seed=1)


def test_skipping_every_prompt_says_how_many_there_are(many: Path) -> None:
    with pytest.raises(HalosError, match="has 200 prompts, of which 200 are skipped"):
        feedback.select_prompts(many, 10, skip=200)


def test_every_record_of_chosen_prompts_is_found(many: Path) -> None:
    ids = pa.array([numbered(i).prompt_id for i in (3, 60)])
    found = list(feedback.records_of(many, ids))
    assert found == [numbered(3), numbered(60), numbered(60, "no"), numbered(3, "no")]


def test_a_missing_file_names_the_verb_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="halos prepare"):
        list(feedback.read(tmp_path / "nowhere.parquet"))


def test_absent_fields_are_empty_and_unknown_ones_refused() -> None:
    row = {"prompt": PROMPT, "responses": ["a"]}
    assert from_row(row) == Feedback(PROMPT, ["a"], "local")
    with pytest.raises(HalosError, match="unknown field 'chosen'"):
        from_row({**row, "chosen": "a"})
    with pytest.raises(HalosError, match="no field 'responses'"):
        from_row({"prompt": PROMPT})


@pytest.mark.parametrize("name", ["f.parquet", "f.jsonl"])
def test_records_are_found_by_their_rows(tmp_path: Path, name: str) -> None:
    records = [Feedback([{"role": "user", "content": f"{i}?"}], ["a"], "s") for i in range(2_500)]
    feedback.write(records, tmp_path / name, chunk=1_000)
    found = feedback.records_at(tmp_path / name, [2_400, 3, 999, 1_000, 3])
    assert found == {row: records[row] for row in (3, 999, 1_000, 2_400)}
    assert feedback.records_at(tmp_path / name, []) == {}
