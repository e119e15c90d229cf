"""The outputs of a run: its model, log and manifest."""

from __future__ import annotations

import json
from pathlib import Path

from halos.files import hash_weights
from halos.manifest import Manifest
from halos.reference.cache import expected_hashes
from halos.settings import read_slice
from halos.tokens.store import Store
from tests.conftest import World
from tests.train.runs import weights


def test_the_manifest_ties_the_model_to_what_made_it(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "kto")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["weights"] == hash_weights(run / "model") != hash_weights(world.base / "model")
    assert manifest["inputs"] == expected_hashes(world.base, Store(world.store))
    assert manifest["config"] == read_slice(world.results / "runs/d/m/kto/seed1/config.yaml")
    assert (manifest["steps"], manifest["processes"], manifest["gpu_hours"]) == (8, 1, 0)
    assert manifest["parameters"] == sum(v.numel() for v in weights(run).values())
    assert manifest == Manifest.read(run / "manifest.json").model_dump(mode="json")
    assert {"packages", "commit", "hardware", "python", "seconds", "tokens", "peak_memory_gb"} <= set(manifest)
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "model", "train.jsonl"]
    times = {p.name: p.stat().st_mtime_ns for p in (run / "manifest.json", run / "train.jsonl", run / "model")}
    assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_a_trained_model_is_a_parent_like_the_base_model(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft")
    child = world.train(tmp_path / "sft-simpo", "simpo", parent=parent)
    manifest = json.loads((child / "manifest.json").read_text())
    assert manifest["inputs"]["weights"] == json.loads((parent / "manifest.json").read_text())["weights"]
    parents = {p.name for p in (parent / "model").iterdir()}
    assert {p.name for p in (child / "model").iterdir()} == parents
    assert "chat_template.jinja" in parents
