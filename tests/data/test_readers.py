"""Files of every format give the same rows, whatever they are called, and a path may name many."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard

from halos.data.feedback import Feedback
from halos.data.paths import SPLITS, all_files
from halos.data.readers import Malformed, read_rows
from halos.data.settings import Source
from halos.data.sources.hh import hh
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import comparisons, write_lines

ROWS = [{"prompt": f"Is {i}, “so”\nbig?", "completion": f"yes {i};\tno", "label": i % 2 == 0} for i in range(700)]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CUT = JSON_LINES.index(b"\n") + 1
Write = Callable[[Path], object]


def as_csv(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def bytes_of(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


FILES: dict[str, Write] = {
    "a.jsonl": bytes_of(JSON_LINES),
    "bom.jsonl": bytes_of(b"\xef\xbb\xbf" + JSON_LINES),
    "windows.jsonl": bytes_of(b"\xef\xbb\xbf\r\n" + JSON_LINES.replace(b"\n", b"\r\n")),
    "A.JSONL": bytes_of(JSON_LINES),
    "a.ndjson": bytes_of(JSON_LINES),
    "lines.json": bytes_of(JSON_LINES),
    "no_suffix": bytes_of(JSON_LINES),
    "a.txt": bytes_of(JSON_LINES),
    "array.json": bytes_of(json.dumps(ROWS, indent=2).encode()),
    "array.jsonl": bytes_of(b"\xef\xbb\xbf " + json.dumps(ROWS).encode()),
    "a.csv": bytes_of(as_csv(",")),
    "bom.CSV": bytes_of(b"\xef\xbb\xbf" + as_csv(",")),
    "semicolons.csv": bytes_of(as_csv(";")),
    "a.tsv": bytes_of(as_csv("\t")),
    "a.csv.gz": bytes_of(gzip.compress(as_csv(","))),
    "a.jsonl.gz": bytes_of(gzip.compress(JSON_LINES[:9000]) + gzip.compress(JSON_LINES[9000:])),
    "a.json.bz2": bytes_of(bz2.compress(JSON_LINES)),
    "a.jsonl.xz": bytes_of(lzma.compress(JSON_LINES)),
    "a.jsonl.zst": bytes_of(zstandard.compress(JSON_LINES[:9000]) + zstandard.compress(JSON_LINES[9000:])),
    "array.JSON.ZST": bytes_of(zstandard.compress(json.dumps(ROWS).encode())),
    "misnamed.jsonl": bytes_of(gzip.compress(JSON_LINES)),
    "a.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "misnamed.json": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.arrow": as_stream,
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
    "folder": lambda path: (path.mkdir(), (path / "b").mkdir(), (path / "README.md").write_text("x"),
                            (path / "a.jsonl").write_bytes(JSON_LINES[:CUT]), (path / ".d.jsonl").write_text("{"),
                            (path / "b/c.jsonl.gz").write_bytes(gzip.compress(JSON_LINES[CUT:]))),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path), num_shards=2),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FILES[name](path)
    found = list(local("train", path={"train": str(path), "test": str(path)}))
    assert found == [
        Feedback([{"role": "user", "content": row["prompt"]}], [row["completion"]], "local", [], [], [row["label"]],
                 0 if row["label"] else None)
        for row in ROWS
    ]  # fmt: skip


def test_lists_and_turns_are_cells_of_csv(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "yes"}]
    record = {"prompt": json.dumps(turns[:1]), "responses": '["a", "b"]', "scores": "[1, 0]", "pairs": "[[0, 1]]"}
    for row, responses in (
        ({"messages": json.dumps(turns)}, ["yes"]),
        ({"messages": str(turns)}, ["yes"]),
        (record, ["a", "b"]),
    ):
        path = tmp_path / "f.csv"
        with path.open("w") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        [found] = local("train", path={"train": str(path), "test": str(path)})
        assert isinstance(found, Feedback)
        assert (found.prompt, found.responses) == (turns[:1], responses)
        path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK\x03\x04", "a.xlsx is of no format that is read; give it as JSON or JSON Lines"),
        ("a.txt", b"Why? yes", "a.txt is of no format that is read"),
        ("a.jsonl", '{"prompt": "é"}'.encode("latin-1"), "a.jsonl cannot be read .*it must be JSON, JSON Lines or CSV"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "a.jsonl cannot be read"),
        ("a.zst", zstandard.compress(JSON_LINES)[:-50], "a.zst cannot be read"),
        ("a.jsonl.zst", zstandard.compress(JSON_LINES)[:-50], "a.jsonl.zst cannot be read"),
        ("a.json.xz", lzma.compress(JSON_LINES)[:-50], "a.json.xz cannot be read"),
        ("a.json.bz2", bz2.compress(JSON_LINES)[:-50], "a.json.bz2 cannot be read"),
        ("a.json", json.dumps(ROWS).encode()[:-9], "a.json cannot be read .no JSON"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read .*it must be a parquet file"),
        ("a.arrow", b"ARROW1", "a.arrow cannot be read .*it must be an Arrow file"),
        ("a.csv", b"a,a\n1,2\n", "a.csv cannot be read .its header has the column 'a' twice"),
        ("a.csv", b"prompt,completion\nq,a,b\n", "row 1, 3 cells under 2 names"),
        ("a.json", b'{"prompt": {"0": "q"}, "completion": {"0": "a"}}', "row 1, columns, not rows; write rows"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl cannot be read"),
        ("a.jsonl", b'{"a":' * 100_000, "row 1, no JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "row 1, no JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HalosError, match=message) as caught:
        local("train", path=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_what_pandas_writes_is_read_and_its_missing_labels_are_none(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": list("abc"), "completion": list("xyz"), "label": [1.0, float("nan"), 0.0]})
    frame.to_parquet(tmp_path / "f.parquet")
    frame.to_json(tmp_path / "f.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "f.json", orient="records")
    frame.to_csv(tmp_path / "f.csv")
    frame.to_feather(tmp_path / "f.feather")
    for file in sorted(tmp_path.glob("f.*")):
        records = local("train", path={"train": str(file), "test": str(file)})
        found = [row.desirable if isinstance(row, Feedback) else row.reason for row in records]
        assert sorted(found, key=str) == [[False], [True], "no label"]
        assert records.unread_fields == ({"column 1": 2} if file.suffix == ".csv" else {})


def test_json_is_numbered_by_lines_and_streamed(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('\n{"a": 1}\n\n{b\n{"a": 2}\n')
    (first, *_), (second, broken), (third, _) = read_rows(path)
    assert (first, second, third) == (2, 4, 5)
    assert isinstance(broken, Malformed)


# ---- paths


def files(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(folder / name, [{"prompt": name, "completion": "a"}])
    return str(folder)


def prompts(path: Any, split: str = "train") -> list[str]:
    records = local(split, path=path, test_fraction=0)
    return [r.prompt[0]["content"] for r in records if isinstance(r, Feedback)]


def test_a_path_is_a_file_a_list_a_pattern_a_folder_or_one_of_these_for_each_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files(tmp_path / "data", "a.jsonl", "b.jsonl", "c/d.jsonl")
    root = f"{tmp_path}/data"
    assert prompts("~/data/b.jsonl") == ["b.jsonl"]
    assert prompts([f"{root}/b.jsonl", f"{root}/a.jsonl"]) == ["b.jsonl", "a.jsonl"]
    assert prompts("~/data/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert prompts(root) == prompts(f"{root}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "c/d.jsonl"]
    each: dict[str, Any] = {"train": [f"{root}/a.jsonl", f"{root}/c"], "test": "~/data/b*"}
    assert (prompts(each), prompts(each, "test")) == (["a.jsonl", "c/d.jsonl"], ["b.jsonl"])
    source = Source(name="local", options={"path": each})
    assert source.files == [f"{root}/a.jsonl", f"{root}/c/d.jsonl", f"{root}/b.jsonl"]
    assert all_files("results/later.parquet") == ["results/later.parquet"]  # a rule may make it


def test_a_name_with_the_signs_of_a_pattern_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    files(tmp_path, "a[1].jsonl")
    assert prompts(f"{tmp_path}/a[1].jsonl") == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", "there is no file .*nowhere.jsonl; correct its `path`"),
        ("no*.jsonl", r"there is no file .*no\*.jsonl"),
        ("empty", "there is no file in .*empty that is read"),
        ("mixed", r"mixed holds files of several splits \(d-test.jsonl, d-train.jsonl\); say which are which"),
        ("mixed/*.jsonl", "holds files of several splits"),
        ("partly", "holds files of several splits"),
        ([], "`path` names no file"),
        (
            {"train": "a", "dev": "b"},
            "`path` takes files of all splits, or some for each of train, validation and test",
        ),
    ],
)
def test_a_path_that_names_no_files_or_mixes_splits_is_refused(path: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files(tmp_path / "mixed", "d-train.jsonl", "d-test.jsonl")
    files(tmp_path / "partly", "a.jsonl", "a_validation.jsonl")
    with pytest.raises(HalosError, match=message):
        prompts(f"{tmp_path}/{path}" if isinstance(path, str) else path)


def test_the_splits_of_a_saved_dataset_are_those_of_its_folder(tmp_path: Path) -> None:
    def saved(name: str, *splits: str) -> str:
        folder = str(tmp_path / name)
        rows = {split: datasets.Dataset.from_list([{"prompt": split, "completion": "a"}]) for split in splits}
        datasets.DatasetDict(rows).save_to_disk(folder)
        return folder

    both = saved("both", "train", "test", "validation")
    assert [prompts(both, split) for split in SPLITS] == [["train"], ["validation"], ["test"]]
    assert prompts(saved("one", "train_sft")) == ["train_sft"]
    with pytest.raises(HalosError, match="has the splits train_sft, test_sft; name the folders of two: path:"):
        prompts(saved("named", "train_sft", "test_sft"))


def test_published_datasets_are_read_from_such_paths_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", comparisons(4))
    (tmp_path / "b.ndjson.zst").write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    both = list(hh("train", path=str(tmp_path), test_fraction=0))
    assert len(both) == 8
    assert both[:4] == both[4:] == list(hh("train", path=[f"{tmp_path}/a.jsonl"], test_fraction=0))
