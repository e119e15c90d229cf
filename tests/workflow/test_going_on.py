"""Trainings that go on from others, and references that a stage names, through real commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from halos.tokens.store import Store
from halos.train.optimizer import learning_rate
from tests.workflow.conftest import Project
from tests.workflow.test_online import ONLINE, VERIFIER

pytestmark = pytest.mark.slow  # each trains a small study


def manifest(project: Project, method: str, run: str = "seed1") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.results / f"runs/d/m/{method}/{run}/manifest.json").read_text())
    return content


def test_an_optimiser_goes_on_over_rounds_whose_reference_is_another_model(quick: Project) -> None:
    (quick.path / "vowels.py").write_text(VERIFIER)
    content = quick.read_config()
    content["models"]["other"] = {**content["models"]["m"], "seed": 5}
    content["plugins"] = ["vowels.py"]
    content["labellers"] = {"vowels": {"kind": "verifier", "verifier": "vowels", "feedback": "binary"}}
    online = {**ONLINE, "rounds": 2, "continue_optimizer": True, "evaluate": "dataset"}
    content["stages"]["kto_on"] = {
        "loss": "kto", "lr": 1e-3, "batch_size": 8, "scheduler": "linear", "reference": "other", "online": online
    }  # fmt: skip
    content["stages"]["dpo"]["reference"] = "other"
    content["stages"]["kto"]["reference"] = "sft-dpo"
    content["grids"]["pair"] |= {"methods": ["kto_on", "sft-kto"], "tasks": [], "judges": []}
    content["grid"] = "pair"
    quick.write_config(content)
    quick.snakemake("train", timeout=500).ok()
    other = json.loads((quick.results / "models/other/manifest.json").read_text())["weights"]
    for number in (1, 2):
        assert manifest(quick, "kto_on", f"seed1/round{number}")["inputs"]["reference"] == other
    assert manifest(quick, "sft-dpo")["inputs"]["reference"] == other
    assert manifest(quick, "sft-kto")["inputs"]["reference"] == manifest(quick, "sft-dpo")["weights"]
    assert not list((quick.results / "runs").rglob("optimizer"))
    lines = (quick.results / "runs/d/m/kto_on/seed1/train.jsonl").read_text().splitlines()
    rates = [line["lr"] for line in map(json.loads, lines) if line["split"] == "train"]
    first, second = (manifest(quick, "kto_on", f"seed1/round{number}")["steps"] for number in (1, 2))
    expected = [learning_rate(k, 2 * first, 0.1, "linear") for k in range(first)]
    expected += [learning_rate(first + k, first + second, 0.1, "linear") for k in range(second)]
    assert rates == pytest.approx([1e-3 * rate for rate in expected])
    own = Store(quick.results / "tokens/d/m/store").view("validation", "unpaired").num_rows
    for number in (1, 2):
        assert manifest(quick, "kto_on", f"seed1/round{number}")["data"]["validation"]["examples"] == own
    assert quick.dry("train").jobs == []


def test_a_finished_cell_is_trained_further(quick: Project) -> None:
    content = quick.read_config()
    content["stages"]["sft"]["keep_optimizer"] = True
    content["stages"]["more"] = {"resume_from": "sft", "examples": 96}
    content["grids"]["pair"] |= {"methods": ["more-simpo"], "tasks": [], "judges": []}
    content["grid"] = "pair"
    quick.write_config(content)
    quick.snakemake("train", timeout=400).ok()
    assert manifest(quick, "more")["inputs"]["resumed"] == manifest(quick, "sft")["weights"]
    assert (manifest(quick, "sft")["steps"], manifest(quick, "more")["steps"]) == (8, 12)
    assert manifest(quick, "more-simpo")["inputs"]["weights"] == manifest(quick, "more")["weights"]
    assert quick.dry("train").jobs == []
    assert quick.edit({"stages.more.examples": 128}).dry("train").names == [
        "configure runs/d/m/more/seed1", "train_cell more-simpo/seed1", "train_cell more/seed1"
    ]  # fmt: skip
