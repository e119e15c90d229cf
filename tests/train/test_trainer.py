"""The training loop: its steps, its live reference, its optimiser, and what it logs, publishes and refuses."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from halos.errors import HalosError
from halos.files import hash_weights
from halos.models import policy as M
from halos.models.load import load
from halos.reference.cache import expected_hashes
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.tokens.store import Store
from halos.train.optimizer import learning_rate
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.forward.test_layout import ids_of

HUMANLINE = ("dpo", "grpo", "kto", "ppo")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in LOSSES},
    **{f"humanline_{name}": (name, {"humanline": True}) for name in HUMANLINE},
    "ppo_of_scores": ("ppo", {"reward": "score"}),
}
"""name -> (stage, its changes): every loss, and what makes another objective of one."""
TIMING = {"seconds", "tokens_per_second", "peak_memory_gb"}
PLAIN = {"optimizer": "SGD", "optimizer_args": {}, "lr": 0.3}
"""An optimiser whose step is its gradient: AdamW would blow rounding errors of tiny gradients up to full steps."""


def log(run: Path) -> list[dict[str, Any]]:
    """train.jsonl, or the unfinished run's, without what differs from run to run."""
    path = run / "train.jsonl" if (run / "train.jsonl").exists() else run / "checkpoints/train.jsonl"
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model/model.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def setup(
    world: World, output: Path, stage: str, budget: int = 2048, seed: int = 1, precision: str = "fp32", **changes: Any
) -> Trainer:
    """A trainer that has not begun."""
    config = world.slice(f"runs/d/m/{stage}/seed{seed}", **changes)
    config.write_text(dump({**read_slice(config), "precision": precision}))
    files = world.parts(C.Stage(**read_slice(config)["stage"]))
    return Trainer(config, world.base, world.store, output, files, None, [], budget, False, None)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def _bf16() -> Iterator[None]:
    """accelerate keeps one state for a process, its precision included."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def length(changes: list[Tensor]) -> float:
    return math.sqrt(sum(float(change.double().square().sum()) for change in changes))


@torch.no_grad()
def plain_logps(model: Any, store: Store, rows: np.ndarray) -> Tensor:
    """(N,) sum over its tokens of the log-probabilities of each response, run alone."""
    found = []
    for prompt, response in map(store.sequence, rows):
        ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(logps.gather(1, ids[len(prompt) :, None]).sum())
    return torch.stack(found)


# ---- the reference ---------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("changes", [{"humanline": True}, {"sync_reference": 3}])
def test_a_cached_reference_for_a_live_one_is_refused(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"the reference of this stage is live .* give no --reference"):
        world.train(tmp_path / "run", "dpo", changes=changes, reference=world.reference()[:1])
    assert not (tmp_path / "run").exists()


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


# ---- steps -----------------------------------------------------------------------------------------------------


def test_gradients_are_clipped_by_their_global_norm(world: World, tmp_path: Path) -> None:
    """A step of plain SGD of rate 1 is as long as the norm that was allowed, or as the gradient itself."""
    lengths, norms = [], []
    for limit in (0.01, 1e6):
        trainer = setup(world, tmp_path, "dpo", 300, **{**PLAIN, "lr": 1.0, "warmup": 0, "max_grad_norm": limit})
        before = values(trainer.policy)
        norms.append(trainer.step(0)["grad_norm"])
        lengths.append(length([p - before[n] for n, p in values(trainer.policy).items()]))
    assert norms[0] == norms[1] > 0.01
    assert lengths == pytest.approx([0.01, norms[0]], rel=1e-3)


def test_a_value_heads_gradient_is_clipped_apart(world: World, tmp_path: Path) -> None:
    found = []
    for value_limit, weight in ((0.004, 1.0), (1e6, 2.0)):
        changes = {"lr": 1.0, "warmup": 0, "max_grad_norm": 0.01, "value_max_grad_norm": value_limit}
        trainer = setup(world, tmp_path, "ppo", **{**PLAIN, **changes, "value_weight": weight})
        before = values(trainer.policy)
        norm = trainer.step(0)["grad_norm"]
        moved = {n: p - before[n] for n, p in values(trainer.policy).items()}
        own = length([change for name, change in moved.items() if name.startswith("model.")])
        head = length([change for name, change in moved.items() if name.startswith("value_head.")])
        found.append((norm, own, head))
    assert found[0] == pytest.approx((found[1][0], 0.01, 0.004), rel=1e-3)
    assert found[1][2] > 0.1


def test_no_gradient_of_a_value_reaches_the_model(world: World, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 1e6):
        trainer = setup(world, tmp_path, "ppo", value_weight=weight)
        trainer._over_batch(trainer._prepare(trainer.examples, trainer.batches[0]), backward=True)
        found.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]) == name.startswith("model.")


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_inner_epochs_are_steps_on_one_batch_whose_examples_count_once(
    stage: str, world: World, tmp_path: Path
) -> None:
    changes = {"inner_epochs": 3, "batch_size": 8, "examples": 16}
    batches = setup(world, tmp_path / "other", stage, **changes).batches
    assert [np.array_equal(batches[k], batches[k + 1]) for k in range(5)] == [True, True, False, True, True]
    run = world.train(tmp_path / "run", stage, changes=changes)
    lines = [line for line in log(run) if line["split"] == "train"]
    assert [line["examples"] for line in lines] == [8, 8, 8, 16, 16, 16]
    assert abs(lines[0]["kl"]) < 1e-4 < abs(lines[1]["kl"])  # the second step goes on from the first
    assert lines[0]["lr"] <= lines[2]["lr"]


@pytest.mark.parametrize("stage", ["dpo", "lora", "ppo", "bradley_terry"])
def test_gradient_checkpointing_changes_no_weight(
    stage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same layers run again in the backward pass, with the same dropout."""
    calls, forward = [0], LlamaMLP.forward
    changes = {**PLAIN, "examples": 24}

    def counted(self: Any, x: Tensor) -> Tensor:
        calls[0] += 1
        return forward(self, x)

    world.reference()  # else the first training would count what makes it
    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain = world.train(tmp_path / "plain", stage, changes=changes)
    once, calls[0] = calls[0], 0
    run = world.train(tmp_path / "run", stage, changes=changes, gradient_checkpointing=True)
    assert calls[0] >= once + 6  # two layers, three steps
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-5, atol=1e-7)
    for a, b in zip(log(plain), log(run), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


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
    files = world.parts(C.Stage(**read_slice(config)["stage"]))
    said = "sequences are padded and prompts not shared, because attention `eager` knows no packed rows\n"
    for attention, padded in (("sdpa", False), ("eager", True)):
        config.write_text(dump({**read_slice(config), "attention": attention}))
        capsys.readouterr()
        Trainer(config, world.base, world.store, tmp_path / attention, files, None, [], 500, False, None).run()
        assert (said in capsys.readouterr().err) == padded
    start, one, other = (weights(run) for run in (world.base, tmp_path / "sdpa", tmp_path / "eager"))
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


# ---- the optimiser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        ("AdamW", {"eps": 1e-3, "betas": [0.8, 0.95], "weight_decay": 0.2, "amsgrad": True}),
        ("Adam", {"eps": 1e-4}),
        ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "eps": 1e-4, "centered": True, "weight_decay": 0.3}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ],
)
def test_every_argument_of_the_config_reaches_the_optimiser(
    optimizer: str, arguments: dict[str, Any], world: World, tmp_path: Path
) -> None:
    found = setup(world, tmp_path, "simpo", optimizer=optimizer, optimizer_args=arguments).optimizer.optimizer
    assert type(found) is getattr(torch.optim, optimizer)
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    for settings in (found.defaults, *found.param_groups):
        assert {k: settings[k] for k in expected} == expected


def test_adamw_has_its_own_defaults_of_the_catalogue(world: World, tmp_path: Path) -> None:
    defaults = setup(world, tmp_path, "simpo").optimizer.optimizer.defaults
    assert (defaults["eps"], defaults["betas"], defaults["weight_decay"]) == (1e-5, (0.9, 0.999), 0.01)


@pytest.mark.parametrize("everywhere", [True, False])
def test_weight_decay_spares_norms_and_biases_only_if_asked_to(everywhere: bool, world: World, tmp_path: Path) -> None:
    """With an eps that is out of all proportion, an AdamW step is its decay: lr * weight_decay of each weight."""
    changes = {"lr": 0.1, "warmup": 0, "optimizer_args": {"weight_decay": 0.5, "eps": 1e9}}
    trainer = setup(world, tmp_path, "simpo", decay_norms_and_biases=everywhere, **changes)
    before = values(trainer.policy)
    trainer.step(0)
    assert any(value.ndim == 1 for value in before.values())
    for name, value in values(trainer.policy).items():
        factor = 1 - 0.1 * 0.5 if everywhere or value.ndim > 1 else 1
        torch.testing.assert_close(value, factor * before[name], rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("_bf16")
def test_small_steps_move_weights_in_bf16(world: World, tmp_path: Path) -> None:
    """Weights in bfloat16 would stay where they are: a step of 5e-7 is below what 0.02 is rounded to."""
    trainer = setup(world, tmp_path, "simpo", precision="bf16", lr=5e-7, warmup=0, optimizer_args={"weight_decay": 0})
    before = values(trainer.policy)
    for k in range(3):
        trainer.step(k)
    after = values(trainer.policy)
    moved = {name: float((value != before[name]).float().mean()) for name, value in after.items()}
    layers = [share for name, share in moved.items() if ".layers." in name]  # others have rows of unseen tokens
    assert min(layers) > 0.9
    assert {value.dtype for value in after.values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["kto", "ppo", "grpo"])
def test_unpaired_data_is_warmed_up_too(stage: str, world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", stage, changes={"warmup": 0.5, "lr": 1e-3, "examples": 32})
    assert [line["lr"] for line in log(run) if line["split"] == "train"] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


# ---- what is logged and left behind ----------------------------------------------------------------------------


def test_the_log_has_a_line_for_each_step_and_evaluations_before_during_and_after(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"eval_every": 3})
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    found = [(line["split"], line["step"]) for line in lines]
    assert [step for split, step in found if split == "train"] == list(range(1, 9))
    assert [step for split, step in found if split == "eval"] == [0, 3, 6, 8]
    assert [line["examples"] for line in lines if line["split"] == "train"] == list(range(8, 65, 8))
    same = {"split", "step", "examples", "loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margin",
            "rewards/accuracy"}  # fmt: skip
    more = {"lr", "grad_norm", "tokens_per_second", "padding_share", "shared_share", "peak_memory_gb", "seconds"}
    for line in lines:
        assert set(line) == same | (more if line["split"] == "train" else set())
        assert all(math.isfinite(v) for k, v in line.items() if k != "split")
        assert line["rewards/margin"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"])
        assert 0 <= line["rewards/accuracy"] <= 1
        assert line["split"] == "eval" or (line["padding_share"] == 0 < line["shared_share"] < 1)


def test_the_first_step_from_the_reference_has_loss_log_2_and_no_kl(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "dpo", changes={"examples": 8})
    before, first = log(run)[:2]
    for line in (before, first):
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)
        for key in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margin"):
            assert line[key] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "grpo"])
def test_every_evaluation_is_of_the_same_examples_whatever_the_seed(stage: str, world: World, tmp_path: Path) -> None:
    one, other = (setup(world, tmp_path, stage, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.batches[0], other.batches[0])
    found = one.evaluate(0)
    assert found == one.evaluate(0) == other.evaluate(0)
    one.step(0)
    assert one.evaluate(1) != found


def test_sft_logs_the_mean_over_tokens(world: World, tmp_path: Path) -> None:
    """An untrained model says every token with about the same probability."""
    run = world.train(tmp_path / "run", "sft", changes={"examples": 16})
    vocabulary = load(world.base / "model", "sdpa").config.vocab_size
    assert log(run)[0]["loss"] == pytest.approx(math.log(vocabulary), rel=0.02)


@pytest.mark.parametrize(("stage", "key"), [("sft", "loss"), ("dpo", "loss"), ("kto", "loss"), ("simpo", "loss")])
def test_training_lowers_the_loss_on_held_out_examples(stage: str, key: str, world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", stage, changes={"lr": 3e-3, "examples": 160, "batch_size": 8})
    evaluations = [line[key] for line in log(run) if line["split"] == "eval"]
    assert evaluations[-1] < 0.98 * evaluations[0]


def test_the_learning_rate_of_the_log_is_the_schedules(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "simpo", changes={"scheduler": "linear", "warmup": 2, "lr": 1e-3})
    rates = [line["lr"] for line in log(run) if line["split"] == "train"]
    assert rates == pytest.approx([5e-4, 1e-3, *(1e-3 * (1 - k / 6) for k in range(6))])


def test_the_manifest_ties_the_model_to_what_made_it(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "kto")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["weights"] == hash_weights(run / "model") != hash_weights(world.base / "model")
    assert manifest["inputs"] == expected_hashes(world.base, Store(world.store))
    assert manifest["config"] == read_slice(world.results / "runs/d/m/kto/seed1/config.yaml")
    assert (manifest["steps"], manifest["processes"], manifest["gpu_hours"]) == (8, 1, 0)
    assert manifest["parameters"] == sum(v.numel() for v in weights(run).values())
    assert {"packages", "commit", "hardware", "python", "seconds", "tokens", "peak_memory_gb"} <= set(manifest)
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "model", "train.jsonl"]
    times = {p.name: p.stat().st_mtime_ns for p in (run / "manifest.json", run / "train.jsonl", run / "model")}
    assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_a_trained_model_is_a_parent_like_the_base_model(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft")
    child = world.train(tmp_path / "sft-simpo", "simpo", parent=parent)
    manifest = json.loads((child / "manifest.json").read_text())
    assert manifest["inputs"]["weights"] == json.loads((parent / "manifest.json").read_text())["weights"]
    parents = {p.name for p in (parent / "model").iterdir()}
    assert {p.name for p in (child / "model").iterdir()} == parents
    assert "chat_template.jinja" in parents


def test_the_seed_decides_the_order_of_examples(world: World, tmp_path: Path) -> None:
    one, again, other = (world.train(tmp_path / name, "dpo", seed=seed, changes={"examples": 16})
                         for name, seed in (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    assert_equal(one, again)
    assert any(not torch.equal(v, weights(other)[n]) for n, v in weights(one).items())


# ---- what is refused -------------------------------------------------------------------------------------------


def test_a_learning_rate_that_is_far_too_high_stops_the_run_with_a_sentence(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(HalosError, match=r"is (nan|inf) at step 2; lower the learning rate \(now 1e\+30\)"):
        world.train(run, "dpo", changes={"lr": 1e30, "warmup": 0.0})
    assert [p.name for p in run.iterdir()] == ["checkpoints"]
    assert not list((run / "checkpoints").glob("step*"))


@pytest.mark.parametrize("examples", [8, 64])
def test_weights_that_diverge_in_the_last_step_are_not_published(
    examples: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the evaluation at the end sees them: no step follows."""
    run, step = tmp_path / "run", Trainer.step

    def breaking(trainer: Trainer, k: int) -> dict[str, Any]:
        metrics = step(trainer, k)
        if k == len(trainer.batches) - 1:
            next(trainer.policy.parameters()).data.fill_(math.nan)
        return metrics

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(HalosError, match=f"the loss is nan at step {examples // 8}; lower the learning rate"):
        world.train(run, "dpo", changes={"examples": examples})
    assert [p.name for p in run.iterdir()] == ["checkpoints"]
    assert all(math.isfinite(line["loss"]) for line in log(run))


@pytest.mark.parametrize(("stage", "count"), [("dpo", 0), ("dpo", 2), ("kto", 1), ("simpo", 1)])
def test_a_wrong_number_of_reference_files_is_refused(stage: str, count: int, world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=f"the loss {stage} reads .* of the reference"):
        world.train(tmp_path / "run", stage, reference=world.reference()[:count])


def test_the_wrong_part_of_the_reference_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="is in no part of the reference"):
        world.train(tmp_path / "run", "dpo", reference=world.reference()[1:])


def test_a_reference_of_other_weights_is_refused(world: World, tmp_path: Path) -> None:
    parent = world.train(tmp_path / "sft", "sft", changes={"examples": 16})
    with pytest.raises(HalosError, match="was made from other weights than this training uses"):
        world.train(tmp_path / "run", "dpo", parent=parent)
    assert not (tmp_path / "run").exists()


def test_a_parent_that_is_not_finished_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="the parent model is not finished"):
        world.train(tmp_path / "run", "simpo", parent=tmp_path)


# ---- the schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "scheduler", "expected"),
    [
        (0, "constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        (0.5, "constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (4, "constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (1, "constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        (0, "linear", [1 - k / 8 for k in range(8)]),
        (4, "linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        (0, "cosine", [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
        (4, "cosine", [0.25, 0.5, 0.75, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]),
        (8, "linear", [k / 8 for k in range(1, 9)]),
        (16, "cosine", [k / 16 for k in range(1, 9)]),
    ],
)
def test_the_schedule_equals_its_closed_form(warmup: float, scheduler: str, expected: list[float]) -> None:
    assert [learning_rate(k, 8, warmup, scheduler) for k in range(8)] == pytest.approx(expected)
