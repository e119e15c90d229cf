"""What train.jsonl says of a step, computed again sequence by sequence with plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halos.models.load import load
from halos.tokens.store import Store
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import PLAIN, log, plain_logps, setup


def plain(trainer: Trainer, world: World) -> Any:
    """The policy as a model of transformers."""
    model = load(world.base / "model", "sdpa").eval()
    model.load_state_dict(trainer.policy.model.state_dict())
    return model


def responses(trainer: Trainer, step: int) -> np.ndarray:
    return trainer.examples.responses(trainer.batches[step])


def logps(trainer: Trainer, world: World, role: str, step: int = 0) -> Tensor:
    """(B,) log-probability of each response of a role in a global batch."""
    rows = trainer.examples.rows[role][responses(trainer, step)]
    return plain_logps(plain(trainer, world), Store(world.store), rows)


@pytest.mark.parametrize("budget", [120, 10**6])
@pytest.mark.parametrize(("stage", "changes"), [("dpo", {}), ("dpo", {"humanline": True}), ("simpo", {})])
def test_log_probabilities_of_pairs_are_means_of_whole_responses(
    stage: str, changes: dict[str, Any], budget: int, world: World, tmp_path: Path
) -> None:
    """Those of the policy, which humanline clamps for the loss alone."""
    trainer = setup(world, tmp_path, stage, budget, **{**PLAIN, **changes})
    trainer.step(0)
    found = trainer.objective(trainer.ahead(1), backward=False)[0]
    for role in ("chosen", "rejected"):
        assert found[f"logps/{role}"] == pytest.approx(float(logps(trainer, world, role, 1).mean()), rel=1e-4)


@pytest.mark.parametrize("budget", [120, 10**6])
@pytest.mark.parametrize("stage", ["kto", "grpo", "sft"])
def test_log_probabilities_of_single_responses_are_apart_by_label_or_advantage(
    stage: str, budget: int, world: World, tmp_path: Path
) -> None:
    trainer = setup(world, tmp_path, stage, budget, **PLAIN)
    labels, drawn = trainer.examples.labels, responses(trainer, 0)
    found, expected = trainer.objective(trainer.ahead(0), backward=False)[0], logps(trainer, world, "response")
    if stage == "sft":
        assert found["logps/response"] == pytest.approx(float(expected.mean()), rel=1e-4)
        assert not {"logps/chosen", "logps/rejected"} & found.keys()
        return
    chosen = torch.from_numpy(labels["advantages"] > 0 if stage == "grpo" else labels["desirable"])[drawn]
    assert 0 < chosen.sum() < len(chosen)
    assert found["logps/chosen"] == pytest.approx(float(expected[chosen].mean()), rel=1e-4)
    assert found["logps/rejected"] == pytest.approx(float(expected[~chosen].mean()), rel=1e-4)
    assert "logps/response" not in found


@pytest.mark.parametrize("budget", [120, 10**6])
def test_ppos_metrics_are_those_of_the_whole_batch(budget: int, world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "ppo", budget, **PLAIN)
    store, examples = Store(world.store), trainer.examples
    for step in range(2):  # until the policy has left the reference
        trainer.step(step)
    found = trainer.objective(trainer.ahead(2), backward=False)[0]
    drawn = responses(trainer, 2)
    rows = examples.rows["response"][drawn]
    entropies, values, returns, ratios = [], [], [], []
    model = plain(trainer, world)
    with torch.no_grad():
        for row, desirable in zip(rows, examples.labels["desirable"][drawn], strict=True):
            prompt, response = store.sequence(row)
            ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
            out = model(input_ids=ids[None], output_hidden_states=True)
            own = torch.distributions.Categorical(logits=out.logits[0, len(prompt) - 1 : -1])
            entropies.append(own.entropy().mean())
            values.append(trainer.policy.value_head(out.hidden_states[-1][0, len(prompt) - 1 : -1])[:, 0])
            steps = torch.arange(len(response)).flip(0)
            returns.append((1.0 if desirable else -1.0) * trainer.loss.gamma**steps)
            assert examples.reference is not None
            reference = torch.from_numpy(examples.reference[row])
            ratios.append((own.log_prob(ids[len(prompt) :]) - reference).sum().exp())
    assert found["entropy"] == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-4)
    assert found["sequence_ratio"] == pytest.approx(float(torch.stack(ratios).mean()), rel=1e-4)
    assert abs(found["sequence_ratio"] - 1) > 1e-3
    for name, parts in (("value", values), ("return", returns)):
        assert found[f"{name}/mean"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-3)
        assert found[f"{name}/variance"] == pytest.approx(float(torch.cat(parts).var(correction=0)), rel=1e-3)


@pytest.mark.parametrize("budget", [120, 10**6])
def test_grpos_metrics_are_of_groups_and_their_advantages(budget: int, world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "grpo", budget, **PLAIN)
    offsets, groups = trainer.examples.offsets, trainer.batches[0]
    found = trainer.objective(trainer.ahead(0), backward=False)[0]
    sizes = np.diff(offsets)[groups]
    assert found["group/size"] == pytest.approx(sizes.mean())
    assert (found["group/size_min"], found["group/size_max"]) == (sizes.min(), sizes.max())
    each = [trainer.examples.labels["advantages"][offsets[g] : offsets[g + 1]].astype(np.float64) for g in groups]
    square, absolute = (np.mean([f(a).mean() for a in each]) for f in (np.square, np.abs))
    assert found["advantage/absolute"] == pytest.approx(absolute, rel=1e-5)
    assert found["advantage/variance"] == pytest.approx(square, rel=1e-5)  # each group's mean is 0
    assert found["advantage/mean"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("budget", [120, 10**6])
def test_the_share_of_tokens_that_humanline_leaves_free(budget: int, world: World, tmp_path: Path) -> None:
    bounds = {"log_eps_p": -0.05, "log_eps_r": 0.02}
    trainer = setup(world, tmp_path, "dpo", budget, humanline=True, **bounds, **PLAIN)
    assert trainer.step(0)["humanline/free"] == 1  # policy and reference are equal
    found = trainer.objective(trainer.ahead(1), backward=False)[0]["humanline/free"]
    assert trainer.live is not None
    free = total = 0
    with torch.no_grad():
        for part in trainer.ahead(1).parts:
            ratio = (trainer.policy(part)["logps"] - trainer.live(part)["logps"])[part.mask]
            free += int(((ratio >= bounds["log_eps_p"]) & (ratio <= bounds["log_eps_r"])).sum())
            total += len(ratio)
    assert found == pytest.approx(free / total)
    assert 0.01 < found < 0.99


def test_no_evaluation_before_the_first_step_where_none_is_wanted(world: World, tmp_path: Path) -> None:
    """By the config or, where a workflow runs it, by the command."""
    run = world.train(tmp_path / "run", "dpo", changes={"eval_first": False, "eval_every": 3})
    other = world.train(tmp_path / "other", "dpo", changes={"eval_every": 3}, skip_first_evaluation=True)
    for folder in (run, other):
        assert [line["step"] for line in log(folder) if line["split"] == "eval"] == [3, 6, 8]


def test_an_example_without_weight_leaves_the_rewards_of_others(world: World, tmp_path: Path) -> None:
    """Even the first one of a microbatch: that is no filler."""
    trainer = setup(world, tmp_path, "dpo", 10**6, **PLAIN)
    trainer.step(0)
    batch = trainer.ahead(1)
    expected = trainer.objective(batch, backward=False)[0]
    batch.parts[0].weight[0] = 0
    found = trainer.objective(batch, backward=False)[0]
    assert found["loss"] != expected["loss"]
    assert found["rewards/chosen"] == expected["rewards/chosen"] != 0
