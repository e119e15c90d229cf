"""StoreBuilder: writes the files of a sequence store, every distinct prompt tokenized once."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from halos.data.feedback import Feedback
from halos.tokens.index import ARROW, IndexTable, counts_of, mismatch
from halos.tokens.report import LengthQuantiles, SplitTokens
from halos.tokens.selection import keep_labels
from halos.tokens.settings import StoreSlice
from halos.tokens.store import SPLITS
from halos.tokens.template import Template
from halos.views import MISMATCHED, VIEWS, View

IDS = pa.schema({"ids": pa.list_(pa.int32())})
RECORDS = pa.schema({"prompt_id": pa.string(), "digest": pa.binary(16)})
BATCH_ROWS = 1_000
"""Rows of token ids in one record batch of an Arrow file."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class TokenFile:
    """An Arrow file of token ids. It is written in batches of BATCH_ROWS rows, however many are added at a time, so
    that equal rows make equal files."""

    def __init__(self, path: Path) -> None:
        self.writer = pa.ipc.new_file(str(path), IDS)
        self.pending: list[list[int]] = []

    def add(self, ids: list[list[int]]) -> None:
        self.pending += ids
        while len(self.pending) >= BATCH_ROWS:
            self._write_batch()

    def _write_batch(self) -> None:
        self.writer.write_table(pa.table({"ids": self.pending[:BATCH_ROWS]}, IDS))
        del self.pending[:BATCH_ROWS]

    def close(self) -> None:
        if self.pending:
            self._write_batch()
        self.writer.close()


class StoreBuilder:
    """Writes a store record by record. Memory holds a few digests for each record and a few numbers for each sequence.

    Args:
        folder: an empty folder to write to.
        template: of the model's tokenizer.
        settings: lengths, and the fractions of labels that are kept.
    """

    def __init__(self, folder: Path, template: Template, settings: StoreSlice) -> None:
        self.folder, self.template, self.settings = folder, template, settings
        self.prompts, self.responses = TokenFile(folder / "prompts.arrow"), TokenFile(folder / "responses.arrow")
        self.prompt_rows: dict[bytes, int] = {}  # by prompt id: records of one prompt share its row
        self.prompt_lengths = array("i")  # of each prompt
        self.prompt = array("i")  # of each sequence: its prompt's row; a real response has its sequence's row
        self.full_lengths = array("i")  # of each response, before max_length cuts it
        self.keys = array("Q")  # of each sequence: a hash of prompt and response, which draws the mismatched ones
        self.tables = {split: {v.file: IndexTable(v) for v in VIEWS.values() if not v.table} for split in SPLITS}
        self.records: dict[str, list[tuple[str, bytes]]] = {split: [] for split in SPLITS}

    def add(self, split: str, records: Iterator[Feedback], chunk: int = 1_000) -> SplitTokens:
        """Add the records of a split, `chunk` at a time; returns their counts."""
        dropped: Counter[str] = Counter()
        with_dropped_turns = without_end = 0
        first = len(self.prompt)
        bar = tqdm(desc=f"tokenize {split}", unit=" records", mininterval=1)
        while block := list(islice(records, chunk)):
            prompts = self.template.prompts([r.prompt for r in block], self.settings.max_prompt_length)
            kept = []
            for record, prompt in zip(block, prompts, strict=True):
                if prompt.ids is None:
                    dropped[str(prompt.problem)] += 1
                else:
                    with_dropped_turns += prompt.dropped_turns > 0
                    kept.append((record, prompt.ids))
            cut = [flag for record, _ in kept for flag in record.cut or [False] * len(record.responses)]
            texts = [text for record, _ in kept for text in record.responses]
            responses = [response.ids or [] for response in self.template.responses(texts, cut)]
            without_end += sum(cut)
            self.responses.add(responses)
            self.full_lengths.extend(map(len, responses))
            self.prompts.add([ids for record, ids in kept if self._add_record(split, record, len(ids))])
            self.records[split] += [(record.prompt_id, record.digest) for record in block]
            bar.update(len(block))
        bar.close()
        rows = np.arange(first, len(self.prompt))
        lengths = self._lengths(self._prompt_of(rows), rows)
        full = np.asarray(self.full_lengths)[rows]
        return SplitTokens(
            records=len(self.records[split]),
            prompts_with_dropped_turns=with_dropped_turns,
            truncated_responses=int((lengths[:, 1] < full).sum()),
            responses_without_end=without_end,
            sequences=len(rows),
            dropped=dict(dropped),
            length_quantiles=LengthQuantiles(prompt=_quantiles(lengths[:, 0]), response=_quantiles(full)),
        )

    def _add_record(self, split: str, record: Feedback, prompt_length: int) -> bool:
        """Add a record to the index tables; returns whether its prompt is a new one."""
        new_row = len(self.prompt_lengths)
        row = self.prompt_rows.setdefault(bytes.fromhex(record.prompt_id[:32]), new_row)
        if row == new_row:
            self.prompt_lengths.append(prompt_length)
        for table in self.tables[split].values():
            table.add(len(self.prompt), record)
        self.prompt.extend([row] * len(record.responses))
        self.keys.extend(_key(record.prompt_id, text) for text in record.responses)
        return row == new_row

    def _prompt_of(self, sequences: np.ndarray) -> np.ndarray:
        """(N,) the prompt's row of each sequence with a real response."""
        prompts: np.ndarray = np.asarray(self.prompt)[sequences]
        return prompts

    def _lengths(self, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of prompt and response, the response cut to what max_length leaves it."""
        prompt = np.asarray(self.prompt_lengths)[prompts]
        response = np.minimum(np.asarray(self.full_lengths)[responses], self.settings.max_length - prompt)
        return np.stack([prompt, response], axis=1)

    def finish(self) -> dict[str, Any]:
        """Draw the mismatched sequences and write all files but meta.json; returns its counts."""
        self.prompts.close()
        self.responses.close()
        n_responses = len(self.prompt)
        sequences = [np.stack([np.asarray(self.prompt), np.arange(n_responses)], axis=1)]  # (N, 2) prompt, response
        views: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            columns = [list(column) for column in zip(*self.records[split], strict=True)] or [[], []]
            pq.write_table(pa.table(columns, RECORDS), self.folder / f"records_{split}.parquet")
            for name, index in self.tables[split].items():
                table = index.arrow()
                if split == "train" and index.view.labelled:
                    settings, fixed = self.settings, np.random.default_rng(0)  # the same labels for every seed
                    table = keep_labels(table, index.view, settings.keep_desirable, settings.keep_undesirable, fixed)
                if MISMATCHED in index.view.columns:
                    table, drawn = self._mismatched(table, index.view, first=sum(map(len, sequences)))
                    sequences.append(drawn)
                pq.write_table(table, self.folder / f"{split}_{name}.parquet")
                views[split] |= counts_of(table, [view for view in VIEWS.values() if view.file == name])
        prompt, response = np.concatenate(sequences).T
        lengths = self._lengths(prompt, response)
        numbers = {"prompt": prompt, "response": response, "prompt_length": lengths[:, 0], "length": lengths[:, 1]}
        table = pa.table({name: values.astype(np.int32) for name, values in numbers.items()})
        pq.write_table(table, self.folder / "sequences.parquet")
        counts = {"n_prompts": len(self.prompt_lengths), "n_responses": n_responses, "n_sequences": len(prompt)}
        return {**counts, "views": views}

    def _mismatched(self, table: pa.Table, view: View, first: int) -> tuple[pa.Table, np.ndarray]:
        """A table with its mismatched column, and (N, 2) prompt and response of the sequences drawn for it, which are
        numbered from `first`. A split with a single prompt has nothing to mismatch: its table is left empty."""
        rows = table[view.columns["response"]].to_numpy()
        other = mismatch(self._prompt_of(rows), np.asarray(self.keys)[rows])
        if other is None:
            table, rows, other = table.slice(0, 0), rows[:0], np.array([], dtype=np.int64)
        column = pa.array(np.arange(first, first + len(rows)), ARROW["int32"])
        table = table.append_column(view.columns[MISMATCHED], column)
        return table.select(list(view.schema)), np.stack([self._prompt_of(rows), rows[other]], axis=1)


def _key(prompt_id: str, response: str) -> int:
    """A 64-bit hash of a prompt and a response."""
    text = prompt_id + "\0" + response
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _quantiles(values: np.ndarray) -> dict[str, int]:
    """Quantile -> value; empty when there are no values."""
    return {str(q): int(np.quantile(values, q)) for q in QUANTILES} if len(values) else {}
