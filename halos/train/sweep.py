"""`sweep:` and `select:` of a stage: which settings are tried, and by what the best of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from halos.files import hash_content
from halos.settings import Strict, numbers

TRIAL = "~"
"""Stands between a stage and the id of one of its trials, in a method: sft-dpo~3fa2c1."""
DIGITS = 3
"""Significant digits of a value that is drawn from a range: enough to find the best, few enough to read."""


class Range(Strict):
    """The values from `min` to `max`: whole numbers where both bounds are."""

    min: Annotated[int | float, BeforeValidator(numbers)]
    max: Annotated[int | float, BeforeValidator(numbers)]
    log: bool = Field(False, description="whether values are drawn evenly on a logarithmic scale")

    @model_validator(mode="after")
    def ordered(self) -> Range:
        """Bounds that are no range are refused."""
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min < self.max):
            raise ValueError(f"min {self.min} must be below max {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"a logarithmic scale has no {self.min}: raise min above 0")
        return self

    def at(self, share: float) -> int | float:
        """The value that lies at a share of the range, from 0 to 1."""
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        low, high = (self.min, self.max + 1) if whole else (self.min, self.max)
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(int(value), self.max) if whole else float(f"{value:.{DIGITS}g}")


def _values(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    value = numbers(list(value) if isinstance(value, tuple) else value)
    if not isinstance(value, Range | dict) and not (isinstance(value, list) and value):
        raise ValueError("give a list of values, [1.e-5, 1.e-4], or a range, {min: 1.e-5, max: 1.e-3, log: true}")
    return value


def _kind(value: Any) -> str:
    return "range" if isinstance(value, Range | dict) else "list"


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("list")],
    Discriminator(_kind),
    BeforeValidator(_values),
]
Sweep = dict[str, Values]
"""Setting or hyperparameter -> the values to try; a dot leads into a setting of settings, as in lora.r."""
Sampler = Literal["qmc", "random"]


def drawn(sweep: Sweep, trials: int | None, sampler: Sampler, seed: int) -> dict[str, dict[str, Any]]:
    """The trials of a sweep, known before any is run: id -> setting -> value.

    An id is a hash of the settings, so that a trial keeps it, and its results, when others are added. The first trials
    of a sampler are the same whatever their number.

    Args:
        trials: how many are drawn; None for every combination of the lists.
        sampler: `qmc` draws a Halton sequence, which spreads evenly over all settings at once (Owen 2017, arXiv
            1706.02808, for its scrambling); `random` draws each by itself (Bergstra & Bengio 2012, JMLR 13:281-305).
        seed: of the sampler.

    Raises:
        ValueError: a range without a number of trials, or more trials than there are combinations.
    """
    ranges = [name for name, values in sweep.items() if isinstance(values, Range)]
    if trials is None:
        if ranges:
            raise ValueError(f"{ranges[0]} is a range: say how many `trials:` are drawn")
        combinations: Iterator[Any] = product(*sweep.values())
        settings: Iterator[dict[str, Any]] = (dict(zip(sweep, chosen, strict=True)) for chosen in combinations)
        found = {_id(chosen): chosen for chosen in settings}
    else:
        shares = _shares(len(sweep), sampler, seed)
        settings = ({name: _at(v, x) for (name, v), x in zip(sweep.items(), row, strict=True)} for row in shares)
        found = {}
        for chosen in islice(settings, 1000 * trials):
            found.setdefault(_id(chosen), chosen)
            if len(found) == trials:
                break
        else:
            raise ValueError(f"its settings have no {trials} combinations: lower trials, or take it out to try all")
    return found


def _at(values: Range | tuple[Any, ...], share: float) -> Any:
    return values.at(share) if isinstance(values, Range) else values[min(int(share * len(values)), len(values) - 1)]


def _shares(dimensions: int, sampler: Sampler, seed: int) -> Iterator[list[float]]:
    """Points of the unit cube, one after the other."""
    if sampler == "random":
        generator = np.random.default_rng(seed)
        while True:
            yield generator.random(dimensions).tolist()
    from scipy.stats.qmc import Halton  # takes a second to import

    sequence = Halton(dimensions, rng=seed)
    while True:
        yield sequence.random(1)[0].tolist()


def _id(settings: Mapping[str, Any]) -> str:
    return hash_content(dict(settings))[:6]


class Select(Strict):
    """What decides between the trials of a stage, on validation prompts. The best value wins; of equal ones the trial
    that is listed first."""

    judge: str | None = Field(None, description="id of a judge, whose prompts are of a validation or train split")
    task: str | None = Field(None, description="id of a task, local ones with split: validation; not one of the grid's")
    metric: str | None = Field(
        None, description="a quantity of the last evaluation in train.jsonl: loss, or rewards/accuracy"
    )
    by: Literal["win_rate", "score"] = Field("win_rate", description="judge: which of its numbers decides")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1,), min_length=1, description="seeds of the trials, over which values are averaged"
    )
    checkpoint: Literal["last", "best"] = Field(
        "last",
        exclude_if=lambda value: value == "last",
        description="best: choose between the stage's `snapshots` too, so that training ends where it was best",
    )
    goal: Literal["highest", "lowest"] | None = Field(
        None, description="metric: which value is best; by default the lowest loss, else the highest"
    )

    @model_validator(mode="after")
    def one_measure(self) -> Select:
        """Exactly one of the three decides."""
        if sum(name is not None for name in (self.judge, self.task, self.metric)) != 1:
            raise ValueError("give exactly one of judge, task and metric")
        if self.by != "win_rate" and self.judge is None:
            raise ValueError("`by` is read with a judge: take it out")
        if self.goal is not None and self.metric is None:
            raise ValueError("`goal` is read with a metric: take it out")
        return self

    @property
    def lowest(self) -> bool:
        """Whether the lowest value of a metric is best."""
        return self.goal == "lowest" or (self.goal is None and self.metric is not None and "loss" in self.metric)


FIXED = {
    "loss", "label", "online", "reference", "reward_model", "resume_from", "humanline", "sync_reference", "label_by",
    "forward", "eval_every", "eval_first", "checkpoint_every", "keep_every", "snapshots", "keep_optimizer", "lora",
    "lora.path", "sweep", "trials", "sampler", "sampler_seed", "select",
}  # fmt: skip
"""Settings that no sweep can try: they decide what has to be made before, or change no result."""


def with_settings(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a stage with other values of some settings, named as in a sweep."""
    changed = dict(content)
    for name, value in settings.items():
        *path, last = name.split(".")
        place = changed
        for part in path:
            place[part] = dict(place.get(part) or {})
            place = place[part]
        place[last] = value
    return changed
