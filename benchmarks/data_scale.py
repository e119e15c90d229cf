"""Time and memory of `prepare` and `tokenize` at 10k, 100k and 1M rows of preference data.

    python -m benchmarks.data_scale            # all three sizes: about 20 minutes on 2 cores, 5 GB of disk
    python -m benchmarks.data_scale --quick    # 1k and 10k: one minute

Rows are made up, the same on every machine, as long as those of Anthropic's HH: half of all conversations have at most
about 186 tokens, prompts have about twice the tokens of a response, and one to five user turns. They stand in a file
that the source `local` reads (prompt, chosen, rejected). The verbs run as a user runs them, each in a process of its
own, with a byte-level BPE tokenizer trained on the smallest size.

Prints a table and writes it to benchmarks/results/data_scale.csv: rows of the file, verb, seconds from start to end of
the process, rows_per_second, and peak_rss_mb, the most memory (MiB) resident at once in the process and its children.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from halos.data.paths import SPLITS
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.slices import config_slice

SIZES = (10_000, 100_000, 1_000_000)
QUICK = (1_000, 10_000)
RESULTS = Path(__file__).parent / "results/data_scale.csv"
COLUMNS = ("rows", "verb", "seconds", "rows_per_second", "peak_rss_mb")
BLOCK = 1_000
SYLLABLES = [a + b for a in (*"bcdfghlmnprstw", "th", "st") for b in ("a", "e", "i", "o", "u", "ea", "ou")]


def vocabulary(rng: np.random.Generator, words: int = 20_000) -> list[str]:
    """Made-up words, the commonest first and shortest."""
    found: dict[str, None] = {}
    while len(found) < words:
        size = 1 + min(int(rng.integers(0, 2 + len(found) // 4_000)), 4)
        found["".join(rng.choice(SYLLABLES, size))] = None
    return list(found)


def rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` preferences {prompt, chosen, rejected}; one of 200 is there twice."""
    rng = np.random.default_rng(seed)
    words = vocabulary(rng)
    chances = 1 / np.arange(2, len(words) + 2)  # Zipf's law
    upto = np.cumsum(chances / chances.sum())
    last: dict[str, Any] = {}

    def texts(median: float, spread: float, number: int) -> Iterator[str]:
        lengths = np.clip(median * np.exp(spread * rng.standard_normal(number)), 3, 1_500).astype(int)
        drawn = iter(np.minimum(np.searchsorted(upto, rng.random(lengths.sum())), len(words) - 1).tolist())
        for length in lengths.tolist():
            chosen = [words[next(drawn)] for _ in range(length)]
            chosen[::9] = [word.capitalize() for word in chosen[::9]]
            chosen[8::9] = [word + "." for word in chosen[8::9]]
            yield " ".join(chosen)

    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        turns = np.minimum(rng.geometric(0.45, n), 5)
        users, replies = texts(22, 0.8, int(turns.sum())), texts(38, 0.8, int(turns.sum()) - n)
        answers = texts(38, 0.8, 2 * n)
        for number in range(n):
            prompt = []
            for turn in range(turns[number]):
                if turn:
                    prompt.append({"role": "assistant", "content": next(replies)})
                prompt.append({"role": "user", "content": next(users)})
            row = {"prompt": prompt, "chosen": next(answers), "rejected": next(answers)}
            last = last if number % 200 == 199 else row
            yield last


def catalogue(file: Path) -> C.Config:
    """A dataset of the file, and a model whose tokenizer is trained on it."""
    return C.load(
        {
            "grid": "g",
            "models": {
                "m": {
                    "architecture": {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
                                     "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
                    "tokenizer": {"train_on": "d", "vocab_size": 8192},
                    "template": "turns",
                }
            },
            "datasets": {
                "d": {"sources": [{"name": "local", "options": {"path": str(file), "test_fraction": 0.01}}],
                      "max_length": 1024, "max_prompt_length": 512, "eval_examples": 256}
            },
            "stages": {"dpo": {"loss": "dpo"}},
            "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": ["dpo"]}},
        }
    )  # fmt: skip


def measured(*arguments: str | Path) -> tuple[float, float]:
    """(seconds, MiB) of a verb of the package; ends with the verb's own message when it fails."""
    with tempfile.TemporaryFile("w+") as messages:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(
            [sys.executable, "-m", "halos", *map(str, arguments)], stdout=messages, stderr=messages
        )
        while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, resident(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(done[1])
        if process.returncode:
            messages.seek(0)
            sys.exit(f"halos {arguments[0]} failed:\n{messages.read()}")
    return seconds, max(peak, done[2].ru_maxrss * 1024) / 2**20  # a peak between two looks counts, too


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children have resident now."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # one of them has ended
        pass
    return total


def run(sizes: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Make the data of each size under `folder`, run the verbs on it, and give a row of COLUMNS for each."""
    model = folder / "model"
    for size in sizes:
        here = folder / str(size)
        here.mkdir()
        file, (train, validation, test) = here / "rows.jsonl", [here / f"{split}.parquet" for split in SPLITS]
        with file.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows(size))
        config = catalogue(file)
        slices = {}
        for name, key in (("prepare", "data/d"), ("model", "models/m"), ("tokenize", "tokens/d/m")):
            slices[name] = here / f"{name}.yaml"
            slices[name].write_text(dump(config_slice(config, key)))
        splits = ("--train", train, "--validation", validation)
        verbs = {
            "prepare": ("--config", slices["prepare"], *splits, "--test", test, "--report", here / "prepared.json"),
            "tokenize": ("--config", slices["tokenize"], *splits, "--model", model / "model",
                         "--output", here / "store", "--report", here / "tokenized.json"),
        }  # fmt: skip
        for verb, arguments in verbs.items():
            if verb == "tokenize" and not model.exists():
                measured("model", "--config", slices["model"], "--feedback", train, "--output", model)
            seconds, peak = measured(verb, *arguments)
            found = (size, verb, round(seconds, 1), round(size / seconds), round(peak))
            yield dict(zip(COLUMNS, found, strict=True))
        for path in (file, train):  # the next size needs the room
            path.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1k and 10k rows")
    parser.add_argument("--rows", type=int, nargs="+", help="other sizes")
    parser.add_argument("--folder", type=Path, help="where the data goes, and stays; by default a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV to write (%(default)s)")
    chosen = parser.parse_args(arguments)
    sizes = chosen.rows or (QUICK if chosen.quick else SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        with chosen.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            print(("{:>10}" * 2 + "{:>17}" * 3).format(*COLUMNS))
            for row in run(sizes, folder):
                writer.writerow(row)
                file.flush()
                print(("{:>10}" * 2 + "{:>17}" * 3).format(*row.values()), flush=True)


if __name__ == "__main__":
    main()
