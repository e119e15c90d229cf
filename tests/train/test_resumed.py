"""Going on from a finished run, with its optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.errors import HalosError
from halos.manifest import KEPT, Manifest
from tests.conftest import World
from tests.train.runs import assert_equal, log

CONSTANT: dict[str, Any] = {"lr": 1e-3, "warmup": 2, "batch_size": 8}
CASES: dict[str, dict[str, Any]] = {"dpo": {}, "ppo": {}, "lora": {}, "kto": {"humanline": True}}


def further(world: World, output: Path, stage: str, run: Path, seed: int = 1, **changes: Any) -> Path:
    """A run of 48 examples that goes on from another."""
    changes = {**CONSTANT, "examples": 48, "resume_from": "short", **changes}
    return world.train(output, stage, seed=seed, changes=changes, resumed=[run / "manifest.json"])


@pytest.mark.parametrize("stage", CASES)
def test_it_ends_where_one_training_of_that_length_ends(stage: str, world: World, tmp_path: Path) -> None:
    """Bit for bit, also where it is stopped on the way."""
    changes = {**CONSTANT, **CASES[stage]}
    whole = world.train(tmp_path / "whole", stage, changes={**changes, "examples": 48, "eval_every": 3})
    short = world.train(tmp_path / "short", stage, changes={**changes, "examples": 24}, keep_optimizer=True)
    files = {path.name for path in (short / KEPT).iterdir()}
    assert {"meta.json", "weights.safetensors", "optimizer.safetensors"} <= files
    run = further(world, tmp_path / "run", stage, short, **CASES[stage])
    assert_equal(whole, run)
    assert log(whole) == log(run)
    manifest = Manifest.read(run / "manifest.json")
    assert manifest.steps == 6
    assert manifest.tokens < Manifest.read(whole / "manifest.json").tokens
    assert manifest.inputs["resumed"] == Manifest.read(short / "manifest.json").weights
    assert not (run / KEPT).exists()
    again = {**CONSTANT, **CASES[stage], "examples": 48, "resume_from": "short"}
    with pytest.raises(HalosError, match="stopped by its time limit after step 4 of 6"):
        world.train(tmp_path / "again", stage, changes=again, resumed=[short / "manifest.json"], time_limit=0)
    assert_equal(whole, further(world, tmp_path / "again", stage, short, **CASES[stage]))
    assert log(whole) == log(tmp_path / "again")


@pytest.fixture(scope="module")
def short(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {**CONSTANT, "examples": 24, "keep_optimizer": True}
    return world.train(tmp_path_factory.mktemp("runs") / "short", "simpo", changes=changes)


def test_one_that_kept_nothing_or_was_another_training_is_refused(world: World, short: Path, tmp_path: Path) -> None:
    bare = world.train(tmp_path / "bare", "simpo", changes={**CONSTANT, "examples": 24})
    with pytest.raises(HalosError, match=r"optimizer, the optimiser's state at the end of that run, is not there: del"):
        further(world, tmp_path / "run", "simpo", bare)
    with pytest.raises(HalosError, match="short was trained with other stage: it cannot be gone on from"):
        further(world, tmp_path / "run", "simpo", short, beta=3.0)
    with pytest.raises(HalosError, match="short was trained with other seed: it cannot be gone on from"):
        further(world, tmp_path / "run", "simpo", short, seed=2)
    changes = {**CONSTANT, "examples": 48, "resume_from": "short"}
    with pytest.raises(HalosError, match="short was trained with other weights: it cannot be gone on from"):
        world.train(tmp_path / "run", "simpo", parent=bare, changes=changes, resumed=[short / "manifest.json"])
    with pytest.raises(HalosError, match=r"short has 3 steps and this run would end at 3: raise epochs or examples"):
        further(world, tmp_path / "run", "simpo", short, examples=24)
    with pytest.raises(HalosError, match=r"goes on from short and got 0 runs: pass its manifest.json by --resumed"):
        world.train(tmp_path / "run", "simpo", changes={"resume_from": "short"})
    with pytest.raises(HalosError, match=r"has no resume_from and got 1 runs to go on from: leave out --resumed"):
        world.train(tmp_path / "run", "simpo", resumed=[short / "manifest.json"])
    assert not (tmp_path / "run/manifest.json").exists()
