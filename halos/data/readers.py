"""Reading rows from files: JSON, JSON Lines (either gzipped, too) and parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from halos.errors import HalosError


def json_rows(file: Path) -> Iterator[tuple[int, str]]:
    """(row number from 1, JSON text) of a JSON Lines file or a JSON array, gzipped or not.

    Lines are streamed; an array is read whole.

    Raises:
        HalosError: the file cannot be read.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            if next((line.lstrip() for line in stream if line.strip()), "").startswith("["):
                stream.seek(0)
                yield from enumerate(map(json.dumps, json.load(stream)), 1)
            else:
                stream.seek(0)
                yield from ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    except (OSError, EOFError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON
        raise HalosError(f"{file} cannot be read ({error}); it must be JSON or JSON Lines, or either as .gz") from None


def parquet_rows(file: Path, columns: Collection[str] | None = None, chunk: int = 256) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, `chunk` in memory at a time.

    Args:
        file: the file.
        columns: the columns to read, those that are missing left out; None for all.
        chunk: rows to read at a time.

    Raises:
        HalosError: the file cannot be read.
    """
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:  # a buffer would hold all that was read
            names = parquet.schema_arrow.names
            present = None if columns is None else [name for name in columns if name in names]
            for batch in parquet.iter_batches(chunk, columns=present):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise HalosError(f"{file} cannot be read ({error}); it must be a parquet file") from None
