"""Every loss against a closed form in float64, written out here from the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from halos.losses import Batch, Output
from halos.registry import LOSSES

ROLES = {"sft": ["response"], "paired": ["chosen", "rejected"], "unpaired": ["response"]}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_case(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch]:
    """Three examples of each role, of unequal lengths, the last one's rejected response empty."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference, mask = {}, {}, {}
    for role, lengths in {
        "chosen": [4, 2, 3],
        "rejected": [1, 5, 0],
        "response": [3, 5, 0],
        "mismatched": [2, 2, 4],
    }.items():
        mask[role] = torch.arange(5) < torch.tensor(lengths)[:, None]
        policy[role] = -torch.rand(3, 5, generator=generator, dtype=torch.float64) * mask[role]
        reference[role] = -torch.rand(3, 5, generator=generator, dtype=torch.float64) * mask[role]
        policy[role].requires_grad_()
    desirable = torch.tensor([True, False, True])
    return policy, reference, Batch(mask, desirable, {"kl": torch.tensor(0.3, dtype=torch.float64)})


def run(
    name: str, seed: int = 0, **hyperparameters: float
) -> tuple[Output, dict[str, Tensor], dict[str, Tensor], Batch]:
    policy, reference, batch = random_case(seed)
    return LOSSES[name](**hyperparameters)(policy, reference, batch), policy, reference, batch


def expected(name: str, policy: dict[str, Tensor], reference: dict[str, Tensor], batch: Batch) -> list[float]:
    """The closed form of each loss with its default hyperparameters, on Python floats."""

    def total(logps: dict[str, Tensor], role: str, i: int) -> float:
        return float(logps[role][i].detach().sum())

    def ratio(role: str, i: int) -> float:
        return total(policy, role, i) - total(reference, role, i)

    def mean(role: str, i: int) -> float:
        return total(policy, role, i) / max(1, int(batch.mask[role][i].sum()))

    def kto(i: int) -> float:
        gain = 0.1 * (ratio("response", i) - 0.3)  # z = .3
        return 1 - sigmoid(gain if i != 1 else -gain)

    forms = {
        "sft": lambda i: -total(policy, "response", i),
        "dpo": lambda i: -math.log(sigmoid(0.1 * (ratio("chosen", i) - ratio("rejected", i)))),
        "simpo": lambda i: -math.log(sigmoid(10 * (mean("chosen", i) - mean("rejected", i)) - 3)),
        "kto": kto,
    }
    return [forms[name](i) for i in range(3)]


@pytest.mark.parametrize("name", list(LOSSES))
def test_value_equals_the_closed_form(name: str) -> None:
    output, *case = run(name)
    assert output.losses.tolist() == pytest.approx(expected(name, *case), rel=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradient_equals_finite_differences_of_the_closed_form(name: str) -> None:
    output, policy, reference, batch = run(name)
    output.losses.sum().backward()
    for role in ROLES[LOSSES[name].view]:
        gradient = policy[role].grad
        assert gradient is not None
        for i, t in batch.mask[role].nonzero().tolist():
            shifted = []
            for step in (1e-6, -1e-6):
                moved = {k: v.detach().clone() for k, v in policy.items()}
                moved[role][i, t] += step
                shifted.append(sum(expected(name, moved, reference, batch)))
            assert float(gradient[i, t]) == pytest.approx((shifted[0] - shifted[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", list(LOSSES))
def test_an_empty_response_gives_finite_loss_and_gradient(name: str) -> None:
    output, policy, *_ = run(name)
    output.losses.sum().backward()
    assert output.losses.isfinite().all()
    assert all(p.grad.isfinite().all() for p in policy.values() if p.grad is not None)


@pytest.mark.parametrize("name", [n for n in LOSSES if LOSSES[n].needs_reference])
def test_step_zero_with_policy_equal_to_reference_is_finite(name: str) -> None:
    policy, _, batch = random_case()
    batch = Batch(batch.mask, batch.desirable, {"kl": torch.zeros((), dtype=torch.float64)})
    output = LOSSES[name]()(policy, {k: v.detach() for k, v in policy.items()}, batch)
    output.losses.sum().backward()
    assert output.losses.isfinite().all()


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "sft"])
def test_rewards_are_detached(name: str) -> None:
    output, *_ = run(name)
    assert output.chosen_rewards is not None
    assert output.rejected_rewards is not None
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad
    assert not any(v.requires_grad for v in output.metrics.values())


@pytest.mark.parametrize("margin", [-200.0, 200.0])
def test_dpo_neither_overflows_nor_loses_its_gradient_at_saturated_margins(margin: float) -> None:
    chosen = torch.tensor([[margin * 10]], requires_grad=True)
    policy = {"chosen": chosen, "rejected": torch.zeros(1, 1)}
    zeros = {role: torch.zeros(1, 1) for role in policy}
    loss = LOSSES["dpo"]()(policy, zeros, Batch({r: torch.ones(1, 1, dtype=torch.bool) for r in policy})).losses
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(0.0, -margin))
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.1 if margin < 0 else 0.0)


def test_kto_takes_no_gradient_through_z() -> None:
    output, policy, *_ = run("kto")
    output.losses.sum().backward()
    assert policy["mismatched"].grad is None


def test_kto_z_is_never_negative() -> None:
    policy, reference, batch = random_case()
    losses = [
        LOSSES["kto"]()(policy, reference, Batch(batch.mask, batch.desirable, {"kl": torch.tensor(z)})).losses
        for z in (-5.0, 0.0)
    ]
    assert torch.equal(*losses)


def test_kto_weights_scale_the_two_kinds_of_examples_apart() -> None:
    plain, weighted = run("kto")[0], run("kto", desirable_weight=2.0, undesirable_weight=3.0)[0]
    assert (weighted.losses / plain.losses).tolist() == pytest.approx([2, 3, 2])
