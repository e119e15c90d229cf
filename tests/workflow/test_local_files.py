"""What snakemake makes again when a local model that the config names is replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from halos.models.base import make
from tests.conftest import World
from tests.workflow.conftest import Project


def test_replaced_weights_make_the_model_again_and_what_is_made_from_it(
    world: World, quick: Project, tmp_path: Path
) -> None:
    """Also weights that are older than what was made; weights that are only touched make nothing."""
    shutil.copytree(world.base / "model", tmp_path / "origin")
    weights = tmp_path / "origin/model.safetensors"
    model, store = (quick.edit({"models.m": {"path": str(tmp_path / "origin")}}).results / at
                    for at in ("models/m", "tokens/d/m/store"))  # fmt: skip
    quick.snakemake("results/models/m/config.yaml").ok()
    make(model / "config.yaml", model)  # as the rule `model` does, and a store beside it
    shutil.copytree(world.results / "data", quick.results / "data")
    shutil.copytree(world.store, store)
    shutil.copy(world.store.parent / "config.yaml", store.parent)
    for made in ("config.yaml", "train.parquet", "validation.parquet", "test.parquet"):
        os.utime(quick.results / "data/d" / made, (10**9, 10**9))
    os.utime(store.parent / "config.yaml", (10**9, 10**9))
    os.utime(weights)
    os.utime(store)
    wanted = "results/tokens/d/m/store"
    assert not quick.dry(wanted).names
    other = bytearray(weights.read_bytes())
    other[-1] ^= 1
    weights.write_bytes(other)
    os.utime(weights, (10**9, 10**9))
    assert quick.dry(wanted).names == ["configure models/m", "model m", "tokenize d/m"]
