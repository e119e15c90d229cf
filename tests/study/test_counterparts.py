"""Which of a grid's judges shows on test prompts what chose between trials on others."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from halos.study.catalogue import Config, load
from halos.study.counterparts import counterparts
from halos.study.settings import GridSlice
from halos.study.slices import config_slice
from tests.conftest import CATALOGUE


def swept(judge: dict[str, Any] | None = None, prompts: dict[str, Any] | None = None) -> Config:
    """A grid judged on test prompts by `j`, whose DPO is chosen by a judge with other settings and other prompts."""
    catalogue = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    catalogue["prompts"]["chosen_on"] = {**catalogue["prompts"]["p"], "split": "train", **(prompts or {})}
    catalogue["judges"]["chooses"] = {**catalogue["judges"]["j"], "prompts": "chosen_on", **(judge or {})}
    catalogue["stages"]["dpo"] |= {"sweep": {"lr": [1e-4, 1e-3]}, "select": {"judge": "chooses"}}
    return load(catalogue)


@pytest.mark.parametrize("changes", [{}, {"label": "Chooses"}])
def test_the_grids_judge_measures_the_same_where_only_prompts_differ(changes: dict[str, Any]) -> None:
    config = swept(changes, {"limit": 3, "skip": 2, "samples": 2})
    assert counterparts(config, "g") == {"judges": {"chooses": "j"}, "tasks": {}}
    grid = GridSlice.model_validate(config_slice(config, "grids/g"))
    assert (grid.counterparts, grid.sweeps) == (counterparts(config, "g"), (("d", "m", "sft-dpo"),))


@pytest.mark.parametrize(
    ("judge", "prompts"),
    [
        ({"baseline": {"method": "base"}}, {}),
        ({"ties": "neither"}, {}),
        ({"tie_margin": 0.5}, {}),
        ({"whole_sentences": True}, {}),
        ({}, {"dataset": "d"}),
        ({}, {"temperature": 0.0}),
        ({}, {"max_new_tokens": 9}),
    ],
)
def test_what_measures_something_else_is_no_counterpart(judge: dict[str, Any], prompts: dict[str, Any]) -> None:
    assert counterparts(swept(judge, prompts), "g")["judges"] == {}


def test_a_judge_of_other_prompts_than_test_prompts_is_none() -> None:
    config = swept()
    grid = config.grids["g"].model_copy(update={"judges": ("chooses",)})
    assert counterparts(config.model_copy(update={"grids": {"g": grid}}), "g")["judges"] == {}


def test_a_grid_without_sweeps_says_nothing_of_them() -> None:
    assert not {"sweeps", "counterparts"} & set(config_slice(load(CATALOGUE), "grids/g"))
