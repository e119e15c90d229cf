"""Prompts of train that recur in test, or among the prompts of another dataset, are counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.repeats.overlap import overlap
from halos.data.repeats.sketch import PERMUTATIONS, Sketches, agreement, sketch
from tests.data.files import dialogue, local, record, run_prepare, write_lines

LONG = "Write a letter to my landlord that asks for a new stove since the old one has not worked since last winter"


def messages(*turns: str) -> dict[str, Any]:
    return {"messages": dialogue(*turns)}


def published(*turns: str) -> dict[str, Any]:
    """The dialogue as a row of HH."""
    text = "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))
    return {"chosen": text, "rejected": text + " Or not."}


def rows(*prompts: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [record(i, prompt=prompt) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("source", ["local", "hh"])
def test_all_depths_of_a_dialogue_are_in_one_split(tmp_path: Path, source: str) -> None:
    turns = [[f"Tell me about {i}", "It is old.", "How old?", "Very.", "Since when?", "Long ago."] for i in range(20)]
    dialogues = [t[:depth] for t in turns for depth in (2, 4, 6)]
    rows = [messages(*t) if source == "local" else published(*t) for t in dialogues]
    file = write_lines(tmp_path / "d.jsonl", rows)
    report = run_prepare(tmp_path, {"name": source, "options": {"path": str(file), "test_fraction": 0.3}})
    train, test = (
        {r.prompt[0]["content"] for r in feedback.read(tmp_path / f"out/{split}.parquet")}
        for split in ("train", "test")
    )
    assert train
    assert test
    assert not test & train
    assert report["train"]["rows_out"] + report["test"]["rows_out"] == 60
    assert report["test"]["rows_out"] == 3 * len(test)
    assert {report["overlaps"]["test"][kind] for kind in ("equal", "begins", "continues", "near")} == {0}


@pytest.mark.parametrize(
    "again",
    ["what is C++", "  What is\tC++?! ", "Ｗｈａｔ is C++？", "“What is C++?”"],
)
def test_a_prompt_of_test_that_is_spelled_in_another_way_is_dropped_from_train(tmp_path: Path, again: str) -> None:
    train = rows(dialogue(again), dialogue("What is C?"), dialogue("What is C#?"))
    report = run_prepare(tmp_path, local(tmp_path, train, rows(dialogue("What is C++?"))))
    assert report["train"]["drops"] == {"prompt is in the test split": 1}
    assert report["train"]["rows_out"] == 2


def test_a_prompt_of_test_is_dropped_from_train_under_another_system_turn(tmp_path: Path) -> None:
    train = rows(dialogue("Why?", system="Be brief."), dialogue("How?", system="Be kind."))
    report = run_prepare(tmp_path, local(tmp_path, train, rows(dialogue("Why?", system="Be kind."))))
    assert report["train"]["drops"] == {"prompt is in the test split": 1}


def test_beginnings_continuations_and_nearly_equal_prompts_are_counted_and_shown(tmp_path: Path) -> None:
    test = [dialogue("Who was Ada?", "A mathematician.", "Of which century?"), dialogue("Sing!"), dialogue(LONG)]
    train = [
        dialogue("who was ada"),  # begins the first
        dialogue("Sing!", "La.", "Louder!"),  # continues the second
        dialogue("Sing!", "La.", "Louder!", "LA.", "Stop!"),
        dialogue(LONG + ", please"),  # nearly the third
        dialogue("Who was Ada?", "A poet.", "Of which century?"),  # another conversation
        dialogue("Something else, of which test knows nothing"),
    ]
    report = run_prepare(tmp_path, local(tmp_path, rows(*train), rows(*test)))
    assert report["train"]["rows_out"] == 6  # nothing is dropped
    found = report["overlaps"]["test"]
    assert {key: found[key] for key in ("records", "prompts", "prompts_found", "equal")} == {
        "records": 6, "prompts": 3, "prompts_found": 3, "equal": 0
    }  # fmt: skip
    assert {key: found[key] for key in ("begins", "continues", "near")} == {"begins": 1, "continues": 2, "near": 1}
    assert [example["kind"] for example in found["examples"]] == ["begins", "continues", "continues", "near"]
    near = found["examples"][-1]
    assert (near["first"], near["second"]) == (f"user: {LONG}, please", f"user: {LONG}")
    assert near["similarity"] >= 0.8


def test_a_system_turn_that_all_share_makes_no_prompts_nearly_equal(tmp_path: Path) -> None:
    long = " ".join(f"Rule {i} of this assistant is rule number {i}." for i in range(50))
    train, test = ([dialogue(f"{word} {i} of them", system=long) for i in range(5)] for word in ("Count", "Draw"))
    assert run_prepare(tmp_path, local(tmp_path, rows(*train), rows(*test)))["overlaps"]["test"]["near"] == 0


def test_the_prompts_of_another_dataset_are_sought_in_train(tmp_path: Path) -> None:
    ours = [Feedback(dialogue(text), ["a"], "s") for text in ("Why?", LONG + " now", "Other things", "Why")]
    theirs = [Feedback(dialogue(text), ["b"], "t") for text in ("why", LONG, "Unseen words of mine", "Why?")]
    feedback.write(ours, tmp_path / "train.parquet")
    feedback.write(theirs, tmp_path / "test.jsonl")
    overlap(tmp_path / "train.parquet", tmp_path / "test.jsonl", tmp_path / "overlap.json")
    found = json.loads((tmp_path / "overlap.json").read_text())
    assert (found["records"], found["prompts"], found["prompts_found"]) == (4, 3, 2)
    assert (found["equal"], found["near"], found["begins"], found["continues"]) == (2, 1, 0, 0)
    assert {example["second"] for example in found["examples"]} == {"user: why", f"user: {LONG}"}


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_sketches_agree_as_far_as_the_shingles_do(similarity: float) -> None:
    shared = round(2 * 200 * similarity / (1 + similarity))
    pairs = [
        [[f"{'both' if i < shared else side}{run} {i} x" for i in range(200)] for side in ("left", "right")]
        for run in range(100)
    ]
    found = [float(agreement(sketch(a), sketch(b))) for a, b in pairs]
    error = (similarity * (1 - similarity) / PERMUTATIONS / len(pairs)) ** 0.5
    assert np.mean(found) == pytest.approx(shared / (400 - shared), abs=5 * error)


def test_texts_without_spaces_are_compared_by_their_characters() -> None:
    text = "请给房东写一封信说明炉子从去年冬天开始就坏了希望能够尽快更换一个新的炉子谢谢"
    assert agreement(sketch([text]), sketch([text.replace("谢谢", "多谢")])) > 0.7
    assert agreement(sketch([text]), sketch(["今天的天气很好我们一起去公园散步吧"])) < 0.2


def test_sketches_do_not_depend_on_the_order_of_texts_case_or_punctuation() -> None:
    first, second = sketch(["One two, three four!", "Five six"]), sketch(["five SIX", "one two three (four)"])
    assert (first == second).all()
    assert sketch(["2 + 3"]).tolist() != sketch(["2 * 3"]).tolist() != sketch([""]).tolist()


def test_a_sketch_is_the_same_alone_as_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [([f"a {i} b", "c d e f " * (i % 5)], ["word " * i, "", "é 中文"][: i % 4]) for i in range(300)]
    alone = [[sketch(part) for part in pair] for pair in texts]
    monkeypatch.setattr(Sketches, "BLOCK", 1_000)
    monkeypatch.setattr(Sketches, "STEP", 7)
    kept = Sketches(2)
    for pair in texts:
        kept.append(*pair)
    for side in (0, 1):
        assert (kept.of(side) == np.array([both[side] for both in alone])).all()


def test_a_text_without_words_has_the_sketch_of_none() -> None:
    assert not sketch([]).any()
    assert not sketch(["", " \n", "?!"]).any()
    assert (sketch(["", "Yes."]) == sketch(["yes"])).all()
    assert (sketch(["a b"]) != sketch(["a", "b"])).any()
