"""Rows come whole from files and from the hub, and every row that is left out is counted."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from halos.data.feedback import Feedback
from halos.data.hub import Hub
from halos.data.pairs import joined, labelled
from halos.data.rows import LAYOUT_ROWS, Drop, Records, asked, only, split_key, table
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import comparisons, dialogue, write_lines
from tests.data.hub import serve
from tests.data.published import alpacaeval_row, armorm_row, write_parquet

# ---- files


class Columns(BaseModel):
    q: str
    a: str
    note: str | None = None


def record(row: Columns) -> Feedback | Drop:
    return Feedback(asked(row.q), [row.a], "s", target=0)


def read(path: str | dict[str, str], split: str = "test", test_fraction: float | None = None) -> list[Feedback | Drop]:
    nowhere = Hub("none/none", "main", "*")
    return list(table("s", Columns, split, nowhere, path, test_fraction).records(record))


def rows(n: int) -> list[dict[str, Any]]:
    return [{"q": f"q{i}", "a": f"a{i}", "other": i} for i in range(n)]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(json.dumps(rows(600), indent=1))
    elif name.endswith("parquet"):
        write_parquet(path, rows(600))
    else:
        write_lines(path, rows(600))
    found = read(str(path))
    assert [r.responses for r in found if isinstance(r, Feedback)] == [[f"a{i}"] for i in range(600)]


def test_odd_rows_are_dropped_with_a_reason_and_never_crash(tmp_path: Path) -> None:
    odd: list[tuple[Any, str]] = [
        ({"a": "a"}, "no q"),
        ({"q": None, "a": "a"}, "no q"),
        ({"q": ["text"], "a": "a"}, "q is malformed"),
        ({"q": "q", "a": 5}, "a is malformed"),
        ({"q": "q", "a": "\ud800"}, "half of a surrogate pair"),
        ({"q": "q", "a": "\U0001f600"}, ""),
        ({"q": "q", "a": "a", "note": {}}, "note is malformed"),
        ("text", "the row is no object"),
        ([], "the row is no object"),
        (None, "the row is no object"),
    ]
    path = write_lines(tmp_path / "t.jsonl", [*(row for row, _ in odd), *rows(1)])
    good = [Feedback(asked(q), [a], "s", target=0) for q, a in (("q", "\U0001f600"), ("q0", "a0"))]
    found = read(str(path))
    assert [r for r in found if isinstance(r, Feedback)] == good
    assert [r.reason for r in found if isinstance(r, Drop)] == [reason for _, reason in odd if reason]


def test_dropped_rows_belong_to_one_split(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "t.jsonl", [*rows(100), *({"q": f"q{i}"} for i in range(100))]))
    train, test = read(path, "train", 0.3), read(path, "test", 0.3)
    assert len(train) + len(test) == 200
    for found in (train, test):
        assert 0 < found.count(Drop("no a")) < 100


def test_a_file_of_another_layout_is_refused_and_names_the_columns_it_lacks(tmp_path: Path) -> None:
    files = [
        str(write_lines(tmp_path / "t.jsonl", [{"q": "q", "text": "a"}] * 3)),
        write_parquet(tmp_path / "t.parquet", [{"q": "q", "text": "a"}]),
        write_parquet(tmp_path / "u.parquet", [{"text": "a"}]),
    ]
    for path, lacks in zip(files, ("a", "a", "q, a"), strict=True):
        with pytest.raises(HalosError, match=rf"source s: .*{Path(path).name} has no {lacks};"):
            read(path)


def test_a_column_of_a_later_row_makes_the_layout_right(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [*[{"q": "q"}] * (LAYOUT_ROWS - 1), *rows(2)])
    assert read(str(path)).count(Drop("no a")) == LAYOUT_ROWS - 1


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.parquet", "t.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(HalosError, match=rf"{name} cannot be read"):
        read(str(tmp_path / name))


def test_a_source_of_one_split_takes_a_single_file_whole(tmp_path: Path) -> None:
    assert len(read(str(write_lines(tmp_path / "t.jsonl", rows(50))))) == 50


def test_a_source_of_one_split_yields_nothing_for_the_other_and_says_which_it_has() -> None:
    @only("test")
    def source(split: str, *, path: str = "") -> Records:
        return Records([Feedback(asked(split), [path], "s")])

    assert list(source("train", path="x")) == []
    assert len(list(source("test", path="x"))) == 1
    assert getattr(source, "splits", None) == ("test",)
    assert list(inspect.signature(source).parameters) == ["split", "path"]


# ---- joining and labels


def comparison(prompt: str, winner: str, loser: str, **fields: Any) -> Feedback:
    return Feedback(asked(prompt), [winner, loser], "s", pairs=[(0, 1)], target=0, **fields)


def test_adjacent_rows_of_a_prompt_become_one_record() -> None:
    a = [comparison("p", "x", "y", scores=[3.0, 1.0]), comparison("p", "z", "x", scores=[9.0, 4.0])]
    b = comparison("q", "x", "y", scores=[2.0, 1.0])
    again = comparison("p", "y", "z", scores=[1.0, 9.0])
    repeat = comparison("p", "x", "y", scores=[5.0, 1.0])
    found = list(joined([*a, Drop("odd"), repeat, b, again]))
    prompt = asked("p")
    assert found == [
        Drop("odd"),
        Drop("pair repeats one of the same prompt"),
        Feedback(prompt, ["x", "y", "z"], "s", scores=[3.0, 1.0, 9.0], pairs=[(0, 1), (2, 0)], target=0),
        b,
        again,
    ]


def test_an_unsound_row_does_not_spoil_what_it_would_be_joined_to() -> None:
    good, empty = comparison("p", "x", "y"), comparison("p", " ", "y")
    assert list(joined([good, empty])) == [Drop("empty response"), good]


def test_joining_streams() -> None:
    def endless() -> Any:
        i = 0
        while True:
            yield comparison(str(i), "x", "y")
            i += 1

    assert next(joined(endless())) == comparison("0", "x", "y")


def test_a_response_that_wins_and_loses_has_no_label_or_both() -> None:
    record = Feedback(asked("p"), ["x", "y", "z", "u"], "s", scores=[3.0, 1.0, 9.0, 0.0], pairs=[(0, 1), (2, 0)])
    assert labelled(record).desirable == [None, False, True, None]
    both = labelled(record, both_labels=True)
    assert both.responses == ["x", "y", "z", "u", "x"]
    assert both.desirable == [True, False, True, None, False]
    assert (both.scores, both.pairs) == ([3.0, 1.0, 9.0, 0.0, 3.0], record.pairs)
    assert both.problem() is None
    assert labelled(Feedback(asked("p"), ["x"], "s")).desirable == []


# ---- the hub

A, B, PARTLY, BARE = (letter * 40 for letter in "abcd")


def hh_files(word: str) -> dict[str, bytes]:
    def lines(folder: str) -> bytes:
        return gzip.compress("".join(json.dumps(row) + "\n" for row in comparisons(2)).replace("good", word).encode())

    names = [
        f"{folder}/{split}.jsonl.gz" for folder in ("helpful-base", "harmless-base") for split in ("train", "test")
    ]
    return {"README.md": b"---\nlicense: mit\n---\n", **{name: lines(name) for name in names}}


CLIENT = """
import json, sys
import halos.data.sources
from halos.registry import SOURCES
from halos.data.sources.local import local
from halos.errors import HalosError
for name, split, options in json.loads(sys.argv[1]):
    try:
        records = SOURCES[name](split, **options)
        print(json.dumps([[r.responses[0] for r in records], records.origin]))
    except HalosError as error:
        print(json.dumps(str(error)))
assert "datasets" not in sys.modules
"""

Load = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load([source, split, options], ...) in a process of its own; the cache was filled while the hub was up."""
    home = tmp_path_factory.mktemp("hub")
    parquet = home / "f.parquet"
    armorm = {}
    for split in ("train", "test"):
        write_parquet(parquet, [armorm_row(split, ["good", "bad"], [2.0, 1.0])])
        armorm[f"data/{split}-00000-of-00001.parquet"] = parquet.read_bytes()
    datasets = {
        "Anthropic/hh-rlhf": {A: hh_files("old"), PARTLY: hh_files("partly"), B: hh_files("new")},
        "tatsu-lab/alpaca_eval": {
            A: {"alpaca_eval.py": b"raise", "alpaca_eval.json": json.dumps([alpacaeval_row("i", "o")]).encode()}
        },
        "princeton-nlp/llama3-ultrafeedback-armorm": {A: armorm},
    }

    def run(*loads: Any, **environment: str) -> list[Any]:
        own = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
        environment = {**os.environ, **own, **environment}
        command = [sys.executable, "-c", CLIENT, json.dumps(loads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with serve(datasets) as address:
        first = run(*ONLINE, HF_ENDPOINT=address)
    assert first == FOUND  # address: of a server that is gone from now on
    return lambda *loads, **environment: run(*loads, **{"HF_ENDPOINT": address, **environment})


def hh_at(revision: str) -> list[Any]:
    return ["hh", "train", {"revision": revision}]


def hh_found(word: str, commit: str, n: int = 4) -> list[Any]:
    return [[f"{word} 0", f"{word} 1"] * (n // 2), {"hub": "Anthropic/hh-rlhf", "commit": commit}]


ONLINE = [
    hh_at(A),
    hh_at("main"),
    ["hh_helpful", "train", {"revision": PARTLY}],
    ["alpacaeval", "test", {"revision": A}],
    ["ultrafeedback_armorm", "test", {"revision": A}],
]
FOUND = [
    hh_found("old", A),
    hh_found("new", B),
    hh_found("partly", PARTLY, 2),
    [["o"], {"hub": "tatsu-lab/alpaca_eval", "commit": A}],
    [["good"], {"hub": "princeton-nlp/llama3-ultrafeedback-armorm", "commit": A}],
]


def test_what_was_loaded_once_loads_without_the_hub(load: Load) -> None:
    assert load(*ONLINE) == FOUND


def test_what_was_loaded_once_loads_in_offline_mode(load: Load) -> None:
    assert load(*ONLINE, HF_HUB_OFFLINE="1") == FOUND


def test_offline_no_other_commit_and_no_part_of_one_is_taken_for_the_whole(load: Load) -> None:
    other, partly = load(hh_at("e" * 40), hh_at(PARTLY), HF_HUB_OFFLINE="1")
    for error in (other, partly):
        assert error.startswith("source hh: Anthropic/hh-rlhf cannot be loaded from the hub")
        assert "`path:`" in error


def test_a_commit_without_the_files_is_refused(load: Load) -> None:
    datasets = {"Anthropic/hh-rlhf": {BARE: {"README.md": b""}}}
    with serve(datasets) as address:
        (error,) = load(hh_at(BARE), HF_ENDPOINT=address)
    assert error == (
        f"source hh: Anthropic/hh-rlhf has no file */train.jsonl.gz at commit {BARE}; choose another revision"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        dialogue("Who was Ada?", "A mathematician.", "Of what?"),
        dialogue("Who was Ada?", system="Be brief."),
        dialogue("  who was\nAda?! "),
        dialogue("ＷＨＯ was Ada？"),
        dialogue("“Who was Ada?”"),
    ],
)
def test_all_depths_and_spellings_of_a_conversation_have_one_split_key(prompt: list[dict[str, str]]) -> None:
    assert split_key(prompt) == split_key(dialogue("Who was Ada?"))


def test_conversations_of_other_first_words_have_other_split_keys() -> None:
    texts = ["What is C", "What is C++?", "What is C#?", "5 %", "5 $", "???", "!!!", "3"]
    assert len({split_key(dialogue(text)) for text in texts}) == len(texts)
    assert split_key([{"role": "assistant", "content": "Hi."}]) != split_key([{"role": "assistant", "content": "Ho."}])


def test_a_named_group_decides_the_split_in_place_of_the_conversation() -> None:
    first, second = dialogue("a"), dialogue("b")
    assert split_key(first, "user 7") == split_key(second, "user 7") != split_key(first, "user 8")


def test_a_test_fraction_of_0_puts_every_row_into_train(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", rows(50)))
    assert len(read(path, "train", 0)) == 50
    assert read(path, "test", 0) == []


def test_a_category_is_the_source_of_its_rows_and_is_never_joined_with_another(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "yes", "rejected": other, "subset": subset, "id": 7}
            for other, subset in (("no", "a"), ("never", "a"), ("no", 3.0))]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = local("test", path={"test": str(file)}, category="subset")
    assert [(record.source, record.pairs) for record in found] == [("a", [(0, 1), (0, 2)]), ("3", [(0, 1)])]
    assert set(found.unread_fields) == {"id"}
    file.write_text(json.dumps({**rows[0], "subset": None}) + "\n")
    with pytest.raises(HalosError, match="no field 'subset', which is its category"):
        list(local("test", path={"test": str(file)}, category="subset"))
