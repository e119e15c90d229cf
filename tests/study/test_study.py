"""The cells of a study: what each is made from, trained against and judged with."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from halos.errors import HalosError
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


def test_a_reward_model_of_models_is_a_base_cell_and_trains_nothing() -> None:
    content = copy.deepcopy(CATALOGUE)
    content["models"]["theirs"] = {"hub": "some/one"}
    content["stages"]["ppo"] |= {"reward": "score", "reward_model": "theirs"}
    content["judges"]["j"] = {"kind": "reward_model", "reward_model": "theirs", "prompts": "p"}
    content["grids"]["g"]["methods"] = ["sft-ppo"]
    s = Study(C.load(content))
    assert s.teacher(cell("sft-ppo")) == s.reward_model(s.judges["j"], cell("sft", 3)) == Cell("d", "theirs", "base", 0)
    assert s.trained == [cell("sft"), cell("sft-ppo")]
    assert s.reward_models_of_others == {"theirs": "stages.ppo"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward_model": "thiers"}, "'thiers' is neither a method nor the id of a model; did you mean 'theirs'"),
        ({"reward_model": "models/rm"}, "models/rm is a folder: make it an entry of models, {path: models/rm}, and"),
        ({"reward_model": "m"}, "models.m has random weights, and scores nothing"),
        ({"reward_model": "sft"}, "sft is a model and a method: give the model another id"),
    ],
)
def test_what_is_no_reward_model_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    content = copy.deepcopy(CATALOGUE)
    content["models"] |= {"theirs": {"hub": "some/one"}, "sft": {"hub": "some/one"}}
    content["stages"]["ppo"] |= {"reward": "score", **changes}
    with pytest.raises(HalosError, match=re.escape(f"stages.ppo.reward_model: {sentence}")) as caught:
        C.load(content)
    assert "\n" not in str(caught.value)


def test_a_labeller_by_a_model_has_no_seed() -> None:
    content = copy.deepcopy(CATALOGUE)
    content["models"]["theirs"] = {"hub": "some/one"}
    labeller = {"kind": "reward_model", "reward_model": "theirs", "feedback": "scalar"}
    content["labellers"] = {"l": labeller}
    C.load(content)
    content["labellers"] = {"l": {**labeller, "seed": 2}}
    with pytest.raises(HalosError, match=r"labellers\.l: theirs is an entry of models, which has no seed"):
        C.load(content)


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
