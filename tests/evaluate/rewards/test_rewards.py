"""Rewards of a preference set: a reward model's own scores, and a policy's own log-ratios to its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halos.data.feedback import Feedback, read, write
from halos.errors import HalosError
from halos.evaluate.rewards.compute import rewards
from halos.evaluate.rewards.rewards import Rewards
from halos.models.load import load
from halos.pretrained import read_tokenizer
from halos.scoring.reward_model import open_reward_model
from halos.tokens.template import Template
from tests.conftest import World


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy of DPO, and a reward model."""
    folder = tmp_path_factory.mktemp("rewards")
    return {name: world.train(folder / name, name) for name in ("dpo", "bradley_terry")}


@pytest.fixture
def feedback(world: World, tmp_path: Path) -> Path:
    """A few records with pairs, of two categories, and one without a pair."""
    records = [record for record in read(world.results / "data/d/test.parquet") if record.pairs][:5]
    of = [Feedback(r.prompt, r.responses, "odd" if k % 2 else "even", pairs=r.pairs) for k, r in enumerate(records)]
    write([*of, Feedback(records[0].prompt, ["one"], "even")], tmp_path / "test.parquet")
    return tmp_path / "test.parquet"


def compute(world: World, run: Path, feedback: Path, method: str, **changes: Any) -> Rewards:
    output = feedback.with_suffix(".json")
    config = world.slice(f"runs/d/m/{method}/seed1")
    options = {"config": config, "model": run / "model", "manifest": run / "manifest.json", "feedback": feedback,
               "output": output, "tokens_per_microbatch": 300}  # fmt: skip
    rewards(**{**options, **changes})
    return Rewards.read(output)


def log_probability(model: Path, record: Feedback, text: str) -> float:
    """The sum over a response's tokens, its end of turn included, one sequence at a time."""
    network, template = load(model, "sdpa").eval(), Template(read_tokenizer(model))
    [prompt], [response] = template.prompts([record.prompt], 1000), template.responses([text])
    ids = torch.tensor([*(prompt.ids or ()), *(response.ids or ())])
    with torch.no_grad():
        logps = network(ids[None]).logits[0].double().log_softmax(-1)
    return float(sum(logps[k - 1, ids[k]] for k in range(len(prompt.ids or ()), len(ids))))


def test_a_policys_rewards_are_its_log_ratios(world: World, runs: dict[str, Path], feedback: Path) -> None:
    base = world.base / "model"
    found = compute(world, runs["dpo"], feedback, "dpo", reference=[base, world.base / "manifest.json"])
    records = [record for record in read(feedback) if record.pairs]
    assert [prompt.prompt_id for prompt in found.prompts] == [record.prompt_id for record in records]
    for prompt, record in zip(found.prompts, records, strict=True):
        wanted = [log_probability(runs["dpo"] / "model", record, text) - log_probability(base, record, text)
                  for text in record.responses]  # fmt: skip
        np.testing.assert_allclose(prompt.rewards, wanted, atol=2e-3)
        assert max(map(abs, prompt.rewards)) > 0.05
        assert (list(prompt.pairs), prompt.category) == (record.pairs, record.source)
        assert prompt.lengths == tuple(map(len, record.responses))
    assert (found.kind, found.left_out) == ("log_ratio", {})
    assert found.weights != found.reference_weights


def test_a_reward_models_rewards_are_its_scores(world: World, runs: dict[str, Path], feedback: Path) -> None:
    found = compute(world, runs["bradley_terry"], feedback, "bradley_terry")
    model = open_reward_model([runs["bradley_terry"] / "model", runs["bradley_terry"] / "manifest.json"], 300)
    for prompt, record in zip(found.prompts, (r for r in read(feedback) if r.pairs), strict=True):
        wanted = model.rewards([record.prompt] * len(record.responses), record.responses)
        np.testing.assert_allclose(prompt.rewards, wanted, atol=1e-5)
    assert (found.kind, found.reference_weights) == ("score", None)


@pytest.mark.parametrize("method", ["dpo", "bradley_terry"])
def test_records_that_do_not_fit_are_left_out_and_counted(
    world: World, runs: dict[str, Path], feedback: Path, method: str
) -> None:
    records = [record for record in read(feedback) if record.pairs]
    long = Feedback(records[0].prompt, ["word " * 400, "no"], "even", pairs=[(0, 1)])
    write([records[0], long, *records[1:]], feedback)
    reference = {"reference": [world.base / "model", world.base / "manifest.json"]} if method == "dpo" else {}
    found = compute(world, runs[method], feedback, method, **reference)
    why = "too long for the model" if method == "dpo" else "a response without a score"
    assert found.left_out == {why: 1}
    assert [prompt.prompt_id for prompt in found.prompts] == [record.prompt_id for record in records]
    write([long], feedback)
    with pytest.raises(HalosError, match=f"can read no record of .*{why}; name another preference set"):
        compute(world, runs[method], feedback, method, **reference)


def test_a_set_without_pairs_and_a_policy_without_reference_are_refused(
    world: World, runs: dict[str, Path], feedback: Path
) -> None:
    with pytest.raises(HalosError, match="reward model"):
        compute(world, runs["dpo"], feedback, "dpo")
    write([Feedback([{"role": "user", "content": "Why?"}], ["one", "two"], "x")], feedback)
    with pytest.raises(HalosError, match="has no pairs, which rewards are compared on: name another preference set"):
        compute(world, runs["bradley_terry"], feedback, "bradley_terry")
