"""Reading rows from files: JSON, JSON Lines and CSV, compressed or not, parquet and Arrow.

The content tells the format, the name only where the content does not.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from halos.errors import HalosError

FORMATS = (
    "JSON or JSON Lines (.json, .jsonl, .ndjson) or CSV (.csv, .tsv) in UTF-8, each also as .gz, .zst, .bz2 or .xz; "
    "parquet; Arrow (.arrow, .feather)"
)
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
DECOMPRESS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda file: pa.input_stream(str(file), compression="zstd")),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ", lzma.open),
}
"""suffix -> (what such a file begins with, how it is opened)."""
READ_SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES, *DECOMPRESS)
CSV_FIELD = 2**31 - 1
"""The most characters of a cell: what csv takes on every platform."""


@dataclass(frozen=True)
class Malformed:
    """A row that its file's format does not make sense of.

    Attributes:
        reason: a few words, the same for all such rows.
        detail: what is wrong with this one.
    """

    reason: str
    detail: str


def is_readable(name: str) -> bool:
    """Whether a file of this name is of a format that is read."""
    return Path(name).suffix.lower() in READ_SUFFIXES


def read_rows(file: Path, columns: Collection[str] | None = None, chunk: int = 256) -> Iterator[tuple[int, Any]]:
    """(row number from 1, content) of a file; the content is Malformed where the row is not of the file's format.

    All but a single JSON array is streamed. Cells of CSV are texts.

    Args:
        file: the file.
        columns: of parquet and Arrow, the columns to read, those that are missing left out; None for all.
        chunk: rows to read of parquet at a time.

    Raises:
        HalosError: the file is of no format that is read, or is damaged.
    """
    kind = "a known format"
    try:
        with file.open("rb") as stream:
            magic = stream.read(8)
        suffix = _suffix(file)
        if magic.startswith(b"PAR1") or suffix in PARQUET_SUFFIXES:
            kind = "a parquet file"
            yield from enumerate(_parquet_rows(file, columns, chunk), 1)
        elif magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or suffix in ARROW_SUFFIXES:
            kind = "an Arrow file"
            yield from enumerate(_arrow_rows(file, columns, stream=not magic.startswith(b"ARROW1")), 1)
        else:
            kind = "JSON, JSON Lines or CSV in UTF-8, or one of these as .gz, .zst, .bz2 or .xz"
            yield from _text_rows(file, magic, suffix)
    except (OSError, EOFError, ValueError, lzma.LZMAError, csv.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise HalosError(f"{file} cannot be read ({reason}); it must be {kind}") from None


def _suffix(file: Path) -> str:
    """The suffix of the format, in lower case, without that of a compression."""
    path = Path(file.name.lower())
    return Path(path.stem).suffix if path.suffix in DECOMPRESS else path.suffix


def _parquet_rows(file: Path, columns: Collection[str] | None, chunk: int) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file, pre_buffer=False) as parquet:  # a buffer would hold all that was read
        names = parquet.schema_arrow.names
        present = None if columns is None else [name for name in columns if name in names]
        for batch in parquet.iter_batches(chunk, columns=present):
            yield from batch.to_pylist()


def _arrow_rows(file: Path, columns: Collection[str] | None, stream: bool) -> Iterator[dict[str, Any]]:
    with pa.OSFile(str(file)) as opened:  # a memory map would count as memory
        reader = pa.ipc.open_stream(opened) if stream else pa.ipc.open_file(opened)
        names = reader.schema.names
        present = names if columns is None else [name for name in columns if name in names]
        for batch in reader if stream else map(reader.get_batch, range(reader.num_record_batches)):
            yield from batch.select(present).to_pylist()


def _text_rows(file: Path, magic: bytes, suffix: str) -> Iterator[tuple[int, Any]]:
    opened = next((open_ for start, open_ in DECOMPRESS.values() if magic.startswith(start)), lambda f: f.open("rb"))
    with opened(file) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        if suffix in CSV_SUFFIXES:
            yield from _csv_rows(text)
            return
        lines = ((number, line) for number, line in enumerate(text, 1) if line.strip())
        number, first = next(lines, (0, ""))
        start = first.lstrip()[:1]
        if suffix not in JSON_SUFFIXES and start not in ("{", "[", ""):
            raise HalosError(f"{file} is of no format that is read; give it as {FORMATS}")
        if start == "[" or (start == "{" and suffix == ".json" and isinstance(_parsed(first), Malformed)):
            yield from _whole_rows([first, *(line for _, line in lines)])
        elif start:
            yield number, _parsed(first)
            yield from ((number, _parsed(line)) for number, line in lines)


def _whole_rows(lines: list[str]) -> Iterator[tuple[int, Any]]:
    """The rows of one JSON value, an array of rows or a single one; those of JSON Lines if it turns out to be such."""
    content = _parsed("".join(lines))
    if not isinstance(content, Malformed):
        yield from enumerate(content if isinstance(content, list) else [content], 1)
    elif lines[0].lstrip().startswith("["):
        raise ValueError(content.detail)
    else:
        yield from ((number, _parsed(line)) for number, line in enumerate(lines, 1))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Malformed("no JSON", f"no JSON: {error}")


def _csv_rows(text: IO[str]) -> Iterator[tuple[int, Any]]:
    """The rows of a CSV file with a header, which tells its separator: a comma, a semicolon or a tab.

    An empty cell has no value. As spreadsheets write them, there may be a first line `sep=;` and columns without a
    name.
    """
    csv.field_size_limit(CSV_FIELD)
    header = text.readline()
    if header.startswith("sep="):
        header = text.readline()
    separator = max(",;\t", key=header.count)
    rows = csv.reader(itertools.chain([header], text), delimiter=separator)
    names = [name.strip() or f"column {i}" for i, name in enumerate(next(rows, []), 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"its header has the column {twice[0]!r} twice")
    for number, cells in enumerate((cells for cells in rows if cells), 1):
        if len(cells) == len(names):
            yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        else:
            yield number, Malformed("not as many cells as the header", f"{len(cells)} cells under {len(names)} names")
