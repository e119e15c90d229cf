"""What the rules of the report declare is what the verbs write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from halos.errors import HalosError
from halos.report import subjects, tables
from halos.study.catalogue import load
from halos.study.study import Study
from halos.train.stage import Stage
from halos.workflow.targets import Targets
from tests.workflow.bound import Workflow

ROOT = Path(__file__).parents[2]
CATALOGUE = load(ROOT / "config.yaml")


def of_grid(**changes):
    grid = CATALOGUE.grids["demo"].model_copy(update=changes)
    return Workflow(CATALOGUE.model_copy(update={"grids": {**CATALOGUE.grids, "demo": grid}, "grid": "demo"}))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, "benchmarks cost frontier length pairs rounds score training win_rate"),
        ({"methods": ("base",), "reward_models": (), "tasks": ()}, "length score win_rate"),
        ({"methods": ("base", "sft"), "judges": (), "tasks": ()}, "cost training win_rate"),
        ({"methods": ("sft", "sft-dpo"), "models": ("tiny", "smollm2"), "tasks": ()},
         "cost frontier length pairs score size training win_rate"),
        ({"methods": ("kto_all", "kto_desirable_10"), "tasks": ()},
         "cost frontier imbalance length pairs score training win_rate"),
    ],
)  # fmt: skip
def test_a_grid_has_the_figures_that_show_something(changes, names):
    assert of_grid(**changes).targets.figures == names.split()


def test_a_grid_with_a_sweep_has_tables_and_figures_of_it_with_captions():
    stage = Stage(loss="dpo", sweep={"lr": [1e-5, 1e-4]}, select={"metric": "loss"})
    config = CATALOGUE.model_copy(update={"stages": {**CATALOGUE.stages, "dpo": stage}})
    plain, swept = (Targets(Study(catalogue)) for catalogue in (CATALOGUE, config))
    assert set(swept.tables) - set(plain.tables) == {"trials", "tuned"}
    assert set(swept.figures) - set(plain.figures) == {"sensitivity", "tuning"}
    captions = {path.stem for path in (ROOT / "rules/captions").glob("*.rst")}
    assert {*swept.tables, *(f"{name}_figure" for name in swept.figures)} <= captions


def test_a_grid_in_which_two_methods_vary_one_setting_alone_has_their_curves():
    stage = Stage(loss="dpo", sweep={"label_noise": [0, 0.2]}, select={"metric": "loss"})
    stages = {name: stage.model_copy(update={"loss": name}) for name in ("dpo", "ipo")}
    for kept in (["dpo"], ["dpo", "ipo"]):
        changed = {**CATALOGUE.stages, **{name: stages[name] for name in kept}}
        targets = Targets(Study(CATALOGUE.model_copy(update={"stages": changed})))
        assert ("curves" in targets.figures) == (len(kept) == 2)
    captions = {path.stem for path in (ROOT / "rules/captions").glob("*.rst")}
    assert "curves_figure" in captions


def test_every_figure_and_table_is_drawn_by_its_verb_and_has_a_caption(tmp_path, write_tree):
    workflow = of_grid(published="archangel")
    drawn = {subject.figure for subject in subjects.SUBJECTS if subject.figure}
    assert set(workflow.targets.figures) <= drawn
    config, results = write_tree(tmp_path, published="archangel")
    tables.make(config, results=results, output=tmp_path / "tables")
    assert {path.stem for path in (tmp_path / "tables").glob("*.tex")} == set(workflow.targets.tables)
    captions = {path.stem for path in (ROOT / "rules/captions").glob("*.rst")}
    assert {f"{name}_figure" for name in drawn} | set(workflow.targets.tables) <= captions


def test_the_workflow_knows_them_without_the_libraries_that_draw_them():
    code = (
        "import sys\n"
        "from halos.study.catalogue import load\n"
        "from halos.study.study import Study\n"
        "from halos.workflow.targets import Targets\n"
        "targets = Targets(Study(load('config.yaml')))\n"
        "assert targets.tables and targets.plain_tables and targets.figures\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "pandas", "scipy", "torch"} & set(done.stdout.split())


@pytest.mark.parametrize("verb", ["tables", "figures"])
def test_a_report_is_made_without_a_model(tmp_path, write_tree, verb):
    """The environment of the report has no torch."""
    config, results = write_tree(tmp_path, seeds=(1,))
    command = [verb, "--config", str(config), "--results", str(results), "--output", str(tmp_path / "output")]
    code = f"import sys\nfrom halos.cli import main\nassert main({command}) in (0, None)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"pandas", "scipy"} <= imported
    assert not {"torch", "transformers", "accelerate", "peft", "datasets", "lm_eval", "alpaca_eval"} & imported


def test_published_results_that_do_not_exist_are_refused():
    content = {"grid": "g", "models": {"m": {"path": "m"}}, "datasets": {"d": {"sources": [{"name": "toy"}]}}}
    grid = {"datasets": ["d"], "models": ["m"], "methods": ["base"]}
    with pytest.raises(
        HalosError, match=r"grids\.g.*no results called 'archangle' are published; did you mean 'archangel'"
    ):
        load({**content, "grids": {"g": {**grid, "published": "archangle"}}})
