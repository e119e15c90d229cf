"""Files of one's own: sound rows become records, the others are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halos.data.feedback import Feedback, prompt_id
from halos.data.local import local
from halos.errors import HalosError
from tests.data.files import record, run_prepare, write_lines


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json"])
def test_local_records_are_read_from_json_and_json_lines(tmp_path: Path, name: str) -> None:
    rows = [record(i) for i in range(10)]
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=2))
    else:
        write_lines(path, rows)
    found = [r for split in ("train", "test") for r in local(split, path=str(path), test_fraction=0.5)]
    assert {r.prompt_id for r in found if isinstance(r, Feedback)} == {prompt_id(row["prompt"]) for row in rows}
    assert len(found) == 10


def test_a_written_record_is_read_again_as_it_was(tmp_path: Path) -> None:
    original = Feedback(
        [{"role": "user", "content": "é?"}], ["  a\n", "b"], "mine", [0.5, 1], [(1, 0)], [None, True], 1
    )
    path = str(write_lines(tmp_path / "f.jsonl", [original.row()]))
    assert list(local("train", path={"train": path, "test": path})) == [original]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"responses": "yes"}, "field responses: Input should be a valid array"),
        ({"responses": ["yes", 3]}, "field responses.1: Input should be a valid string"),
        ({"prompt": [{"role": "user"}]}, "field prompt.0.content: Field required"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "a turn's role is not one of"),
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


def test_all_bad_rows_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    rows = [record(i) if i % 2 else record(i, responses=[]) for i in range(20)]
    with pytest.raises(HalosError, match=r"of whose 20 rows 10 cannot be used: row 1, .*; row 3, .*; row 5, [^;]*$"):
        local("train", path=str(write_lines(tmp_path / "f.jsonl", rows)))


def test_a_bad_row_leaves_nothing_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [*(record(i) for i in range(50)), {"prompt": []}])
    with pytest.raises(HalosError, match="row 51"):
        run_prepare(tmp_path, {"name": "toy"}, {"name": "local", "options": {"path": str(path)}})
    assert not (tmp_path / "out").exists()
