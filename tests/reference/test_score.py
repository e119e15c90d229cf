"""Scores of a store's responses by a reward model of `models:`: its own tokenizer and template, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from halos.cli import main
from halos.data import feedback as F
from halos.errors import HalosError
from halos.manifest import Manifest
from halos.models.base import make
from halos.reference.cache import read_scores
from halos.reference.compute import reference
from halos.reference.score import score
from halos.scoring.reward_model import RewardModel
from halos.settings import dump
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.tokens.store import Store
from tests.conftest import CATALOGUE, World
from tests.scoring.rewards import armorm, classifier

OTHER = (
    "{% for m in messages %}<|{{ m.role }}|>\nSays: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\nSays: {% endif %}"
)


def made(world: World, folder: Path, origin: Path, **entry: Any) -> Path:
    """The folder of a reward model's entry in `models:`."""
    content = copy.deepcopy(CATALOGUE)
    content["models"]["theirs"] = {"path": str(origin), "precision": "fp32", **entry}
    (folder / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config_slice(C.load(content), "models/theirs")))
    make(folder / "config.yaml", folder)
    return folder


def inputs(world: World) -> dict[str, Any]:
    data = world.results / "data/d"
    return {"config": world.slice("tokens/d/m"), "train": data / "train.parquet",
            "validation": data / "validation.parquet", "model": world.base / "model", "store": world.store}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ArmoRM made small, with another chat template than the policy's."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "other.jinja").write_text(OTHER)
    origin = armorm(world.base / "model", folder / "origin")
    return made(world, folder / "made", origin, template=str(folder / "other.jinja"))


@pytest.fixture(scope="module")
def scores(world: World, theirs: Path) -> Path:
    file = theirs / "scores.safetensors"
    options = [w for k, v in {**inputs(world), "reward_model": theirs, "output": file}.items()
               for w in (f"--{k.replace('_', '-')}", str(v))]  # fmt: skip
    assert main(["score", *options]) == 0
    return file


def test_each_response_has_the_score_of_its_text_by_the_reward_models_own_template(
    world: World, theirs: Path, scores: Path
) -> None:
    store = Store(world.store)
    values = read_scores(scores, store)
    assert values.shape == (store.n_responses,)
    model = RewardModel(theirs / "model")
    records = list(F.read(world.results / "data/d/train.parquet"))[:20]
    prompts = [record.prompt for record in records for _ in record.responses]
    responses = [response for record in records for response in record.responses]
    assert "Says: " in model.template.render(prompts[0])
    expected = model.rewards(prompts, responses)
    assert values[: len(expected)] == pytest.approx(
        expected, rel=0, abs=1e-5
    )  # the store's first rows are the records'
    assert np.std(values) > 0.05


def test_ppo_trains_on_the_scores(world: World, scores: Path, tmp_path: Path) -> None:
    changes = {"reward": "score", "reward_model": "theirs", "examples": 16}
    world.train(tmp_path / "ppo", "ppo", changes=changes, scores=[scores])
    assert "scores" in Manifest.read(tmp_path / "ppo/manifest.json").inputs


def test_a_replaced_reward_model_is_refused(world: World, tmp_path: Path) -> None:
    origin = classifier(world.base / "model", tmp_path / "origin", labels=2)
    folder = made(world, tmp_path / "made", origin, reward_logit="difference")
    assert json.loads((folder / "manifest.json").read_text())["config"]["reward_logit"] == "difference"
    weights = load_file(origin / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, origin / "model.safetensors")
    with pytest.raises(HalosError, match=r"changed since .* was made from it"):
        score(**inputs(world), reward_model=folder, output=tmp_path / "scores.safetensors")


def test_scores_of_a_reward_model_from_elsewhere_are_not_made_over_the_policys_tokens(
    world: World, theirs: Path, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match="is from elsewhere: `python -m halos score` makes its scores"):
        reference(world.slice("runs/d/m/base/seed0"), theirs, world.store, "scores", tmp_path / "s")


def test_other_records_than_the_stores_are_refused(world: World, theirs: Path, tmp_path: Path) -> None:
    changed = {**inputs(world), "train": inputs(world)["validation"]}
    with pytest.raises(HalosError, match="was made from other records or another tokenizer"):
        score(**changed, reward_model=theirs, output=tmp_path / "s")


def test_a_pass_that_was_stopped_goes_on_after_its_last_window(
    world: World, theirs: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halos.reference.score.WINDOW", 100)
    monkeypatch.setattr("halos.reference.compute.WINDOW", 100)
    scored: list[int] = []
    whole = RewardModel.rewards_of

    def stopped(self: RewardModel, sequences: Any) -> Any:
        scored.append(len(sequences))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return whole(self, sequences)

    monkeypatch.setattr(RewardModel, "rewards_of", stopped)
    output = tmp_path / "scores.safetensors"
    with pytest.raises(KeyboardInterrupt):
        score(**inputs(world), reward_model=theirs, output=output)
    assert not output.exists()
    score(**inputs(world), reward_model=theirs, output=output)
    store = Store(world.store)
    assert sum(scored[3:]) == store.n_responses - 200
    assert read_scores(output, store) == pytest.approx(read_scores(scores, store), rel=0, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_response_that_is_too_long_for_the_reward_model_is_refused_before_it_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(world, tmp_path / "made", classifier(world.base / "model", tmp_path / "origin", labels=1))
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 24}))
    monkeypatch.setattr(RewardModel, "_scores", None)
    with pytest.raises(HalosError, match=r"are too long for its 24 positions, 0 have no finite score; leave them out"):
        score(**inputs(world), reward_model=folder, output=tmp_path / "s")
