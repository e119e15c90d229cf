"""The validation split: a source's own, or whole conversations that are cut from train, as many as were asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback
from halos.data.paths import SPLITS
from halos.data.settings import Dataset, Source
from halos.errors import HalosError
from tests.data.files import dialogue, record, run_prepare, write_lines

CONVERSATIONS = 40


def rows_of(numbers: range) -> list[dict[str, Any]]:
    """Two records of each conversation: its first turn alone, and after an answer to it."""
    deeper = [record(i, prompt=dialogue(f"Question {i}?", "Which?", f"This one, {i}.")) for i in numbers]
    return [row for pair in zip(map(record, numbers), deeper, strict=True) for row in pair]


def own(path: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return {"name": "local", "options": {"path": str(write_lines(path, rows)), "test_fraction": 0, **options}}


def conversations(folder: Path) -> dict[str, set[str]]:
    """The first turns of each split."""
    return {
        split: {record.prompt[0]["content"] for record in feedback.read(folder / f"out/{split}.parquet")}
        for split in SPLITS
    }


@pytest.mark.parametrize(
    ("wanted", "count"), [(7, 7), (1, 1), (CONVERSATIONS - 1, 39), (0.25, 10), (0.33, 13), (None, 4), (0, 0)]
)
def test_it_has_exactly_as_many_conversations_as_were_asked_for(wanted: Any, count: int, tmp_path: Path) -> None:
    report = run_prepare(tmp_path, own(tmp_path / "a.jsonl", rows_of(range(40))), validation_prompts=wanted)
    found = conversations(tmp_path)
    assert (len(found["validation"]), len(found["train"])) == (count, CONVERSATIONS - count)
    assert not found["validation"] & found["train"]
    assert [report[split]["rows_out"] for split in SPLITS] == [2 * (40 - count), 2 * count, 0]
    assert all(report[s]["rows_in"] == report[s]["rows_out"] and not report[s]["drops"] for s in SPLITS)
    assert all(report[s]["shared_prompts"] == 0 for s in SPLITS)


def test_by_default_there_are_256_of_them_at_most(tmp_path: Path) -> None:
    report = run_prepare(tmp_path, own(tmp_path / "a.jsonl", [record(i) for i in range(3000)]), validation_prompts=None)
    assert (report["train"]["rows_out"], report["validation"]["rows_out"]) == (2744, 256)


@pytest.mark.parametrize("wanted", [40, 41, 0.001, 0.999])
def test_more_than_there_are_or_none_is_refused(wanted: Any, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"^dataset d: validation_prompts is \S+, which is (0|40|41) of the 40 conv"):
        run_prepare(tmp_path, own(tmp_path / "a.jsonl", rows_of(range(40))), validation_prompts=wanted)
    assert not (tmp_path / "out/train.parquet").exists()


@pytest.mark.parametrize("wanted", [-1, 1.5, 1.0, 0.0, True, "many", float("nan")])
def test_what_is_neither_a_number_nor_a_share_is_refused(wanted: Any) -> None:
    with pytest.raises(ValueError, match="is neither a number of conversations nor a share below 1"):
        Dataset.model_validate({"sources": [{"name": "toy"}], "validation_prompts": wanted})


def test_it_depends_neither_on_the_order_of_rows_nor_on_other_splits(tmp_path: Path) -> None:
    rows = rows_of(range(40))
    others = [record(i, split="test") for i in range(100, 120)]
    parts = []
    for name, content in (("a", rows), ("b", rows[::-1]), ("c", others + rows)):
        (tmp_path / name).mkdir()
        run_prepare(tmp_path / name, own(tmp_path / f"{name}.jsonl", content), validation_prompts=9)
        parts.append(conversations(tmp_path / name)["validation"])
    assert parts[0] == parts[1] == parts[2]


def test_new_conversations_take_no_more_places_than_they_are(tmp_path: Path) -> None:
    few, more = own(tmp_path / "few.jsonl", rows_of(range(40))), own(tmp_path / "more.jsonl", rows_of(range(45)))
    run_prepare(tmp_path, few, validation_prompts=9)
    before = conversations(tmp_path)["validation"]
    run_prepare(tmp_path, more, validation_prompts=9)
    after = conversations(tmp_path)["validation"]
    assert after - before == {text for text in after if text in {f"Question {i}?" for i in range(40, 45)}}


def test_another_seed_cuts_others(tmp_path: Path) -> None:
    source = own(tmp_path / "a.jsonl", rows_of(range(40)))
    found = []
    for seed in (0, 1):
        run_prepare(tmp_path, source, validation_prompts=9, seed=seed)
        found.append(conversations(tmp_path)["validation"])
    assert found[0] != found[1]


def test_the_rows_of_a_group_stay_together_and_their_prompts_are_in_no_other_split(tmp_path: Path) -> None:
    """Each user has asked five questions of their own, and one that two users have asked."""
    asked = [(10 * user + i, user) for user in range(20) for i in range(5)]
    asked += [(1000 + user // 2, user) for user in range(20)]
    rows = [{"prompt": f"Question {i}?", "completion": f"Yes, {user}.", "user": user} for i, user in asked]
    report = run_prepare(tmp_path, own(tmp_path / "a.jsonl", rows, group="user"), validation_prompts=0.3)
    files = {split: list(feedback.read(tmp_path / f"out/{split}.parquet")) for split in SPLITS}
    users: dict[str, Counter[int]] = {}
    for split, records in files.items():
        questions = [int(r.prompt[0]["content"].split()[1][:-1]) for r in records]
        users[split] = Counter(question // 10 for question in questions if question < 1000)
    assert set(users["validation"].values()) == set(users["train"].values()) == {5}
    assert (len(users["validation"]), len(users["train"])) == (6, 14)
    prompts = {split: {r.prompt_id for r in records} for split, records in files.items()}
    assert not prompts["validation"] & prompts["train"]
    shared = {user // 2 for user in users["validation"]}
    leaking = sum(user // 2 in shared for user in users["train"])
    assert leaking
    assert report["train"]["drops"] == {"prompt is in the validation split": leaking}


def test_a_mixture_is_cut_before_records_are_drawn_so_that_other_mixes_are_evaluated_on_the_same(
    tmp_path: Path,
) -> None:
    first, second = own(tmp_path / "a.jsonl", rows_of(range(40))), own(tmp_path / "b.jsonl", rows_of(range(30, 90)))
    found = []
    for limits in ({}, {"limit": 20}, {"limit": 10}):
        report = run_prepare(tmp_path, {**first, **limits}, second, validation_prompts=12)
        found.append(conversations(tmp_path))
        assert [source["rows_in"] == source["rows_out"] for source in report["validation"]["sources"]] == [True, True]
        assert not found[-1]["validation"] & found[-1]["train"]  # nor those that both sources have
        assert report["train"]["sources"][0]["rows_out"] == limits.get(
            "limit", report["train"]["sources"][0]["rows_in"]
        )
    assert found[0]["validation"] == found[1]["validation"] == found[2]["validation"]
    assert len(found[0]["validation"]) == 12


def test_a_source_with_a_validation_split_gives_that_and_the_others_are_cut(tmp_path: Path) -> None:
    numbers = range(20), range(18, 25), range(24, 30)
    paths = {
        split: str(write_lines(tmp_path / f"{split}.jsonl", rows_of(of)))
        for split, of in zip(SPLITS, numbers, strict=True)
    }
    mine = {"name": "local", "options": {"path": paths}}
    report = run_prepare(tmp_path, mine, validation_prompts=None)
    found = conversations(tmp_path)
    assert found["validation"] == {f"Question {i}?" for i in range(18, 24)}
    assert found["train"] == {f"Question {i}?" for i in range(18)}
    assert report["train"]["drops"] == {"prompt is in the validation split": 4}
    assert report["validation"]["drops"] == {"prompt is in the test split": 2}

    report = run_prepare(tmp_path, mine, own(tmp_path / "b.jsonl", rows_of(range(100, 140))), validation_prompts=8)
    assert [source["rows_out"] for source in report["validation"]["sources"]] == [12, 16]
    assert [source["rows_out"] for source in report["train"]["sources"]] == [36, 64]


def test_a_number_is_refused_where_there_is_nothing_to_cut(tmp_path: Path) -> None:
    toy = {"name": "toy", "options": {"prompts": 40, "validation_prompts": 9, "test_prompts": 9}}
    with pytest.raises(HalosError, match=r"^dataset d: validation_prompts is 5, and no source is there to cut them"):
        run_prepare(tmp_path, toy, validation_prompts=5)
    report = run_prepare(tmp_path, toy, validation_prompts=None)
    assert [report[split]["rows_out"] for split in SPLITS] == [40, 9, 9]


def test_rows_that_are_marked_are_its_own_validation_split(tmp_path: Path) -> None:
    rows = [record(i) for i in range(20)] + [record(i, split="validation") for i in range(20, 25)]
    source = own(tmp_path / "a.jsonl", rows)
    report = run_prepare(tmp_path, source, validation_prompts=None)
    assert [report[split]["rows_out"] for split in SPLITS] == [20, 5, 0]
    assert conversations(tmp_path)["validation"] == {f"Question {i}?" for i in range(20, 25)}


def test_prompts_of_train_that_nearly_recur_in_either_split_are_counted(tmp_path: Path) -> None:
    words = "Please tell me how many of the old ships in the harbour of that town were built before the year {}"
    paths = {
        split: str(write_lines(tmp_path / f"{split}.jsonl", [record(0, prompt=dialogue(words.format(year)))]))
        for split, year in zip(SPLITS, (1900, 1901, 1902), strict=True)
    }
    report = run_prepare(tmp_path, {"name": "local", "options": {"path": paths}}, validation_prompts=None)
    assert {split: report["overlaps"][split]["near"] for split in ("validation", "test")} == {
        "validation": 1,
        "test": 1,
    }
    assert report["overlaps"]["validation"]["examples"][0]["second"].endswith("1901")


def test_leaks_into_a_split_that_was_cut_are_counted_among_the_rows_that_stay(tmp_path: Path) -> None:
    words = "Please tell me how many of the old ships in the harbour of that town were built before the year {}"
    rows = [record(0, prompt=dialogue(words.format(year))) for year in range(1900, 1920)]
    report = run_prepare(tmp_path, own(tmp_path / "a.jsonl", rows), validation_prompts=5)
    overlap = report["overlaps"]["validation"]
    assert (overlap["records"], overlap["prompts"], overlap["near"]) == (15, 5, 15)
    assert report["overlaps"]["test"]["records"] == 15


def test_folders_with_words_for_validation_are_read(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["dev", "train", "test"]}))
    source = Source.model_validate({"name": "local", "options": {"path": str(tmp_path)}})
    assert source.splits == SPLITS
    assert Source.model_validate({"name": "shp"}).splits == SPLITS
    assert Source.model_validate({"name": "hh"}).splits == ("train", "test")
    split = {"train": "train_sft", "validation": "valid"}
    assert Source.model_validate({"name": "hub", "options": {"path": "a/b", "split": split}}).splits == SPLITS[:2]
