"""Snapshots: each is what a training that ended there gives, and taking them changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from halos.errors import HalosError
from halos.manifest import Manifest
from halos.settings import dump, read_slice
from halos.study.catalogue import Config
from halos.study.cells import Cell
from halos.study.choice import Choice, Tried
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.train.snapshots import snapshot, snapshot_steps
from tests.conftest import CATALOGUE, World
from tests.train.runs import assert_equal, log
from tests.train.test_trials import run


def test_snapshots_are_evenly_spaced_and_no_more_than_steps() -> None:
    assert snapshot_steps(4, 8) == {2: 1, 4: 2, 6: 3}
    assert snapshot_steps(3, 8) == {3: 1, 5: 2}
    assert snapshot_steps(3, 3) == {1: 1, 2: 2}
    assert snapshot_steps(None, 8) == {} == snapshot_steps(1, 8)
    with pytest.raises(HalosError, match="snapshots: 9 are more than the 8 steps"):
        snapshot_steps(9, 8)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora": {"r": 4, "alpha": 8, "dropout": 0.0}},
    "average": {"average": {"kind": "ema", "decay": 0.5}},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_snapshot_is_the_training_that_ends_there(kind: str, world: World, tmp_path: Path) -> None:
    settings = {"batch_size": 4, "scheduler": "cosine", "eval_every": 3, **KINDS[kind]}
    whole = run(world, tmp_path, "sft", "whole", changes=settings, snapshots=4)
    for number, share in ((1, 0.25), (3, 0.75)):
        ended = run(world, tmp_path, "sft", f"ended{number}", changes={**settings, "stop_after": share})
        kept = whole / f"kept/snapshot{number}"
        assert_equal(kept, ended)
        ours, theirs = (Manifest.read(folder / "manifest.json") for folder in (kept, ended))
        assert (ours.steps, ours.tokens, ours.config) == (8 * share, theirs.tokens, theirs.config)
    assert_equal(whole, run(world, tmp_path, "sft", "without", changes=settings))
    assert {line["step"] for line in log(whole) if line["split"] == "eval"} == {0, 2, 3, 4, 6, 8}
    assert len(load_file(whole / "kept/snapshot2/model/model.safetensors")) > 0


def config_of(world: World, tmp_path: Path, share: float, method: str = "sft", **settings: Any) -> Path:
    content = read_slice(world.slice("runs/d/m/sft/seed1"))
    content["stage"] |= {"examples": 32, "batch_size": 4, "stop_after": share, **settings}
    path = tmp_path / "snapshot.yaml"
    path.write_text(dump({**content, "method": method}))
    return path


def test_a_snapshot_is_taken_out_and_becomes_the_chosen_model(world: World, tmp_path: Path) -> None:
    whole = run(world, tmp_path, "sft~0a1b2c", "whole", changes={"batch_size": 4}, snapshots=4)
    config, taken = config_of(world, tmp_path, 0.5, "sft~0a1b2c"), tmp_path / "whole/snapshot2"
    snapshot(config, whole, taken)
    weights = "model/model.safetensors"
    assert (taken / weights).samefile(whole / "kept/snapshot2" / weights)
    assert [line["step"] for line in log(taken)][-1] == 4
    chosen = run(world, tmp_path, "sft", "chosen", changes={"batch_size": 4, "stop_after": 0.5}, trial=taken)
    assert (chosen / weights).samefile(taken / weights)
    own = run(world, tmp_path, "sft", "own", changes={"batch_size": 4, "stop_after": 0.75}, trial=taken)
    assert not (own / weights).samefile(taken / weights)


def test_a_snapshot_that_was_not_kept_is_refused_with_what_to_do(world: World, tmp_path: Path) -> None:
    whole = run(world, tmp_path, "sft", "whole", changes={"batch_size": 4}, snapshots=4)
    for folder, config in (
        ("snapshot5", config_of(world, tmp_path, 0.5)),  # none of this number
        ("snapshot2", config_of(world, tmp_path, 0.25)),  # of another number
        ("snapshot2", config_of(world, tmp_path, 0.5, lr=1e-4)),  # of another training
    ):
        with pytest.raises(HalosError, match=r"trained without this snapshot: delete .*manifest\.json"):
            snapshot(config, whole, whole / folder)
        assert not (whole / folder).exists()


def test_the_snapshots_of_a_diverged_trial_have_its_parents_weights(world: World, tmp_path: Path) -> None:
    settings = {"lr": 1e30, "warmup": 0, "optimizer": "SGD", "optimizer_args": {}, "batch_size": 4}
    diverged = run(world, tmp_path, "sft~0a1b2c", "whole", changes=settings, snapshots=4)
    snapshot(config_of(world, tmp_path, 0.5, **settings), diverged, diverged / "snapshot2")
    manifest = Manifest.read(diverged / "snapshot2/manifest.json")
    assert manifest.diverged is not None
    assert manifest.weights == Manifest.read(world.base / "manifest.json").weights


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_snapshots_of_a_chosen_cell_have_the_chosen_settings(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the choice was between them, its cells take none."""
    monkeypatch.chdir(tmp_path)
    select = {"metric": "loss", "checkpoint": checkpoint}
    dpo = {"loss": "dpo", "snapshots": 4, "sweep": {"lr": [1e-4, 1e-3]}, "select": select}
    config = Config.model_validate({**CATALOGUE, "stages": {**CATALOGUE["stages"], "dpo": dpo}})
    stage = config.stage("dpo", "m")
    name = list(stage.tried)[1]
    tried = {
        key: Tried(settings=s, values={1: 0.5}, value=0.5, steps=4, seconds=1) for key, s in stage.candidates.items()
    }
    choice = {"dataset": "d", "model": "m", "method": "dpo", "measure": "loss", "unit_interval": False, "lowest": True}
    Choice(**choice, select=stage.select, n=None, trials=tried, chosen=name).write(
        Paths().choice(Cell("d", "m", "dpo", 0)).choice
    )
    folder = "runs/d/m/dpo/seed1/snapshot3"
    if checkpoint == "best":
        with pytest.raises(HalosError, match="have no such snapshot"):
            config_slice(config, folder)
        return
    content = config_slice(config, folder)
    assert (content["stage"]["lr"], content["stage"]["stop_after"]) == (1e-3, 0.75)
