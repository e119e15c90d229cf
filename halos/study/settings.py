"""`grids:` of config.yaml: the cells of a study, and how they are judged and benchmarked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from halos.evaluate.judging.settings import Compare, pairs_of
from halos.registry import suggest
from halos.settings import Label, Slice, Strict

PUBLISHED_WINRATES = "_winrates.csv"
PUBLISHED_VALUES = "_values.csv"
PUBLISHED_IN = {
    kind: sorted(
        path.name.removesuffix(kind) for path in (Path(__file__).parents[1] / "report/published").glob(f"*{kind}")
    )
    for kind in (PUBLISHED_WINRATES, PUBLISHED_VALUES)
}
"""Ending of a file -> the published results that have one."""
PUBLISHED = sorted({*chain(*PUBLISHED_IN.values())})
"""Published results that a grid can be shown beside; halos/report/published says where they are from."""

REFUSALS = (
    r"(?i)\A\W*(?:(?:i(?: a|['’])m |we(?: a|['’])re )?(?:(?:very|so|really|truly) )?sorry\b|(?:my|i) apolog"
    r"|unfortunately,? (?:i|we)\b|as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?:['’]m| am) (?:not able|unable|not allowed|not comfortable)\b|i (?:must|have to) (?:decline|refuse)\b"
    r"|i (?:can ?not|can['’]t|could ?n['’]t|wo ?n['’]t|will not|do ?n['’]t) (?:\w+ )?(?:help|assist|answer|provide"
    r"|comply|fulfil|support|engage|create|write|give|share|discuss|offer|do that)\b)"
)
"""How a response begins that refuses in English."""


class Grid(Strict):
    """The cells of a study: every dataset x model x method x seed, and how they are judged and benchmarked."""

    datasets: tuple[str, ...] = Field(min_length=1, description="ids of datasets")
    models: tuple[str, ...] = Field(min_length=1, description="ids of models")
    methods: tuple[str, ...] = Field(
        min_length=1, description="base (no training), or chains of stages such as sft-kto"
    )
    reward_models: tuple[str, ...] = Field((), description="methods that end in a reward model: trained and tabulated")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1,), min_length=1, description="one training of each method for each"
    )
    prompts: tuple[str, ...] = Field((), description="prompt sets to sample, in addition to those of the judges")
    judges: tuple[str, ...] = Field((), description="ids of judges: each judges every policy")
    snapshots: tuple[str, ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="ids of judges of validation prompts: each judges the `snapshots` of stages, and their first and "
        "last model",
    )
    tasks: tuple[str, ...] = Field((), description="ids of tasks: each is run on every policy")
    published: str | None = Field(
        None, description="published results to show beside the grid's own: archangel, simpo, simpo_v01 or zephyr"
    )
    refusals: str = Field(
        REFUSALS,
        description="regular expression: a response in which it is found counts as a refusal in the table `text`",
    )
    divergence: int = Field(
        0,
        ge=0,
        description="prompts of each prompt set, chosen by a hash, on whose responses the KL divergence of each policy "
        "from its reference is estimated: 64 is plenty; 0 for none",
    )
    preference_sets: tuple[str, ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="ids of datasets on whose test pairs the grid's reward models, those of its judges among them, and "
        "the implicit rewards of its trained policies are compared",
    )
    label: Label = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def known(self) -> Grid:
        try:
            re.compile(self.refusals)
        except re.error as error:
            raise ValueError(f"refusals is no regular expression ({error}): correct it") from None
        if self.published is not None and self.published not in PUBLISHED:
            raise ValueError(f"no results called {self.published!r} are published{suggest(self.published, PUBLISHED)}")
        return self


class Compared(Strict):
    """The methods that a judge of a grid compares with each other.

    Attributes:
        pairs: all, or the pairs.
        tie_margin: scores this close together are a tie.
    """

    pairs: Compare
    tie_margin: float = 0.0


class GridSlice(Grid, Slice):
    """config.yaml of results/grids/GRID: a grid, and the labels for its tables and figures.

    Attributes:
        grid: its id.
        labels: kind -> id -> name in tables and figures, of the entries that have a label.
        prompt_data: (dataset, split) of its prompt sets that are of a dataset of their own.
        sweeps: (dataset, model, method) of each choice between trials that its methods are made by.
        courses: (dataset, model, method, number of snapshots) of the methods whose snapshots are judged.
        counterparts: `judges` and `tasks` -> id of one that chooses between trials -> id of the grid's own that
            measures the same on test prompts.
        compared: of each judge that compares methods with each other, which.
    """

    grid: str
    labels: dict[str, dict[str, str]]
    prompt_data: tuple[tuple[str, str], ...] = ()
    sweeps: tuple[tuple[str, str, str], ...] = ()
    courses: tuple[tuple[str, str, str, int], ...] = ()
    counterparts: dict[str, dict[str, str]] = {}
    compared: dict[str, Compared] = {}

    @property
    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """The pairs of the grid's methods that each judge compares: the first against the second."""
        named = {judge: self.compared[judge].pairs for judge in self.judges if judge in self.compared}
        found = {judge: pairs_of(pairs, self.methods) for judge, pairs in named.items()}
        return {judge: pairs for judge, pairs in found.items() if pairs}

    @property
    def overlaps(self) -> list[tuple[str, str, str]]:
        """(dataset, other, split): each dataset that is trained on with all others that have prompts of the grid."""
        return overlaps(self.datasets, self.prompt_data)


def overlaps(datasets: Iterable[str], prompt_data: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(dataset, other, split): each dataset that is trained on with all others whose prompts are answered."""
    return [(dataset, *prompts) for dataset, prompts in product(datasets, prompt_data) if prompts[0] != dataset]
