"""A stage that names its reference: what is refused, which cells a study needs for it, and which files are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from halos.errors import HalosError
from halos.plan.plan import Plan
from halos.study import catalogue as C
from halos.study.cells import Cell
from halos.study.listing import table
from halos.study.slices import config_slice
from halos.study.study import Study
from tests.conftest import CATALOGUE
from tests.workflow.bound import Workflow

ONLINE = {"rounds": 2, "prompts_per_round": 8, "label": "l", "samples_per_prompt": 2}


def load(method: str = "sft-dpo", **stages: dict[str, Any]) -> C.Config:
    """The tests' catalogue with changed settings of stages, a second model, and one method in its grid."""
    content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
    content["models"]["other-2b"] = content["models"]["m"] | {"seed": 7}
    content["labellers"] = {"l": {"kind": "verifier", "verifier": "toy", "feedback": "binary"}}
    for name, changes in stages.items():
        content["stages"].setdefault(name, {}).update(changes)
    content["grids"]["g"]["methods"] = [method]
    return C.load(content)


def wildcards(method: str, run: str = "seed3") -> SimpleNamespace:
    return SimpleNamespace(dataset="d", model="m", method=method, run=run)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"dpo": {"reference": "sfft"}}, "there is no method and no model 'sfft'; did you mean 'sft'?"),
    "a reward model": ({"dpo": {"reference": "sft-bradley_terry"}}, "sft-bradley_terry ends in a reward model"),
    "control tokens": ({"dpo": {"reference": "csft"}}, "csft: its prompts end in a control token"),
    "itself": ({"dpo": {"reference": "sft-dpo"}}, "sft-dpo is trained by dpo itself: name a method that is made"),
    "a circle": (
        {"dpo": {"reference": "sft-kto"}, "kto": {"reference": "dpo"}},
        "sft-kto is trained by dpo itself: name a method that is made without it",
    ),
    "both": ({"m": {"loss": "sft"}, "dpo": {"reference": "m"}}, "'m' is a stage and a model: give one of them another"),
    "no reference": ({"simpo": {"reference": "sft"}}, "the loss 'simpo' has no reference: take out `reference`"),
    "live": ({"dpo": {"reference": "sft", "humanline": True}}, "which begins as the policy: take out `reference`"),
    "fixed twice": (
        {"kto": {"reference": "sft", "online": {**ONLINE, "reference": "fixed"}}},
        "`reference` names a fixed reference: take out online.reference: fixed",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_reference_that_cannot_be_is_refused_in_one_sentence(mistake: str) -> None:
    stages, sentence = MISTAKES[mistake]
    with pytest.raises(HalosError) as caught:
        load(**stages)
    assert sentence in str(caught.value)


def test_a_circle_in_the_settings_of_one_model_is_refused() -> None:
    content = load(dpo={"reference": "kto"}).model_dump(mode="json", exclude_unset=True)
    content["models"]["m"] |= {"stages": {"kto": {"reference": "dpo"}}}
    with pytest.raises(HalosError, match=r"^models.m.stages.kto.reference: dpo is trained by kto itself: name a metho"):
        C.load(content)
    del content["stages"]["dpo"]["reference"]
    content["models"]["m"]["stages"]["dpo"] = {"reference": "kto"}
    with pytest.raises(HalosError, match=r"^models.m.stages.kto.reference: dpo is trained by kto itself: name a metho"):
        C.load(content)


def test_a_method_that_is_named_is_made_with_the_same_seed_and_read(tmp_path: Path) -> None:
    config = load(dpo={"reference": "sft-kto"})
    study, cell = Study(config), Cell("d", "m", "sft-dpo", 1)
    assert study.reference(cell) == Cell("d", "m", "sft-kto", 1)
    assert {made.method for made in study.trained} == {"sft", "sft-kto", "sft-dpo"}
    w = Workflow(config)
    assert w.inputs.reference(wildcards("sft-dpo")) == [
        "results/runs/d/m/sft-kto/seed3/reference/responses.safetensors"
    ]
    assert w.inputs.reference_manifest(wildcards("sft-dpo")) == "results/runs/d/m/sft-kto/seed3/manifest.json"
    assert w.inputs.parent_manifest(wildcards("sft-dpo")) == "results/runs/d/m/sft/seed3/manifest.json"
    assert w.inputs.vocabulary(wildcards("sft-dpo")) == []
    assert Study(load(dpo={"reference": "base"})).reference(cell) == Cell("d", "m", "base", 0)
    assert "sft-kto" in table(config, "cells", None, tmp_path)
    assert "reference" not in table(load(), "cells", None, tmp_path)


def test_a_model_that_is_named_is_run_on_the_policys_store() -> None:
    w = Workflow(load(dpo={"reference": "other-2b"}))
    found = ["results/tokens/d/m/reference/other-2b/responses.safetensors"]
    assert w.inputs.reference(wildcards("sft-dpo")) == found
    assert w.inputs.reference_manifest(wildcards("sft-dpo")) == "results/models/other-2b/manifest.json"
    assert w.inputs.vocabulary(wildcards("sft-dpo")) == ["results/models/m/model"]
    assert {cell.method for cell in w.study.trained} == {"sft", "sft-dpo"}


@pytest.mark.parametrize(
    ("reference", "config"), [("sft", "runs/d/m/sft/seed3"), ("other-2b", "runs/d/other-2b/base/seed0")]
)
def test_every_round_has_the_reference_that_is_named(reference: str, config: str) -> None:
    w = Workflow(load("sft-kto", kto={"reference": reference, "online": ONLINE}))
    for number in (1, 2):
        place = wildcards("sft-kto", f"seed3/round{number}")
        assert w.inputs.reference_config(place) == f"results/{config}/config.yaml"
        fresh = f"results/runs/d/m/sft-kto/seed3/round{number}/fresh/reference"
        assert w.inputs.round_reference(place) == [f"{fresh}/both.safetensors"]


def test_it_belongs_to_the_identity_of_a_cell_and_leaves_that_of_others() -> None:
    folder = "runs/d/m/sft-dpo/seed1"
    before, after = (config_slice(c, folder)["stage"] for c in (load(), load(dpo={"reference": "sft"})))
    assert "reference" not in before
    assert after == {**before, "reference": "sft"}


@pytest.mark.parametrize(("reference", "cell"), [("sft-kto", ("m", "sft-kto")), ("other-2b", ("other-2b", "base"))])
def test_a_plan_has_the_pass_of_the_reference_that_is_named(
    reference: str, cell: tuple[str, str], tmp_path: Path
) -> None:
    jobs = Plan(load(dpo={"reference": reference}), "g", "a100-80gb", tmp_path).jobs
    found = {(job.cell.model, job.cell.method) for job in jobs if job.kind == "reference"}
    assert cell in found
    assert (("m", "sft") in found) == (reference == "sft-kto")  # of kto
