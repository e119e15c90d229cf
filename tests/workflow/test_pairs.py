"""Pairs of methods: which are judged for a grid, by which settings, and one that the workflow judges."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.evaluate.judging.settings import JudgeSlice
from halos.plan.plan import Plan
from halos.plan.questions import questions
from halos.plan.text import text
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.settings import GridSlice
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.scoring.api_server import ApiServer, Messages
from tests.workflow.bound import Workflow
from tests.workflow.conftest import CATALOGUE, Project

ASK = "{instruction}\n[1]{output_1}[/1]\n[2]{output_2}[/2]"
ASKED = {"kind": "openai", "prompts": "p", "max_failures": 0.0,
         "openai": {"model": "judge", "prompt": ASK, "max_tokens": 100, "prices": {"input": 2.0, "output": 8.0},
                    "base_url": "http://localhost:1/v1"}}  # fmt: skip
METHODS = CATALOGUE["grids"]["both"]["methods"]


def load(judge: dict[str, Any], **grid: Any) -> C.Config:
    """The catalogue of the workflow's tests, whose grid has the judge `asked`."""
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["judges"]["asked"] = judge
    content["grids"]["both"] |= {"judges": ["asked"], "seeds": [1, 2], **grid}
    return C.load(content)


def test_a_judge_that_is_asked_compares_what_it_is_told_to_and_others_all() -> None:
    assert Study(load(ASKED)).pairs == {}
    assert Study(load({**ASKED, "compare": "all"})).pairs == {"asked": list(combinations(METHODS, 2))}
    named = [["sft-kto", "base"], ["sft", "base"]]  # the grid has no sft
    study = Study(load({**ASKED, "compare": named}))
    assert study.pairs == {"asked": [("sft-kto", "base")]}
    assert study.compared("asked") == [(Cell("d", "m", "sft-kto", s), Cell("d", "m", "base", s)) for s in (1, 2)]
    scored = load(CATALOGUE["judges"]["j"])
    assert Study(scored).pairs == {}  # nothing has to be judged for them
    grid = GridSlice.model_validate(config_slice(scored, "grids/both"))
    assert grid.pairs == {"asked": list(combinations(METHODS, 2))}
    assert GridSlice.model_validate(config_slice(load(ASKED), "grids/both")).pairs == {}


def test_a_pair_is_judged_as_if_the_other_method_were_the_baseline() -> None:
    config = load({**ASKED, "compare": "all", "prompts_per_pair": 5, "both_orders": True})
    content = config_slice(config, "judges/asked/against/sft-kto")
    settings = JudgeSlice.model_validate(content)
    assert (settings.baseline.method, settings.baseline.seed) == ("sft-kto", "same")  # type: ignore[union-attr]
    assert (settings.prompts_per_pair, settings.both_orders) == (5, True)
    fewer = load({**ASKED, "compare": "all", "prompts_per_pair": 4, "both_orders": True})
    assert config_slice(fewer, "judges/asked/against/sft-kto") != content
    assert config_slice(fewer, "judges/asked") == config_slice(config, "judges/asked")  # judged against the target
    file = load({**ASKED, "compare": "all", "baseline": {"file": "missing.json"}, "length_control": "alpaca_eval"})
    assert config_slice(file, "judges/asked/against/base")["length_control"] == "length_only"
    for folder in ("judges/asked/against", "judges/asked/before/base", "judges/j/against/base"):
        with pytest.raises(HalosError, match="is no folder of the results tree: a judge that is asked has"):
            config_slice(config, folder)


def test_the_grid_asks_for_every_pair_of_cells_with_the_same_seed() -> None:
    workflow = Workflow(load({**ASKED, "compare": "all"}))
    judged = workflow.targets.judged()
    assert len(judged) == 2 * 3 + 2 * 3
    pairs = [re.fullmatch(r"results/runs/d/m/(.+)/(seed\d)/judged/asked/against/(.+)\.json", path) for path in judged]
    found = [(m[1], m[3], m[2]) for m in pairs if m]
    assert found == [(*pair, seed) for pair in combinations(METHODS, 2) for seed in ("seed1", "seed2")]


def test_a_plan_prices_every_question_before_it_is_asked() -> None:
    """8 prompts of `p`. 3 methods of 2 seeds against the baseline: 48 comparisons; 3 pairs of 2 seeds on 5 of the
    prompts: 30. Both orders double them; 3 of each of the 12 judgements are asked again."""
    judge = {**ASKED, "compare": "all", "prompts_per_pair": 5, "both_orders": True, "ask_again": 3}
    plan = Plan(load(judge), "both", "a100-80gb", Path("none"))
    [found] = questions(plan)
    assert (found.judge, found.model) == ("asked", "judge")
    assert (found.comparisons, found.in_pairs, found.questions) == (48, 30, 2 * 78 + 12 * 3)
    amount = plan.amounts["d", "m"]
    each = len(ASK) / 4 + amount.prompt + min(8, amount.response) + amount.response
    assert found.tokens_in == pytest.approx(192 * each / 1e6)
    assert found.tokens_out == pytest.approx(192 * 100 / 1e6)
    assert found.dollars == pytest.approx(2 * found.tokens_in + 8 * found.tokens_out)
    assert "| asked | judge | 48 | 30 | 192 |" in text(plan)
    [once] = questions(Plan(load({**judge, "both_orders": False, "ask_again": 0}), "both", "a100-80gb", Path("none")))
    assert once.questions == 78
    assert "Judges that are asked" not in text(Plan(load(CATALOGUE["judges"]["j"]), "both", "a100-80gb", Path("none")))


def test_a_plan_counts_what_people_and_models_of_the_catalogue_are_asked() -> None:
    """6 judgements of 8 prompts; people vote on 5 of them, two of the three on each."""
    human = {"kind": "human", "prompts": "p", "human": {"annotators": ["a", "b", "c"], "votes": 2, "limit": 5}}
    plan = Plan(load(human), "both", "a100-80gb", Path("none"))
    [votes] = questions(plan)
    assert (votes.model, votes.comparisons, votes.in_pairs, votes.questions) == ("people", 30, 0, 60)
    assert (votes.tokens_in > 0, votes.tokens_out) == (True, 0)
    local = {"kind": "model", "prompts": "p", "both_orders": True, "model": {"model": "m", "prompt": ASK}}
    [asked] = questions(Plan(load(local), "both", "a100-80gb", Path("none")))
    assert (asked.model, asked.comparisons, asked.questions) == ("m", 48, 96)
    assert asked.tokens_out == pytest.approx(96 * 512 / 1e6)
    local["model"] |= {"choices": ["A", "B"]}
    [chosen] = questions(Plan(load(local), "both", "a100-80gb", Path("none")))
    assert chosen.tokens_out == pytest.approx(96 / 1e6)
    assert [math.isnan(found.dollars) for found in (votes, asked, chosen)] == [True] * 3


def test_one_pair_can_be_asked_for_alone(small: Project, tmp_path: Path) -> None:
    project = small.copy(tmp_path / "project").edit({"judges.asked": ASKED})  # which compares nothing by itself
    run = project.dry("results/runs/d/m/sft-kto/seed2/judged/asked/against/base.json")
    assert [name for name in run.names if name.startswith(("sample", "ask"))] == [
        "ask_pair sft-kto/seed2 asked", "sample base/seed2 p", "sample sft-kto/seed2 p",
    ]  # fmt: skip
    [job] = [job for job in run.jobs if job.rule == "ask_pair"]
    assert "results/runs/d/m/base/seed2/samples/p.jsonl" in job.input
    assert "results/judges/asked/against/base/config.yaml" in job.input


def test_the_demo_compares_its_methods_without_a_question(project: Project) -> None:
    run = project.dry("tables", "figures")
    assert "ask_pair" not in run.rules
    made = [job.fields["output"] for job in run.jobs if job.rule in ("make_tables", "draw_figures")]
    assert "results/tables/demo/pairs.csv" in made[0] + made[1]
    assert "results/figures/demo/pairs.png" in made[0] + made[1]


def longer(messages: Messages) -> str:
    first, second = (len(found) for found in re.findall(r"\[\d\](.*?)\[/\d\]", messages[-1]["content"], re.DOTALL))
    return "Verdict: " + ("tie" if first == second else "A" if first > second else "B")


def test_the_workflow_judges_two_methods_and_shows_them(quick: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer(answer=longer) as server:
        openai = {**ASKED["openai"], "base_url": server.base_url}
        quick.edit({
            "judges.asked": {**ASKED, "openai": openai, "compare": "all", "prompts_per_pair": 5, "both_orders": True},
            "grids.both": {**CATALOGUE["grids"]["both"], "methods": ["base", "sft"], "judges": ["asked"], "tasks": []},
        })  # fmt: skip
        quick.snakemake("tables", "figures", "results/reports/both/methods.md").ok()
    file = quick.results / "runs/d/m/base/seed1/judged/asked/against/sft.json"
    judgement = json.loads(file.read_text())
    assert judgement["baseline"] == "sft"
    assert len(judgement["annotations"]) == 5
    lengths = {a["prompt_id"]: (a["candidate_length"], a["baseline_length"]) for a in judgement["annotations"]}
    values = [0.5 + ((ours > theirs) - (ours < theirs)) / 2 for ours, theirs in lengths.values()]
    assert judgement["win_rate"] == pytest.approx(sum(values) / 5)
    table = (quick.results / "tables/both/pairs.csv").read_text().splitlines()
    assert table[1].startswith("asked,d,m,base,sft,win_rate,")
    assert (quick.results / "figures/both/pairs.svg").is_file()
    methods = (quick.results / "reports/both/methods.md").read_text()
    assert "It is asked in both orders" in methods
    assert "It also compares one pair of methods, each on 5 of these prompts." in methods
    assert "Prefers first" in (quick.results / "tables/both/trust.md").read_text()
    assert not quick.dry("tables", "figures").jobs
