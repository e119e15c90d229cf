"""Rows and options that look right and are not: refused in a sentence, never read as something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.data.feedback import Feedback
from halos.data.rows import Drop
from halos.data.settings import Source
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import run_prepare, write_lines

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "yes"}
PAIR = {"chosen": "The sum is 4", "rejected": "The sum is 5"}


def read(folder: Path, *rows: Any, **options: Any) -> list[Any]:
    return list(local("train", path=str(write_lines(folder / "f.jsonl", list(rows))), test_fraction=0, **options))


@pytest.mark.parametrize("empty", [{"prompt": None}, {"prompt": []}, {"prompt": float("nan")}, {"messages": None}])
def test_a_preference_whose_prompt_has_no_value_is_refused_unless_the_column_is_left_out(
    empty: Any, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match="has no value; where the prompt is what"):
        read(tmp_path, {**empty, **PAIR})
    [record] = read(tmp_path, {**empty, **PAIR}, columns=dict.fromkeys(empty))
    assert record.prompt == [{"role": "user", "content": "The sum is"}]


@pytest.mark.parametrize("name", ["label", "rating", "train", "loss_mask"])
def test_a_label_of_a_turn_is_refused_and_can_be_left_out(name: str, tmp_path: Path) -> None:
    row = {"messages": [USER, {**ASSISTANT, name: 0}]}
    with pytest.raises(HalosError, match=f"messages.1.{name} may be a label"):
        read(tmp_path, row)
    [record] = read(tmp_path, row, columns={name: None})
    assert record.responses == ["yes"]


@pytest.mark.parametrize("row", [{"messages": [USER, ASSISTANT]}, {"prompt": "Why?", "completion": "yes"}])
def test_a_prompt_with_an_image_is_refused_and_the_column_can_be_left_out(row: Any, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="field images may be of the prompt, and only text is read"):
        read(tmp_path, {**row, "images": ["a.png"]})
    assert len(read(tmp_path, {**row, "images": []})) == 1
    assert len(read(tmp_path, {**row, "images": ["a.png"]}, columns={"images": None})) == 1


def test_numbers_that_pandas_makes_floats_are_read_in_records(tmp_path: Path) -> None:
    [record] = read(tmp_path, {"prompt": "a", "responses": ["x", "y"], "desirable": [1, 0.0], "target": 0.0})
    assert isinstance(record, Feedback)
    assert (record.desirable, record.target) == ([True, False], 0)


def test_a_group_is_the_same_as_number_and_text_and_nan_is_none(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "g": g} for i, g in enumerate([7, 7.0, "7", " 7 "] * 3)]
    path = str(write_lines(tmp_path / "g.jsonl", rows))
    assert len(list(local("train", path=path, test_fraction=0.5, group="g"))) in (0, 12)
    with pytest.raises(HalosError, match="no field 'g', which is its group"):
        read(tmp_path, {"prompt": "q", "completion": "a", "g": float("nan")}, group="g")


@pytest.mark.parametrize("text", ["sep=;\nprompt;completion;;\na;b;;\n", "prompt, completion\na,b\n"])
def test_csv_as_spreadsheets_write_it_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(text)
    [record] = local("train", path=str(tmp_path / "f.csv"), test_fraction=0)
    assert isinstance(record, Feedback)
    assert (record.prompt[0]["content"], record.responses) == ("a", ["b"])


def test_a_csv_with_columns_of_its_own_is_told_how_to_name_them(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text('nr,Customer question,good reply,bad reply\n1,"Why, ""so""?\nOr not?",Yes.,No.\n2,,Red.,Green.\n')
    columns = {"prompt": "Customer question", "chosen": "good reply", "rejected": "bad reply"}

    def refused(columns: dict[str, str]) -> str:
        with pytest.raises(HalosError) as caught:
            list(local("train", path=str(path), test_fraction=0, columns=columns))
        return str(caught.value)

    unnamed = refused({})
    assert "as in `columns: {prompt: question, chosen: good, rejected: bad}`" in unnamed
    assert "invalid: drop" not in unnamed  # nothing would be left
    assert "no row has a column 'bad_reply'; did you mean 'bad reply'?" in refused(columns | {"rejected": "bad_reply"})
    assert "name its column by `columns: {prompt: COLUMN}`" in refused(
        {n: c for n, c in columns.items() if n != "prompt"}
    )
    assert "1 cannot be used: row 2, field prompt has no value; where" in refused(columns)
    drop, first = local("train", path=str(path), test_fraction=0, columns=columns, invalid="drop")
    assert isinstance(first, Feedback)
    assert (first.prompt[0]["content"], first.responses) == ('Why, "so"?\nOr not?', ["Yes.", "No."])
    assert drop == Drop("field prompt has no value")


@pytest.mark.parametrize(
    "options",
    [{}, {"path": 5}, {"path": {}}, {"path": {"train": None}}, {"path": "a", "test_fraction": "0.1"},
     {"path": "a", "columns": ["prompt"]}, {"path": "a", "roles": "user"}, {"path": "a", "limit": -1},
     {"path": "a", "limit": "all"}, {"path": "a", "invalid": "ignore"}],
)  # fmt: skip
def test_an_option_of_another_type_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="source local"):
        Source(name="local", options=options)


@pytest.mark.parametrize("share", [{"weight": 1}, {"limit": 5}])
def test_a_source_without_records_is_refused_in_a_mix(share: dict[str, Any], tmp_path: Path) -> None:
    full = write_lines(tmp_path / "a.jsonl", [{"prompt": f"question {i}", "completion": "a"} for i in range(9)])
    empty = write_lines(tmp_path / "b.jsonl", [])
    sources = [{"name": "local", "options": {"path": str(path), "test_fraction": 0}, **share} for path in (full, empty)]
    with pytest.raises(HalosError, match="no record of train is left"):
        run_prepare(tmp_path, *sources)
