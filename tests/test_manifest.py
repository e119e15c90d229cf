"""manifest.json: whole, typed, and true of the model folder beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos.errors import HalosError
from halos.files import hash_file, hash_weights
from halos.manifest import Manifest, environment


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors", "config.json"):
        (folder / name).write_text(name)
    return folder


def test_a_manifest_has_the_hashes_of_its_model_and_the_environment(model: Path) -> None:
    manifest = Manifest.of(model, {"model": "m"}, revision="abc")
    assert manifest.weights == hash_weights(model)
    assert manifest.files == {path.name: hash_file(path) for path in model.iterdir()}
    assert (manifest.config, manifest.revision, manifest.inputs, manifest.rounds) == ({"model": "m"}, "abc", {}, ())
    assert {name: getattr(manifest, name) for name in environment()} == environment()
    assert {"torch", "numpy"} <= set(manifest.packages)
    assert manifest.hardware is not None
    assert manifest.hardware.threads > 0


def test_a_manifest_is_read_as_it_was_written(model: Path, tmp_path: Path) -> None:
    manifest = Manifest.of(model, {"seed": 1}, inputs={"weights": "w"}, steps=3, seconds=0.5)
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_a_manifest_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(HalosError, match="there is no"):
        Manifest.read(path)
    path.write_text('{"config": {}, "weights": "w"}')
    with pytest.raises(HalosError, match=r"is not what this version writes \(files: Field required\); delete it"):
        Manifest.read(path)
