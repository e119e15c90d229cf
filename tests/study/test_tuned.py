"""The demo's settings are those that its tuning has chosen, and the committed result is that of the study's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos.settings import numbers
from halos.study.catalogue import load
from halos.study.choice import Choice
from halos.train.slices import stage_slice

ROOT = Path(__file__).parents[2]
CHOICES = sorted((ROOT / "docs/studies/tuning/choices").glob("*.json"))


def test_every_sweep_of_the_study_has_its_result() -> None:
    tuned = load(ROOT / "config.yaml", ROOT / "studies/tuning.yaml")
    assert {method for _, _, method in tuned.sweeps("tuning")} == {path.stem for path in CHOICES}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_the_model_of_the_demo_has_the_chosen_settings(path: Path) -> None:
    choice, stage = Choice.read(path), path.stem.rsplit("-", 1)[-1]
    tuned = load(ROOT / "config.yaml", ROOT / "studies/tuning.yaml").stage(stage, "tiny")
    tried = {name: trial.settings for name, trial in choice.trials.items()}
    assert tried == numbers(tuned.tried)
    own = stage_slice(load(ROOT / "config.yaml").stage(stage, "tiny"))
    assert {name: own[name] for name in choice.winner.settings} == choice.winner.settings
    assert own == stage_slice(tuned.trial(choice.chosen))
