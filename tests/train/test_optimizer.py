"""The optimiser of a stage, the groups of its parameters, and the learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from halos.errors import HalosError
from halos.publish.cards import schedule
from halos.train.optimizer import learning_rate, make_optimizer
from halos.train.settings import ADAMW, EIGHT_BIT
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from tests.conftest import World
from tests.train.runs import PLAIN, are_equal, setup, values

OPTIMIZERS = get_args(Stage.model_fields["optimizer"].annotation)
UNFIT = {
    "Optimizer": "the base of the others",
    "LBFGS": "calls the model again within a step",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "takes matrices only, and a model has norms and biases",
}
DECAYING = set(OPTIMIZERS) - {"Rprop"}


class Net(nn.Module):
    """A matrix, a bias and a norm that are trained, and a matrix that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 4, bias=False).requires_grad_(False)
        self.linear = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.norm(self.frozen(x)))
        return out


def stage(**settings: Any) -> Stage:
    return Stage(loss="sft", **settings)


def step(optimizer: torch.optim.Optimizer, net: Net) -> None:
    net(torch.tensor([[1.0, 2.0, -3.0]])).square().sum().backward()
    optimizer.step()


# ---- which optimisers ------------------------------------------------------------------------------------------


def test_every_optimiser_of_torch_can_be_named_but_those_that_do_not_fit() -> None:
    known = {name for name, entry in vars(torch.optim).items()
             if isinstance(entry, type) and issubclass(entry, torch.optim.Optimizer)}  # fmt: skip
    assert set(OPTIMIZERS) - set(EIGHT_BIT) == known - set(UNFIT)
    assert set(UNFIT) <= known


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_moves_matrices_and_vectors_and_nothing_that_is_frozen(name: str, decay: bool) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = make_optimizer(net, stage(optimizer=name, lr=0.01, decay_norms_and_biases=decay))
    assert type(optimizer).__name__ in (name, name.removeprefix("Paged"))  # there are pages on GPUs alone
    step(optimizer, net)
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"linear.weight", "linear.bias", "norm.weight"}


# ---- groups ----------------------------------------------------------------------------------------------------


def test_all_trained_parameters_are_one_group() -> None:
    net = Net()
    [group] = make_optimizer(net, stage(lr=0.02)).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]
    assert group["lr"] == 0.02


def test_vectors_are_a_group_without_decay_where_asked_for() -> None:
    net = Net()
    settings = stage(lr=0.02, decay_norms_and_biases=False, optimizer_args={"weight_decay": 0.3})
    matrices, vectors = make_optimizer(net, settings).param_groups
    assert [id(p) for p in matrices["params"]] == [id(net.linear.weight)]
    assert {id(p) for p in vectors["params"]} == {id(net.linear.bias), id(net.norm.weight)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0)
    assert matrices["lr"] == vectors["lr"] == 0.02


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("name", sorted(DECAYING))
def test_decay_moves_vectors_only_where_it_applies_to_them(name: str, decay: bool) -> None:
    """Two steps by the same gradients, with and without weight decay."""
    nets = []
    for weight_decay in (0.0, 0.5):
        net = Net()
        arguments = {"weight_decay": weight_decay}
        optimizer = make_optimizer(
            net, stage(optimizer=name, lr=0.1, decay_norms_and_biases=decay, optimizer_args=arguments)
        )
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.1) if parameter.requires_grad else None
        optimizer.step()
        optimizer.step()
        nets.append(net)
    one, other = nets
    assert not torch.equal(one.linear.weight, other.linear.weight)
    assert torch.equal(one.norm.weight, other.norm.weight) != decay
    assert torch.equal(one.linear.bias, other.linear.bias) != decay


def test_matrices_alone_need_no_vectors() -> None:
    """LoRA trains matrices only."""
    net = nn.Linear(3, 2, bias=False)
    optimizer = make_optimizer(net, stage(lr=0.1, decay_norms_and_biases=False))
    before = net.weight.detach().clone()
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(net.weight, before)


# ---- arguments -------------------------------------------------------------------------------------------------


def test_the_arguments_are_those_of_the_stages_slice() -> None:
    """AdamW has defaults of its own, and lists stand for tuples."""
    [group] = make_optimizer(Net(), Stage(**stage_slice(stage(optimizer_args={"betas": [0.8, 0.9]})))).param_groups
    assert {k: group[k] for k in ADAMW} == {"weight_decay": 0.01, "betas": (0.8, 0.9), "eps": 1e-5}
    [group] = make_optimizer(Net(), Stage(**stage_slice(stage(optimizer="AdamW8bit")))).param_groups
    assert {k: group[k] for k in ADAMW} == {"weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-5}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("arguments", [{"momentun": 0.9}, {"lr": 0.1}])
def test_an_argument_that_the_optimiser_does_not_take_is_one_sentence(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(HalosError, match=f"^optimizer_args of {name}: .*{next(iter(arguments))}") as caught:
        make_optimizer(Net(), stage(optimizer=name, optimizer_args=arguments))
    assert "\n" not in str(caught.value)


def test_a_value_that_the_optimiser_refuses_is_one_sentence() -> None:
    with pytest.raises(HalosError, match=r"^optimizer_args of AdamW: Invalid beta parameter .*1\.5"):
        make_optimizer(Net(), stage(optimizer_args={"betas": [0.9, 1.5]}))


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


# ---- the learning rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.25, 5, 40])
def test_a_schedule_rises_in_its_warm_up_and_never_after(scheduler: str, warmup: float) -> None:
    steps = 40
    ramp = int(warmup if warmup >= 1 else warmup * steps)
    rates = [learning_rate(k, steps, warmup, scheduler) for k in range(steps)]
    assert rates[:ramp] == [(k + 1) / ramp for k in range(ramp)]
    assert all(a >= b for a, b in zip(rates[ramp:], rates[ramp + 1 :], strict=False))
    assert rates[ramp : ramp + 1] in ([], [1])  # the peak comes right after
    assert all(0 < rate <= 1 for rate in rates)


def test_a_decay_would_be_0_one_step_after_the_last() -> None:
    for scheduler, last in (("linear", 1 / 30), ("cosine", (1 - math.cos(math.pi / 30)) / 2)):
        assert learning_rate(39, 40, 10, scheduler) == pytest.approx(last)
        assert learning_rate(40, 40, 10, scheduler) == pytest.approx(0)
    assert learning_rate(39, 40, 10, "constant") == 1


def test_half_way_down_both_decays_are_at_one_half() -> None:
    for scheduler in ("linear", "cosine"):
        assert learning_rate(25, 40, 10, scheduler) == pytest.approx(0.5)


@pytest.mark.parametrize(("warmup", "rates"), [(0.1, [1, 1]), (0.5, [1, 1]), (0.99, [0.5, 1]), (1, [1, 1])])
def test_a_fraction_for_the_warm_up_is_rounded_to_whole_steps(warmup: float, rates: list[float]) -> None:
    assert [learning_rate(k, 2, warmup, "constant") for k in range(2)] == rates


def test_every_scheduler_that_a_stage_can_name_is_known() -> None:
    for name in get_args(Stage.model_fields["scheduler"].annotation):
        assert learning_rate(0, 8, 0, name) == 1


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


# ---- a minimum, and warm-up, stable, decay


@pytest.mark.parametrize(("minimum", "decay"), [(0.0, 0.1), (0.1, 0.25), (0.3, 12), (1.0, 40)])
def test_a_decay_ends_at_its_minimum_as_transformers_own(minimum: float, decay: float) -> None:
    """Its warm-ups begin at 0, ours at the first step above it: compared are the steps after."""
    steps, ramp = 40, 6
    weights = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = {
        "cosine": get_cosine_with_min_lr_schedule_with_warmup(weights, ramp, steps, min_lr_rate=minimum),
        "wsd": get_wsd_schedule(
            weights, ramp, min(steps - ramp, round(decay * steps) if decay < 1 else int(decay)), steps,
            decay_type="linear", min_lr_ratio=minimum,
        ),
    }  # fmt: skip
    for scheduler, their in theirs.items():
        [rate] = their.lr_lambdas
        for step in range(ramp, steps + 1):
            ours = learning_rate(step, steps, ramp, scheduler, minimum, decay)
            assert ours == pytest.approx(rate(step), abs=1e-12), (scheduler, step)


def test_wsd_is_constant_and_then_falls_in_a_straight_line() -> None:
    rates = [learning_rate(k, 20, 0.1, "wsd", 0.2, 0.25) for k in range(20)]
    assert rates == pytest.approx([0.5, 1.0, *[1.0] * 13, 1.0, 0.84, 0.68, 0.52, 0.36])
    assert learning_rate(20, 20, 0.1, "wsd", 0.2, 0.25) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"min_lr_ratio": 0.1}, "the scheduler constant does not decay: take out min_lr_ratio"),
        ({"scheduler": "cosine", "decay": 0.2}, "the scheduler cosine reads no decay"),
        ({"scheduler": "wsd", "warmup": 0.5, "decay": 0.6}, "warmup 0.5 and decay 0.6 are more than the run"),
        ({"scheduler": "cosine", "min_lr_ratio": 1.5}, "less than or equal to 1"),
        ({"epochs": 0}, "greater than 0"),
        ({"epochs": -0.5}, "greater than 0"),
        ({"epochs": float("inf")}, "finite number"),
        ({"epochs": "half"}, "valid number"),
    ],
)
def test_a_schedule_that_nothing_reads_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Stage(loss="sft", **changes)


def test_a_model_card_says_where_a_schedule_ends() -> None:
    settings = {"scheduler": "wsd", "warmup": 20, "decay": 0.2, "min_lr_ratio": 0.05}
    expected = "wsd, warm-up 20, decay 0.2, down to 0.05 of it"
    assert schedule(stage_slice(Stage(loss="sft", **settings))) == expected
    assert schedule(stage_slice(Stage(loss="sft"))) == "constant, warm-up 0.1"


@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_a_norm_of_0_is_no_clipping(name: str, world: World, tmp_path: Path) -> None:
    """Not of the weights, nor of a value head: a step is the learning rate times the whole gradient."""
    none = {"max_grad_norm": 0} | ({"value_max_grad_norm": 0} if name == "ppo" else {})
    high = {"max_grad_norm": 1e6} | ({"value_max_grad_norm": 1e6} if name == "ppo" else {})
    found = []
    for changes in (none, high):
        trainer = setup(world, tmp_path / "run", name, **PLAIN, **changes)
        norm = trainer.step(0)["grad_norm"]
        found.append((norm, values(trainer.policy)))
    assert found[0][0] == found[1][0] > 0
    assert are_equal(found[0][1], found[1][1])
