"""The objective of a global batch: which passes it takes, its reference, and its gradient."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halos.models import policy as M
from halos.models.load import load
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.tokens.store import Store
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.forward.test_layout import ids_of
from tests.losses.test_mixture import Centred
from tests.train.runs import CASES, PLAIN, are_equal, log, open_inputs, plain_logps, setup, values, weights

REFERRING = [name for name in LOSSES if LOSSES[name].needs_reference]


@pytest.mark.parametrize("name", REFERRING)
def test_the_cached_reference_is_the_base_models_in_every_epoch_and_in_evaluation(
    name: str, world: World, tmp_path: Path
) -> None:
    """Sequence by sequence: a mean would not see values that have changed places."""
    trainer = setup(world, tmp_path, name)
    epoch = trainer.batches.per_epoch
    parts = [(trainer.examples, trainer.batches[k]) for k in (0, epoch - 1, epoch, 2 * epoch + 1)]
    for examples, indices in [*parts, (trainer.held_out, np.arange(len(trainer.held_out)))]:
        for roles in {trainer.loss.view.roles, trainer.loss.prepass} - {()}:
            for batch in examples.microbatches(indices, roles, 2048):
                with torch.no_grad():
                    policy = trainer.policy(batch.to(trainer.accelerator.device))["logps"]
                assert policy.abs().min() == 0 or batch.mask.all()
                torch.testing.assert_close(policy, batch.reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", REFERRING)
def test_a_live_reference_is_the_policy_before_its_last_update(name: str, world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, name, humanline=True, **PLAIN)
    assert trainer.live is not None
    for k in range(3):
        before = values(trainer.policy.model)
        metrics = trainer.step(k)
        assert (metrics["kl"] == 0) == (k == 0)
        assert k > 0 or metrics.get("rewards/chosen", 0) == metrics.get("rewards/rejected", 0) == 0
        assert are_equal(values(trainer.live.model), before)
        assert not are_equal(values(trainer.policy.model), before)


def test_the_ratios_of_a_step_are_those_of_one_update(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "dpo", humanline=True, **PLAIN)
    trainer.step(0)
    trainer.step(1)
    before = copy.deepcopy(trainer.policy.model)
    trainer.step(2)
    after = copy.deepcopy(trainer.policy.model)
    for model in (before, after):
        model.set_attn_implementation("sdpa")
    rows = np.concatenate([trainer.examples.rows[role][trainer.batches[3]] for role in ("chosen", "rejected")])
    store = Store(world.store)
    expected = float((plain_logps(after, store, rows) - plain_logps(before, store, rows)).mean())
    assert abs(expected) > 0.01
    assert trainer.step(3)["kl"] == pytest.approx(expected, rel=1e-3)


def test_a_live_reference_is_synced_at_every_so_many_th_step_only(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "dpo", sync_reference=3, **PLAIN)
    assert trainer.live is not None
    policies, synced = [], []
    for k in range(7):
        policies.append(values(trainer.policy.model))
        trainer.step(k)
        [at] = [i for i, policy in enumerate(policies) if are_equal(policy, values(trainer.live.model))]
        synced.append(at)
    assert synced == [0, 0, 2, 2, 2, 5, 5]


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 4, "alpha": 8, "dropout": 0.0}}], ids=["whole", "lora"])
def test_a_soft_sync_moves_the_reference_by_its_weight(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "dpo", sync_reference=2, sync_weight=0.3, **PLAIN, **changes)
    assert trainer.live is not None
    moved = 0
    for k in range(4):
        reference, policy = values(trainer.live.model), values(trainer.policy.model)
        trainer.step(k)
        found = values(trainer.live.model)
        if k % 2 == 0:
            assert are_equal(found, reference)
            continue
        for name, value in found.items():
            expected = 0.3 * policy[name].double() + 0.7 * reference[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)
        moved += sum(not torch.equal(value, reference[name]) for name, value in found.items())
    assert moved > 0


def test_a_sync_weight_of_one_is_a_copy(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "dpo", sync_reference=1, sync_weight=1.0, **PLAIN)
    assert trainer.live is not None
    for k in range(2):
        before = values(trainer.policy.model)
        trainer.step(k)
        assert are_equal(values(trainer.live.model), before)


def test_passes_for_statistics_of_several_kinds_of_responses_are_joined(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KTO's are of mismatched responses, which follow the others on their keys and values; of the other loss they are
    of the responses themselves. In one microbatch as in several."""
    monkeypatch.setitem(LOSSES._entries, "centred", Centred)
    mixture = {"loss": {"kto": 1.0, "centred": 0.1}, **PLAIN}
    once, cut = (setup(world, tmp_path / str(n), "kto", budget=n, **mixture).step(0) for n in (10**6, 120))
    for name in ("loss", "batch/kto/kl", "batch/centred/kl", "grad_norm"):
        assert once[name] == pytest.approx(cut[name], rel=1e-4, abs=1e-6), name
    assert "centred/loss" in once


def test_an_evaluation_reads_the_live_reference(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "kto", humanline=True, **PLAIN)
    assert trainer.live is not None
    trainer.step(0)
    found = trainer.evaluate(1)
    assert found["kl"] != 0 != found["batch/kl"]
    trainer.live.model.load_state_dict(trainer.policy.model.state_dict())
    found = trainer.evaluate(1)
    assert found["kl"] == 0 == found["batch/kl"]


@pytest.mark.usefixtures("_bf16")
def test_a_live_reference_computes_in_the_policys_type(world: World, tmp_path: Path) -> None:
    """In float32 beside a policy in bfloat16, it would differ from it by rounding alone."""
    assert setup(world, tmp_path, "dpo", precision="bf16", humanline=True).step(0)["kl"] == 0


def test_a_live_reference_shares_what_is_not_trained(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "lora", sync_reference=1)
    assert trainer.live is not None
    live = dict(trainer.live.model.named_parameters())
    assert not any(p.requires_grad for p in live.values())
    shared = {n: p.data_ptr() == live[n].data_ptr() for n, p in trainer.policy.model.named_parameters()}
    assert shared == {n: not p.requires_grad for n, p in trainer.policy.model.named_parameters()}
    assert set(shared.values()) == {True, False}


@pytest.mark.parametrize(("stage", "changes"), [("simpo", {}), ("kto", {}), ("kto", {"humanline": True})])
def test_no_more_than_one_model_is_read_and_only_a_live_reference_is_a_second(
    stage: str, changes: dict[str, Any], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(
        M, "load", lambda folder, *args, **kwargs: calls.append(folder) or load(folder, *args, **kwargs)
    )
    trainer = setup(world, tmp_path, stage, **changes)
    assert calls == [world.base / "model"]
    assert (trainer.live is not None) == bool(changes)
    assert (trainer.examples.reference is None) == (stage == "simpo" or bool(changes))


def test_ipo_is_no_nan_where_policy_and_reference_agree_to_the_last_bit(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "ipo", sync_reference=1, tau=0.1)
    metrics = trainer.step(0)
    assert metrics["kl"] == 0
    assert metrics["loss"] == pytest.approx((1 / (2 * 0.1)) ** 2)
    assert 0 < metrics["grad_norm"] < math.inf


def test_no_gradient_of_a_value_reaches_the_model(world: World, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 1e6):
        trainer = setup(world, tmp_path, "ppo", value_weight=weight)
        trainer.objective(trainer._prepare(trainer.examples, trainer.batches[0]), backward=True)
        found.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]) == name.startswith("model.")


def runs(trainer: Trainer) -> list[Counter[int]]:
    """What the passes over a step are of: the tokens that each one is given, with or without a gradient."""
    found: list[Counter[int]] = []

    def seen(module: Any, inputs: Any, out: Tensor) -> None:
        found.append(Counter(inputs[0].flatten().tolist()))

    handle = trainer.policy.model.get_input_embeddings().register_forward_hook(seen)
    trainer.step(0)
    handle.remove()
    return found


def test_kto_runs_prompts_and_responses_once_and_of_mismatched_ones_the_response_and_the_token_before_it(
    world: World, tmp_path: Path
) -> None:
    """One pass over all: z is known before the loss is needed."""
    trainer, store = setup(world, tmp_path, "kto", budget=10**6), Store(world.store)
    responses, mismatched = (trainer.examples.rows[role][trainer.batches[0]] for role in ("response", "mismatched"))
    prompts = {store.prompt_of(np.array([row]))[0]: store.sequence(row)[0] for row in responses}
    once, again = runs(trainer)
    assert once == Counter(np.concatenate([*prompts.values(), *(store.sequence(r)[1] for r in responses)]).tolist())
    expected = [np.append(prompt[-1:], response) for prompt, response in map(store.sequence, mismatched)]
    assert again == Counter(np.concatenate(expected).tolist())


def test_kto_of_several_microbatches_runs_mismatched_sequences_before_all_others(world: World, tmp_path: Path) -> None:
    trainer, store = setup(world, tmp_path, "kto", budget=120), Store(world.store)
    order: list[bool] = []
    trainer.policy.register_forward_hook(lambda module, inputs, out: order.append(out["logps"].requires_grad))
    found = runs(trainer)
    before = order.count(False)
    assert order == [False] * before + [True] * (len(order) - before)
    assert len(found) == len(order)
    assert 1 < before < len(order) - 1
    for role, part in (("mismatched", found[:before]), ("response", found[before:])):
        sequences = [store.sequence(row) for row in trainer.examples.rows[role][trainer.batches[0]]]
        prompts = {tuple(prompt.tolist()) for prompt, _ in sequences}
        tokens = sum(map(len, prompts)) + sum(len(response) for _, response in sequences)
        assert sum(map(Counter.total, part)) == tokens


@pytest.mark.parametrize(("name", "changes"), CASES.values(), ids=CASES)
def test_a_batch_that_is_one_microbatch_is_run_once(
    name: str, changes: dict[str, Any], world: World, tmp_path: Path
) -> None:
    """Whatever statistics of the whole batch the loss wants: only those of other sequences cost anything."""
    trainer = setup(world, tmp_path, name, budget=10**6, **changes)
    passes: list[tuple[str, ...]] = []
    trainer.policy.register_forward_pre_hook(lambda module, inputs: passes.append(inputs[0].roles))
    trainer.step(0)
    roles = trainer.loss.view.roles
    extra = tuple(role for role in trainer.loss.prepass if role not in roles)
    assert passes == [roles, extra][: 1 + bool(extra)]


@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo", "bradley_terry", "lora", "csft"])
def test_a_model_that_cannot_be_packed_says_so_and_is_trained_to_the_same_weights(
    stage: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**PLAIN, "examples": 24}
    if stage == "lora":
        changes["lora"] = {"r": 4, "alpha": 8, "dropout": 0.0}
    config = world.slice(f"runs/d/m/{stage}/seed1", **changes)
    start = weights(world.base)
    for attention, padded in (("sdpa", False), ("eager", True)):
        config.write_text(dump({**read_slice(config), "attention": attention}))
        capsys.readouterr()
        trainer = Trainer(open_inputs(world, config), tmp_path / attention, 500)
        start = values(trainer.policy.model) | start  # a score layer is not the base model's
        trainer.run()
        assert ("packing is off: attention `eager` " in capsys.readouterr().err) == padded
    one, other = (weights(run) for run in (tmp_path / "sdpa", tmp_path / "eager"))
    for name, value in one.items():
        atol = 1e-7
        if name in start and start[name].shape == value.shape:
            atol += 1e-4 * float((value - start[name]).abs().max())
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=atol)
    assert all(line["padding_share"] == 0 for line in log(tmp_path / "sdpa") if line["split"] == "train")
    for line in log(tmp_path / "eager"):
        assert line["split"] == "eval" or (line["padding_share"] > 0 and line["shared_share"] == 0)


def test_the_terms_of_slic_are_both_of_whole_responses(world: World, tmp_path: Path) -> None:
    trainer, store = setup(world, tmp_path, "slic", delta=1.0, sft_weight=0.1), Store(world.store)
    model = load(world.base / "model", "sdpa")
    chosen, rejected = (plain_logps(model, store, trainer.examples.rows[role][trainer.batches[0]])
                        for role in ("chosen", "rejected"))  # fmt: skip
    expected = ((1 - chosen + rejected).clamp(min=0) - 0.1 * chosen).mean()
    assert trainer.step(0)["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_control_token_stands_in_a_sequence_once_in_every_epoch(world: World, tmp_path: Path) -> None:
    trainer = setup(world, tmp_path, "csft")
    tokens = torch.tensor(trainer.tokenizer.convert_tokens_to_ids(["<|good|>", "<|bad|>"]))
    for step in (0, trainer.batches.per_epoch, 2 * trainer.batches.per_epoch):
        trainer.step(step)
        for batch in trainer.examples.microbatches(trainer.batches[step], ("chosen", "rejected"), 2048):
            assert {int(np.isin(ids, tokens).sum()) for ids in ids_of(batch.layout)} == {1}
