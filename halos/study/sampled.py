"""Datasets of a model's samples: what the source `sampled` names, and the files that rules make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halos.data.settings import Dataset
from halos.study.cells import BASE, Cell
from halos.study.paths import Paths

SOURCE = "sampled"


@dataclass(frozen=True)
class Sampling:
    """What is sampled for a dataset.

    Attributes:
        cell: whose model answers.
        prompts: (split, id of a prompt set) of each split of the dataset.
        labeller: id.
    """

    cell: Cell
    prompts: tuple[tuple[str, str], ...]
    labeller: str

    @classmethod
    def of(cls, options: dict[str, Any]) -> Sampling:
        """The sampling of a source's options."""
        cell = Cell(options["dataset"], options["model"], options.get("method", BASE), options.get("seed", 0))
        return cls(cell, tuple(options["prompts"].items()), options["labeller"])

    def of_split(self, split: str) -> str:
        """The id of a split's prompt set.

        Raises:
            KeyError: the split has none.
        """
        return dict(self.prompts)[split]

    @property
    def files(self) -> dict[str, str]:
        """split -> the file of its labelled samples."""
        run = Paths().run(self.cell)
        return {split: str(run.labelled(prompts, self.labeller)) for split, prompts in self.prompts}


def samplings(dataset: Dataset) -> list[Sampling]:
    """What is sampled for a dataset, for each of its sources that is `sampled`."""
    return [Sampling.of(source.options) for source in dataset.all_sources if source.name == SOURCE]


def located(content: Any) -> Any:
    """The content of a catalogue, in which each source `sampled` has the paths of its files; what is malformed is left
    for the validation.

    Raises:
        ValueError: one has paths already, and they are others.
    """
    datasets = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(datasets, dict):
        return content
    kinds = ("sources", "test_sources")
    return {
        **content,
        "datasets": {
            name: {key: _located(name, value) if key in kinds else value for key, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for name, entry in datasets.items()
        },
    }


def _located(dataset: str, sources: Any) -> Any:
    if not isinstance(sources, list | tuple):
        return sources
    found = []
    for source in sources:
        options = source.get("options") if isinstance(source, dict) and source.get("name") == SOURCE else None
        if isinstance(options, dict) and isinstance(options.get("prompts"), dict):
            try:
                path = Sampling.of(options).files
            except (KeyError, TypeError):
                path = None  # an option is missing, which is refused with the source
            if options.get("path") not in (None, path):
                raise ValueError(f"datasets.{dataset}: source {SOURCE}: the workflow says what path is: take it out")
            source = source if path is None else {**source, "options": {**options, "path": path}}
        found.append(source)
    return found
