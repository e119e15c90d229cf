"""The feedback record: identity, soundness, and the way to parquet and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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


def test_records_survive_parquet(tmp_path: Path) -> None:
    bare = Feedback([{"role": "user", "content": "x"}], ["y"], "test")
    records = [replace(SOUND, responses=[f"  {i}\n", "so"]) for i in range(25)] + [bare]
    path = tmp_path / "f.parquet"
    assert feedback.write(iter(records), path, chunk=10) == 26
    assert list(feedback.read(path, chunk=7)) == records


def test_a_file_without_records_can_be_read(tmp_path: Path) -> None:
    assert feedback.write([], tmp_path / "f.parquet") == 0
    assert list(feedback.read(tmp_path / "f.parquet")) == []


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
