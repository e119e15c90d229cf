"""StoreBuilder: writes the files of a sequence store, every distinct prompt tokenized once."""

from __future__ import annotations

import hashlib
from array import array
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
from halos.tokens.learned import distinct, first_equal, without
from halos.tokens.numbering import Numbering
from halos.tokens.report import LengthQuantiles, SplitTokens
from halos.tokens.selection import keep_labels
from halos.tokens.settings import StoreSlice
from halos.tokens.store import SPLITS
from halos.tokens.tally import Tally
from halos.tokens.template import Response, Template
from halos.views import MISMATCHED, VIEWS, View

IDS = pa.schema({"ids": pa.list_(pa.int32())})
RECORDS = pa.schema({"prompt_id": pa.string(), "digest": pa.binary(16)})
RECORD = 32 + 16
"""Bytes of a prompt id and of a record's digest."""
BATCH_ROWS = 1_000
"""Rows of token ids in one record batch of an Arrow file."""
SEQUENCES = pa.schema({name: pa.int32() for name in ("prompt", "response", "prompt_length", "length")})
GROUP_ROWS = 1 << 20
"""Rows of one row group of the table of sequences."""
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
        prompt_limit: most tokens of a prompt; None for the settings' max_prompt_length.
        vocabulary: number of token ids that the model has; None for its tokenizer's.
    """

    def __init__(
        self,
        folder: Path,
        template: Template,
        settings: StoreSlice,
        prompt_limit: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.folder, self.template, self.settings = folder, template, settings
        self.prompt_limit = settings.max_prompt_length if prompt_limit is None else prompt_limit
        self.vocabulary = len(template.tokenizer) if vocabulary is None else vocabulary
        self.template_hash = template.hash
        self.prompts, self.responses = TokenFile(folder / "prompts.arrow"), TokenFile(folder / "responses.arrow")
        self.prompt_rows = Numbering()  # by prompt id: records of one prompt share its row
        self.prompt_lengths = array("i")  # of each prompt
        self.prompt = array("i")  # of each sequence: its prompt's row; a real response has its sequence's row
        self.full_lengths = array("i")  # of each response, before max_length cuts it
        self.keys = array("Q")  # of each sequence: a hash of prompt and response, which draws the mismatched ones
        views = [v for v in VIEWS.values() if not v.table and (v.name in settings.views or not VIEWS.plugin(v.name))]
        self.tables = {split: {v.file: IndexTable(v) for v in views} for split in SPLITS}
        self.records = {split: bytearray() for split in SPLITS}  # prompt id and digest of each record, RECORD bytes

    def add(self, split: str, records: Iterator[Feedback], chunk: int = 1_000) -> SplitTokens:
        """Add the records of a split, `chunk` at a time; returns their counts.

        Raises:
            HalosError: no prompt of the split can be used, or most of its texts spell special tokens.
        """
        tally, first = Tally(), len(self.prompt)
        bar = tqdm(desc=f"tokenize {split}", unit=" records", mininterval=1)
        while block := list(islice(records, chunk)):
            for record, prompt, responses in self._tokenized(block, tally):
                self._add_record(split, record, prompt, responses, tally)
            self.records[split] += b"".join(bytes.fromhex(record.prompt_id) + record.digest for record in block)
            bar.update(len(block))
        bar.close()
        tally.numbers["records"] = len(self.records[split]) // RECORD
        tally.check(split, self.settings, self.template, self.prompt_limit)
        rows = np.arange(first, len(self.prompt), dtype=np.int32)
        lengths = self._lengths(self._prompt_of(rows), rows)
        full = np.asarray(self.full_lengths)[rows]
        return tally.counts(
            truncated_responses=int((lengths[:, 1] < full).sum()),
            sequences=len(rows),
            length_quantiles=LengthQuantiles(prompt=_quantiles(lengths[:, 0]), response=_quantiles(full)),
        )

    def _tokenized(self, block: list[Feedback], tally: Tally) -> Iterator[tuple[Feedback, list[int], list[list[int]]]]:
        """(record, ids of its prompt, ids of each response) of the records that can be used, without the responses that
        cannot; the others are counted."""
        prompts = self.template.prompts([r.prompt for r in block], self.prompt_limit, [r.tools for r in block])
        tally.prompts(block, prompts)
        kept = [(record, prompt) for record, prompt in zip(block, prompts, strict=True) if prompt.ids is not None]
        tokenized = iter(self._responses([record for record, _ in kept], tally))
        for record, prompt in kept:
            assert prompt.ids is not None
            responses = [next(tokenized) for _ in record.responses]
            tally.responses(record, prompt, responses)
            ids = [response.ids for response in responses if response.ids is not None]
            left_out = [i for i, response in enumerate(responses) if response.ids is None]
            usable = without(record, left_out) if left_out else record
            if usable is None:
                tally.dropped[str(responses[0].problem)] += 1
            else:
                tally.numbers["responses_without_end"] += sum(usable.cut)
                yield usable, prompt.ids, ids

    def _responses(self, records: list[Feedback], tally: Tally) -> list[Response]:
        """All responses of some records: the tokens that a model with this template sampled, or else their text's."""
        responses = [(record, i) for record in records for i in range(len(record.responses))]
        sampled = [self._sampled(record, i) for record, i in responses]
        tally.numbers["sampled_responses"] += len(sampled) - sampled.count(None)
        tally.numbers["sampled_with_another_template"] += sum(
            ids is not None for r in records if r.template != self.template_hash for ids in r.response_ids
        )
        written = [(record, i) for (record, i), ids in zip(responses, sampled, strict=True) if ids is None]
        rest = iter(self.template.responses(
            [record.responses[i] for record, i in written],
            [bool(record.cut) and record.cut[i] for record, i in written],
            [record.response_fields[i] if record.response_fields else {} for record, i in written],
        ))  # fmt: skip
        return [next(rest) if ids is None else self._checked(ids) for ids in sampled]

    def _sampled(self, record: Feedback, i: int) -> list[int] | None:
        """The tokens that a response was sampled as, if they are this template's: they are learned, not the text."""
        if record.template != self.template_hash or not record.response_ids:
            return None
        return record.response_ids[i]

    def _checked(self, ids: list[int]) -> Response:
        """A sampled response as it was sampled: the id that ended it, if one did, is among them."""
        if not ids or min(ids) < 0 or max(ids) >= self.vocabulary:
            return Response(None, "response_ids are empty, or not ids of the model's")
        return Response(ids)

    def _add_record(
        self, split: str, record: Feedback, prompt: list[int], responses: list[list[int]], tally: Tally
    ) -> None:
        """Add a record's tokens to the files, and its examples to the index tables."""
        new_row = len(self.prompt_lengths)
        row = self.prompt_rows.of(bytes.fromhex(record.prompt_id[:32]))
        if row == new_row:
            self.prompts.add([prompt])
            self.prompt_lengths.append(len(prompt))
        room = self.room - len(prompt)
        same = first_equal([ids[:room] for ids in responses])
        learned = distinct(record, same) if len(set(same)) < len(same) else record
        tally.numbers["equal_pairs"] += len(record.pairs) - len(learned.pairs)
        tally.numbers["contradicting_labels"] += learned.desirable.count(None) - record.desirable.count(None)
        nothing_to_compare = len(same) > 1 and not any(same)
        tally.numbers["equal_groups"] += nothing_to_compare and bool(record.scores)
        for table in self.tables[split].values():
            if not (table.view.grouped and nothing_to_compare):
                table.add(len(self.prompt), learned)
        self.prompt.extend([row] * len(responses))
        self.responses.add(responses)
        self.full_lengths.extend(map(len, responses))
        self.keys.extend(
            _key(record.prompt_id, text.encode() if self._sampled(record, i) is None else array("i", ids).tobytes())
            for i, (text, ids) in enumerate(zip(record.responses, responses, strict=True))
        )

    @property
    def room(self) -> int:
        """Most tokens of prompt and response together, a control token at the prompt's end included."""
        return self.settings.max_length + self.template.control

    def _prompt_of(self, sequences: np.ndarray) -> np.ndarray:
        """(N,) the prompt's row of each sequence with a real response."""
        prompts: np.ndarray = np.asarray(self.prompt)[sequences]
        return prompts

    def _lengths(self, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of prompt and response, the response cut to what max_length leaves it."""
        prompt = np.asarray(self.prompt_lengths)[prompts]
        response = np.minimum(np.asarray(self.full_lengths)[responses], self.room - prompt)
        return np.stack([prompt, response], axis=1)

    def finish(self) -> dict[str, Any]:
        """Draw the mismatched sequences and write all files but meta.json; returns its counts."""
        self.prompts.close()
        self.responses.close()
        del self.prompt_rows  # before the tables are made
        n_responses = len(self.prompt)
        rows = np.arange(n_responses, dtype=np.int32)
        sequences = [np.stack([np.asarray(self.prompt), rows], axis=1)]  # (N, 2) prompt, response
        views: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            _write_records(self.records.pop(split), self.folder / f"records_{split}.parquet")
            tables = self.tables.pop(split)
            for name in list(tables):
                index = tables.pop(name)
                table = index.arrow()
                if split == "train" and index.view.labelled:
                    settings, fixed = self.settings, np.random.default_rng(0)  # the same labels for every seed
                    table = keep_labels(table, index.view, settings.keep_desirable, settings.keep_undesirable, fixed)
                if MISMATCHED in index.view.columns:
                    table, drawn = self._mismatched(table, index.view, first=sum(map(len, sequences)))
                    sequences.append(drawn)
                pq.write_table(table, self.folder / f"{split}_{name}.parquet")
                views[split] |= counts_of(table, [view for view in VIEWS.values() if view.file == name])
                del index, table  # before the next one is made
        n_sequences = sum(map(len, sequences))
        self._write_sequences(sequences)
        counts = {"n_prompts": len(self.prompt_lengths), "n_responses": n_responses, "n_sequences": n_sequences}
        return {**counts, "views": views}

    def _write_sequences(self, sequences: list[np.ndarray]) -> None:
        """Write the table of sequences, a row group at a time, from (N, 2) prompts and responses of each part."""
        with pq.ParquetWriter(self.folder / "sequences.parquet", SEQUENCES) as writer:
            for start in range(0, sum(map(len, sequences)), GROUP_ROWS):
                prompt, response = _rows(sequences, start, start + GROUP_ROWS).T
                lengths = self._lengths(prompt, response)
                columns = [prompt, response, lengths[:, 0], lengths[:, 1]]
                writer.write_table(pa.table([column.astype(np.int32) for column in columns], SEQUENCES), GROUP_ROWS)

    def _mismatched(self, table: pa.Table, view: View, first: int) -> tuple[pa.Table, np.ndarray]:
        """A table with its mismatched column, and (N, 2) prompt and response of the sequences drawn for it, which are
        numbered from `first`. A split with a single prompt has nothing to mismatch: its table is left empty."""
        rows = table[view.columns["response"]].to_numpy()
        other = mismatch(self._prompt_of(rows), np.asarray(self.keys)[rows])
        if other is None:
            table, rows, other = table.slice(0, 0), rows[:0], np.array([], dtype=np.int64)
        column = pa.array(np.arange(first, first + len(rows)), ARROW["int32"])
        table = table.append_column(view.columns[MISMATCHED], column)
        table = table.select([name for name in view.schema if name in table.column_names])
        return table, np.stack([self._prompt_of(rows), rows[other]], axis=1)


def _rows(parts: list[np.ndarray], start: int, end: int) -> np.ndarray:
    """The rows from `start` to `end` of arrays that follow one another."""
    found = []
    for part in parts:
        found.append(part[max(start, 0) : max(end, 0)])
        start, end = start - len(part), end - len(part)
    return np.concatenate(found)


def _write_records(records: bytearray, path: Path) -> None:
    """Write the table of RECORDS a part at a time: a million ids as texts would take more memory than all else."""
    with pq.ParquetWriter(path, RECORDS) as writer:
        for part in range(0, len(records), 100 * BATCH_ROWS * RECORD):
            starts = range(part, min(part + 100 * BATCH_ROWS * RECORD, len(records)), RECORD)
            rows = [bytes(records[i : i + RECORD]) for i in starts]
            writer.write_batch(pa.record_batch([[row[:32].hex() for row in rows], [row[32:] for row in rows]], RECORDS))


def _key(prompt_id: str, response: bytes) -> int:
    """A 64-bit hash of a prompt and a response."""
    return int.from_bytes(hashlib.blake2b(prompt_id.encode() + b"\0" + response, digest_size=8).digest(), "little")


def _quantiles(values: np.ndarray) -> dict[str, int]:
    """Quantile -> value; empty when there are no values."""
    if not len(values):
        return {}
    return {str(q): int(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
