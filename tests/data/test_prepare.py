"""`prepare` mixes sources into disjoint splits and counts every row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data import feedback
from halos.data.paths import SPLITS
from halos.data.prepare import prepare
from halos.errors import HalosError
from tests.data.files import CHOSEN, PROMPT, REJECTED, comparisons, record, run_prepare, write_lines


def outputs(folder: Path) -> list[Path]:
    """The files that `prepare` writes: the splits in their order, then the report."""
    return [*(folder / f"{split}.parquet" for split in SPLITS), folder / "report.json"]


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
        assert all(part[key] == source[key] for key in part if key not in ("sources", "shared_prompts"))
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


def test_a_record_with_other_labels_or_scores_is_no_duplicate(tmp_path: Path) -> None:
    rows = [record(0), record(0, scores=[0.0, 1.0]), record(0, desirable=[True, False]), record(0, target=1), record(0)]
    rows += [record(0, pairs=[[1, 0]])]
    paths = {
        "train": str(write_lines(tmp_path / "a.jsonl", rows)),
        "test": str(write_lines(tmp_path / "b.jsonl", [record(1)])),
    }
    report = run_prepare(tmp_path, {"name": "local", "options": {"path": paths}})
    assert (report["train"]["rows_out"], report["train"]["drops"]) == (5, {"duplicate record": 1})


def test_a_prompt_of_two_sources_stays_in_two_records_and_is_counted(tmp_path: Path) -> None:
    test = str(write_lines(tmp_path / "t.jsonl", [record(100)]))
    first = str(write_lines(tmp_path / "a.jsonl", [record(i) for i in range(5)]))
    twice = [record(4, responses=["a", "b"]), record(5), record(3), record(6), record(6, responses=["c", "d"])]
    second = str(write_lines(tmp_path / "b.jsonl", twice))
    entries = [{"name": "local", "options": {"path": {"train": path, "test": test}}} for path in (first, second)]
    report = run_prepare(tmp_path, *entries)
    assert report["train"]["rows_out"] == 10
    assert report["train"]["shared_prompts"] == 3  # 3 and 4 of both, 6 of two records
    assert report["test"]["shared_prompts"] == 1
    assert sum(len(r.responses) for r in feedback.read(tmp_path / "out/train.parquet")) == 20


def test_splits_are_written_as_json_lines_if_so_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "hh.jsonl", comparisons(60))
    run_prepare(tmp_path, {"name": "hh", "options": {"path": str(path)}})
    outputs = [tmp_path / f"{split}.jsonl" for split in SPLITS]
    prepare(tmp_path / "config.yaml", *outputs, tmp_path / "report.json")
    for output in outputs:
        assert list(feedback.read(output)) == list(feedback.read(tmp_path / f"out/{output.stem}.parquet"))


def plugin_dataset(tmp_path: Path, text: str, *names: str) -> Path:
    """The config of a dataset whose sources are in a plugin."""
    plugin = tmp_path / "own_source.py"
    header = "from halos.data.feedback import Feedback\nfrom halos.registry import SOURCES\n"
    plugin.write_text(header + text)
    config = tmp_path / "config.yaml"
    entries = [{"name": name, "options": {}} for name in names]
    config.write_text(yaml.safe_dump({"dataset": "d", "sources": entries, "plugins": {str(plugin): "sha"}}))
    return config


def test_a_source_for_evaluation_alone_is_not_asked_for_train(tmp_path: Path) -> None:
    text = (
        "@SOURCES.register('only_test')\n"
        "def only_test(split):\n"
        "    assert split == 'test'\n"
        "    yield Feedback([{'role': 'user', 'content': 'Why?'}], ['a'], 'own', target=0)\n"
        "only_test.splits = ('test',)\n"
    )
    files = outputs(tmp_path)
    prepare(plugin_dataset(tmp_path, text, "only_test"), *files)
    assert [len(list(feedback.read(file))) for file in (files[0], files[2])] == [0, 1]
    assert json.loads(files[3].read_text())["train"]["sources"] == []


def test_the_commit_of_what_came_from_the_hub_is_reported(tmp_path: Path) -> None:
    text = (
        "class Rows(list):\n"
        "    origin = {'hub': 'owner/name', 'commit': 'c0ffee'}\n"
        "@SOURCES.register('from_hub')\n"
        "def from_hub(split):\n"
        "    return Rows([Feedback([{'role': 'user', 'content': split}], ['a'], 'own', target=0)])\n"
    )
    prepare(plugin_dataset(tmp_path, text, "from_hub"), *outputs(tmp_path))
    for split in ("train", "test"):
        [source] = json.loads((tmp_path / "report.json").read_text())[split]["sources"]
        assert (source["hub"], source["commit"]) == ("owner/name", "c0ffee")


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
        outputs.append(
            [(tmp_path / "out" / n).read_bytes() for n in (*(f"{split}.parquet" for split in SPLITS), "report.json")]
        )
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
    prepare(config, *outputs(tmp_path))
    assert next(feedback.read(tmp_path / "test.parquet")).prompt[0]["content"] == "hello test"


@pytest.mark.parametrize(
    "options",
    [
        lambda path: {"path": path, "test_fraction": 0},
        lambda path: {"path": path, "test_fraction": 0.0},
        lambda path: {"path": {"train": path}},
    ],
)
@pytest.mark.parametrize("name", ["local", "hh"])
def test_a_dataset_may_have_no_test_split(tmp_path: Path, name: str, options: Any) -> None:
    path = str(
        write_lines(tmp_path / "rows.jsonl", comparisons(12) if name == "hh" else [record(i) for i in range(12)])
    )
    report = run_prepare(tmp_path, {"name": name, "options": options(path)})
    assert (report["train"]["rows_out"], report["test"]["rows_out"], report["test"]["rows_in"]) == (12, 0, 0)
    assert list(feedback.read(tmp_path / "out/test.parquet")) == []
    assert report["overlaps"]["test"]["prompts"] == 0


def test_a_source_for_training_alone_leaves_no_test_split(tmp_path: Path) -> None:
    text = (
        "@SOURCES.register('only_train')\n"
        "def only_train(split):\n"
        "    assert split == 'train'\n"
        "    yield Feedback([{'role': 'user', 'content': 'Why?'}], ['a'], 'own', target=0)\n"
        "only_train.splits = ('train',)\n"
    )
    files = outputs(tmp_path)
    prepare(plugin_dataset(tmp_path, text, "only_train"), *files)
    assert [len(list(feedback.read(file))) for file in (files[0], files[2])] == [1, 0]


def test_a_test_split_that_is_empty_by_accident_is_refused(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "rows.jsonl", [record(i) for i in range(3)]))
    with pytest.raises(HalosError, match=r"nothing is left of its test split .*0 for no test split"):
        run_prepare(tmp_path, {"name": "local", "options": {"path": path, "test_fraction": 1e-9}})


def test_one_source_may_hold_out_rows_for_another(tmp_path: Path) -> None:
    first = str(write_lines(tmp_path / "a.jsonl", [record(i) for i in range(10)]))
    second = str(write_lines(tmp_path / "b.jsonl", comparisons(100)))
    report = run_prepare(
        tmp_path,
        {"name": "local", "options": {"path": first, "test_fraction": 0}},
        {"name": "hh", "options": {"path": second, "test_fraction": 0.3}},
    )
    rows = [source["rows_out"] for source in report["test"]["sources"]]
    assert rows[0] == 0
    assert rows[1] > 0


def test_a_path_of_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="or some for each of train, validation and test"):
        run_prepare(tmp_path, {"name": "local", "options": {"path": {"trian": "a.jsonl"}}})


def test_fields_that_a_source_does_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "class Rows(list):\n"
        "    unread_fields = {'mood': 2, 'id': 1}\n"
        "@SOURCES.register('leaves_some')\n"
        "def leaves_some(split):\n"
        "    return Rows([Feedback([{'role': 'user', 'content': split}], ['a'], 'own', target=0)])\n"
    )
    prepare(plugin_dataset(tmp_path, text, "leaves_some"), *outputs(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["train"]["sources"][0]["unread_fields"] == {"mood": 2, "id": 1}
    assert "d train: source leaves_some does not read the fields id (1 rows), mood (2 rows)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("number", "5"),
        ("without_responses", "{'prompt': 'q'}"),
        ("words_for_scores", "Feedback([{'role': 'user', 'content': 'q'}], ['a'], 'own', scores=['high'])"),
    ],
)
def test_what_a_source_must_not_yield_is_refused_by_its_place(tmp_path: Path, name: str, row: str) -> None:
    text = f"@SOURCES.register('{name}')\ndef {name}(split):\n    yield {row}\n"
    with pytest.raises(HalosError, match=f"source {name}, row 1"):
        prepare(plugin_dataset(tmp_path, text, name), *outputs(tmp_path))
    assert not list(tmp_path.glob("*.parquet*"))


def test_a_dict_of_a_records_fields_with_numbers_of_numpy_is_a_record(tmp_path: Path) -> None:
    text = (
        "import numpy as np\n"
        "@SOURCES.register('by_dict')\n"
        "def by_dict(split):\n"
        "    prompt = [{'role': 'user', 'content': split}]\n"
        "    yield {'prompt': prompt, 'responses': ('a', 'b'), 'scores': np.array([1, 2]), 'desirable': [1, 0]}\n"
    )
    prepare(plugin_dataset(tmp_path, text, "by_dict"), *outputs(tmp_path))
    [found] = feedback.read(tmp_path / "train.parquet")
    assert (found.scores, found.desirable, found.source) == ([1.0, 2.0], [True, False], "by_dict")
