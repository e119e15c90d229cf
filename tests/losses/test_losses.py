"""Every loss against its closed form.

A loss that is registered without an entry in DEFAULTS, OTHERS, FORMS and REWARDS fails.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import product
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from halos.losses.base import Batch, Loss, Output, log_sigmoid
from halos.registry import LOSSES
from halos.train.stage import Stage
from halos.views import VIEWS
from tests.losses.closed_forms import (
    FORMS,
    Case,
    Rows,
    mean,
    ratios,
    whole_rewards,
)

# ---- a global batch --------------------------------------------------------------------------------------------

LENGTHS = {
    "chosen": [4, 2, 3, 0, 0, 5, 1, 2],
    "rejected": [1, 5, 0, 3, 0, 2, 1, 4],
    "response": [3, 5, 0, 1, 4, 2, 1, 6],
    "mismatched": [2, 0, 4, 1, 3, 2, 5, 1],
}
"""Tokens of each example's responses: some are empty, as after a prompt that leaves no room, and one pair is wholly."""


def random_case(seed: int = 0, lengths: dict[str, list[int]] = LENGTHS) -> Case:
    draw = random.Random(seed)

    def rows(low: float, high: float) -> dict[str, Rows]:
        return {role: [[draw.uniform(low, high) for _ in range(n)] for n in ns] for role, ns in lengths.items()}

    n = len(lengths["response"])
    return Case(
        policy=rows(-3, 0),
        reference=rows(-3, 0),
        values=rows(-2, 2),
        rewards={role: [draw.uniform(-2, 2) for _ in range(n)] for role in lengths},
        desirable=[i % 3 != 1 for i in range(n)],
        scores=[draw.uniform(-2, 2) for _ in range(n)],
        advantages=[0.0 if i == 3 else draw.uniform(-2, 2) for i in range(n)],
        margins=[0.0 if i == 2 else draw.uniform(-1, 3) for i in range(n)],
    )


def padded(rows: Rows, fill: float = 0.0, width: int = 0) -> Tensor:
    width = max(width, *map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def ones(rows: Rows, width: int = 0) -> Tensor:
    """1 where there is a token."""
    return padded([[1.0] * len(row) for row in rows], width=width)


def inputs(
    loss: Loss, case: Case, roles: tuple[str, ...], statistics: dict[str, Tensor], width: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch]:
    """What the trainer would give to `loss`: no more than its traits ask for."""
    policy = {role: padded(case.policy[role], width=width) for role in roles}
    reference = {role: padded(case.reference[role], width=width) for role in roles} if loss.needs_reference else {}
    mask = {role: ones(case.policy[role], width) > 0 for role in roles}
    labels: dict[str, Any] = {}
    if "scores" in loss.view.labels:
        labels["scores"] = torch.tensor(case.scores if loss.needs_scores else [math.nan] * len(case.scores))
    if "margins" in loss.view.labels:
        labels["margins"] = torch.tensor(case.margins)
    if loss.view.labelled:
        labels["desirable"] = torch.tensor(case.desirable)
    if loss.view.grouped:
        labels["advantages"] = torch.tensor(case.advantages)
    if loss.head == "value":  # it says something of padding, too
        labels["values"] = {role: padded(case.values[role], 7.0, width) for role in roles}
    if loss.head == "score":
        labels["rewards"] = {role: torch.tensor(case.rewards[role]) for role in roles}
    return policy, reference, Batch(mask, statistics=statistics, **labels)


def gathered(loss: Loss, *parts: Case) -> dict[str, Tensor]:
    """The statistics of a global batch from those of its microbatches, the last one's first."""
    if not loss.prepass:
        return {}
    found = [loss.statistics(*inputs(loss, part, loss.prepass, {})) for part in reversed(parts)]
    return {name: torch.cat([statistics[name] for statistics in found]) for name in found[0]}


Gradient = dict[tuple[str, str], Tensor]


def run(loss: Loss, case: Case, statistics: dict[str, Tensor] | None = None, width: int = 0) -> tuple[Output, Gradient]:
    """The output and, by (field, role), the gradient of the sum of the losses."""
    statistics = gathered(loss, case) if statistics is None else statistics
    policy, reference, batch = inputs(loss, case, loss.view.roles, statistics, width)
    sources = {"policy": policy, "values": batch.values, "rewards": batch.rewards}
    leaves = {(name, role): x.requires_grad_() for name, source in sources.items() for role, x in source.items()}
    output = loss(policy, reference, batch)
    found = torch.autograd.grad(output.losses.sum(), list(leaves.values()), materialize_grads=True)
    return output, dict(zip(leaves, found, strict=True))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- hyperparameters -------------------------------------------------------------------------------------------

DEFAULTS: dict[str, dict[str, Any]] = {
    "alphapo": {"beta": 10.0, "gamma_beta_ratio": 0.3, "alpha": 0.25},
    "aot": {"beta": 0.1, "epsilon": 0.0},
    "aot_unpaired": {"beta": 0.1, "epsilon": 0.0},
    "apo_down": {"beta": 0.1},
    "apo_zero": {"beta": 0.1},
    "bco": {"beta": 0.1},
    "bradley_terry": {"margin_weight": 0.0, "centre_weight": 0.0},
    "cdpo": {"beta": 0.1, "epsilon": 0.2},
    "cpo": {"beta": 0.1, "sft_weight": 1.0},
    "csft": {"chosen_token": "<|good|>", "rejected_token": "<|bad|>"},
    "discopop": {"beta": 0.1, "tau": 0.05},
    "dpo": {"beta": 0.1, "margin_weight": 0.0},
    "dpo_norm": {"beta": 5.0},
    "exo": {"beta": 0.1, "epsilon": 1e-3},
    "f_dpo": {"beta": 0.1, "divergence": "alpha", "alpha": 0.5},
    "grpo": {"beta": 0.01, "epsilon": 0.01},
    "hinge": {"beta": 0.1},
    "ipo": {"tau": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "ld_dpo": {"beta": 0.1, "alpha": 0.5},
    "nca": {"beta": 0.1},
    "orpo": {"odds_ratio_weight": 0.1},
    "ppo": {"reward": "label", "clip": 0.5, "gamma": 0.99, "gae_lambda": 0.95, "value_weight": 0.01, "kl_weight": 0.1},
    "rdpo": {"beta": 0.1, "alpha": 0.01},
    "robust": {"beta": 0.1, "epsilon": 0.1},
    "rrhf": {"sft_weight": 1.0},
    "sft": {},
    "simpo": {"beta": 10.0, "gamma_beta_ratio": 0.3},
    "slic": {"delta": 1.0, "sft_weight": 0.1},
    "sppo": {"beta": 0.1},
    "wpo": {"beta": 0.1},
}

OTHERS: dict[str, dict[str, Any]] = {
    "alphapo": {"beta": 1.5, "gamma_beta_ratio": 0.8, "alpha": -0.6},
    "aot": {"beta": 0.4, "epsilon": 0.15},
    "aot_unpaired": {"beta": 0.4, "epsilon": 0.15},
    "apo_down": {"beta": 0.5},
    "apo_zero": {"beta": 0.5},
    "bco": {"beta": 0.5},
    "bradley_terry": {"margin_weight": 0.7, "centre_weight": 0.3},
    "cdpo": {"beta": 0.5, "epsilon": 0.0},
    "cpo": {"beta": 0.5, "sft_weight": 0.3},
    "csft": {"chosen_token": "<up>", "rejected_token": "<down>"},
    "discopop": {"beta": 0.3, "tau": 0.7},
    "dpo": {"beta": 0.5, "margin_weight": 1.5},
    "dpo_norm": {"beta": 0.7},
    "exo": {"beta": 0.5, "epsilon": 0.3},
    "f_dpo": {"beta": 0.5, "divergence": "js", "alpha": 0.5},
    "grpo": {"beta": 0.3, "epsilon": 0.6},
    "hinge": {"beta": 2.0},
    "ipo": {"tau": 0.7},
    "kto": {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0},
    "ld_dpo": {"beta": 0.5, "alpha": 0.0},
    "nca": {"beta": 0.5},
    "orpo": {"odds_ratio_weight": 2.0},
    "ppo": {"reward": "score", "clip": 0.2, "gamma": 0.8, "gae_lambda": 0.6, "value_weight": 0.5, "kl_weight": 0.7},
    "rdpo": {"beta": 0.5, "alpha": 0.6},
    "robust": {"beta": 0.5, "epsilon": 0.35},
    "rrhf": {"sft_weight": 0.2},
    "sft": {},
    "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.8},
    "slic": {"delta": 3.0, "sft_weight": 0.6},
    "sppo": {"beta": 2.0},
    "wpo": {"beta": 0.5},
}

SETTINGS = list(product(LOSSES, ("defaults", "others")))


def made(name: str, setting: str) -> tuple[Loss, dict[str, Any]]:
    """A loss and its hyperparameters; with the defaults, a loss that was told none."""
    hyperparameters = {"defaults": DEFAULTS, "others": OTHERS}[setting][name]
    return LOSSES[name](**({} if setting == "defaults" else hyperparameters)), hyperparameters


def split(values: list[float], chosen: list[bool]) -> tuple[list[float], list[float]]:
    pairs = list(zip(values, chosen, strict=True))
    return [v for v, c in pairs if c], [v for v, c in pairs if not c]


def of_pairs(case: Case, beta: float, **_: Any) -> list[list[float]]:
    return [[beta * r for r in ratios(case, role)] for role in ("chosen", "rejected")]


def of_policy(case: Case, over: Callable[[list[float]], float], weight: float) -> list[list[float]]:
    return [[weight * over(row) for row in case.policy[role]] for role in ("chosen", "rejected")]


def of_ppo(case: Case, reward: str, **_: Any) -> tuple[list[float], list[float]]:
    found = whole_rewards(case, reward)
    return split(ratios(case, "response"), [x > fmean(found) for x in found])


def of_f_dpo(case: Case, beta: float, divergence: str, alpha: float) -> list[list[float]]:
    """js: log 2u / (1 + u), u = exp r; alpha: (1 - u^-alpha) / alpha."""
    found = {"js": lambda r: math.log(2 / (1 + math.exp(-r))), "alpha": lambda r: (1 - math.exp(-alpha * r)) / alpha}
    return [[beta * found[divergence](r) for r in ratios(case, role)] for role in ("chosen", "rejected")]


def of_ld_dpo(case: Case, beta: float, alpha: float) -> list[list[float]]:
    lengths = [min(map(len, pair)) for pair in zip(case.policy["chosen"], case.policy["rejected"], strict=True)]
    return [
        [
            beta * sum((p - q) * (1 if t < n else alpha) for t, (p, q) in enumerate(zip(*rows, strict=True)))
            for n, *rows in zip(lengths, case.policy[role], case.reference[role], strict=True)
        ]
        for role in ("chosen", "rejected")
    ]


IMPLICIT = ["aot", "aot_unpaired", "apo_down", "apo_zero", "bco", "cdpo", "discopop", "dpo", "exo", "hinge", "nca",
            "rdpo", "robust", "sppo", "wpo"]  # fmt: skip
REWARDS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(IMPLICIT, of_pairs),
    "alphapo": lambda case, beta, alpha, **_: of_policy(
        case, lambda row: (1 - math.exp(mean(row)) ** -alpha) / alpha, beta
    ),
    "bradley_terry": lambda case, **_: (case.rewards["chosen"], case.rewards["rejected"]),
    "cpo": lambda case, beta, **_: of_policy(case, sum, beta),
    "csft": lambda case, **_: of_policy(case, mean, 1.0),
    "dpo_norm": lambda case, beta: [[beta * r for r in ratios(case, role, mean)] for role in ("chosen", "rejected")],
    "f_dpo": of_f_dpo,
    "grpo": lambda case, **_: split(ratios(case, "response"), [a > 0 for a in case.advantages]),
    "ipo": lambda case, tau: [[tau * r for r in ratios(case, role, mean)] for role in ("chosen", "rejected")],
    "kto": lambda case, beta, **_: split([beta * r for r in ratios(case, "response")], case.desirable),
    "ld_dpo": of_ld_dpo,
    "orpo": lambda case, odds_ratio_weight: of_policy(case, mean, odds_ratio_weight),
    "ppo": of_ppo,
    "rrhf": lambda case, **_: of_policy(case, mean, 1.0),
    "sft": lambda case: (None, None),
    "simpo": lambda case, beta, **_: of_policy(case, mean, beta),
    "slic": lambda case, **_: of_policy(case, sum, 1.0),
}
"""name -> function(case, **hyperparameters) of the chosen and the rejected rewards."""


# ---- values, gradients, rewards --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LOSSES))
def test_defaults(name: str) -> None:
    assert asdict(LOSSES[name]()) == DEFAULTS[name]


@pytest.mark.parametrize("seed", [0, 1, 4])  # the last has a z of 0
@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_value_equals_the_closed_form(name: str, setting: str, seed: int) -> None:
    loss, hyperparameters = made(name, setting)
    case = random_case(seed)
    output, _ = run(loss, case)
    assert output.losses.tolist() == pytest.approx(FORMS[name](case, case, **hyperparameters), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_gradient_equals_finite_differences_of_the_closed_form(name: str, setting: str) -> None:
    loss, hyperparameters = made(name, setting)
    case = random_case()
    _, gradient = run(loss, case)
    moved, step = deepcopy(case), 1e-5

    def slope(row: list[float], t: int) -> float:
        here, found = row[t], []
        for there in (here + step, here - step):
            row[t] = there
            found.append(FORMS[name](moved, case, **hyperparameters))
        row[t] = here
        return math.fsum(up - down for up, down in zip(*found, strict=True)) / (2 * step)

    for (source, role), found in gradient.items():
        rows = getattr(moved, source)[role]
        if source == "rewards":
            expected, mask = [slope(rows, i) for i in range(len(rows))], found == found
        else:
            expected, mask = [slope(row, t) for row in rows for t in range(len(row))], ones(rows) > 0
        assert found[mask].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
        if source == "values":  # log-probabilities are constants beyond a response's end, values are not
            assert not found[~mask].any()
    assert any(found.any() for found in gradient.values())


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_rewards_are_the_documented_ones_and_carry_no_gradient(name: str, setting: str) -> None:
    loss, hyperparameters = made(name, setting)
    case = random_case()
    output, _ = run(loss, case)
    assert output.losses.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())
    for rewards, expected in zip(
        (output.chosen_rewards, output.rejected_rewards), REWARDS[name](case, **hyperparameters), strict=True
    ):
        if expected is None:
            assert rewards is None
        else:
            assert rewards is not None
            assert not rewards.requires_grad
            assert rewards.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].view is VIEWS["paired"]])
def test_accuracy_is_the_share_of_pairs_whose_chosen_reward_is_higher(name: str) -> None:
    case = random_case()
    output, _ = run(LOSSES[name](), case)
    pairs = zip(*REWARDS[name](case, **DEFAULTS[name]), strict=True)
    assert output.metrics["rewards/accuracy"].tolist() == [float(x > y) for x, y in pairs]


@pytest.mark.parametrize(("name", "clip"), [("ppo", 0.5), ("grpo", 0.01)])
def test_clipped_is_the_share_of_tokens_whose_ratio_is_out_of_bounds(name: str, clip: float) -> None:
    case = random_case()
    metrics = run(LOSSES[name](), case)[0].metrics
    rows = zip(case.policy["response"], case.reference["response"], strict=True)
    expected = [mean([float(abs(math.exp(p - q) - 1) > clip) for p, q in zip(*row, strict=True)]) for row in rows]
    assert metrics["clipped"].tolist() == pytest.approx(expected)


def test_value_error_of_ppo_is_the_mean_half_square() -> None:
    case = random_case()
    found = run(LOSSES["ppo"](), case)[0].metrics["value_error"]
    signs = [1.0 if d else -1.0 for d in case.desirable]
    expected = [
        mean([(value - sign * 0.99 ** (len(row) - 1 - t)) ** 2 / 2 for t, value in enumerate(row)])
        for row, sign in zip(case.values["response"], signs, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


def test_rewards_of_ppo_are_split_by_label_even_if_all_are_desirable() -> None:
    output, _ = run(LOSSES["ppo"](), replace(random_case(), desirable=[True] * 8))
    assert output.chosen_rewards is not None
    assert len(output.chosen_rewards) == 8


# ---- what a loss declares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].needs_reference])
def test_a_loss_that_asks_for_a_reference_reads_it(name: str) -> None:
    case = random_case()
    moved = replace(case, reference=random_case(1).reference)
    assert not torch.allclose(run(LOSSES[name](), case)[0].losses, run(LOSSES[name](), moved)[0].losses)


def test_control_tokens_say_which_response_is_which() -> None:
    assert LOSSES["csft"]().control == {"chosen": "<|good|>", "rejected": "<|bad|>"}
    assert LOSSES["csft"]("<up>", "<down>").control == {"chosen": "<up>", "rejected": "<down>"}
    assert not any(LOSSES[name]().control for name in LOSSES if name != "csft")


def test_ppo_wants_scores_only_to_take_its_reward_from_them() -> None:
    assert not LOSSES["ppo"]().needs_scores
    assert LOSSES["ppo"](reward="score").needs_scores


@pytest.mark.parametrize("epsilon", [-0.1, 0.5, 0.7, 1.0, math.nan])
@pytest.mark.parametrize("name", ["cdpo", "robust", "exo", "aot"])
def test_a_share_of_wrong_labels_is_below_a_half(name: str, epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        Stage(loss=name, epsilon=epsilon)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("exo", "epsilon"), ("ipo", "tau"), ("discopop", "tau"), ("sppo", "beta"), ("dpo", "beta"), ("kto", "beta")],
)
def test_what_would_divide_by_zero_or_teach_nothing_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: Input should be greater than 0"):
        Stage(loss=name, **{setting: 0.0})


# ---- microbatches ----------------------------------------------------------------------------------------------

PARTS = ([0, 2, 3, 4, 7], [1, 5, 6])


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_a_global_batch_may_be_cut_anywhere(name: str, setting: str) -> None:
    """Losses and gradients of the parts, given the statistics of all, are those of the whole."""
    loss, _ = made(name, setting)
    case = random_case()
    parts = [case.take(indices) for indices in PARTS]
    statistics = gathered(loss, *parts)
    whole, gradient = run(loss, case, statistics)
    for part, indices in zip(parts, PARTS, strict=True):
        output, found = run(loss, part, statistics)
        torch.testing.assert_close(output.losses, whole.losses[indices])
        for key, value in found.items():
            expected = gradient[key][indices]
            width = value.shape[-1]
            torch.testing.assert_close(value, expected[:, :width] if value.ndim > 1 else expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].prepass])
def test_statistics_are_of_the_global_batch(name: str) -> None:
    """With those of its own part alone, a microbatch has other losses."""
    loss = LOSSES[name]()
    case = random_case()
    assert all(len(values) == len(case.desirable) for values in gathered(loss, case).values())
    whole, _ = run(loss, case)
    parts = [run(loss, case.take(indices))[0] for indices in PARTS]
    assert abs(sum(part.losses.sum().item() for part in parts) - whole.losses.sum().item()) > 1e-5


@pytest.mark.parametrize(
    "name",
    [name for name in LOSSES if LOSSES[name].prepass],
)
def test_statistics_may_have_been_rounded_otherwise(name: str) -> None:
    """The pass without gradient need not repeat the other one to the last bit."""
    case = random_case()
    moved = deepcopy(case)
    for row in moved.policy["chosen"]:
        row[:] = [x + 1e-10 for x in row]
    statistics = gathered(LOSSES[name](), case)
    losses = [run(LOSSES[name](), x, statistics)[0].losses for x in (case, moved)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-8)


# ---- the edges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_empty_responses_alone_teach_nothing(name: str, setting: str, width: int) -> None:
    loss, hyperparameters = made(name, setting)
    case = random_case(lengths={role: [0] * 4 for role in LENGTHS})
    output, gradient = run(loss, case, width=width)
    assert output.losses.tolist() == pytest.approx(FORMS[name](case, case, **hyperparameters))
    assert all(metric.isfinite().all() for metric in output.metrics.values())
    assert all(g.isfinite().all() for g in gradient.values())
    assert not any(g.any() for (source, _), g in gradient.items() if source == "values")


def test_an_empty_response_does_not_move_the_whitening_of_ppo() -> None:
    case = random_case()
    full = [i for i, row in enumerate(case.policy["response"]) if row]
    losses = run(LOSSES["ppo"](), case)[0].losses
    torch.testing.assert_close(run(LOSSES["ppo"](), case.take(full))[0].losses, losses[full])
    assert len(full) < len(losses)


@pytest.mark.parametrize("setting", ["defaults", "others"])
@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].needs_reference])
def test_step_zero_with_policy_equal_to_reference(name: str, setting: str) -> None:
    loss, hyperparameters = made(name, setting)
    case = random_case()
    case = replace(case, reference=case.policy)
    output, gradient = run(loss, case)
    assert output.losses.tolist() == pytest.approx(FORMS[name](case, case, **hyperparameters), rel=1e-11, abs=1e-13)
    assert all(g.isfinite().all() for g in gradient.values())


EXTREMES = (-1e4, -200.0, -1e-9, 0.0, 1e-9, 200.0, 1e4)


@pytest.mark.parametrize("scale", [1, 10])
@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_saturated_values_neither_overflow_nor_become_nan(name: str, setting: str, scale: float) -> None:
    """In float32. Every pair of extreme log-ratios, of probabilities of 1 and of almost 0, of scores."""
    torch.set_default_dtype(torch.float32)
    loss, _ = made(name, setting)
    pairs = [(scale * a, scale * b) for a, b in product(EXTREMES, repeat=2)]
    by_role = {"chosen": [a for a, _ in pairs], "rejected": [b for _, b in pairs]}
    by_role |= {"response": by_role["chosen"], "mismatched": [abs(b) for _, b in pairs]}
    signs = [math.copysign(1, b) for _, b in pairs]
    case = Case(
        policy={role: [[min(r, 0.0)] for r in rs] for role, rs in by_role.items()},
        reference={role: [[min(-r, 0.0)] for r in rs] for role, rs in by_role.items()},
        values={role: [[r] for r in rs] for role, rs in by_role.items()},
        rewards=by_role,
        desirable=[sign > 0 for sign in signs],
        scores=by_role["rejected"],
        advantages=[3 * sign for sign in signs],
        margins=by_role["rejected"],
    )
    output, gradient = run(loss, case)
    assert output.losses.dtype == torch.float32
    assert output.losses.isfinite().all()
    assert all(g.isfinite().all() for g in gradient.values())


@pytest.mark.parametrize("margin", [-1e4, -200.0, 200.0, 1e4])
def test_log_sigmoid_keeps_value_and_gradient_at_both_ends(margin: float) -> None:
    x = torch.tensor(margin, dtype=torch.float32, requires_grad=True)
    y = log_sigmoid(x)
    y.backward()
    assert x.grad is not None
    assert (y.item(), x.grad.item()) == pytest.approx((min(margin, 0.0), float(margin < 0)))


def test_orpo_tells_probabilities_near_one_apart() -> None:
    """Their odds are about 1 / (1 - p), which float32 cannot hold as p; at 1 itself there is no gradient to follow."""
    torch.set_default_dtype(torch.float32)
    near = [-1e-3, -1e-4, -1e-5]
    case = random_case(lengths={role: [1] * len(near) for role in LENGTHS})
    case = replace(case, policy={"chosen": [[x] for x in near], "rejected": [[-1.0]] * len(near)})
    output, gradient = run(LOSSES["orpo"](), case)
    torch.set_default_dtype(torch.float64)
    expected = FORMS["orpo"](case, case, 0.1)
    assert output.losses.tolist() == pytest.approx(expected, rel=1e-3)
    assert all(g.isfinite().all() for g in gradient.values())
    assert (gradient["policy", "chosen"] < 0).all()


def test_the_z_of_kto_is_never_negative() -> None:
    losses = [run(LOSSES["kto"](), random_case(), {"kl": torch.tensor([z])})[0].losses for z in (-5.0, 0.0)]
    assert torch.equal(*losses)
