"""The sequence store of a dataset and a model: every distinct text tokenised once, and the views as index tables.

prompts.arrow            ids of each templated prompt, one row however many records have it
responses.arrow          ids of each response, end-of-turn token last
sequences.parquet        (prompt, response, length): the first `length` ids of a response after a prompt. Everything
                         downstream names a sequence by its row here. Real responses come first, then mismatched
                         ones (x_i with y_j, j != i), which cost no ids of their own.
{split}_{view}.parquet   sft (sequence) · paired (chosen, rejected) · grouped (sequences, scores)
                         · unpaired (sequence, desirable, score, mismatched): responses with a label or a score, read
                         as the view unpaired (those with a label) or scored (those with a score)
meta.json                hashes of the content and of the template, and how many rows there are of everything
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from halos.config import read_slice
from halos.data import feedback
from halos.data.feedback import Feedback
from halos.data.template import Template
from halos.errors import HalosError
from halos.provenance import hash_files, write_json

SPLITS = ("train", "test")
VIEWS = {
    "sft": pa.schema({"sequence": pa.int32()}),
    "paired": pa.schema({"chosen": pa.int32(), "rejected": pa.int32()}),
    "unpaired": pa.schema(
        {"sequence": pa.int32(), "desirable": pa.bool_(), "score": pa.float64(), "mismatched": pa.int32()}
    ),
    "grouped": pa.schema({"sequences": pa.list_(pa.int32()), "scores": pa.list_(pa.float64())}),
}
"""Each view's index table. That of `unpaired` also serves `scored`."""
HAVING = {"unpaired": "desirable", "scored": "score"}
"""The column of the unpaired table in which a row of the view has a value."""
IDS = pa.schema({"ids": pa.list_(pa.int32())})


class Store:
    """A sequence store on disk, memory-mapped.

    Args:
        folder: what `tokenize` wrote.

    Attributes:
        lengths: (N, 2) int32, the prompt's and the response's number of tokens of each sequence.
        n_responses: sequences below this row hold real responses, those from it on are mismatched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise HalosError(f"there is no sequence store in {folder}; make it with `python -m halos tokenize`")
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        self.n_responses: int = self.meta["n_responses"]
        self._prompts = _mapped(self.folder / "prompts.arrow")
        self._responses = _mapped(self.folder / "responses.arrow")
        table = pq.read_table(self.folder / "sequences.parquet", memory_map=True)
        self._rows = np.stack([table["prompt"].to_numpy(), table["response"].to_numpy()], axis=1)
        self.lengths = np.stack([table["prompt_length"].to_numpy(), table["length"].to_numpy()], axis=1)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def hash(self) -> str:
        return str(self.meta["hash"])

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(prompt ids, response ids), int32, of one sequence."""
        prompt, response = self._rows[row]
        return (
            self._prompts[int(prompt)].values.to_numpy(),
            self._responses[int(response)].values.to_numpy()[: self.lengths[row, 1]],
        )

    def prompt_of(self, rows: np.ndarray) -> np.ndarray:
        """(N,) the prompt's row of each sequence: equal where sequences have the same prompt."""
        prompts: np.ndarray = self._rows[rows, 0]
        return prompts

    def view(self, split: str, name: str) -> pa.Table:
        """The index table of a view: sft, paired, grouped, unpaired (`score` null where there is none) or scored
        (`desirable` null where there is none).

        Raises:
            HalosError: the dataset has nothing for it.
        """
        table = pq.read_table(self.folder / f"{split}_{'unpaired' if name in HAVING else name}.parquet")
        if name in HAVING:
            table = table.filter(table[HAVING[name]].is_valid())
        if not table.num_rows:
            has = ", ".join(v for v, count in self.meta["views"][split].items() if count) or "none"
            raise HalosError(
                f"dataset {self.meta['dataset']} has no rows for the {name} view in its {split} split (it has {has}): "
                f"{_WANTS[name]}"
            )
        return table


_WANTS = {
    "sft": "give its records a target, or leave out losses that imitate one",
    "paired": "give its records pairs, or use a loss that takes unpaired feedback",
    "unpaired": "give its responses desirable labels, label them by their scores (label_by), or use another loss",
    "scored": "give its records scores, or use what reads labels (no label_by, another loss)",
    "grouped": "give its records scores, or use another loss",
}


def _mapped(path: Path) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["ids"]


def check(store: Path, views: Iterable[str], output: Path) -> None:
    """The verb: refuse, before anything is trained, a store that lacks a view which some cell of the grid needs."""
    opened = Store(store)
    needed = sorted(set(views))
    for name in needed:
        for split in SPLITS:
            opened.view(split, name)
    write_json(output, {"views": needed})


def tokenize(config: Path, train: Path, test: Path, model: Path, output: Path, report: Path) -> None:
    """The verb: make the store, of the train split, and of a fixed subset of the test split for evaluation.

    Args:
        config: slice with `dataset`, `max_length`, `max_prompt_length`, `eval_examples`.
        train, test: feedback parquet files.
        model: folder with the tokenizer and its chat template.
        output: the store's folder.
        report: JSON of lengths, truncations and drops, by split.
    """
    from transformers import AutoTokenizer

    settings = read_slice(config)
    template = Template(AutoTokenizer.from_pretrained(model))
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    builder = _Builder(temporary, template, settings["max_length"], settings["max_prompt_length"])
    found = {"train": builder.add("train", feedback.read(train)),
             "test": builder.add("test", _subset(test, settings["eval_examples"]))}  # fmt: skip
    counts = builder.finish()
    meta = {**settings, "template": template.hash, **counts}
    meta["hash"] = hash_files(temporary.iterdir())
    write_json(temporary / "meta.json", meta)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    write_json(report, {**meta, **found})
    for split, facts in found.items():
        print(f"{split}: " + ", ".join(f"{k} {v}" for k, v in facts.items() if not isinstance(v, dict)))
        for reason, count in facts["dropped"].items():
            print(f"{split}: dropped {count} ({reason})")


def _subset(path: Path, limit: int) -> Iterator[Feedback]:
    """The records with the `limit` smallest prompt ids: a fixed, random-like subset that mixes all sources."""
    ids = sorted(set(pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()))[:limit]
    wanted = set(ids)
    return (record for record in feedback.read(path) if record.prompt_id in wanted)


class _Builder:
    """Writes a store record by record; what stays in memory is a digest per prompt and a few integers per sequence."""

    def __init__(self, folder: Path, template: Template, max_length: int, max_prompt_length: int) -> None:
        self.folder, self.template = folder, template
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.prompts = pa.ipc.new_file(str(folder / "prompts.arrow"), IDS)
        self.responses = pa.ipc.new_file(str(folder / "responses.arrow"), IDS)
        self.prompt_rows: dict[bytes, int] = {}  # by prompt id: records of one prompt share its row
        self.prompt_lengths = array("i")  # of each prompt
        self.prompt = array("i")  # of each sequence: its prompt's row; a real response has its sequence's own row
        self.full_lengths = array("i")  # of each response
        self.keys = array("Q")  # of each sequence: a hash of prompt and response, which draws the mismatched ones
        self.views: dict[str, dict[str, list[Any]]] = {s: {v: [] for v in VIEWS} for s in SPLITS}

    def add(self, split: str, records: Iterator[Feedback], chunk: int = 1_000) -> dict[str, Any]:
        """Add a split; returns its counts for the report."""
        dropped: Counter[str] = Counter()
        counts: Counter[str] = Counter(records=0, prompts_with_dropped_turns=0, truncated_responses=0)
        first = len(self.prompt)
        bar = tqdm(desc=f"tokenize {split}", unit=" records", mininterval=1)
        while block := list(islice(records, chunk)):
            prompts = self.template.prompts([r.prompt for r in block], self.max_prompt_length)
            kept = []
            for record, prompt in zip(block, prompts, strict=True):
                if prompt.ids is None:
                    dropped["the last user turn alone is longer than max_prompt_length"] += 1
                else:
                    counts["prompts_with_dropped_turns"] += prompt.dropped_turns > 0
                    kept.append((record, prompt.ids))
            texts = self.template.responses([text for record, _ in kept for text in record.responses])
            self.responses.write_table(pa.table({"ids": texts}, IDS))
            self.full_lengths.extend(map(len, texts))
            new = []
            for record, ids in kept:
                prompt_id = record.prompt_id
                row = self.prompt_rows.setdefault(bytes.fromhex(prompt_id), len(self.prompt_lengths))
                if row == len(self.prompt_lengths):
                    new.append(ids)
                    self.prompt_lengths.append(len(ids))
                self._index(split, record)
                self.prompt.extend([row] * len(record.responses))
                self.keys.extend(_key(prompt_id, text) for text in record.responses)
            self.prompts.write_table(pa.table({"ids": new}, IDS))
            counts["records"] += len(block)
            bar.update(len(block))
        bar.close()
        rows = np.arange(first, len(self.prompt))
        lengths = self._lengths(self._prompt_of(rows), rows)
        full = np.asarray(self.full_lengths)[rows]
        counts["truncated_responses"] = int((lengths[:, 1] < full).sum())
        quantiles = {"prompt": _quantiles(lengths[:, 0]), "response": _quantiles(full)}
        return {**counts, "sequences": len(rows), "dropped": dict(dropped), "length_quantiles": quantiles}

    def _index(self, split: str, record: Feedback) -> None:
        """Enter a record, whose first response will be sequence len(self.prompt), into the views."""
        views, first = self.views[split], len(self.prompt)
        if record.target is not None:
            views["sft"].append((first + record.target,))
        views["paired"] += [(first + winner, first + loser) for winner, loser in record.pairs]
        n = len(record.responses)
        labels = record.desirable or [None] * n
        scores: list[Any] = record.scores or [None] * n
        for j, (label, score) in enumerate(zip(labels, scores, strict=True)):
            if label is not None or score is not None:
                views["unpaired"].append((first + j, label, score))
        if record.scores:
            views["grouped"].append((list(range(first, first + n)), list(record.scores)))

    def _prompt_of(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.asarray(self.prompt)[rows]
        return found

    def _lengths(self, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of prompt and response, the response cut to what max_length leaves it."""
        prompt = np.asarray(self.prompt_lengths)[prompts]
        response = np.minimum(np.asarray(self.full_lengths)[responses], self.max_length - prompt)
        return np.stack([prompt, response], axis=1)

    def finish(self) -> dict[str, Any]:
        """Draw the mismatched sequences, write everything, and return the counts for meta.json."""
        self.prompts.close()
        self.responses.close()
        n = len(self.prompt)
        prompts, responses = [np.asarray(self.prompt)], [np.arange(n)]
        for split in SPLITS:
            columns = list(zip(*self.views[split]["unpaired"], strict=True)) or [(), (), ()]
            rows = np.array(columns[0], dtype=np.int64)
            other = mismatch(self._prompt_of(rows), np.asarray(self.keys)[rows])
            if other is None:  # a split with a single prompt has nothing to mismatch
                self.views[split]["unpaired"] = []
                continue
            first = sum(map(len, prompts))
            prompts.append(self._prompt_of(rows))
            responses.append(rows[other])
            mismatched = range(first, first + len(rows))
            self.views[split]["unpaired"] = list(zip(*columns, mismatched, strict=True))
        prompt, response = np.concatenate(prompts), np.concatenate(responses)
        lengths = self._lengths(prompt, response)
        table = {"prompt": prompt, "response": response, "prompt_length": lengths[:, 0], "length": lengths[:, 1]}
        pq.write_table(pa.table({k: v.astype(np.int32) for k, v in table.items()}), self.folder / "sequences.parquet")
        views: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            for view, schema in VIEWS.items():
                columns = list(zip(*self.views[split][view], strict=True)) or [()] * len(schema)
                arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
                index = pa.table(arrays, schema=schema)
                pq.write_table(index, self.folder / f"{split}_{view}.parquet")
                having = HAVING if view == "unpaired" else {view: schema.names[0]}
                views[split] |= {v: index.num_rows - index[column].null_count for v, column in having.items()}
        return {"n_prompts": len(self.prompt_lengths), "n_responses": n, "n_sequences": len(prompt), "views": views}


def mismatch(prompts: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """For each example i another one j != i whose response is paired with i's prompt; None if there is no other prompt.

    Examples stand in a circle in the order of their hashes; each takes its next neighbour with another prompt. So the
    draw depends on nothing but the examples: it is the same for every seed, epoch, process count and loss.

    Args:
        prompts: (N,) the prompt of each example.
        keys: (N,) uint64 hash of each example's prompt and response.
    """
    if len(np.unique(prompts)) < 2:
        return None
    order = np.argsort(keys, kind="stable")
    partner = np.roll(order, -1)
    step = 1
    while (clash := prompts[partner] == prompts[order]).any():
        step += 1
        partner = np.where(clash, np.roll(order, -step), partner)
    result = np.empty_like(order)
    result[order] = partner
    return result


def _key(prompt_id: str, response: str) -> int:
    text = prompt_id + "\0" + response
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _quantiles(values: np.ndarray) -> dict[str, int]:
    if not len(values):
        return {}
    return {str(q): int(np.quantile(values, q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)}
