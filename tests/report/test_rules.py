"""What the rules of the report declare is what the verbs write."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos.errors import HalosError
from halos.report import figures, tables
from halos.study.catalogue import load
from tests.workflow.bound import Workflow

ROOT = Path(__file__).parents[2]
CATALOGUE = load(ROOT / "config.yaml")


def of_grid(**changes):
    grid = CATALOGUE.grids["demo"].model_copy(update=changes)
    return Workflow(CATALOGUE.model_copy(update={"grids": {**CATALOGUE.grids, "demo": grid}, "grid": "demo"}))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, "win_rate score training rounds frontier length benchmarks cost"),
        ({"methods": ("base",), "reward_models": (), "tasks": ()}, "win_rate score length"),
        ({"methods": ("base", "sft"), "judges": (), "tasks": ()}, "win_rate training cost"),
        ({"methods": ("sft", "sft-dpo"), "models": ("tiny", "smollm2"), "tasks": ()},
         "win_rate score size training frontier length cost"),
        ({"methods": ("kto_all", "kto_desirable_10"), "tasks": ()},
         "win_rate score training frontier imbalance length cost"),
    ],
)  # fmt: skip
def test_a_grid_has_the_figures_that_show_something(changes, names):
    assert of_grid(**changes).targets.figures == names.split()


def test_every_figure_and_table_is_drawn_by_its_verb_and_has_a_caption(tmp_path, write_tree):
    workflow = of_grid(published="archangel")
    assert set(workflow.targets.figures) <= set(figures.FIGURES)
    config, results = write_tree(tmp_path, published="archangel")
    tables.make(config, results, tmp_path / "tables")
    assert {path.stem for path in (tmp_path / "tables").glob("*.tex")} == set(workflow.targets.tables)
    captions = {path.stem for path in (ROOT / "rules/captions").glob("*.rst")}
    assert {f"{name}_figure" for name in figures.FIGURES} | set(workflow.targets.tables) <= captions


def test_published_results_that_do_not_exist_are_refused():
    content = {"grid": "g", "models": {"m": {"path": "m"}}, "datasets": {"d": {"sources": [{"name": "toy"}]}}}
    grid = {"datasets": ["d"], "models": ["m"], "methods": ["base"]}
    with pytest.raises(
        HalosError, match=r"grids\.g.*no results called 'archangle' are published; did you mean 'archangel'"
    ):
        load({**content, "grids": {"g": {**grid, "published": "archangle"}}})
