"""What a source yields is made plain, or refused by source, row and field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halos.data.feedback import Feedback
from halos.data.rows import Drop, asked
from halos.data.sound import sound
from halos.errors import HalosError

PLAIN = Feedback(asked("q"), ["a", "b"], "mine", [1.0, 0.5], [(0, 1)], [True, None], 0)


def test_a_sound_record_and_a_drop_are_handed_on_as_they_are() -> None:
    assert sound(PLAIN, "mine", 1) is PLAIN
    drop = Drop("odd")
    assert sound(drop, "mine", 1) is drop


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": asked("q"), "responses": ["a", "b"], "scores": [1.0, 0.5], "pairs": [[0, 1]],
         "desirable": [True, None], "target": 0},
        {**PLAIN.row(), "source": "mine", "template": None},
        Feedback(asked("q"), ["a", "b"], "mine", [1.0, 0.5], [(0, 1)], [1, None], 0),  # type: ignore[list-item]
        Feedback(asked("q"), ["a", "b"], "mine", np.array([1, 0.5]), np.array([[0, 1]]), [True, float("nan")],  # type: ignore[arg-type,list-item]
                 np.int64(0)),
        Feedback(asked("q"), ["a", "b"], "mine", [np.float32(1), np.float32(0.5)], [(0, 1)], [np.bool_(True), None],  # type: ignore[list-item]
                 0),
        Feedback(tuple(asked("q")), ("a", "b"), "mine", (1.0, 0.5), ([0, 1],), (True, None), 0),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_only_looks_different_becomes_plain(row: Any) -> None:
    found = sound(row, "mine", 1)
    assert found == PLAIN
    assert isinstance(found, Feedback)
    assert [type(value) for value in (*found.scores, found.desirable[0], found.target)] == [float, float, bool, int]
    assert type(found.responses) is list
    assert type(found.pairs[0]) is tuple


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "source mine, row 7 is a str; a source yields Feedback"),
        (None, "source mine, row 7 is a NoneType"),
        ({"prompt": asked("q")}, "source mine, row 7, field responses: Field required"),
        ({"prompt": "q", "responses": ["a"]}, "row 7, field prompt: Input should be a valid list, not 'q'"),
        ({"prompt": asked("q"), "responses": ["a"], "answer": 1}, "row 7, field answer: Extra inputs"),
        (Feedback(asked("q"), ["a", 5], "mine"), "row 7, field responses.1: Input should be a valid string, not 5"),  # type: ignore[list-item]
        (Feedback(asked("q"), ["a"], "mine", desirable=[2]), "row 7, field desirable.0: .*not 2"),  # type: ignore[list-item]
        (Feedback(asked("q"), ["a"], "mine", scores=["high"]), "row 7, field scores.0: .*not 'high'"),  # type: ignore[list-item]
        (Feedback([{"role": "user"}], ["a"], "mine"), "row 7, field prompt.0.content: Field required"),
        (Feedback([{"role": "user", "content": "q", "at": object()}], ["a"], "mine"), "row 7 cannot be written as JS"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_record_is_refused_by_source_row_and_field(row: Any, message: str) -> None:
    with pytest.raises(HalosError, match=message):
        sound(row, "mine", 7)


@pytest.mark.parametrize(("text", "reason"), [("x \ud83d y", "half of a surrogate pair"), ("x\0y", "a NUL character")])
def test_text_that_no_file_can_hold_is_a_drop_wherever_it_stands(text: str, reason: str) -> None:
    call = {"function": {"name": "f", "arguments": {"x": text}}}
    for row in (
        Feedback(asked(text), ["a"], "mine"),
        Feedback(asked("q"), ["a", text], "mine"),
        {"prompt": asked("q"), "responses": [text]},
        Feedback([{**asked("q")[0], "name": text}], ["a"], "mine"),
        Feedback(asked("q"), [""], "mine", response_fields=[{"tool_calls": [call]}]),
        Feedback(asked("q"), ["a"], "mine", tools=[{"description": text}]),
    ):
        assert sound(row, "mine", 1) == Drop(reason)
