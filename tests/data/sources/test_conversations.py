"""Conversations and tasks with one response: prompt, target, and the rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halos.data.feedback import Feedback
from halos.data.sources.conversations import alpacaeval, s1k_11, ultrachat, wildbench
from halos.errors import HalosError
from halos.registry import SOURCES
from tests.data.published import (
    CODE,
    alpacaeval_row,
    assistant,
    s1k_row,
    split_up,
    ultrachat_row,
    user,
    wildbench_row,
    without,
    write_parquet,
)


def test_the_last_assistant_turn_is_the_target_and_the_history_the_prompt(tmp_path: Path) -> None:
    rows = [
        ultrachat_row("q", "a", "more", CODE),
        ultrachat_row("q", "a", "a last question"),
        ultrachat_row("q"),
        ultrachat_row("q", " "),
        ultrachat_row("q", messages=[assistant("unasked")]),
        ultrachat_row("q", messages=[]),
        ultrachat_row("q", messages=None),
        ultrachat_row("q", messages=[{"role": "user", "content": None}]),
        without(ultrachat_row("q"), "messages"),
    ]
    path = write_parquet(tmp_path / "u.parquet", rows)
    records, drops = split_up(ultrachat("train", path={"train": path, "test": path}))
    sound = [record for record in records if record.problem() is None]
    assert sound == [
        Feedback([user("q"), assistant("a"), user("more")], [CODE], "ultrachat", target=0),
        Feedback([user("q")], ["a"], "ultrachat", target=0),
    ]
    assert sorted(str(r.problem()) for r in records if r.problem()) == ["empty prompt", "empty response"]
    assert drops == ["messages is malformed", "no assistant turn", "no assistant turn", "no messages", "no messages"]
    assert len(records) + len(drops) == len(rows)


def test_every_turn_gives_a_record_for_each_assistant_turn(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "u.parquet", [ultrachat_row("q", "a", "more", "b"), ultrachat_row("q")])
    records, drops = split_up(ultrachat("test", path={"train": path, "test": path}, every_turn=True))
    assert [(r.prompt, r.responses, r.target) for r in records] == [
        ([user("q")], ["a"], 0),
        ([user("q"), assistant("a"), user("more")], ["b"], 0),
    ]
    assert drops == ["no assistant turn"]


def test_all_turns_of_a_conversation_are_in_one_split(tmp_path: Path) -> None:
    rows = [ultrachat_row(f"q{i}", "a", f"more {i}", "b") for i in range(100)]
    path = write_parquet(tmp_path / "u.parquet", rows)
    train, test = (split_up(ultrachat(s, path=path, test_fraction=0.3, every_turn=True))[0] for s in ("train", "test"))
    assert not {r.prompt[0]["content"] for r in train} & {r.prompt[0]["content"] for r in test}
    assert len(train) + len(test) == 200
    assert test


def test_reasoning_and_answer_are_laid_out_as_asked(tmp_path: Path) -> None:
    row = s1k_row("What is {x}?", "Think: {x}\n  indented", "\\boxed{128}")
    path = write_parquet(tmp_path / "s.parquet", [row])
    paths = {"train": path, "test": path}
    (record,), _ = split_up(s1k_11("train", path=paths))
    expected = "<|im_start|>think\nThink: {x}\n  indented\n<|im_start|>answer\n\\boxed{128}"
    assert record == Feedback([user("What is {x}?")], [expected], "s1k_11", target=0)
    (record,), _ = split_up(s1k_11("train", path=paths, response_format="{answer}"))
    assert record.responses == ["\\boxed{128}"]


@pytest.mark.parametrize("bad", ["{thoughts}", "{", "{}", "{answer.text}", "", "{reasoning}", "{answer:d}"])
def test_a_format_that_cannot_be_filled_in_is_refused_before_reading(bad: str) -> None:
    with pytest.raises(HalosError, match=r"response_format .* cannot be filled in"):
        s1k_11("train", path="nowhere.parquet", response_format=bad)


def test_prompts_of_s1k_are_held_out_and_odd_rows_dropped(tmp_path: Path) -> None:
    odd = [s1k_row("q", "r", ""), s1k_row("q", "r", "a", deepseek_thinking_trajectory=None)]
    rows = [*(s1k_row(f"q{i}", "r", "a") for i in range(200)), *odd]
    path = write_parquet(tmp_path / "s.parquet", rows)
    (train, dropped), (test, also) = (split_up(s1k_11(split, path=path)) for split in ("train", "test"))
    assert not {r.prompt_id for r in train} & {r.prompt_id for r in test}
    assert (len(train) + len(test), 5 <= len(test) <= 40) == (200, True)
    assert sorted(dropped + also) == ["empty response", "no deepseek_thinking_trajectory"]


def test_wildbench_asks_the_whole_conversation(tmp_path: Path) -> None:
    turns = [user("Write f."), assistant(CODE), user("Now in Rust.")]
    rows = [
        wildbench_row(turns, "fn f() {}"),
        wildbench_row(turns, None),
        wildbench_row(turns, "x", references=None),
        wildbench_row(turns, "x", conversation_input=None),
    ]
    (record,), drops = split_up(wildbench("test", path=write_parquet(tmp_path / "w.parquet", rows)))
    assert record == Feedback(turns, ["fn f() {}"], "wildbench", target=0)
    assert drops == ["no conversation_input", "no reference of gpt-4", "no references"]


def test_alpacaeval_reads_the_hubs_json_array(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_eval.json"
    rows = [alpacaeval_row(f"q{i}", f"a{i}") for i in range(50)]
    path.write_text(json.dumps([*rows, {**alpacaeval_row("q", "a"), "output": None}]))
    records, drops = split_up(alpacaeval("test", path=str(path)))
    assert len(records) == 50
    assert records[0] == Feedback([user("q0")], ["a0"], "alpacaeval", target=0)
    assert drops == ["no output"]


@pytest.mark.parametrize("name", ["alpacaeval", "wildbench"])
def test_an_evaluation_set_has_a_test_split_only(name: str) -> None:
    source = SOURCES[name]
    assert getattr(source, "splits", None) == ("test",)
    assert list(source("train", path="nowhere.json")) == []
    with pytest.raises(HalosError, match="there is no file nowhere"):
        source("test", path="nowhere.json")
