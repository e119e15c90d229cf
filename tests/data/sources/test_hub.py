"""Datasets of the hub in layouts that are read need no code: their files are found by their card or by their names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halos.cli import main
from halos.data.settings import Source
from tests.data.hub import serve
from tests.data.published import write_parquet

COMMIT = "a" * 40
CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train_sft
    path: data/train_sft-*
  - split: test_sft
    path: data/test_sft-*
- config_name: fr
  data_files: fr.jsonl
---
# A dataset
"""


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs(word: str, n: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"{word} {i}?", "chosen": f"{word} yes", "rejected": "no"} for i in range(n)]


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]}


CLIENT = """
import json, sys
import halos.data.sources
from halos.data.rows import Drop
from halos.cli import main
from halos.data.settings import Source
from halos.errors import HalosError
for part, options in json.loads(sys.argv[1]):
    try:
        records = Source(name="hub", options=options).open(part)
        found = [r.reason if isinstance(r, Drop) else r.responses[0] for r in records]
        print(json.dumps([found, records.origin["commit"]] if records.origin else found))
    except HalosError as error:
        print(json.dumps(str(error)))
assert "datasets" not in sys.modules
"""
Load = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load([part, options], ...) in a process of its own; what is not ONLINE was never downloaded."""
    home = tmp_path_factory.mktemp("hub")
    parquet = {}
    for split in ("train_sft", "test_sft"):
        write_parquet(home / "f.parquet", [chat(split)])
        parquet[f"data/{split}-00000-of-00001.parquet"] = (home / "f.parquet").read_bytes()
    datasets = {
        "me/carded": {COMMIT: {"README.md": CARD.encode(), **parquet, "fr.jsonl": lines(chat("oui"))}},
        "me/trl": {COMMIT: {"data/train-00000-of-00002.jsonl": lines(*pairs("a")), "loader.py": b"raise SystemExit",
                            "data/train-00001-of-00002.jsonl": lines(*pairs("b")),
                            "data/test.jsonl": lines(*pairs("t"))}},
        "me/alpaca": {COMMIT: {"alpaca.json": json.dumps([{"instruction": "q", "input": "", "output": "a"}]).encode(),
                               "README.md": b"---\n: : :\n---\n", "dev.json": b"[]"}},
        "me/renamed": {COMMIT: {"train.csv": b"ask,good,bad\nq,yes,no\nr,yes,\n"}},
        "me/subsets": {COMMIT: {"en/train.jsonl": lines(*pairs("en")), "de/train.jsonl": lines(*pairs("de"))}},
    }  # fmt: skip

    def run(*loads: Any, **environment: str) -> list[Any]:
        own = {"HF_HOME": str(home / "home"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", CLIENT, json.dumps(loads)]
        done = subprocess.run(command, env={**os.environ, **own, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with serve(datasets) as address:
        *first, last = run(*ONLINE, HF_ENDPOINT=address)
        assert first == FOUND
        assert last.startswith("source hub: me/trl has no file of a split 'validation' at commit aaaa")
    return lambda *loads: run(*loads, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")


BOTH = {"train": "train_sft", "test": "test_sft"}
ONLINE: list[Any] = [
    ["train", {"path": "me/carded", "split": BOTH}],
    ["test", {"path": "me/carded", "split": BOTH}],
    ["train", {"path": "me/carded", "subset": "fr", "test_fraction": 0}],
    ["test", {"path": "me/trl", "split": {"train": "train", "test": "test"}}],
    ["train", {"path": "me/trl", "test_fraction": 0}],
    ["test", {"path": "me/trl", "split": {"train": "train"}}],
    ["train", {"path": "me/alpaca", "test_fraction": 0, "revision": "main"}],
    ["train", {"path": "me/renamed", "test_fraction": 0,
               "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}}],
    ["train", {"path": "me/subsets", "subset": "de", "test_fraction": 0}],
    ["train", {"path": "me/carded"}],
    ["train", {"path": "me/carded", "subset": "nl"}],
    ["train", {"path": "me/trl", "split": "validation"}],
]  # fmt: skip
FOUND: list[Any] = [
    [["train_sft"], COMMIT],
    [["test_sft"], COMMIT],
    [["oui"], COMMIT],
    [["t yes"], COMMIT],
    [["a yes", "b yes"], COMMIT],
    [],
    [["a"], COMMIT],
    [["empty response", "yes"], COMMIT],
    [["de yes"], COMMIT],
    "source hub: me/carded has the splits train_sft, test_sft; name one by `split:`",
    "source hub: me/carded has the subsets default, fr; name one by `subset:`",
]


def test_files_are_found_by_the_card_or_by_their_names_and_again_offline(load: Load) -> None:
    assert load(*ONLINE[:-1]) == FOUND


def test_its_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "sources"])
    assert re.search("^hub +path, split, subset, revision, ", capsys.readouterr().out, re.MULTILINE)


def test_options_are_checked_with_those_of_the_function() -> None:
    source = Source(name="hub", options={"path": "me/trl", "split": "train_sft"})
    assert source.on_hub
    assert source.files == []
    assert source.splits == ("train", "validation", "test")
    assert Source(name="hub", options={"path": "me/trl", "split": {"train": "train"}}).splits == ("train",)
    with pytest.raises(ValueError, match="no option 'splits'; did you mean 'split'"):
        Source(name="hub", options={"path": "me/trl", "splits": "train"})
