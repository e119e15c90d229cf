"""Files of one's own: sound rows become records, the others are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halos.data import feedback
from halos.data.feedback import Feedback, prompt_id
from halos.data.rows import Drop
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import record, run_prepare, write_lines


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(folder: Path, rows: list[dict[str, Any]]) -> list[Feedback | Drop]:
    """What the source makes of a file of these rows."""
    path = str(write_lines(folder / "rows.jsonl", rows))
    return list(local("train", path={"train": path, "test": path}))


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json", "f.json.gz", "f.parquet"])
def test_local_records_are_read_from_json_json_lines_and_parquet(tmp_path: Path, name: str) -> None:
    rows = [record(i) for i in range(10)]
    path = tmp_path / name
    if name.endswith(".parquet"):
        feedback.write(map(feedback.from_row, rows), path)
    elif ".jsonl" in name:
        write_lines(path, rows)
    else:
        text = json.dumps(rows, indent=2).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = [r for split in ("train", "test") for r in local(split, path=str(path), test_fraction=0.5)]
    assert {r.prompt_id for r in found if isinstance(r, Feedback)} == {prompt_id(row["prompt"]) for row in rows}
    assert len(found) == 10


def test_a_written_record_is_read_again_as_it_was(tmp_path: Path) -> None:
    original = Feedback(
        [{"role": "user", "content": "é?"}], ["  a\n", "b"], "mine", [0.5, 1], [(1, 0)], [None, True], 1
    )
    path = str(write_lines(tmp_path / "f.jsonl", [original.row()]))
    assert list(local("train", path={"train": path, "test": path})) == [original]


TALK = [user("Hi."), assistant("Hello."), user("Why?")]
REPLY = {"sample": 0, "seed": 1, "finish_reason": "stop"}
SHAPES: dict[str, tuple[dict[str, Any], Feedback]] = {
    "sample": (
        {"type": "sample", "prompt_id": 7, "sample_id": 0, "prompt": TALK, "output": "A.", "dataset": "x_test"},
        Feedback(TALK, ["A."], "local", target=0),
    ),
    "sample with a reward": (
        {"type": "sample", "prompt": TALK, "output": [assistant("A.")], "reward": 2},
        Feedback(TALK, ["A."], "local", [2.0], target=0),
    ),
    "sample for AlpacaEval": (
        {"type": "sample", "prompt_id": 7, "sample_id": 0, "instruction": "Why?", "output": "A.", "dataset": "x_test",
         "generator": "models/x"},
        Feedback([user("Why?")], ["A."], "local", target=0),
    ),
    "sample of the package": (
        {"prompt_id": "c0ffee", "prompt": TALK, "response": "A.", **REPLY},
        Feedback(TALK, ["A."], "local", target=0),
    ),
    "binary feedback": (
        {"type": "binary_feedback", "prompt_id": 7, "prompt": TALK, "output": "A.", "label": 1, "reward": 0.5},
        Feedback(TALK, ["A."], "local", [0.5], [], [True], 0),
    ),
    "undesirable binary feedback": (
        {"type": "binary_feedback", "prompt": TALK, "output": [assistant("A.")], "label": 0, "reward": 0.5},
        Feedback(TALK, ["A."], "local", [0.5], [], [False], None),
    ),
    "pairwise feedback, A preferred": (
        {"type": "pairwise_feedback", "prompt": TALK, "output_A": [assistant("A.")], "output_B": [assistant("B.")],
         "label": 1, "reward_A": 3.0, "reward_B": 1.0, "reward_difference": 2.0},
        Feedback(TALK, ["A.", "B."], "local", [3.0, 1.0], [(0, 1)], [True, False], 0),
    ),
    "pairwise feedback, B preferred": (
        {"type": "pairwise_feedback", "prompt": TALK, "output_A": "A.", "output_B": "B.", "label": 0},
        Feedback(TALK, ["B.", "A."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "scalar feedback": (
        {"type": "scalar_feedback", "prompt": TALK, "output": "A.", "reward": -1.5, "sample_id": 3},
        Feedback(TALK, ["A."], "local", [-1.5], target=0),
    ),
    "preference, standard": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        Feedback([user("The sky is")], [" blue.", " green."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "preference, standard, implicit prompt": (
        {"chosen": "The sky is grey.", "rejected": "The sky is green."},
        Feedback([user("The sky is")], [" grey.", " green."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "preference, conversational": (
        {"prompt": TALK, "chosen": [assistant("A.")], "rejected": [assistant("B.")]},
        Feedback(TALK, ["A.", "B."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "preference, conversational, implicit prompt": (
        {"chosen": [*TALK, assistant("A.")], "rejected": [*TALK, assistant("B.")]},
        Feedback(TALK, ["A.", "B."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "preference, whole conversations beside a prompt": (
        {"prompt": "Why?", "chosen": [user("Why?"), assistant("A.")], "rejected": [user("Why?"), assistant("B.")],
         "score_chosen": 8.0, "score_rejected": 2.0},
        Feedback([user("Why?")], ["A.", "B."], "local", [8.0, 2.0], [(0, 1)], [True, False], 0),
    ),
    "preference, further turns after the prompt": (
        {"prompt": [user("Hi.")], "chosen": [assistant("Hello."), user("Why?"), assistant("A.")],
         "rejected": [assistant("Hello."), user("Why?"), assistant("B.")]},
        Feedback(TALK, ["A.", "B."], "local", [], [(0, 1)], [True, False], 0),
    ),
    "unpaired, standard": (
        {"prompt": "Why?", "completion": "A.", "label": True},
        Feedback([user("Why?")], ["A."], "local", [], [], [True], 0),
    ),
    "unpaired, conversational": (
        {"prompt": TALK, "completion": [assistant("A.")], "label": False},
        Feedback(TALK, ["A."], "local", [], [], [False], None),
    ),
    "prompt-completion, standard": (
        {"prompt": "Why?", "completion": "A."},
        Feedback([user("Why?")], ["A."], "local", target=0),
    ),
    "prompt-completion, conversational": (
        {"prompt": TALK, "completion": [assistant("A.")]},
        Feedback(TALK, ["A."], "local", target=0),
    ),
    "messages": ({"messages": [*TALK, assistant("A.")]}, Feedback(TALK, ["A."], "local", target=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_any_shape_becomes_a_record(name: str, tmp_path: Path) -> None:
    row, expected = SHAPES[name]
    assert read(tmp_path, [row]) == [expected]
    assert expected.problem() is None


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_any_shape_may_come_from_parquet(name: str, tmp_path: Path) -> None:
    row, expected = SHAPES[name]
    path = tmp_path / "f.parquet"
    pq.write_table(pa.Table.from_pylist([row, {}], pa.Table.from_pylist([row]).schema).slice(0, 1), path)
    assert list(local("train", path={"train": str(path), "test": str(path)})) == [expected]


def scalar(text: str, reward: float, prompt: str = "Why?") -> dict[str, Any]:
    return {"type": "scalar_feedback", "prompt": [user(prompt)], "output": text, "reward": reward}


def pairwise(a: str, b: str, label: int, rewards: tuple[float, float]) -> dict[str, Any]:
    names = ("type", "prompt", "output_A", "output_B", "label", "reward_A", "reward_B")
    return dict(zip(names, ("pairwise_feedback", [user("Why?")], a, b, label, *rewards), strict=True))


def binary(text: str, label: int, reward: float) -> dict[str, Any]:
    return {"type": "binary_feedback", "prompt": [user("Why?")], "output": text, "label": label, "reward": reward}


def test_neighbours_on_one_prompt_become_one_record(tmp_path: Path) -> None:
    rows = [scalar("A.", 1), scalar("B.", 3), scalar("C.", 2), scalar("D.", 0, "How?"), scalar("E.", 5)]
    found = read(tmp_path, rows)
    assert found == [
        Feedback([user("Why?")], ["A.", "B.", "C."], "local", [1, 3, 2], target=1),
        Feedback([user("How?")], ["D."], "local", [0], target=0),
        Feedback([user("Why?")], ["E."], "local", [5], target=0),
    ]


def test_rows_of_other_shapes_or_without_a_score_stay_apart(tmp_path: Path) -> None:
    sample = {"type": "sample", "prompt": [user("Why?")], "output": "A."}
    rows = [scalar("A.", 1), {**sample, "reward": 2.0}, sample, sample]
    assert [r.scores for r in read(tmp_path, rows) if isinstance(r, Feedback)] == [[1], [2], []]


def test_equal_samples_count_each_time_they_were_drawn(tmp_path: Path) -> None:
    [found] = read(tmp_path, [scalar("A.", 1), scalar("A.", 1), scalar("B.", 0)])
    assert found == Feedback([user("Why?")], ["A.", "A.", "B."], "local", [1, 1, 0], target=0)


def test_pairs_of_one_prompt_share_their_responses(tmp_path: Path) -> None:
    rows = [pairwise("A.", "B.", 1, (2, 1)), pairwise("C.", "A.", 1, (3, 2)), pairwise("B.", "C.", 0, (1, 3))]
    [found] = read(tmp_path, rows)
    pairs, labels = [(0, 1), (2, 0), (2, 1)], [None, False, True]
    assert found == Feedback([user("Why?")], ["A.", "B.", "C."], "local", [2, 1, 3], pairs, labels, 2)


def test_one_text_with_two_scores_is_two_responses(tmp_path: Path) -> None:
    [found] = read(tmp_path, [pairwise("A.", "B.", 1, (2, 1)), pairwise("A.", "C.", 1, (4, 0))])
    assert isinstance(found, Feedback)
    assert (found.responses, found.scores, found.target) == (["A.", "B.", "A.", "C."], [2, 1, 4, 0], 2)


def test_where_every_winner_loses_as_well_the_target_is_still_a_winner(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": w, "rejected": lo} for w, lo in (("A.", "B."), ("B.", "C."), ("C.", "A."))]
    [found] = read(tmp_path, rows)
    assert isinstance(found, Feedback)
    assert (found.desirable, found.target) == ([None, None, None], 0)


def test_sft_imitates_the_best_of_the_desirable_and_nothing_else(tmp_path: Path) -> None:
    good = read(tmp_path, [binary("A.", 0, 9), binary("B.", 1, 1), binary("C.", 1, 3)])
    bad = read(tmp_path, [binary("A.", 0, 9), binary("B.", 0, 1)])
    assert [r.target for r in (*good, *bad) if isinstance(r, Feedback)] == [2, None]


@pytest.mark.parametrize(
    "rows",
    [
        [binary("A.", 1, 1), binary("B.", 0, 0), binary("A.", 1, 1)],
        [pairwise("A.", "B.", 1, (2, 1)), pairwise("B.", "A.", 0, (1, 2))],
        [{"prompt": "Why?", "chosen": "A.", "rejected": "B."}] * 2,
    ],
)
def test_labels_and_pairs_that_repeat_a_neighbour_are_dropped_and_counted(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    drop, found = read(tmp_path, rows)
    assert drop == Drop("repeats another row of the same prompt")
    assert isinstance(found, Feedback)
    assert len(found.responses) == 2


def test_completions_and_messages_are_each_a_target(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": text} for text in ("A.", "B.")]
    rows += [{"messages": [user("Why?"), assistant(text)]} for text in ("C.", "D.")]
    found = read(tmp_path, rows)
    assert [r.responses for r in found if isinstance(r, Feedback) and r.target == 0] == [["A."], ["B."], ["C."], ["D."]]


def test_what_is_empty_or_equal_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    rows = [
        scalar("A.", 1),
        scalar(" ", 0),
        {"prompt": "Why?", "chosen": "A.", "rejected": "A."},
        scalar("", 0, "How?"),
        {"prompt": "Why?", "completion": ""},
    ]
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    other = str(write_lines(tmp_path / "other.jsonl", [scalar("A.", 1, "Who?")]))
    report = run_prepare(tmp_path, {"name": "local", "options": {"path": {"train": path, "test": other}}})
    assert report["train"]["drops"] == {"empty response": 3, "chosen and rejected are equal": 1}
    [kept] = feedback.read(tmp_path / "out/train.parquet")
    assert kept == Feedback([user("Why?")], ["A."], "local", [1], target=0)


def test_a_text_that_the_other_begins_with_keeps_its_last_word_as_the_response(tmp_path: Path) -> None:
    for chosen, rejected in (("The sky is", "The sky is blue."), ("The sky is blue.", "The sky is")):
        [found] = read(tmp_path, [{"chosen": chosen, "rejected": rejected}])
        assert isinstance(found, Feedback)
        assert found.prompt == [user("The sky")]
        assert [found.prompt[0]["content"] + r for r in found.responses] == [chosen, rejected]


def test_a_rows_own_split_decides(tmp_path: Path) -> None:
    rows = [{**scalar("A.", 1, f"{i}?"), "split": ("train", "test")[i % 2]} for i in range(20)]
    rows += [{**record(i), "split": "test"} for i in range(5)]
    path = str(write_lines(tmp_path / "f.jsonl", rows))
    found = {split: list(local(split, path=path)) for split in ("train", "test")}
    texts = [r.prompt[0]["content"] for r in found["train"] if isinstance(r, Feedback)]
    assert texts == [f"{i}?" for i in range(0, 20, 2)]
    assert len(found["test"]) == 15


def test_a_row_of_another_split_in_a_splits_own_file_is_counted(tmp_path: Path) -> None:
    found = read(tmp_path, [{**scalar("A.", 1), "split": "test"}, {**scalar("B.", 1), "split": "train"}])
    assert found == [
        Drop("marked as of another split"),
        Feedback([user("Why?")], ["B."], "local", [1], target=0),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Why?", "answer": "A."}, "of no known shape (fields: prompt, answer)"),
        ({"text": "The sky is blue."}, "of no known shape (fields: text)"),
        ("The sky is blue.", "not an object with fields"),
        (scalar("A.", float("inf")), "field reward: Input should be a finite number"),
        ({"type": "scalar_feedback", "prompt": "Why?", "output": "A."}, "field reward: Field required"),
        ({**scalar("A.", 1), "output": [user("A.")]}, "does not end in an assistant turn"),
        ({**scalar("A.", 1), "output": {"text": "A."}}, "field output.0.role: Field required"),
        ({**scalar("A.", 1), "prompt": [{"role": "user"}]}, "field prompt.0.content: Field required"),
        ({**scalar("A.", 1), "prompt": [assistant("A.")]}, "the prompt does not end in a user turn"),
        ({**scalar("A.", 1), "split": "dev"}, "field split: Input should be 'train', 'validation' or 'test'"),
        ({**binary("A.", 1, 1), "label": 2}, "field label: 2 is no label; write true or false, or 1 or 0"),
        ({**binary("A.", 1, 1), "label": "yes"}, "field label: 'yes' is no label; write true or false, or 1 or 0"),
        ({**pairwise("A.", "B.", 1, (1, 0)), "reward_B": None}, "only one of the two responses has a reward"),
        ({"chosen": "Blue.", "rejected": "Green."}, "chosen and rejected do not begin with the same words"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "source hh"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "different prompts"),
        ({"messages": [user("a")]}, "field messages: List should have at least 2 items"),
        ({"messages": [user("a"), user("b")]}, "does not end in an assistant turn"),
    ],
)
def test_a_bad_row_of_any_shape_is_named_with_its_problem(row: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(HalosError) as caught:
        read(tmp_path, [scalar("A.", 1), row])
    assert "of whose 2 rows 1 cannot be used: row 2, " in str(caught.value)
    assert problem in str(caught.value)
    shapes = "pairwise_feedback (label, output_A, output_B, prompt)" in str(caught.value)
    assert shapes == ("no known shape" in problem)


def test_a_file_that_has_changed_is_checked_again(tmp_path: Path) -> None:
    assert len(read(tmp_path, [scalar("A.", 1)])) == 1
    with pytest.raises(HalosError, match="row 2"):
        read(tmp_path, [scalar("A.", 1), {"text": "x"}])


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_text("{}")
    with pytest.raises(HalosError, match=r"f\.parquet cannot be read"):
        local("train", path=str(path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"responses": "yes"}, "field responses: Input should be a valid list"),
        ({"responses": ["yes", 3]}, "field responses.1: Input should be a valid string"),
        ({"prompt": [{"role": "user"}]}, "field prompt.0.content: Field required"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "field prompt.0: a turn's role is not one of"),
        ({"pairs": [[0, 1, 2]]}, "field pairs.0: List should have at most 2 items"),
        ({"pairs": [[0, 2]]}, "a pair names a response that does not exist"),
        ({"scores": [1.0]}, "scores and responses differ in number"),
        ({"scores": [float("nan"), 1.0]}, "field scores.0"),
        ({"target": "0"}, "field target: Input should be a valid integer"),
        ({"rejected": "no"}, "field rejected: Extra inputs are not permitted"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write_lines(tmp_path / "f.jsonl", [record(0), record(1, **change)])
    with pytest.raises(HalosError) as caught:
        local("train", path=str(path))
    assert f"{path}, of whose 2 rows 1 cannot be used: row 2, {problem}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_bad_rows_are_counted_and_the_first_problems_are_shown(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"responses": []}, {"scores": [1.0]}, {"target": 9}, {"pairs": [[0, 9]]}]
    rows = [record(i) if i % 2 else record(i, **changes[i // 2 % 4]) for i in range(20)]
    shown = r"of whose 20 rows 10 cannot be used: row 1, 9, 17, [^;]*; row 3, 11, 19, [^;]*; row 5, 13, [^;]*$"
    with pytest.raises(HalosError, match=shown):
        local("train", path=str(write_lines(tmp_path / "f.jsonl", rows)))
    alike = [record(i, responses=[]) for i in range(5)]
    with pytest.raises(HalosError, match=r"cannot be used: row 1, 2, 3 \.\.\., [^;]*$"):
        local("train", path=str(write_lines(tmp_path / "f.jsonl", alike)))


def test_a_bad_row_leaves_nothing_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [*(record(i) for i in range(50)), {"prompt": []}])
    with pytest.raises(HalosError, match="row 51"):
        run_prepare(tmp_path, {"name": "toy"}, {"name": "local", "options": {"path": str(path)}})
    assert not (tmp_path / "out").exists()
