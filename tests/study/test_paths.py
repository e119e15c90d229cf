"""Where results are: `Paths` and cells agree, and a base model has no run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos.study.cells import Cell
from halos.study.paths import Paths

PATHS = Paths(Path("out"))


@pytest.mark.parametrize("cell", [Cell("d", "m", "sft-kto", 3), Cell("d", "m", "sft-on", 1, round=2)])
def test_the_folder_of_a_run_names_its_cell(cell: Cell) -> None:
    assert Cell.of(PATHS.run(cell).folder) == cell
    assert Cell.of(PATHS.run(cell).fresh.train.samples) == cell


def test_a_run_holds_its_own_model_and_a_base_cell_that_of_the_base_model() -> None:
    trained, base = PATHS.run(Cell("d", "m", "sft", 1)), PATHS.run(Cell("d", "m", "base", 0))
    assert (str(trained.model), str(trained.manifest)) == (
        "out/runs/d/m/sft/seed1/model",
        "out/runs/d/m/sft/seed1/manifest.json",
    )
    assert (base.model, base.manifest) == (PATHS.model("m").model, PATHS.model("m").manifest)
    assert str(base.samples("p")) == "out/runs/d/m/base/seed0/samples/p.jsonl"


def test_a_round_has_data_of_its_own() -> None:
    fresh = PATHS.run(Cell("d", "m", "on", 1, round=2)).fresh
    assert str(fresh.reference("responses")) == "out/runs/d/m/on/seed1/round2/fresh/reference/responses.safetensors"
    assert str(fresh.validation.feedback) == "out/runs/d/m/on/seed1/round2/fresh/validation/feedback.parquet"
