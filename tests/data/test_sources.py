"""Published datasets: their rows become records or counted drops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halos.data.feedback import Feedback
from halos.data.reading import Drop
from halos.data.sources import hh, hh_record, hh_turns
from halos.errors import HalosError
from tests.data.files import CHOSEN, REJECTED, comparisons, write_lines


def test_roles_come_from_the_text_not_from_alternation() -> None:
    turns = hh_turns("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d")
    assert [(t["role"], t["content"]) for t in turns] == [
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("assistant", "d"),
    ]


def test_a_comparison_becomes_prompt_winner_and_loser() -> None:
    found = hh_record(CHOSEN, REJECTED)
    assert isinstance(found, Feedback)
    assert [t["role"] for t in found.prompt] == ["user", "assistant", "user"]
    assert found.prompt[-1]["content"] == "Python, please."
    assert found.responses[1] == "I don't know."
    assert (found.pairs, found.desirable, found.target, found.scores) == ([(0, 1)], [True, False], 0, [])
    assert found.problem() is None


def test_indentation_and_inner_blank_lines_are_kept() -> None:
    found = hh_record(CHOSEN, REJECTED)
    assert isinstance(found, Feedback)
    assert found.responses[0] == "Like this:\n\n    def sort(x):\n        return sorted(x)\n\nIt gives a new list."
    assert hh_turns("\n\nHuman: q\n\nAssistant:     indented\n\n\n")[1]["content"] == "    indented"


def test_a_marker_inside_a_line_is_text() -> None:
    assert hh_turns("\n\nHuman: who said Human: and why?")[0]["content"] == "who said Human: and why?"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (CHOSEN, CHOSEN, "chosen and rejected are equal"),
        (CHOSEN, CHOSEN + "\n", "chosen and rejected are equal"),
        (CHOSEN, REJECTED + "\n\nHuman: Why not?", "no assistant turn at the end"),
        (CHOSEN, REJECTED.replace("Python", "Perl"), "chosen and rejected have different prompts"),
        (CHOSEN, REJECTED + "\n\nHuman: Why?\n\nAssistant: So.", "chosen and rejected have different prompts"),
        ("Hello. " + CHOSEN, REJECTED, "the text does not begin with a turn"),
        ("", REJECTED, "the text does not begin with a turn"),
    ],
)
def test_rows_that_are_no_comparison_are_dropped_with_a_reason(chosen: str, rejected: str, reason: str) -> None:
    assert hh_record(chosen, rejected) == Drop(reason)


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_a_single_file_is_split_by_prompt_the_same_way_each_time(tmp_path: Path, name: str) -> None:
    path = str(write_lines(tmp_path / name, comparisons(400)))
    train, test = list(hh("train", path=path)), list(hh("test", path=path))
    assert list(hh("test", path=path)) == test
    assert len(train) + len(test) == 400
    assert 20 <= len(test) <= 60  # 10 % of 400, within 3.5 standard deviations
    reverse = str(write_lines(tmp_path / f"reverse-{name}", comparisons(400)[::-1]))
    ids = [{r.prompt_id for r in rows if isinstance(r, Feedback)} for rows in (train, test, hh("test", path=reverse))]
    assert not ids[0] & ids[1]
    assert ids[1] == ids[2]


def test_a_larger_test_fraction_keeps_the_smaller_test_split(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "hh.jsonl", comparisons(400)))
    small, large = (set(map(repr, hh("test", path=path, test_fraction=f))) for f in (0.1, 0.5))
    assert small < large


def test_a_file_for_each_split_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = comparisons(5)
    train, test = write_lines(tmp_path / "a.jsonl", rows[:3]), write_lines(tmp_path / "b.jsonl.gz", rows[3:])
    paths = {"train": str(train), "test": str(test)}
    assert [len(list(hh(split, path=paths))) for split in ("train", "test")] == [3, 2]


def test_limit_counts_records_and_not_drops(tmp_path: Path) -> None:
    equal = {"chosen": CHOSEN, "rejected": CHOSEN}
    path = str(write_lines(tmp_path / "hh.jsonl", [equal, *comparisons(5)]))
    rows = list(hh("train", path={"train": path, "test": path}, limit=2))
    assert [type(row) for row in rows] == [Drop, Feedback, Feedback]


def test_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps(comparisons(1)[0]) + "\nthis line is not JSON\n")
    rows = hh("train", path={"train": str(path), "test": str(path)})
    assert isinstance(next(rows), Feedback)
    with pytest.raises(HalosError, match=r"row 2 of .*hh\.jsonl"):
        next(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"path": {"train": "a.jsonl"}}, "one for train and one for test"),
        ({"path": "nowhere.jsonl", "test_fraction": 1.5}, "test_fraction is 1.5"),
    ],
)
def test_unusable_options_are_refused_before_reading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HalosError, match=message):
        hh("train", **options)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl.gz", comparisons(100))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(HalosError, match=r"hh\.jsonl\.gz cannot be read"):
        list(hh("train", path=str(path)))


def test_a_hub_out_of_reach_is_said_and_files_are_offered(tmp_path: Path) -> None:
    code = "from halos.data.sources import hh\nfrom halos.errors import HalosError\n"
    code += "try: hh('train', subset='helpful-base')\nexcept HalosError as error: print(error)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Anthropic/hh-rlhf cannot be loaded from the hub" in done.stdout
    assert "`path:`" in done.stdout
    assert done.stdout.count("\n") == 1
