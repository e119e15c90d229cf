"""Local files and models that the config names, known by their content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.models.download import weight_files
from halos.study import catalogue as C
from halos.study import local
from halos.study.slices import config_slice
from tests.conftest import CATALOGUE

SCORER = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}


def folder_of(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def study(tmp_path: Path) -> tuple[C.Config, dict[str, tuple[str, Path]]]:
    """A catalogue that names local things, and of each its slice's folder and a file of it."""
    model = folder_of(tmp_path / "model", {"config.json": "{}", "model.safetensors": "weights"})
    base = {"base_model_name_or_path": str(model)}
    adapters = folder_of(
        tmp_path / "adapters", {"adapter_config.json": json.dumps(base), "adapter_model.safetensors": "weights"}
    )
    scorer = folder_of(tmp_path / "scorer", {"config.json": json.dumps(SCORER), "model.safetensors": "weights"})
    (tmp_path / "outputs.json").write_text("[1, 2]")
    (tmp_path / "rows.jsonl").write_text("{}")
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["models"] |= {"local": {"path": str(model)}, "adapted": {"path": str(adapters)}}
    content["stages"]["lora"]["lora"]["path"] = str(adapters)
    content["datasets"]["rows"] = {"sources": [{"name": "local", "options": {"path": str(tmp_path / "rows.jsonl")}}]}
    judge = {"kind": "reward_model", "reward_model": str(scorer), "prompts": "p"}
    content["judges"] |= {
        "rm": judge,
        "file": {**content["judges"]["j"], "baseline": {"file": str(tmp_path / "outputs.json")}},
    }
    content["labellers"] = {"rm": {"kind": "reward_model", "reward_model": str(scorer), "feedback": "scalar"}}
    places = {
        "model": ("models/local", model / "model.safetensors"),
        "config": ("models/local", model / "config.json"),
        "base of adapters": ("models/adapted", model / "model.safetensors"),
        "adapters": ("models/adapted", adapters / "adapter_model.safetensors"),
        "adapters of a stage": ("runs/d/m/lora/seed1", adapters / "adapter_model.safetensors"),
        "judge": ("judges/rm", scorer / "model.safetensors"),
        "labeller": ("labellers/rm", scorer / "model.safetensors"),
        "baseline": ("judges/file", tmp_path / "outputs.json"),
        "data": ("data/rows", tmp_path / "rows.jsonl"),
    }
    return C.load(content), places


def replaced_by_older(file: Path) -> None:
    """As `cp -p` of another file does: of the same size, and last changed before."""
    file.write_text(file.read_text()[::-1].replace("}{", "[]"))
    os.utime(file, (10**9, 10**9))


def touched(file: Path) -> None:
    os.utime(file)


def copied(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


PLACES = ("model", "config", "base of adapters", "adapters", "adapters of a stage", "judge", "labeller", "baseline",
          "data")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_replaced_file_makes_another_slice_and_a_touched_one_does_not(place: str, tmp_path: Path) -> None:
    config, places = study(tmp_path)
    assert places.keys() == set(PLACES)
    folder, file = places[place]
    before = config_slice(config, folder)
    for same in (touched, copied):
        same(file)
        assert config_slice(config, folder) == before
    replaced_by_older(file)
    after = config_slice(config, folder)
    assert {key for key in after if after[key] != before[key]} == {"local"}


def test_a_slice_without_local_files_has_no_hashes(tmp_path: Path) -> None:
    config, _ = study(tmp_path)
    for folder in ("models/m", "runs/d/m/dpo/seed1", "judges/j", "data/d"):
        assert "local" not in config_slice(config, folder)


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is read, of which each counts as large; hashes are remembered in a file of the test's."""
    read: list[Path] = []
    real: Callable[[Path], str] = local.hash_file

    def hash_file(path: Path) -> str:
        read.append(path)
        return real(path)

    for name, value in {"KNOWN": tmp_path / "known.json", "LARGE": 0, "SETTLED": 0.0, "hash_file": hash_file}.items():
        monkeypatch.setattr(local, name, value)
    return read


def another_command() -> None:
    local._hash_of.cache_clear()


@pytest.mark.parametrize("replace", [replaced_by_older, copied, touched], ids=lambda f: f.__name__)
def test_a_large_file_is_hashed_once_for_each_state_of_it(
    replace: Callable[[Path], None], tmp_path: Path, hashed: list[Path]
) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    for _ in range(3):
        [first] = local.contents([file]).values()
        another_command()
    assert hashed == [file]
    replace(file)
    for _ in range(3):
        [second] = local.contents([file]).values()
        another_command()
    assert hashed == [file, file]
    assert (first == second) == (replace is not replaced_by_older)
    assert len(json.loads(local.KNOWN.read_text())) == 1


def test_a_file_that_changes_now_is_not_remembered(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change may leave it the same time, by the clock of the file system."""
    monkeypatch.setattr(local, "SETTLED", 60.0)
    file = tmp_path / "weights"
    file.write_text("one")
    for _ in range(2):
        local.contents([file])
        another_command()
    assert hashed == [file, file]
    assert not local.KNOWN.exists()


def test_hashes_that_cannot_be_remembered_are_computed_again(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the results are full or another's."""
    (tmp_path / "known.json").mkdir()
    file = tmp_path / "weights"
    file.write_text("one")
    found = []
    for _ in range(2):
        found.append(local.contents([file]))
        another_command()
    assert hashed == [file, file]
    assert found[0] == found[1]


def test_weights_that_a_link_no_longer_finds_make_another_slice_and_are_named(tmp_path: Path) -> None:
    """A folder of the hub's cache links to files elsewhere, which someone may remove."""
    folder = folder_of(tmp_path / "model", {"config.json": "{}"})
    (tmp_path / "blob").write_text("weights")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "more.json").mkdir()
    before = local.contents([folder])
    assert weight_files(folder)
    (tmp_path / "blob").unlink()
    assert local.contents([folder]) != before
    with pytest.raises(HalosError, match=r"model\.safetensors is a link to .*/blob, which is gone"):
        weight_files(folder)


def test_adapters_that_name_no_base_are_one_sentence(tmp_path: Path) -> None:
    """peft saves those of a model that was made in memory so."""
    for i, base in enumerate((None, "")):
        config: dict[str, Any] = {"base_model_name_or_path": base}
        folder = folder_of(tmp_path / str(i), {"adapter_config.json": json.dumps(config)})
        with pytest.raises(HalosError, match="do not say which model they belong to: set base_model_name_or_path"):
            local.contents([folder])
