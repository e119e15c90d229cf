"""Code that comes with a model is refused unless its entry says otherwise, and is then run wherever the model is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halos.data import feedback as F
from halos.errors import HalosError
from halos.evaluate.tasks.task import evaluate
from halos.manifest import Manifest
from halos.models.base import make
from halos.models.load import load
from halos.models.rewards import check_reward_model
from halos.models.settings import Model
from halos.plan.sizes import config_of, counted_training, size_of
from halos.pretrained import TRUSTED, trusts
from halos.reference.compute import reference
from halos.registry import LOSSES
from halos.sample.run import sample
from halos.scoring.reward_model import RewardModel, open_reward_model
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.tokens.tokenize import tokenize
from halos.train.settings import Lora
from halos.train.stage import Stage
from tests.conftest import CATALOGUE, World
from tests.models.code import with_code

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def world_of(results: Path, world: World, **entry: Any) -> World:
    """The world's data, in a results tree with another model."""
    content = copy.deepcopy(CATALOGUE)
    content["models"]["m"] = {"precision": "fp32", **entry}
    results.mkdir(exist_ok=True)
    (results / "data").symlink_to(world.results / "data")
    return World(results, C.load(content))


@pytest.fixture(scope="module")
def origin(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_code(world.base / "model", tmp_path_factory.mktemp("origin") / "model")


@pytest.fixture(scope="module")
def mine(world: World, origin: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model with code that is trusted, and its store."""
    made = world_of(tmp_path_factory.mktemp("mine"), world, path=str(origin), trust_remote_code=True)
    make(made.slice("models/m"), made.base)
    data = made.results / "data/d"
    files = data / "train.parquet", data / "validation.parquet", made.base / "model", made.store
    tokenize(made.slice("tokens/d/m"), *files, made.results / "report.json")
    return made


def test_code_is_not_run_without_the_setting(world: World, origin: Path, tmp_path: Path) -> None:
    refused = world_of(tmp_path / "results", world, path=str(origin))
    with pytest.raises(
        HalosError, match=r"^models\.m: .* brings code of its own .*`trust_remote_code: true`"
    ) as caught:
        make(refused.slice("models/m"), refused.base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("revision", ["main", COMMIT[:12]])
def test_code_of_the_hub_is_that_of_a_commit(revision: str) -> None:
    content = copy.deepcopy(CATALOGUE)
    content["models"]["m"] = {"hub": "some/one", "revision": revision, "trust_remote_code": True}
    says = rf"models\.m: trust_remote_code runs whatever code some/one has at {revision}: set `revision:`"
    with pytest.raises(HalosError, match=says) as caught:
        C.load(content)
    assert "\n" not in str(caught.value)
    content["models"]["m"]["revision"] = COMMIT
    assert config_slice(C.load(content), "models/m")["trust_remote_code"] is True


def test_a_model_without_the_setting_has_the_slice_that_it_had() -> None:
    assert {"trust_remote_code", "reward_logit"}.isdisjoint(config_slice(C.load(copy.deepcopy(CATALOGUE)), "models/m"))


def test_other_code_makes_another_slice(mine: World, origin: Path) -> None:
    before = config_slice(mine.config, "models/m")["local"]
    assert str(origin / "modeling_mine.py") in before


def test_trusted_code_is_kept_and_run(mine: World, world: World) -> None:
    folder = mine.base / "model"
    assert trusts(folder)
    assert {"configuration_mine.py", "modeling_mine.py", TRUSTED} <= Manifest.read(
        mine.base / "manifest.json"
    ).files.keys()
    ids = torch.arange(3, 20)[None]
    ours, llama = load(folder, "auto").eval(), load(world.base / "model", "auto").eval()
    assert type(ours).__name__ == "MineForCausalLM"
    with torch.no_grad():
        assert torch.allclose(ours(input_ids=ids).logits, -llama(input_ids=ids).logits, atol=1e-6)


def test_other_code_than_was_accepted_is_not_run(mine: World, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (mine.base / "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "modeling_mine.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(HalosError, match=r"modeling_mine\.py is other code than the model's entry accepted"):
        load(folder, "auto")


def test_code_of_another_repository_and_none_at_all_are_refused(world: World, tmp_path: Path) -> None:
    elsewhere = with_code(world.base / "model", tmp_path / "a", AutoModelForCausalLM="other/one--modeling.Model")
    for folder, says in (
        (elsewhere, r"takes modeling\.Model from another repository, other/one, at whatever commit"),
        (world.base / "model", r"trust_remote_code is set, and the model in \S+ brings no code: take it out"),
    ):
        results = world_of(tmp_path / f"of_{folder.name}", world, path=str(folder), trust_remote_code=True)
        with pytest.raises(HalosError, match=says):
            make(results.slice("models/m"), results.base)


def test_it_is_trained_published_with_its_code_and_sampled(mine: World, tmp_path: Path) -> None:
    """SFT, then DPO from it, each loaded again by transformers before it is published."""
    sft = mine.train(tmp_path / "sft", "sft", changes={"examples": 32})
    cell = mine.slice("runs/d/m/sft/seed1")
    responses = tmp_path / "reference/responses.safetensors"
    reference(cell, sft, mine.store, "responses", responses, 2048)
    dpo = mine.train(tmp_path / "dpo", "sft-dpo", parent=sft, reference=[responses], changes={"examples": 16})
    assert trusts(dpo / "model")
    config = json.loads((dpo / "model/config.json").read_text())
    assert (config["model_type"], config["auto_map"]["AutoModelForCausalLM"]) == (
        "mine",
        "modeling_mine.MineForCausalLM",
    )
    prompts, output = mine.slice("prompts/p"), tmp_path / "samples.jsonl"
    test = mine.results / "data/d/test.parquet"
    sample(cell, [prompts], [test], dpo / "model", mine.store, [output], batch=4, backend="transformers")
    assert len(output.read_text().splitlines()) == 6


def test_a_reward_model_is_made_of_its_classifier_and_scores_where_it_is_named_in_models(
    mine: World, tmp_path: Path
) -> None:
    run = mine.train(tmp_path / "rm", "bradley_terry", changes={"examples": 16})
    assert type(load(run / "model", "auto", score=True)).__name__ == "MineRewards"
    records = list(F.read(mine.results / "data/d/test.parquet"))[:3]
    texts = [r.prompt for r in records], [r.responses[0] for r in records]
    scores = open_reward_model([run / "model", run / "manifest.json"], 2048).rewards(*texts)
    assert np.isfinite(np.array(scores, dtype=float)).all()
    with pytest.raises(HalosError, match="make it an entry of models with `trust_remote_code: true`"):
        open_reward_model([run / "model"], 2048)  # a folder of anyone
    with pytest.raises(HalosError, match="brings code of its own, which is not run"):
        check_reward_model(run / "model", trusted=False)
    assert RewardModel(run / "model").rewards(*texts) == scores
    assert LOSSES["bradley_terry"]().head == "score"


def test_tasks_and_plans_run_its_code(mine: World, world: World, tmp_path: Path) -> None:
    config, test = mine.slice("tasks/t"), mine.results / "data/d/test.parquet"
    evaluate(config, mine.base / "model", tmp_path / "task.json", feedback=test)
    assert json.loads((tmp_path / "task.json").read_text())["halos"]["n"] == 8
    assert size_of("m", mine.config.models["m"], tmp_path) == size_of("m", world.config.models["m"], world.results)
    lora = Stage(loss="sft", lora=Lora())
    of_mine, of_m = (
        counted_training(config_of("m", made.config.models["m"], made.results), lora) for made in (mine, world)
    )
    assert of_mine == of_m
    assert of_mine.added > 0
    elsewhere = with_code(world.base / "model", tmp_path / "elsewhere", AutoConfig="some/one--configuration_mine.Mine")
    with pytest.raises(HalosError, match=r"from another repository, some/one, at whatever commit it has"):
        config_of("x", Model(path=str(elsewhere), trust_remote_code=True), tmp_path)
