"""A model of the catalogue that is asked, in the workflow: one load for a grid, and pairs of methods with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from halos.errors import HalosError
from halos.sample.backends import LOADS
from halos.study import catalogue as C
from halos.study.study import Study
from tests.workflow.conftest import CATALOGUE, Project

ASK = "{instruction} 1 {output_1} 2 {output_2}"
ASKED: dict[str, Any] = {"kind": "model", "prompts": "p", "compare": "all", "prompts_per_pair": 5,
                         "model": {"model": "m", "prompt": ASK, "choices": ["A", "B"]}}  # fmt: skip


def test_one_load_of_the_model_judges_cells_and_pairs(quick: Project) -> None:
    quick.edit({
        "judges.asked": ASKED,
        "grids.both": {**CATALOGUE["grids"]["both"], "methods": ["base", "sft"], "judges": ["asked"], "tasks": []},
    })  # fmt: skip
    run = quick.snakemake("tables", "results/reports/both/methods.md").ok()
    assert [run.rules[rule] for rule in ("decide", "judge", "judge_pair", "ask", "ask_pair")] == [1, 2, 1, 0, 0]
    [log] = (quick.results / "logs/decide").glob("*.log")
    assert log.read_text().count(LOADS.format("results/models/m/model")) == 1
    [job] = [job for job in run.jobs if job.rule == "decide"]
    assert {"results/models/m/model", "results/models/m/manifest.json"} <= set(job.input)
    assert "results/judges/asked/against/sft/config.yaml" in job.input
    pair = json.loads((quick.results / "runs/d/m/base/seed1/judged/asked/against/sft.json").read_text())
    assert (pair["baseline"], len(pair["annotations"]), pair["kind"]) == ("sft", 5, "model")
    table = (quick.results / "tables/both/pairs.csv").read_text().splitlines()
    assert table[1].startswith("asked,d,m,base,sft,win_rate,")
    assert "is a model (" in (quick.results / "reports/both/methods.md").read_text()
    assert not quick.dry("tables").jobs


def test_a_model_that_is_not_in_the_catalogue_is_refused() -> None:
    unknown = {**ASKED, "model": {**ASKED["model"], "model": "n"}}
    content = {**CATALOGUE, "judges": {**CATALOGUE["judges"], "asked": unknown}}
    with pytest.raises(HalosError, match=r"judges\.asked\.model\.model: there is no 'n' in models"):
        Study(C.load(content))
