"""Make a sequence store: every distinct text tokenised once, and the views as index tables."""

from __future__ import annotations

import hashlib
import math
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from halos.data.feedback import Feedback
from halos.files import hash_content, hash_each, hash_files, write_json
from halos.settings import read_slice
from halos.tokens.selection import shares
from halos.tokens.store import SPLITS, read_splits
from halos.tokens.template import Template
from halos.views import HAVING, VIEWS

IDS = pa.schema({"ids": pa.list_(pa.int32())})
RECORDS = pa.schema({"prompt_id": pa.string(), "digest": pa.binary(16)})
ROWS = 1_000
"""Rows of ids that are written at once."""


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
    found = {split: builder.add(split, records) for split, records in read_splits(settings, train, test).items()}
    fractions = {1: settings.get("keep_desirable", 1.0), 0: settings.get("keep_undesirable", 1.0)}
    builder.views["train"].keep(fractions)
    counts = builder.finish()
    meta = {**settings, "template": template.hash, **counts}
    meta["data"] = {split: hash_files([path]) for split, path in zip(SPLITS, (train, test), strict=True)}
    meta["files"] = hash_each(temporary)
    meta["hash"] = hash_content(meta["files"])
    write_json(temporary / "meta.json", meta)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    write_json(report, {**meta, **found})
    for split, facts in found.items():
        print(f"{split}: " + ", ".join(f"{k} {v}" for k, v in facts.items() if not isinstance(v, dict)))
        for reason, count in facts["dropped"].items():
            print(f"{split}: dropped {count} ({reason})")


class _Ids:
    """A file of token ids. Rows are written ROWS at a time, however many are added at once, so that equal rows make
    equal files."""

    def __init__(self, path: Path) -> None:
        self.writer = pa.ipc.new_file(str(path), IDS)
        self.waiting: list[list[int]] = []

    def add(self, ids: list[list[int]]) -> None:
        self.waiting += ids
        while len(self.waiting) >= ROWS:
            self._write()

    def _write(self) -> None:
        self.writer.write_table(pa.table({"ids": self.waiting[:ROWS]}, IDS))
        del self.waiting[:ROWS]

    def close(self) -> None:
        if self.waiting:
            self._write()
        self.writer.close()


class _Views:
    """The index tables of a split as they grow: a few numbers for each row."""

    def __init__(self) -> None:
        self.targets, self.chosen, self.rejected = array("i"), array("i"), array("i")
        self.sequence, self.desirable, self.score = array("i"), array("b"), array("d")  # without: -1 and NaN
        self.first, self.sizes, self.scores = array("i"), array("i"), array("d")  # a group's sequences are neighbours

    def add(self, first: int, record: Feedback) -> None:
        """Enter a record whose first response is sequence `first`."""
        if record.target is not None:
            self.targets.append(first + record.target)
        for winner, loser in record.pairs:
            self.chosen.append(first + winner)
            self.rejected.append(first + loser)
        for j in range(len(record.responses)):
            label = record.desirable[j] if record.desirable else None
            if label is not None or record.scores:
                self.sequence.append(first + j)
                self.desirable.append(-1 if label is None else label)
                self.score.append(record.scores[j] if record.scores else math.nan)
        if record.scores:
            self.first.append(first)
            self.sizes.append(len(record.scores))
            self.scores.extend(record.scores)

    def keep(self, fractions: Mapping[int, float]) -> None:
        """Leave a random share of the unpaired rows of either label (1 desirable, 0 not), the same in every call."""
        labels = np.asarray(self.desirable)
        kept = shares(labels, fractions, np.random.default_rng(0)).to_numpy(zero_copy_only=False)
        for name in ("sequence", "desirable", "score"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, np.asarray(column)[kept].tobytes()))

    def tables(self, mismatched: np.ndarray | None) -> dict[str, pa.Table]:
        """The table of each view; `mismatched` is the last column of the unpaired one, which is empty without it."""
        n = 0 if mismatched is None else len(mismatched)
        desirable, score = np.asarray(self.desirable)[:n], np.asarray(self.score)[:n]
        sizes = np.asarray(self.sizes, dtype=np.int64)
        ends = np.cumsum(sizes)
        sequences = np.arange(sizes.sum()) + np.repeat(np.asarray(self.first) - (ends - sizes), sizes)
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        columns = {
            "sft": [self.targets],
            "paired": [self.chosen, self.rejected],
            "unpaired": [
                np.asarray(self.sequence)[:n],
                pa.array(desirable == 1, mask=desirable < 0),
                pa.array(score, mask=np.isnan(score)),
                [] if mismatched is None else mismatched,
            ],
            "grouped": [
                pa.ListArray.from_arrays(offsets, pa.array(sequences, pa.int32())),
                pa.ListArray.from_arrays(offsets, pa.array(np.asarray(self.scores))),
            ],
        }
        return {
            view: pa.table([_column(c, f.type) for c, f in zip(columns[view], schema, strict=True)], schema=schema)
            for view, schema in VIEWS.items()
        }


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(np.asarray(values), kind)


class _Builder:
    """Writes a store record by record; what stays in memory is a few digests per record and integers per sequence."""

    def __init__(self, folder: Path, template: Template, max_length: int, max_prompt_length: int) -> None:
        self.folder, self.template = folder, template
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.prompts, self.responses = _Ids(folder / "prompts.arrow"), _Ids(folder / "responses.arrow")
        self.prompt_rows: dict[bytes, int] = {}  # by prompt id: records of one prompt share its row
        self.prompt_lengths = array("i")  # of each prompt
        self.prompt = array("i")  # of each sequence: its prompt's row; a real response has its sequence's own row
        self.full_lengths = array("i")  # of each response
        self.keys = array("Q")  # of each sequence: a hash of prompt and response, which draws the mismatched ones
        self.views = {split: _Views() for split in SPLITS}
        self.records: dict[str, list[tuple[str, bytes]]] = {split: [] for split in SPLITS}

    def add(self, split: str, records: Iterator[Feedback], chunk: int = 1_000) -> dict[str, Any]:
        """Add a split, `chunk` records at a time; returns its counts for the report."""
        dropped: Counter[str] = Counter()
        counts: Counter[str] = Counter(
            records=0, prompts_with_dropped_turns=0, truncated_responses=0, responses_without_end=0
        )
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
            cut = [flag for record, _ in kept for flag in record.cut or [False] * len(record.responses)]
            texts = self.template.responses([text for record, _ in kept for text in record.responses], cut)
            counts["responses_without_end"] += sum(cut)
            self.responses.add(texts)
            self.full_lengths.extend(map(len, texts))
            self.prompts.add([ids for record, ids in kept if self._enter(split, record, len(ids))])
            counts["records"] += len(block)
            self.records[split] += [(record.prompt_id, record.digest) for record in block]
            bar.update(len(block))
        bar.close()
        rows = np.arange(first, len(self.prompt))
        lengths = self._lengths(self._prompt_of(rows), rows)
        full = np.asarray(self.full_lengths)[rows]
        counts["truncated_responses"] = int((lengths[:, 1] < full).sum())
        quantiles = {"prompt": _quantiles(lengths[:, 0]), "response": _quantiles(full)}
        return {**counts, "sequences": len(rows), "dropped": dict(dropped), "length_quantiles": quantiles}

    def _enter(self, split: str, record: Feedback, length: int) -> bool:
        """Enter a record, whose prompt has `length` tokens; whether its prompt is a new one."""
        n = len(self.prompt_lengths)
        row = self.prompt_rows.setdefault(bytes.fromhex(record.prompt_id[:32]), n)
        if row == n:
            self.prompt_lengths.append(length)
        self.views[split].add(len(self.prompt), record)
        self.prompt.extend([row] * len(record.responses))
        self.keys.extend(_key(record.prompt_id, text) for text in record.responses)
        return row == n

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
        views: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            columns = [list(column) for column in zip(*self.records[split], strict=True)] or [[], []]
            pq.write_table(pa.table(columns, RECORDS), self.folder / f"records_{split}.parquet")
            rows = np.asarray(self.views[split].sequence)
            other = mismatch(self._prompt_of(rows), np.asarray(self.keys)[rows])
            first, mismatched = sum(map(len, prompts)), None
            if other is not None:  # a split with a single prompt has nothing to mismatch
                prompts.append(self._prompt_of(rows))
                responses.append(rows[other])
                mismatched = np.arange(first, first + len(rows))
            for view, index in self.views[split].tables(mismatched).items():
                pq.write_table(index, self.folder / f"{split}_{view}.parquet")
                having = HAVING if view == "unpaired" else {view: index.column_names[0]}
                views[split] |= {v: index.num_rows - index[column].null_count for v, column in having.items()}
        prompt, response = np.concatenate(prompts), np.concatenate(responses)
        lengths = self._lengths(prompt, response)
        table = {"prompt": prompt, "response": response, "prompt_length": lengths[:, 0], "length": lengths[:, 1]}
        pq.write_table(pa.table({k: v.astype(np.int32) for k, v in table.items()}), self.folder / "sequences.parquet")
        return {"n_prompts": len(self.prompt_lengths), "n_responses": n, "n_sequences": len(prompt), "views": views}


def mismatch(prompts: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """For each example i another one j != i whose response is paired with i's prompt; None if there is no other prompt.

    Examples stand in a circle in the order of their hashes; each takes its next neighbour with another prompt. So the
    draw depends on nothing but the examples: it is the same for every seed, epoch, process count and loss.

    Args:
        prompts: (N,) the prompt of each example.
        keys: (N,) uint64 hash of each example's prompt and response.
    """
    order = np.argsort(keys, kind="stable")
    ordered = prompts[order]
    ends = np.flatnonzero(ordered != np.roll(ordered, -1))  # the last of each run of one prompt
    if not len(ends):
        return None
    own = np.searchsorted(ends, np.arange(len(order))) % len(ends)
    result = np.empty_like(order)
    result[order] = order[(ends[own] + 1) % len(order)]
    return result


def _key(prompt_id: str, response: str) -> int:
    text = prompt_id + "\0" + response
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _quantiles(values: np.ndarray) -> dict[str, int]:
    if not len(values):
        return {}
    return {str(q): int(np.quantile(values, q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)}
