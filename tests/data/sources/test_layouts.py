"""Rows as people have them come out right, or are refused in a sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.rows import Drop, Records
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import record, write_lines

WHY = {"role": "user", "content": "Why?"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
BRIEF = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "w", "arguments": {"x": 1}}}
DOCUMENT = {"type": "function", "function": {"name": "w", "parameters": {"x": {"type": "integer"}}}}


def opened(folder: Path, *rows: Any, **options: Any) -> Records:
    path = str(write_lines(folder / "rows.jsonl", list(rows)))
    return local("train", path={"train": path, "test": path}, **options)


def read(folder: Path, *rows: Any, **options: Any) -> list[Feedback | Drop]:
    return list(opened(folder, *rows, **options))


def only(folder: Path, row: Any, **options: Any) -> Feedback:
    [found] = read(folder, row, **options)
    assert isinstance(found, Feedback)
    return found


def refused(folder: Path, row: Any, **options: Any) -> str:
    with pytest.raises(HalosError) as caught:
        read(folder, row, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- labels in columns that are not read


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": [WHY, YES], "label": False}, "label"),
        ({"messages": [WHY, YES], "rating": 2}, "rating"),
        ({"conversations": [WHY, YES], "kto_tag": False}, "kto_tag"),
        ({"messages": [WHY, YES], "chosen": False}, "chosen"),
        ({"messages": [WHY, YES], "human_label": "bad"}, "human_label"),
        ({"messages": [WHY, YES], "flag": "Bad"}, "flag"),  # a verdict, whatever its column is called
        ({"prompt": "q", "completion": "a", "thumb": "down"}, "thumb"),
        ({"prompt": "q", "completion": "a", "reward": -1.0}, "reward"),
        ({"prompt": "q", "completion": "a", "Score": 0}, "Score"),
        ({"prompt": "q", "response": "a", "label": True}, "label"),
        ({"prompt": "q", "response": "a", "rejected": "b"}, "rejected"),
        ({"instruction": "q", "output": "a", "gpt4-score": 1}, "gpt4-score"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": 0}, "label"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "preference": 2}, "preference"),
        ({"prompt": "q", "completion": "a", "label": True, "rank": 3}, "rank"),
    ],
)
def test_a_label_that_no_shape_reads_is_refused_and_can_be_left_out(
    row: dict[str, Any], column: str, tmp_path: Path
) -> None:
    message = refused(tmp_path, row)
    assert f"field {column} may be a label, and is not read" in message
    assert f"`columns: {{{column}: null}}`" in message
    records = opened(tmp_path, row, columns={column: None})
    assert isinstance(next(records), Feedback)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [WHY, YES], "label": False}, {"completion": "messages", "label": "label"}),
        ({"messages": [WHY, YES], "flag": "bad"}, {"completion": "messages", "label": "flag"}),
        ({"prompt": [WHY], "response": "yes", "rating": 0}, {"completion": "response", "label": "rating"}),
        ({"instruction": "Why?", "output": "yes", "good": 0},
         {"prompt": "instruction", "completion": "output", "label": "good"}),
    ],
)  # fmt: skip
def test_what_a_refusal_proposes_makes_it_a_label(row: Any, columns: Any, tmp_path: Path) -> None:
    assert only(tmp_path, row, columns=columns) == Feedback([WHY], ["yes"], "local", [], [], [False], None)


@pytest.mark.parametrize(
    ("row", "shapes"),
    [
        ({"prompt": "q", "response": "a", "chosen": "a", "rejected": "b"}, "preference and sample"),
        ({"prompt": "q", "completion": "a", "messages": [WHY, YES]}, "prompt-completion and messages"),
        ({"instruction": "q", "output": "a", "messages": [WHY, YES]}, "alpaca and messages"),
        ({"prompt": "q", "completion": "a", "output_A": "a", "output_B": "b", "label": 1},
         "pairwise_feedback and unpaired"),
    ],
)  # fmt: skip
def test_a_row_of_several_shapes_is_refused_unless_its_type_tells(row: Any, shapes: str, tmp_path: Path) -> None:
    assert f"of several shapes, {shapes}; say which is meant by a field `type`" in refused(tmp_path, row)
    typed = only(tmp_path, {**row, "type": shapes.split(" and ")[0]})
    assert typed.problem() is None


@pytest.mark.parametrize("nothing", [None, float("nan"), "", " ", "NaN"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": ...},
        {"prompt": "q", "output": "a", "label": ..., "type": "binary_feedback"},
        {"prompt": "q", "output_A": "a", "output_B": "b", "label": ...},
        {"prompt": "q", "output": "a", "reward": ...},
        {"messages": [WHY, YES], "label": ...},
        {"messages": [WHY, YES], "rating": ...},
    ],
)
def test_a_label_without_a_value_is_no_label_and_never_a_target(row: Any, nothing: Any, tmp_path: Path) -> None:
    row = {name: nothing if value is ... else value for name, value in row.items()}
    assert read(tmp_path, row) == [Drop("no label")]


def test_fields_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    turn = {**WHY, "id": 3, "name": None}
    records = opened(
        tmp_path, {"messages": [turn, YES], "source": "x", "lang": "en"}, {"messages": [WHY, YES], "lang": ""}
    )
    assert len(list(records)) == 2
    assert records.unread_fields == {"source": 1, "lang": 2, "id of a turn": 1}


def test_ever_more_names_of_fields_are_counted_as_others(tmp_path: Path) -> None:
    records = opened(tmp_path, *({"prompt": "q", "completion": "a", f"f{i}": 1} for i in range(500)))
    assert len(list(records)) == 500
    assert sum(records.unread_fields.values()) == 500
    assert records.unread_fields["others"] == 300


# ---- system messages


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [BRIEF], "chosen": [WHY, YES], "rejected": [WHY, NO]},
        {"prompt": [BRIEF, WHY], "chosen": [WHY, YES], "rejected": [WHY, NO]},
        {"prompt": [BRIEF, WHY], "chosen": [YES], "rejected": [NO]},
        {"prompt": [WHY], "chosen": [BRIEF, WHY, YES], "rejected": [BRIEF, WHY, NO]},
        {"prompt": "Why?", "system": "Be brief.", "chosen": "yes", "rejected": "no"},
        {"prompt": "Why?", "system_prompt": "Be brief.", "chosen": [WHY, YES], "rejected": [WHY, NO]},
        {"chosen": [BRIEF, WHY, YES], "rejected": [BRIEF, WHY, NO], "system": "Be brief."},
        {"conversations": [BRIEF, WHY], "chosen": YES, "rejected": NO},
    ],
)
def test_a_system_message_is_kept_wherever_it_stands(row: Any, tmp_path: Path) -> None:
    expected = Feedback([BRIEF, WHY], ["yes", "no"], "local", [], [(0, 1)], [True, False], 0)
    assert only(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "Why?", "completion": "yes", "system": "Be brief."}, "prompt-completion"),
        ({"instruction": "Why?", "output": "yes", "system": "Be brief."}, "alpaca"),
        ({"prompt": "Why?", "response": "yes", "system": "Be brief."}, "sample"),
        ({"messages": [WHY, YES], "system": "Be brief."}, "messages"),
        ({"prompt": "Why?", "responses": ["yes"], "target": 0, "system": "Be brief."}, "record"),
    ],
)
def test_a_system_column_is_the_system_turn_of_every_shape(row: Any, shape: str, tmp_path: Path) -> None:
    assert only(tmp_path, row).prompt == [BRIEF, WHY]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": [BRIEF], "system": "Be long.", "chosen": [WHY, YES], "rejected": [WHY, NO]},
         "the field system and the system turn differ"),
        ({"prompt": [BRIEF], "chosen": [{**BRIEF, "content": "Be long."}, WHY, YES], "rejected": [WHY, NO]},
         "the prompt and the conversation beside it differ"),
        ({"system": "a", "system_prompt": "b", "messages": [WHY, YES]}, "both system and system_prompt"),
        ({"prompt": "How?", "chosen": [WHY, YES], "rejected": [WHY, NO]}, "the prompt and the conversation"),
        ({"prompt": "How?", "messages": [WHY, YES]}, "prompt and messages are different conversations"),
        ({"prompt": "Why?", "chosen": "yes", "rejected": "no", "messages": [WHY, NO]},
         "messages and chosen are different"),
    ],
)  # fmt: skip
def test_two_versions_of_one_conversation_are_refused(row: Any, problem: str, tmp_path: Path) -> None:
    assert problem in refused(tmp_path, row)


# ---- the prompt under another name


@pytest.mark.parametrize("name", ["instruction", "question", "query", "input", "user", "problem"])
def test_a_prompt_of_another_name_beside_a_preference_is_refused_with_the_mapping(name: str, tmp_path: Path) -> None:
    row = {name: "What is 2+2?", "chosen": "The sum of 2 and 2 is 4.", "rejected": "The sum of 2 and 2 equals 6."}
    assert f"say so by `columns: {{prompt: {name}}}`" in refused(tmp_path, row)
    found = only(tmp_path, row, columns={"prompt": name})
    assert found.prompt == [{"role": "user", "content": "What is 2+2?"}]
    assert found.responses == [row["chosen"], row["rejected"]]


def test_a_part_of_the_prompt_in_another_column_is_refused_unless_the_prompt_has_it(tmp_path: Path) -> None:
    row = {"prompt": "Sum up: A long text.", "completion": "Short.", "context": "A long text."}
    assert only(tmp_path, row).prompt[0]["content"] == "Sum up: A long text."
    for changed in ({"context": "Another."}, {"history": [["a", "b"]]}, {"input": "B"}):
        assert "put all of the prompt into one column" in refused(tmp_path, {**row, **changed})
    assert only(tmp_path, {**row, "history": [], "input": ""}).responses == ["Short."]


@pytest.mark.parametrize(
    ("row", "proposal"),
    [
        ({"question": "q", "answer": "a"}, "`columns: {prompt: question, completion: answer}`"),
        ({"prompt": "q", "answer": "a"}, "`columns: {completion: answer}`"),
        ({"query": "q", "completion": "a"}, "`columns: {prompt: query}`"),
    ],
)
def test_a_row_of_no_known_shape_is_refused_with_a_mapping_that_reads_it(
    row: Any, proposal: str, tmp_path: Path
) -> None:
    assert proposal in refused(tmp_path, row)
    columns = dict(pair.split(": ") for pair in proposal.strip("`").removeprefix("columns: {").rstrip("}").split(", "))
    assert only(tmp_path, row, columns=columns) == Feedback(
        [{"role": "user", "content": "q"}], ["a"], "local", target=0
    )


# ---- columns and roles


def test_columns_that_are_nowhere_and_fields_that_are_not_read_are_refused(tmp_path: Path) -> None:
    row = {"ask": "Why?", "say": "yes"}
    good = {"prompt": "ask", "completion": "say"}
    assert only(tmp_path, row, columns=good).prompt == [WHY]
    assert "no row has a column 'sya'; did you mean 'say'?" in refused(
        tmp_path, {**row, "completion": "a"}, columns={**good, "completion": "sya"} | {"prompt": "ask"}
    )
    assert "columns: 'promt' is no field that is read; did you mean 'prompt'?" in refused(
        tmp_path, row, columns={"promt": "ask"}
    )


def test_roles_are_mapped_in_any_case_or_by_name_and_others_are_refused(tmp_path: Path) -> None:
    for user, assistant in (("human", "gpt"), ("Human", "GPT"), ("USER", "bot"), ("prompter", "ai"), ("user", "model")):
        row = {"conversations": [{"from": user, "value": "Why?"}, {"from": assistant, "value": "yes"}]}
        assert only(tmp_path, row) == Feedback([WHY], ["yes"], "local", target=0)
    row = {"messages": [{"role": "pupil", "content": "Why?"}, {"role": "teacher", "content": "yes"}]}
    assert "a turn's role is not one of" in refused(tmp_path, row)
    assert only(tmp_path, row, roles={"pupil": "user", "teacher": "assistant"}).prompt == [WHY]
    assert "a role is one of system, developer, user, assistant, tool" in refused(
        tmp_path, row, roles={"pupil": "child"}
    )


# ---- turns


@pytest.mark.parametrize(
    "turn",
    [
        {**WHY, "name": None, "weight": None, "tool_calls": None},
        {**WHY, "weight": 1, "tool_calls": [], "extra": {"a": 1}},
        {"from": "human", "value": "Why?", "role": None},
        {"role": "user", "content": ["Wh", {"text": "y?"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ],
)
@pytest.mark.parametrize("shape", ["messages", "preference", "record"])
def test_fields_of_turns_without_a_value_and_texts_in_parts_are_read(turn: Any, shape: str, tmp_path: Path) -> None:
    rows = {
        "messages": {"messages": [turn, YES]},
        "preference": {"prompt": [turn], "chosen": "yes", "rejected": "no"},
        "record": {"prompt": [{name: value for name, value in turn.items() if name != "extra"}], "responses": ["yes"]},
    }
    assert only(tmp_path, rows[shape]).prompt == [WHY]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image'; only text is read"),
        ([{"role": "user", "content": [{"type": "input_audio", "text": "x"}]}], "a part of type 'input_audio'"),
        ([{"role": "user", "content": {"a": "b"}}], "neither a text nor a list of parts"),
        ([{"role": "user", "content": None}], "field prompt.0.content: Field required"),
        ([{"content": "Why?"}], "field prompt.0.role: Field required"),
        ([{**WHY, "weight": 0.5}], "give any other to the whole row, as its field `weight`"),
        (["Why?"], "field prompt: neither a text nor a list of turns"),
        (5, "field prompt: neither a text nor a list of turns"),
        ("[{'role': 'user', 'content': 'Why?'}\n {'role': 'user'}]", "turns in a text, but not as JSON"),
    ],
)
def test_a_turn_that_is_no_text_is_refused(prompt: Any, problem: str, tmp_path: Path) -> None:
    assert problem in refused(tmp_path, {"prompt": prompt, "completion": "a"})


def test_turns_in_a_text_are_turns_and_a_text_about_json_is_a_text(tmp_path: Path) -> None:
    for text in (json.dumps([WHY]), repr([WHY]), json.dumps([WHY], indent=1)):
        assert only(tmp_path, {"prompt": text, "completion": "yes"}).prompt == [WHY]
    text = '[{"a": 1}] is a list'
    assert only(tmp_path, {"prompt": text, "completion": text}).responses == [text]


def test_tools_calls_and_their_results_are_kept_as_templates_take_them(tmp_path: Path) -> None:
    written = {"type": "function", "function": {"name": "w", "arguments": '{"x": 1}'}, "id": None}
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "dry", "name": "w"}
    turns = [WHY, {"role": "assistant", "content": None, "tool_calls": [written]}, result]
    for tools in ([DOCUMENT], json.dumps([DOCUMENT]), [json.dumps(DOCUMENT)]):
        found = only(tmp_path, {"messages": [*turns, YES], "tools": tools})
        assert (found.prompt, found.responses, found.tools) == ([WHY, call, result], ["yes"], [DOCUMENT])
    last = only(tmp_path, {"messages": turns[:2]})
    assert (last.responses, last.response_fields, last.problem()) == ([""], [{"tool_calls": [CALL]}], None)
    old = [WHY, {"role": "assistant", "content": None, "function_call": written["function"]},
           {"role": "function", "name": "w", "content": "dry"}, YES]  # fmt: skip
    assert only(tmp_path, {"messages": old, "functions": [DOCUMENT["function"]]}).prompt == [WHY, call, result]
    pair = only(tmp_path, {"prompt": [WHY], "chosen": [turns[1]], "rejected": [NO], "tools": [DOCUMENT]})
    assert (pair.responses, pair.response_fields) == (["", "no"], [{"tool_calls": [CALL]}, {}])
    assert "field tools: not a list of JSON documents" in refused(tmp_path, {"messages": [WHY, YES], "tools": "w"})


# ---- every turn, weights, groups, invalid rows

TALK = [BRIEF, WHY, YES, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "so"}]


def test_every_assistant_turn_is_a_target_with_what_precedes_it(tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": TALK}, every_turn=True)
    assert found == [
        Feedback(TALK[:2], ["yes"], "local", target=0),
        Feedback(TALK[:4], ["so"], "local", target=0),
    ]
    assert read(tmp_path, {"messages": TALK}) == found[1:]
    path = str(tmp_path / "rows.jsonl")
    parts = [list(local(split, path=path, test_fraction=0.5, every_turn=True)) for split in ("train", "test")]
    assert sorted(map(len, parts)) == [0, 2]  # of one split


def test_an_assistant_turn_without_a_prompt_is_counted(tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": [NO, *TALK[1:]]}, every_turn=True)
    assert found[0] == Drop("a turn of a conversation: empty prompt")
    assert len(found) == 3


def test_weight_0_trains_nothing_and_no_negative_number_is_a_weight(tmp_path: Path) -> None:
    silent = [BRIEF, WHY, {**YES, "weight": 0}, *TALK[3:]]
    [drop, kept] = read(tmp_path, {"messages": silent}, every_turn=True)
    assert (drop, kept) == (Drop("a turn of weight 0"), Feedback(TALK[:4], ["so"], "local", target=0))
    assert only(tmp_path, {"messages": silent, "weight": 1.0}).prompt == TALK[:4]
    for row in ({"messages": TALK, "weight": 0}, {"prompt": "q", "completion": [{**YES, "weight": 0}]},
                {"prompt": "q", "chosen": "a", "rejected": [{**NO, "weight": 0}]}):  # fmt: skip
        assert read(tmp_path, row) == [Drop("weight 0")]
    assert read(tmp_path, {"messages": TALK, "weight": "0.0"}) == [Drop("weight 0")]  # as a cell of CSV is
    for weight in ("high", -1, float("inf"), [1]):
        assert "field weight: Input should be" in refused(tmp_path, {"messages": TALK, "weight": weight})


def test_rows_of_one_group_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "user_id": i // 10} for i in range(300)]
    path = str(write_lines(tmp_path / "g.jsonl", rows))
    splits = [
        {int(r.prompt[0]["content"][1:]) // 10 for r in local(s, path=path, test_fraction=0.4, group="user_id")
         if isinstance(r, Feedback)} for s in ("train", "test")
    ]  # fmt: skip
    assert splits[0].isdisjoint(splits[1])
    assert len(splits[0] | splits[1]) == 30
    assert "no field 'thread', which is its group" in refused(tmp_path, rows[0], group="thread")


def test_invalid_rows_are_dropped_on_request_and_counted_by_reason_in_one_split_each(tmp_path: Path) -> None:
    bad = [
        {"text": "a"}, {"text": "b"}, 5,
        {"prompt": "x \ud83d", "completion": "a"}, {"prompt": "q", "completion": "a\0"},
        *({"messages": [{"role": f"robot {i}", "content": "q"}, YES]} for i in range(2)),
    ]  # fmt: skip
    path = tmp_path / "f.jsonl"
    write_lines(path, [*bad, *({"prompt": f"q{i}", "completion": "a"} for i in range(20))])
    path.write_text(path.read_text() + "{broken\n")
    found = [r for s in ("train", "test") for r in local(s, path=str(path), test_fraction=0.5, invalid="drop")]
    reasons = sorted(r.reason for r in found if isinstance(r, Drop))
    assert reasons == sorted(
        ["of no known shape"] * 2 + ["a turn of messages has no known role"] * 2
        + ["no JSON", "not an object with fields", "half of a surrogate pair", "a NUL character"]
    )  # fmt: skip
    assert len(found) == 28
    with pytest.raises(HalosError, match="invalid is 'skip'; it is `refuse` or `drop`"):
        local("train", path=str(path), invalid="skip")  # type: ignore[arg-type]


# ---- samples and records of the product


def test_a_samples_token_ids_are_kept_and_join_with_those_of_its_prompt(tmp_path: Path) -> None:
    sample = {"prompt_id": "x", "prompt": [WHY], "response": "yes", "finish_reason": "stop", "sample": 0}
    ids = {"response_ids": [5, 6], "template": "t"}
    found = read(
        tmp_path,
        {**sample, **ids},
        {**sample, **ids, "response_ids": [7]},
        {**sample, "template": "u", "response_ids": [8]},
        sample,
    )
    assert [(r.responses, r.response_ids, r.template) for r in found if isinstance(r, Feedback)] == [
        (["yes", "yes"], [[5, 6], [7]], "t"),
        (["yes"], [[8]], "u"),
        (["yes"], [], None),
    ]


def test_every_field_of_a_record_is_read_again(tmp_path: Path) -> None:
    whole = record(
        0, tools=[DOCUMENT], response_fields=[{"tool_calls": [CALL]}, {}], response_ids=[[1, 2], None], template="t",
        prompt=[BRIEF, {**WHY, "note": {"kept": None}}], cut=[True, False],
    )  # fmt: skip
    found = only(tmp_path, whole)
    assert {name: value for name, value in found.row().items() if name in whole} == {**whole, "pairs": [(0, 1)]}
    path = tmp_path / "f.parquet"
    feedback.write([found], path)
    assert list(local("train", path={"train": str(path), "test": str(path)})) == [found]
