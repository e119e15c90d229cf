"""What changed since a run was made is found, and named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halos.data import feedback
from halos.errors import HalosError
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.verify import verify
from tests.conftest import World

METHOD = "sft-simpo"


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A results tree of its own, with a trained cell and its trained parent."""
    own = World(tmp_path_factory.mktemp("finished") / "results", world.config)
    shutil.copytree(world.results, own.results, ignore=shutil.ignore_patterns("runs"))
    parent = own.train(own.results / "runs/d/m/sft/seed1", "sft", changes={"examples": 32})
    own.slice("runs/d/m/sft/seed1", examples=32)
    own.train(own.results / f"runs/d/m/{METHOD}/seed1", METHOD, parent=parent, changes={"examples": 16})
    return own


@pytest.fixture
def run(finished: World, tmp_path: Path) -> Path:
    shutil.copytree(finished.results, tmp_path / "results")
    return tmp_path / f"results/runs/d/m/{METHOD}/seed1"


def catalogue(finished: World, **settings: Any) -> C.Config:
    """The catalogue that the runs were made with, with changed settings of the last stage."""
    stages = dict(finished.config.stages)
    stages["sft"] = stages["sft"].model_copy(update={"examples": 32})
    stages["simpo"] = C.Stage(**{**stages["simpo"].model_dump(), "examples": 16, **settings})
    return finished.config.model_copy(update={"stages": stages})


def found(run: Path, config: C.Config, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What verify says changed, line by line."""
    with pytest.raises(HalosError, match="changed since it was made"):
        verify(run, config)
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note:")]


def edit_record(path: Path, number: int) -> str:
    """Change a response of a record; returns the prompt's id."""
    records = list(feedback.read(path))
    records[number] = replace(records[number], responses=["No.", *records[number].responses[1:]])
    feedback.write(records, path)
    return records[number].prompt_id


def test_an_untouched_run_is_unchanged(finished: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(run, catalogue(finished))
    assert "unchanged" in capsys.readouterr().out


def test_a_changed_weight_file_is_named(finished: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert found(run, catalogue(finished), capsys) == [f"{weights}: its content changed"]


def test_a_changed_file_of_the_parent_is_named(finished: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = run.parents[1] / "sft/seed1/model/chat_template.jinja"
    template.unlink()
    assert found(run, catalogue(finished), capsys) == [f"{template}: it is gone"]


def test_a_changed_config_value_is_named(finished: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [line] = found(run, catalogue(finished, beta=3.5), capsys)
    assert line == f"{run}: the catalogue: stage.beta was 10.0 and is 3.5"
    slice_of = run / "config.yaml"
    slice_of.write_text(slice_of.read_text().replace("lr: 0.001", "lr: 0.002"))
    [line] = found(run, catalogue(finished), capsys)
    assert line == f"{slice_of}: stage.lr was 0.001 and is 0.002"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_changed_record_of_the_data_is_named(
    split: str, finished: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.parents[4] / f"data/d/{split}.parquet"
    chosen = feedback.prompt_ids(path, 1).to_pylist() if split == "validation" else []
    number = next(i for i, record in enumerate(feedback.read(path)) if record.prompt_id in chosen or not chosen)
    prompt = edit_record(path, number)
    assert found(run, catalogue(finished), capsys) == [f"{path}: the record on prompt {prompt} changed"]


def test_a_record_outside_the_evaluation_subset_is_told_apart(
    finished: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.parents[4] / "data/d/validation.parquet"
    last = feedback.prompt_ids(path).to_pylist()[-1]
    edit_record(path, next(i for i, record in enumerate(feedback.read(path)) if record.prompt_id == last))
    [line] = found(run, catalogue(finished), capsys)
    assert line == f"{path}: its content changed, but no record that the store was made from"


def test_a_parent_or_a_store_that_was_made_anew_is_named(
    finished: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text())
    content["inputs"] |= {"weights": "0" * 64, "store": "1" * 64}
    manifest.write_text(json.dumps(content))
    parent, store = found(run, catalogue(finished), capsys)
    assert parent.startswith(f"{run.parents[1] / 'sft/seed1'}: made anew")
    assert store.startswith(f"{run.parents[4] / 'tokens/d/m/store'}: made anew")


@pytest.mark.parametrize("key", ["resumed", "reference"])
def test_what_a_run_went_on_from_and_its_reference_are_compared(
    key: str, finished: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin, manifest = run.parents[1] / "sft-twin/seed1", run / "manifest.json"
    shutil.copytree(run, twin)
    named = {"resumed": {"resume_from": "twin"}, "reference": {"reference": "sft-twin"}}[key]
    content = json.loads(manifest.read_text())
    content["config"]["stage"] |= named
    content["inputs"][key] = content["weights"]
    manifest.write_text(json.dumps(content))
    (run / "config.yaml").write_text(dump(content["config"]))
    config = catalogue(finished)
    stages = {**config.stages, "twin": config.stages["simpo"]}
    stages["simpo"] = stages["simpo"].model_copy(update=named)
    config = config.model_copy(update={"stages": stages})
    verify(run, config)
    content = json.loads((twin / "manifest.json").read_text())
    (twin / "manifest.json").write_text(json.dumps({**content, "weights": "0" * 64}))
    capsys.readouterr()
    assert found(run, config, capsys) == [f"{twin}: made anew since {run} was trained from it"]


def test_a_file_of_the_store_is_named(finished: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = run.parents[4] / "tokens/d/m/store/train_paired.parquet"
    views.write_bytes(views.read_bytes()[:-8] + b"\0" * 8)
    assert found(run, catalogue(finished), capsys) == [f"{views}: its content changed"]


def test_an_unfinished_run_is_refused(finished: World, run: Path) -> None:
    (run / "manifest.json").unlink()
    with pytest.raises(HalosError, match="not finished"):
        verify(run, catalogue(finished))
    with pytest.raises(HalosError, match="is no cell"):
        verify(run.parents[4], catalogue(finished))
