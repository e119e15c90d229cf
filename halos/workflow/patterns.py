"""Regular expressions for the rules' wildcards: they match the ids of config.yaml and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable

from halos.losses import Loss
from halos.study.catalogue import Config
from halos.study.cells import BASE
from halos.train.sweep import TRIAL


def _any(names: list[str]) -> str:
    return "|".join(map(re.escape, names)) or "(?!)"


def _continues(loss: Loss) -> bool:
    """Whether another stage can follow: not after a reward model, nor after prompts that end in a control token."""
    return loss.head != "score" and not loss.control


class Patterns:
    """The patterns of a catalogue.

    Attributes:
        seed: the run of a cell, as in its folder's name.
        round: the run of a round of an online stage, which is a cell of its own below the cell's folder.
        run: either, or a snapshot of the training of a cell.
    """

    seed = r"seed\d+"
    round = r"seed\d+/round\d+"
    run = r"seed\d+(/round\d+|/snapshot\d+)?"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._losses = {name: stage.make_loss() for name, stage in config.stages.items()}

    def ids(self, kind: str) -> str:
        """The ids of one kind of entry: models, datasets, ..."""
        return _any(list(getattr(self._config, kind)))

    @property
    def asked(self) -> str:
        """Judges whose jobs judge one cell: models behind a server, and people."""
        return _any([name for name, judge in self._config.judges.items() if not judge.is_batched])

    @property
    def batched(self) -> str:
        """Judges whose jobs judge many cells."""
        return _any([name for name, judge in self._config.judges.items() if judge.is_batched])

    @property
    def methods(self) -> str:
        """Every method: base, or a chain of stages joined by -, with ~ and an id behind if it is a trial of a sweep."""
        return f"{BASE}|{self.trained_methods}"

    @property
    def trained_methods(self) -> str:
        """Methods with at least one stage."""
        return self._chains(lambda name: True)

    @property
    def offline_methods(self) -> str:
        """Methods whose last stage is trained on the dataset."""
        return self._chains(lambda name: self._config.stages[name].online is None)

    @property
    def online_methods(self) -> str:
        """Methods whose last stage is trained in rounds."""
        return self._chains(lambda name: self._config.stages[name].online is not None)

    @property
    def policies(self) -> str:
        """Methods whose model answers prompts: all but reward models."""
        return f"{BASE}|{self._chains(lambda name: self._losses[name].head != 'score')}"

    def _chains(self, last: Callable[[str], bool]) -> str:
        """Chains of stages that end in a stage for which `last` holds."""
        earlier = [name for name, loss in self._losses.items() if _continues(loss)]
        lasts = _any([name for name in self._losses if last(name)])
        return f"(({_any(earlier)})-)*({lasts})({TRIAL}[0-9a-f]+)?"
