"""Trials of a sweep: one that diverges is a result, and the chosen one's is that of its cell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from halos.errors import Diverged
from halos.manifest import Manifest
from halos.settings import dump, read_slice
from halos.train.run import train
from tests.conftest import World
from tests.train.runs import assert_equal, log


def run(world: World, tmp_path: Path, method: str, name: str, **options: Any) -> Path:
    """A run of the stage sft under a method's name."""
    content = read_slice(world.slice("runs/d/m/sft/seed1"))
    content["stage"] |= {"examples": 32, **options.pop("changes", {})}
    config = tmp_path / f"{name}.yaml"
    config.write_text(dump({**content, "method": method}))
    train(config, world.base, world.store, tmp_path / name, tokens_per_microbatch=2048, **options)
    return tmp_path / name


@pytest.mark.parametrize("method", ["sft", "sft~0a1b2c"])
def test_a_trial_that_diverges_has_its_parents_weights_and_says_so(method: str, world: World, tmp_path: Path) -> None:
    settings = {"lr": 1e30, "warmup": 0, "optimizer": "SGD", "optimizer_args": {}}
    if method == "sft":
        with pytest.raises(Diverged, match="lower the learning rate"):
            run(world, tmp_path, method, "run", changes=settings)
        return
    diverged = run(world, tmp_path, method, "run", changes=settings)
    manifest, parent = Manifest.read(diverged / "manifest.json"), Manifest.read(world.base / "manifest.json")
    assert manifest.diverged is not None
    assert "lower the learning rate (now 1e+30)" in manifest.diverged
    assert manifest.weights == parent.weights
    assert not (diverged / "checkpoints").exists()


def test_a_cell_takes_the_model_of_its_trial_and_trains_where_that_is_another(world: World, tmp_path: Path) -> None:
    trial = run(world, tmp_path, "sft~0a1b2c", "trial")
    (trial / "model/.snakemake_timestamp").touch()  # by which Snakemake knows how old a folder is
    taken = run(world, tmp_path, "sft", "taken", trial=trial)
    assert not (taken / "model/.snakemake_timestamp").exists()
    weights = "model/model.safetensors"
    assert (taken / weights).samefile(trial / weights)
    assert log(taken) == log(trial)
    ours, theirs = (Manifest.read(folder / "manifest.json") for folder in (taken, trial))
    assert (ours.config["method"], ours.weights, ours.seconds) == ("sft", theirs.weights, theirs.seconds)
    others: dict[str, dict[str, Any]] = {
        "other settings": {"changes": {"lr": 1e-4}},
        "kept models": {"changes": {"keep_every": 2}},
        "none there": {"trial": tmp_path / "nowhere"},
    }
    for name, options in others.items():
        own = run(world, tmp_path, "sft", name, **{"trial": trial, **options})
        assert not (own / weights).samefile(trial / weights), name
        if name != "other settings":
            assert_equal(own, trial)


def test_a_diverged_trial_is_nobodys_model(world: World, tmp_path: Path) -> None:
    trial = run(world, tmp_path, "sft~0a1b2c", "trial")
    path = trial / "manifest.json"
    Manifest.read(path).model_copy(update={"diverged": "the loss is nan"}).write(path)
    shutil.rmtree(trial / "model")  # would be missed
    assert Manifest.read(run(world, tmp_path, "sft", "own", trial=trial) / "manifest.json").diverged is None
