"""Sources turn rows into records or counted drops, and `prepare` mixes them into two disjoint splits."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data import feedback
from halos.data.feedback import Feedback, prompt_id
from halos.data.sources import Drop, hh, hh_record, hh_turns, local, prepare
from halos.errors import HalosError

PROMPT = "\n\nHuman: How do I sort a list?\n\nAssistant: In which language?\n\nHuman: Python, please."
CHOSEN = PROMPT + "\n\nAssistant: Like this:\n\n    def sort(x):\n        return sorted(x)\n\nIt gives a new list."
REJECTED = PROMPT + "\n\nAssistant: I don't know."


def write_lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def conversation(i: int, answer: str) -> str:
    return f"\n\nHuman: Question {i}?\n\nAssistant: {answer}"


def comparisons(n: int) -> list[dict[str, str]]:
    return [{"chosen": conversation(i, f"good {i}"), "rejected": conversation(i, f"bad {i}")} for i in range(n)]


def record(i: int, **fields: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Question {i}?"}]
    return {
        "prompt": prompt,
        "responses": ["yes", "no"],
        "scores": [1.0, 0.0],
        "pairs": [[0, 1]],
        "target": 0,
        **fields,
    }


def run_prepare(folder: Path, *sources: dict[str, Any]) -> dict[str, Any]:
    config = folder / "config.yaml"
    entries = [{"options": {}, **source} for source in sources]
    config.write_text(yaml.safe_dump({"dataset": "d", "sources": entries, "plugins": {}}))
    prepare(config, folder / "out/train.parquet", folder / "out/test.parquet", folder / "out/report.json")
    report: dict[str, Any] = json.loads((folder / "out/report.json").read_text())
    return report


# ------------------------------------------------------------------------------------------------------------- hh


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


# ---------------------------------------------------------------------------------------------------------- local


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


# -------------------------------------------------------------------------------------------------------- prepare


def test_rows_in_are_rows_out_and_drops(tmp_path: Path) -> None:
    good = comparisons(300)
    bad = [{"chosen": CHOSEN, "rejected": CHOSEN}] * 3 + [{"chosen": CHOSEN, "rejected": PROMPT}] * 2
    bad += [{"chosen": CHOSEN, "rejected": PROMPT + "\n\nAssistant: "}]
    path = write_lines(tmp_path / "hh.jsonl", good + bad + good[:7])
    report = run_prepare(tmp_path, {"name": "hh", "options": {"path": str(path)}})
    drops: Counter[str] = Counter()
    for split in ("train", "test"):
        part, source = report[split], report[split]["sources"][0]
        assert part["rows_in"] == part["rows_out"] + sum(part["drops"].values())
        assert all(part[key] == source[key] for key in part if key != "sources")
        assert len(list(feedback.read(tmp_path / f"out/{split}.parquet"))) == part["rows_out"]
        assert part["pairs"] == part["desirable"] == part["undesirable"] == part["targets"] == part["rows_out"]
        assert part["responses"] == 2 * part["rows_out"]
        drops.update(part["drops"])
    assert report["train"]["rows_in"] + report["test"]["rows_in"] == 313
    assert drops == {
        "chosen and rejected are equal": 3,
        "no assistant turn at the end": 2,
        "empty response": 1,
        "duplicate record": 7,
    }


def test_a_test_prompt_never_occurs_in_train(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", comparisons(20))
    test = write_lines(tmp_path / "test.jsonl", comparisons(5))
    report = run_prepare(tmp_path, {"name": "hh", "options": {"path": {"train": str(train), "test": str(test)}}})
    assert (report["train"]["rows_out"], report["test"]["rows_out"]) == (15, 5)
    assert report["train"]["drops"] == {"prompt is in the test split": 5}


def test_a_prompt_with_other_responses_is_no_duplicate(tmp_path: Path) -> None:
    rows = [record(0), record(0), record(0, responses=["yes", "perhaps"])]
    paths = {
        "train": str(write_lines(tmp_path / "a.jsonl", rows)),
        "test": str(write_lines(tmp_path / "b", [record(1)])),
    }
    report = run_prepare(tmp_path, {"name": "local", "options": {"path": paths}})
    assert report["train"]["rows_out"] == 2
    assert report["train"]["drops"] == {"duplicate record": 1}


def test_sources_are_mixed_and_counted_apart(tmp_path: Path) -> None:
    tied = [record(i, scores=[1.0, 1.0, 1.0], responses=["a", "b", "c"], pairs=[], target=None) for i in range(40)]
    mine, theirs = write_lines(tmp_path / "f.jsonl", tied), write_lines(tmp_path / "hh.jsonl", comparisons(60))
    report = run_prepare(
        tmp_path,
        {"name": "local", "options": {"path": str(mine), "test_fraction": 0.5}},
        {"name": "hh", "options": {"path": str(theirs), "test_fraction": 0.5}},
    )
    first, second = report["train"]["sources"]
    assert (first["name"], second["name"]) == ("local", "hh")
    assert first["ties"] == 3 * first["rows_out"]
    assert (first["pairs"], first["targets"], second["ties"]) == (0, 0, 0)
    for key in ("rows_in", "rows_out", "responses", "pairs", "ties"):
        assert report["train"][key] == first[key] + second[key]


def test_multi_turn_prompts_are_counted(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "hh.jsonl", [{"chosen": CHOSEN, "rejected": REJECTED}]))
    other = str(write_lines(tmp_path / "other.jsonl", comparisons(3)))
    report = run_prepare(tmp_path, {"name": "hh", "options": {"path": {"train": path, "test": other}}})
    assert (report["train"]["multi_turn"], report["test"]["multi_turn"]) == (1, 0)


def test_a_split_without_rows_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl", [{"chosen": CHOSEN, "rejected": CHOSEN}])
    paths = {"train": str(path), "test": str(write_lines(tmp_path / "t.jsonl", comparisons(2)))}
    with pytest.raises(HalosError, match=r"nothing is left of its train split .*1 chosen and rejected are equal"):
        run_prepare(tmp_path, {"name": "hh", "options": {"path": paths}})
    assert not list((tmp_path / "out").iterdir())


def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl", comparisons(100))
    outputs = []
    for _ in range(2):
        run_prepare(tmp_path, {"name": "hh", "options": {"path": str(path)}})
        outputs.append([(tmp_path / "out" / n).read_bytes() for n in ("train.parquet", "test.parquet", "report.json")])
    assert outputs[0] == outputs[1]


def test_a_source_of_ones_own_comes_from_a_plugin(tmp_path: Path) -> None:
    plugin = tmp_path / "own_source.py"
    plugin.write_text(
        "from halos.data.feedback import Feedback\n"
        "from halos.registry import SOURCES\n"
        "@SOURCES.register('own')\n"
        "def own(split, *, word):\n"
        "    yield Feedback([{'role': 'user', 'content': f'{word} {split}'}], ['a'], 'own', target=0)\n"
    )
    config = tmp_path / "config.yaml"
    entries = [{"name": "own", "options": {"word": "hello"}}]
    config.write_text(yaml.safe_dump({"dataset": "d", "sources": entries, "plugins": {str(plugin): "sha"}}))
    prepare(config, tmp_path / "train.parquet", tmp_path / "test.parquet", tmp_path / "report.json")
    assert next(feedback.read(tmp_path / "test.parquet")).prompt[0]["content"] == "hello test"
