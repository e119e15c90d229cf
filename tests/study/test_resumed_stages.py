"""Stages that go on from others: whose settings they have, what is refused, and what they are made from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from halos.errors import HalosError
from halos.plan.plan import Plan
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.conftest import CATALOGUE
from tests.workflow.bound import Workflow

ONLINE = {"rounds": 2, "prompts_per_round": 8, "label": "l", "samples_per_prompt": 2}


def load(stages: dict[str, dict[str, Any]], own: dict[str, Any] | None = None) -> C.Config:
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["labellers"] = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}}
    content["stages"]["dpo"] |= {"keep_optimizer": True, "label": "DPO", "beta": 0.3, "eval_every": 7}
    for name, entry in stages.items():
        content["stages"][name] = entry
    content["models"]["m"]["stages"] = own or {}
    content["grids"]["g"]["methods"] = ["sft-more"]
    return C.load(content)


def test_it_has_the_settings_of_the_other_and_a_length_of_its_own() -> None:
    config = load({"more": {"resume_from": "dpo", "epochs": 3}}, {"dpo": {"lr": 7e-4}})
    stage = config.stage("more", "m")
    assert (stage.loss, stage.epochs, stage.examples, stage.hyperparameters) == ("dpo", 3, None, {"beta": 0.3})
    assert (stage.lr, stage.eval_every, stage.label, stage.keep_optimizer) == (7e-4, 7, None, False)
    again = load({"dpo2": {"resume_from": "dpo", "examples": 80, "keep_optimizer": True},
                  "more": {"resume_from": "dpo2", "examples": 96, "lr": 1e-5}})  # fmt: skip
    assert (again.stages["more"].examples, again.stages["more"].lr, again.stages["more"].batch_size) == (96, 1e-5, 8)
    assert [cell.method for cell in Study(again).trained] == ["sft", "sft-dpo", "sft-dpo2", "sft-more"]


OF_MODEL: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[float, int | None, float]]] = {
    "epochs": ({"epochs": 3}, {"examples": 500, "lr": 7e-4}, (3, None, 7e-4)),
    "examples": ({"examples": 3000}, {"examples": 500, "epochs": 2}, (1, 3000, 1e-3)),
    "lr": ({"epochs": 3, "lr": 1e-6}, {"epochs": 2, "lr": 7e-4}, (3, None, 1e-6)),
}


@pytest.mark.parametrize("case", OF_MODEL)
def test_its_own_length_wins_over_what_a_model_says_of_the_other(case: str) -> None:
    entry, own, expected = OF_MODEL[case]
    stage = load({"more": {"resume_from": "dpo", **entry}}, {"dpo": own}).stage("more", "m")
    assert (stage.epochs, stage.examples, stage.lr) == expected
    longer = load({"more": {"resume_from": "dpo", **entry}}, {"dpo": own, "more": {"examples": 9000}})
    assert longer.stage("more", "m").examples == 9000


def test_a_model_has_an_id_with_dots() -> None:
    content = load({"more": {"resume_from": "dpo", "epochs": 3}}).model_dump(mode="json", exclude_unset=True)
    content["models"]["m2.5"] = {**content["models"]["m"], "stages": {"more": {"epochs": 4}}}
    assert C.load(content).stage("more", "m2.5").epochs == 4


def test_it_starts_from_the_same_parent_and_reads_the_run_that_it_goes_on_from(tmp_path: Path) -> None:
    config = load({"more": {"resume_from": "dpo", "examples": 96}})
    w, place = Workflow(config), SimpleNamespace(dataset="d", model="m", method="sft-more", run="seed3")
    assert w.inputs.parent_manifest(place) == "results/runs/d/m/sft/seed3/manifest.json"
    assert w.inputs.resumed(place) == ["results/runs/d/m/sft-dpo/seed3/manifest.json"]
    other = SimpleNamespace(**{**vars(place), "method": "sft-dpo"})
    assert w.inputs.resumed(other) == []
    assert w.resources.intervals(other).split()[-1] == "--keep-optimizer"
    assert config_slice(config, "runs/d/m/sft-more/seed1")["stage"]["resume_from"] == "dpo"
    jobs = {job.cell.method: job for job in Plan(config, "g", "a100-80gb", tmp_path).trainings()}
    assert jobs["sft-more"].seconds < jobs["sft-dpo"].seconds  # the last third


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"more": {"resume_from": "dpoo"}}, "there is no 'dpoo' in stages; did you mean 'dpo'?"),
    "no text": ({"more": {"resume_from": ["dpo"]}}, "stages.more.resume_from: Input should be a valid string"),
    "itself": ({"more": {"resume_from": "more"}}, "stages.more.resume_from: more goes on from more itself"),
    "nothing kept": (
        {"more": {"resume_from": "kto"}},
        "kto keeps no state to go on from: set its keep_optimizer: true",
    ),
    "another training": (
        {"more": {"resume_from": "dpo", "batch_size": 4, "beta": 0.2}},
        "stages.more: batch_size, beta must be that of dpo, from which it goes on: take it out",
    ),
    "rounds": (
        {"on": {"loss": "kto", "online": ONLINE, "keep_optimizer": True}, "more": {"resume_from": "on"}},
        "an online stage goes on by more rounds: raise online.rounds instead",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_gone_on_from_is_refused_in_one_sentence(mistake: str) -> None:
    stages, sentence = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        load({"more": {"loss": "dpo"}, **stages})
    assert sentence in str(caught.value)


def test_a_model_cannot_have_a_stage_go_on_from_another() -> None:
    with pytest.raises(HalosError, match=r"^models.m.stages.simpo.resume_from: a stage goes on from the same one"):
        load({"more": {"loss": "dpo"}}, {"simpo": {"resume_from": "dpo"}})


def test_the_schema_wants_a_loss_or_a_stage_to_go_on_from() -> None:
    schema = {**C.schema()["$defs"]["Stage"], "$defs": C.schema()["$defs"]}
    for entry in ({"loss": "dpo"}, {"resume_from": "dpo"}):
        jsonschema.validate(entry, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"lr": 1e-5}, schema)


def test_a_cell_without_it_is_as_it_was() -> None:
    content = config_slice(load({"more": {"loss": "dpo"}}), "runs/d/m/sft-more/seed1")
    assert "resume_from" not in content["stage"]
    assert Study(load({"more": {"loss": "dpo"}})).resumed(Cell("d", "m", "sft-more", 1)) is None
