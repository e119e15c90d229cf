"""Index tables: for each view of a split, which sequences make up its examples, and their labels."""

from __future__ import annotations

import math
from array import array
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from halos.views import MISMATCHED, Record, View

ARROW = {"int32": pa.int32(), "float64": pa.float64(), "bool": pa.bool_()}
CODES = {"int32": "i", "float64": "d", "bool": "b"}
NULLS: dict[str, Any] = {"int32": -1, "float64": math.nan, "bool": -1}
"""The number that a null is held as until the column is written."""


class _Column:
    """A column of nullable numbers, or of lists of numbers, that grows row by row in compact arrays.

    Its first nulls are only counted, so that a column without any value takes no memory.
    """

    def __init__(self, name: str) -> None:
        self.type = name.removeprefix("list<").removesuffix(">")
        self.values = array(CODES[self.type])
        self.nulls = 0  # before the first value
        self.sizes = array("i") if name != self.type else None

    def add(self, value: Any, offset: int) -> None:
        """Append a row's value, or its list of values, each raised by `offset`."""
        values = value if self.sizes is not None else (value,)
        if self.sizes is not None:
            self.sizes.append(len(values))
        if self.empty and all(v is None for v in values):
            self.nulls += len(values)
        else:
            self._hold_nulls()
            self.values.extend(NULLS[self.type] if v is None else v + offset for v in values)

    @property
    def empty(self) -> bool:
        """Whether no row has a value."""
        return not self.values

    def _hold_nulls(self) -> None:
        self.values.extend(repeat(NULLS[self.type], self.nulls))
        self.nulls = 0

    def arrow(self) -> pa.Array:
        self._hold_nulls()
        values = np.asarray(self.values)
        null = np.isnan(values) if self.type == "float64" else values < 0
        column = pa.array(values == 1 if self.type == "bool" else values, ARROW[self.type], mask=null)
        if self.sizes is None:
            return column
        offsets = np.concatenate([[0], np.cumsum(np.asarray(self.sizes, dtype=np.int64))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)


class IndexTable:
    """The index table of one view and split, built record by record."""

    def __init__(self, view: View) -> None:
        self.view = view
        drawn = view.columns.get(MISMATCHED)
        self.columns = {name: _Column(kind) for name, kind in view.schema.items() if name != drawn}

    def add(self, first: int, record: Record) -> None:
        """Add the rows of a record whose first response is sequence `first`."""
        offsets = [first if name in self.view.columns.values() else 0 for name in self.columns]
        for row in self.view.rows(record):
            for column, value, offset in zip(self.columns.values(), row, offsets, strict=True):
                column.add(value, offset)

    def arrow(self) -> pa.Table:
        """The table, without its mismatched column, and without optional columns that have no value."""
        left_out = {name for name, column in self.columns.items() if name in self.view.optional and column.empty}
        return pa.table({name: column.arrow() for name, column in self.columns.items() if name not in left_out})


def counts_of(table: pa.Table, views: list[View]) -> dict[str, int]:
    """View -> its number of rows in an index table, for the views that share it."""
    return {v.name: table.num_rows - (table[v.having].null_count if v.having else 0) for v in views}


def mismatch(prompts: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """For each example i another one j != i whose response is paired with i's prompt; None if there is no other prompt.

    The examples are ordered in a circle by their hashes; each takes the next one with another prompt. So the draw
    depends on the examples alone: it is the same for every seed, epoch, number of processes and loss.

    Args:
        prompts: (N,) the prompt of each example.
        keys: (N,) uint64 hash of each example's prompt and response.
    """
    order = np.argsort(keys, kind="stable")
    ordered = prompts[order]
    ends = np.flatnonzero(ordered != np.roll(ordered, -1))  # the last of each run of one prompt
    if not len(ends):
        return None
    run = np.searchsorted(ends, np.arange(len(order))) % len(ends)
    result = np.empty_like(order)
    result[order] = order[(ends[run] + 1) % len(order)]
    return result
