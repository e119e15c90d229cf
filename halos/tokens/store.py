"""Sequence store of a dataset and a model: every distinct prompt tokenized once, and the views as index tables.

prompts.arrow            ids of each templated prompt, one row however many records have it
responses.arrow          ids of each response, end-of-turn token last
sequences.parquet        (prompt, response, prompt_length, length): the first `length` ids of a response after a prompt.
                         Everything downstream names a sequence by its row here. Real responses come first, then
                         mismatched ones (x_i with y_j, j != i), which add no ids.
{split}_{view}.parquet   sft (sequence) · paired (chosen, rejected, margin) · grouped (sequences, scores)
                         · unpaired (sequence, desirable, score, mismatched): responses with a label or a score, read
                         as the view unpaired (those with a label) or scored (those with a score); weights and margins
                         where the data has any · those of plugins that the dataset names
records_{split}.parquet  (prompt_id, digest) of each feedback record that the store was made from
meta.json                settings, counts, and hashes of the files and of the template (StoreMeta)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from halos.data.feedback import Feedback, prompt_ids, read, records_of
from halos.data.report import DataReport
from halos.errors import HalosError
from halos.files import write_json
from halos.tokens.report import StoreMeta
from halos.views import VIEWS

SPLITS = ("train", "validation")
"""The splits that it has: what a model is trained on and, meanwhile, evaluated on."""


class Store:
    """A sequence store on disk, memory-mapped.

    Args:
        folder: the folder that `tokenize` wrote.

    Attributes:
        meta: its settings, counts and hashes.
        lengths: (N, 2) int32, the prompt's and the response's number of tokens of each sequence.
        n_responses: sequences below this row hold real responses, those from it on are mismatched.

    Raises:
        HalosError: there is no store in the folder, or another version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise HalosError(f"there is no sequence store in {folder}; make it with `python -m halos tokenize`")
        self.meta = StoreMeta.read(self.folder / "meta.json")
        self.n_responses = self.meta.n_responses
        self._prompts = _mapped(self.folder / "prompts.arrow")
        self._responses = _mapped(self.folder / "responses.arrow")
        table = pq.read_table(self.folder / "sequences.parquet", memory_map=True)
        self._rows = np.stack([table["prompt"].to_numpy(), table["response"].to_numpy()], axis=1)
        self.lengths = np.stack([table["prompt_length"].to_numpy(), table["length"].to_numpy()], axis=1)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def hash(self) -> str:
        """sha256 of the store's files."""
        return self.meta.hash

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the dataset has records for: train, and validation unless it is made without one."""
        files = {split: pq.ParquetFile(self.folder / f"records_{split}.parquet") for split in SPLITS}
        return tuple(split for split, file in files.items() if file.metadata.num_rows)

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(prompt ids, response ids), int32, of one sequence."""
        prompt, response = self._rows[row]
        return (
            self._prompts[int(prompt)].values.to_numpy(),
            self._responses[int(response)].values.to_numpy()[: self.lengths[row, 1]],
        )

    def full_lengths(self, rows: np.ndarray) -> np.ndarray:
        """(N,) tokens of the response of each sequence before max_length cuts it."""
        lengths: np.ndarray = pc.list_value_length(self._responses).to_numpy()[self._rows[rows, 1]]
        return lengths

    def prompt_of(self, rows: np.ndarray) -> np.ndarray:
        """(N,) the prompt's row of each sequence: equal where sequences have the same prompt."""
        prompts: np.ndarray = self._rows[rows, 0]
        return prompts

    @property
    def has_margins(self) -> bool:
        """Whether some pair of the train split has a margin."""
        return "margin" in pq.read_schema(self.folder / "train_paired.parquet").names

    def view(self, split: str, name: str) -> pa.Table:
        """The index table of a view. Of the unpaired table, `unpaired` has the rows with a label (`score` may be null)
        and `scored` those with a score (`desirable` may be null).

        Raises:
            HalosError: the dataset has no rows for the view, or its `views` do not name one of a plugin.
        """
        view = VIEWS[name]
        path = self.folder / f"{split}_{view.file}.parquet"
        if not path.is_file():
            raise HalosError(no_view(self.meta.dataset, name))
        table = pq.read_table(path)
        if view.having is not None:
            table = table.filter(table[view.having].is_valid())
        if not table.num_rows:
            available = ", ".join(v for v, count in self.meta.views[split].items() if count) or "none"
            dropped = "; ".join(
                f"{n} records were dropped: {why}" for why, n in self.meta.dropped.get(split, {}).items()
            )
            raise HalosError(
                f"dataset {self.meta.dataset} has no rows for the {name} view in its {split} split (it has "
                f"{available}): {view.wants}" + (f" ({dropped})" if dropped else "")
            )
        return table


def _mapped(path: Path) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["ids"]


def check(
    store: Path,
    views: Sequence[str],
    output: Path,
    feedback: Path | None = None,
    prompts: int = 0,
    report: Path | None = None,
    validation_for: Sequence[str] = (),
    test_for: Sequence[str] = (),
    margins_for: Sequence[str] = (),
) -> None:
    """Check, before anything is trained, that a store has what a grid needs.

    Args:
        store: sequence store to check.
        views: views that the grid's losses read; each split with records must have rows for all of them.
        output: JSON file to write when the store passes.
        feedback: feedback records of the train split, where online stages draw prompts from it.
        prompts: prompts that the rounds of online stages draw from the train split.
        report: report of prepare, JSON, where entries of the config read prompts of a split.
        validation_for: entries of the config that read prompts of the validation split.
        test_for: entries of the config that read prompts of the test split.
        margins_for: stages whose losses read the margins of the train split's pairs.

    Raises:
        HalosError: the store has no rows for a view, the train split has too few prompts, no pair has a margin for what
            reads one, or there is no validation or test split likewise.
    """
    opened = Store(store)
    needed = sorted(set(views))
    for name in needed:
        for split in opened.splits:
            opened.view(split, name)
    for split, wanted_by in (("validation", validation_for), ("test", test_for)):
        if wanted_by and report is not None and not getattr(DataReport.read(report), split).rows_out:
            raise HalosError(no_split(opened.meta.dataset, split, wanted_by))
    if margins_for and not opened.has_margins:
        raise HalosError(no_margins(opened.meta.dataset, margins_for))
    if prompts and feedback is not None:
        available = len(prompt_ids(feedback))
        if available < prompts:
            raise HalosError(
                f"dataset {opened.meta.dataset} has {available} prompts in its train split, and the grid's online "
                f"stages want {prompts}: lower their rounds or prompts_per_round"
            )
    write_json(output, {"views": needed, "prompts": prompts})


def no_split(dataset: str, split: str, wanted_by: Sequence[str]) -> str:
    """What to say about a dataset without a split, validation or test, of which entries of the config want prompts."""
    setting = {"validation": "validation_prompts", "test": "test_fraction"}[split]
    want = "want" if wanted_by[1:] else "wants"
    return (
        f"dataset {dataset} has no {split} split, and {', '.join(wanted_by)} {want} its prompts: give it one "
        f"({setting}, or a {split} file), take prompts of another dataset, or leave that out"
    )


def no_view(dataset: str, view: str) -> str:
    """What to say about a dataset that does not have a plugin's view."""
    return f"dataset {dataset} does not have the view {view}: name it in its `views`, as views: [{view}]"


def no_margins(dataset: str, wanted_by: Sequence[str]) -> str:
    """What to say about a dataset without margins, whose pairs' some stages read."""
    return (
        f"dataset {dataset} has no margins, and {', '.join(wanted_by)} {'read' if wanted_by[1:] else 'reads'} them "
        "(margin_weight): give its pairs a `margin`, or take out margin_weight"
    )


def labels_of(store: Store, split: str = "train") -> tuple[int, int]:
    """Numbers of desirable and undesirable responses of a split."""
    if not store.meta.views[split].get("unpaired"):
        return 0, 0
    labels = store.view(split, "unpaired")["desirable"]
    desirable = int(pc.sum(labels).as_py())
    return desirable, len(labels) - desirable


def read_splits(eval_examples: int, train: Path, validation: Path) -> dict[str, Iterator[Feedback]]:
    """The records that a store is made from: all of train, and of validation those on `eval_examples` prompts, a fixed,
    random-like subset that mixes all sources."""
    ids = prompt_ids(validation, eval_examples)
    return {"train": read(train), "validation": records_of(validation, ids)}
