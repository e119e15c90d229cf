"""The sequence store of a dataset and a model: every distinct text tokenised once, and the views as index tables.

prompts.arrow            ids of each templated prompt, one row however many records have it
responses.arrow          ids of each response, end-of-turn token last
sequences.parquet        (prompt, response, length): the first `length` ids of a response after a prompt. Everything
                         downstream names a sequence by its row here. Real responses come first, then mismatched
                         ones (x_i with y_j, j != i), which cost no ids of their own.
{split}_{view}.parquet   sft (sequence) · paired (chosen, rejected) · grouped (sequences, scores)
                         · unpaired (sequence, desirable, score, mismatched): responses with a label or a score, read
                         as the view unpaired (those with a label) or scored (those with a score)
records_{split}.parquet  (prompt_id, digest) of each feedback record that it was made from
meta.json                hashes of the files and of the template, and how many rows there are of everything
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from halos.data import feedback
from halos.data.feedback import Feedback, prompt_ids
from halos.errors import HalosError
from halos.files import write_json
from halos.views import HAVING, WANTS

SPLITS = ("train", "test")


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
                f"{WANTS[name]}"
            )
        return table


def _mapped(path: Path) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["ids"]


def check(store: Path, views: Iterable[str], feedback: Path | None, prompts: int, output: Path) -> None:
    """The verb: refuse, before anything is trained, a store that lacks a view which some cell of the grid needs, and a
    train split with fewer prompts than the rounds of its online stages want.

    Args:
        store: sequence store.
        views: names of the views that are needed.
        feedback: the train split, where prompts are needed.
        prompts: number of prompts that are needed.
        output: JSON file to write.
    """
    opened = Store(store)
    needed = sorted(set(views))
    for name in needed:
        for split in SPLITS:
            opened.view(split, name)
    if prompts and feedback is not None:
        has = len(prompt_ids(feedback))
        if has < prompts:
            raise HalosError(
                f"dataset {opened.meta['dataset']} has {has} prompts in its train split, and the grid's online stages "
                f"want {prompts}: lower their rounds or prompts_per_round"
            )
    write_json(output, {"views": needed, "prompts": prompts})


def read_splits(settings: Mapping[str, Any], train: Path, test: Path) -> dict[str, Iterator[Feedback]]:
    """The records that a store is made from: of `test`, those on `eval_examples` prompts, a fixed, random-like subset
    that mixes all sources."""
    ids = feedback.prompt_ids(test, settings["eval_examples"])
    return {"train": feedback.read(train), "test": feedback.records_of(test, ids)}
