"""The cells of a study: what each is made from, trained against and judged with."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.study import Study
from tests.conftest import CATALOGUE

ONLINE: dict[str, Any] = {"rounds": 3, "prompts_per_round": 8, "label": "l"}
STAGES: dict[str, Any] = {
    "rm": {"loss": "bradley_terry"},
    "ppo_rm": {"loss": "ppo", "reward": "score", "reward_model": "sft-rm"},
    "kto_on": {"loss": "kto", "online": ONLINE},
    "kto_fixed": {"loss": "kto", "online": {**ONLINE, "reference": "fixed"}},
    "kto_live": {"loss": "kto", "humanline": True},
}


def study(judge: dict[str, Any] | None = None, **changes: Any) -> Study:
    content = copy.deepcopy(CATALOGUE)
    content["stages"] |= STAGES
    content["labellers"] = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}}
    content["grids"]["g"] |= {"methods": ["sft"], **changes}
    content["judges"]["j"] = {**(judge or {"kind": "verifier", "verifier": "toy"}), "prompts": "p"}
    return Study(C.load(content))


def cell(method: str, seed: int = 1, round_: int = 0) -> Cell:
    return Cell("d", "m", method, seed, round_)


def test_every_cell_is_trained_once_and_after_those_that_it_is_made_from() -> None:
    s = study(methods=["sft-ppo_rm", "sft", "base"], reward_models=["sft-rm"])
    assert s.trained == [cell("sft"), cell("sft-rm"), cell("sft-ppo_rm")]


def test_what_judging_needs_is_trained_though_the_grid_does_not_name_it() -> None:
    by_reward_model = study({"kind": "reward_model", "reward_model": "rm", "seed": 4})
    assert (by_reward_model.judge_cells, by_reward_model.trained) == ([cell("rm", 4)], [cell("sft"), cell("rm", 4)])
    against_a_cell = study({"kind": "verifier", "verifier": "toy", "baseline": {"method": "kto_on", "seed": "same"}})
    assert (against_a_cell.judge_cells, against_a_cell.trained) == ([cell("kto_on")], [cell("sft"), cell("kto_on")])
    assert list(against_a_cell.labellers) == ["l"]
    assert study().labellers == {}


@pytest.mark.parametrize(
    ("trained", "reference"),
    [
        (cell("sft-dpo", 3), cell("sft", 3)),
        (cell("dpo", 3), cell("base", 0)),
        (cell("sft-kto_on", 3, 2), cell("sft-kto_on", 3, 1)),
        (cell("sft-kto_fixed", 3, 2), cell("sft", 3)),
        (cell("kto_fixed", 3, 1), cell("base", 0)),
    ],
)
def test_the_reference_is_the_parent_unless_it_is_fixed_over_rounds(trained: Cell, reference: Cell) -> None:
    assert study().reference(trained) == reference


def test_a_live_reference_has_no_cached_parts() -> None:
    parts = {method: study().reference_parts(cell(method)) for method in ("sft", "dpo", "kto", "kto_live")}
    assert parts == {"sft": (), "dpo": ("responses",), "kto": ("responses", "mismatched"), "kto_live": ()}


def test_only_online_cells_have_rounds() -> None:
    assert study().rounds(cell("sft-kto_on")) == [cell("sft-kto_on", 1, number) for number in (1, 2, 3)]
    assert study().rounds(cell("sft-dpo")) == study().rounds(cell("base")) == []
