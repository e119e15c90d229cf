"""Mixtures of losses, and the likelihood of the chosen response beside a loss of pairs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from halos.losses.base import Batch, Logps, Loss, Output, log_ratio
from halos.losses.mixture import Mixture
from halos.registry import LOSSES
from halos.settings import dump
from halos.train.mixing import leading_loss, loss_text
from halos.train.slices import stage_plugins, stage_slice
from halos.train.stage import Stage
from halos.views import VIEWS
from tests.conftest import World
from tests.losses.closed_forms import FORMS, Case, mean
from tests.losses.test_losses import DEFAULTS, LENGTHS, PARTS, double, gathered, random_case, run
from tests.train.runs import setup

__all__ = ["double"]

MPO = {"dpo": 0.8, "bco": 0.2, "sft": 1.0}
MIXTURES: dict[str, dict[str, Any]] = {
    "mpo": {"loss": MPO, "beta": 0.3},
    "own": {"loss": {"dpo": {"weight": 0.8, "beta": 0.2}, "bco": 0.2, "aot": {"weight": 2, "epsilon": 0.1}}},
    "reference_free": {"loss": {"simpo": 1, "orpo": 0.5, "cpo": 0.3}},
    "rpo": {"loss": "dpo", "sft_weight": 0.7, "beta": 0.3},
    "cpo_simpo": {"loss": "simpo", "sft_weight": 0.05},
    "weighted_bco": {"loss": "bco", "sft_weight": 1.0},
    "mixture_and_sft": {"loss": {"aot_unpaired": 0.4, "wpo": 0.6}, "sft_weight": 0.5},
}
PAIRED = [name for name in LOSSES if LOSSES[name].view.paired and not LOSSES[name].per_token and not LOSSES[name].head]


def nll(case: Case) -> list[float]:
    return [-mean(row) for row in case.policy["chosen"]]


def expected(settings: dict[str, Any], case: Case, at: Case) -> list[float]:
    """The weighted sum of the parts' closed forms, written out from the settings alone."""
    loss = settings["loss"]
    mixed = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    mixed |= {"sft": settings["sft_weight"]} if "sft_weight" in settings else {}
    total = [0.0] * len(case.desirable)
    for name, part in mixed.items():
        own = dict(part) if isinstance(part, dict) else {"weight": part}
        weight = own.pop("weight")
        given = {key: value for key, value in {**settings, **own}.items() if key in DEFAULTS[name]}
        found = nll(case) if name == "sft" else FORMS[name](case, at, **{**DEFAULTS[name], **given})
        total = [x + weight * y for x, y in zip(total, found, strict=True)]
    return total


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_the_weighted_sum_of_its_parts(name: str, seed: int) -> None:
    case = random_case(seed)
    output, _ = run(Stage(**MIXTURES[name]).make_loss(), case)
    assert output.losses.tolist() == pytest.approx(expected(MIXTURES[name], case, case), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("name", MIXTURES)
def test_its_gradient_is_the_sum_of_theirs(name: str) -> None:
    """By finite differences along random directions."""
    case, step = random_case(), 1e-5
    _, gradient = run(Stage(**MIXTURES[name]).make_loss(), case)
    for seed in range(3):
        draw = random.Random(seed)
        moves = {
            role: [[draw.gauss(0, 1) for _ in row] for row in case.policy[role]] for role in ("chosen", "rejected")
        }
        sums = []
        for sign in (step, -step):
            rows = {
                role: [
                    [x + sign * m for x, m in zip(row, move, strict=True)]
                    for row, move in zip(case.policy[role], moves[role], strict=True)
                ]
                for role in moves
            }
            sums.append(sum(expected(MIXTURES[name], replace(case, policy={**case.policy, **rows}), case)))
        slope = sum(
            m * float(g)
            for role in moves
            for row, found in zip(moves[role], gradient["policy", role], strict=True)
            for m, g in zip(row, found, strict=False)
        )
        assert slope == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_global_batch_of_a_mixture_may_be_cut_anywhere(name: str) -> None:
    loss, case = Stage(**MIXTURES[name]).make_loss(), random_case()
    statistics = gathered(loss, *(case.take(indices) for indices in PARTS))
    whole, _ = run(loss, case, statistics)
    for indices in PARTS:
        output, _ = run(loss, case.take(indices), statistics)
        torch.testing.assert_close(output.losses, whole.losses[indices])


@pytest.mark.parametrize("name", MIXTURES)
def test_empty_responses_of_a_mixture_are_finite(name: str) -> None:
    case = random_case(lengths={role: [0] * 4 for role in LENGTHS})
    output, gradient = run(Stage(**MIXTURES[name]).make_loss(), case, width=3)
    assert output.losses.tolist() == pytest.approx(expected(MIXTURES[name], case, case))
    assert all(g.isfinite().all() for g in gradient.values())


@pytest.mark.parametrize("name", PAIRED)
def test_any_loss_of_pairs_may_have_the_likelihood_of_the_chosen_response_beside_it(name: str) -> None:
    """Losses with a weight of that name keep their own meaning of it."""
    case = random_case()
    output, _ = run(Stage(loss=name, sft_weight=0.5).make_loss(), case)
    if "sft_weight" in DEFAULTS[name]:
        found = FORMS[name](case, case, **{**DEFAULTS[name], "sft_weight": 0.5})
    else:
        found = [x + 0.5 * y for x, y in zip(FORMS[name](case, case, **DEFAULTS[name]), nll(case), strict=True)]
    assert output.losses.tolist() == pytest.approx(found, rel=1e-11, abs=1e-13)


def test_a_weight_of_nothing_leaves_the_loss_as_it_is() -> None:
    assert Stage(loss="dpo", sft_weight=0).make_loss() == LOSSES["dpo"]()
    assert stage_slice(Stage(loss="dpo", sft_weight=0)) == stage_slice(Stage(loss="dpo"))
    assert stage_slice(Stage(loss="dpo", sft_weight="5e-1")) == stage_slice(Stage(loss="dpo", sft_weight=0.5))


# ---- traits, metrics, rewards ------------------------------------------------------------------------------------


def test_a_mixture_needs_what_any_of_its_parts_needs() -> None:
    free, mpo = (Stage(**MIXTURES[name]).make_loss() for name in ("reference_free", "mpo"))
    assert (free.needs_reference, mpo.needs_reference) == (False, True)
    assert (free.prepass, mpo.prepass) == ((), ("chosen", "rejected"))
    assert mpo.view is VIEWS["paired"]
    assert not mpo.per_token
    assert Stage(loss={"dpo": {"weight": 1, "margin_weight": 1}, "ipo": 1}).make_loss().needs_margins


def test_statistics_of_a_mixture_are_each_parts_own() -> None:
    loss = Stage(**MIXTURES["mixture_and_sft"]).make_loss()
    assert set(gathered(loss, random_case())) == {"aot_unpaired/chosen", "aot_unpaired/rejected"}


def test_the_log_has_each_part_and_the_rewards_of_the_leading_one() -> None:
    case = random_case()
    output, _ = run(Stage(**MIXTURES["mpo"]).make_loss(), case)
    alone, _ = run(LOSSES["dpo"](beta=0.3), case)
    assert set(output.metrics) == {"rewards/accuracy", "bco/rewards/accuracy", "dpo/loss", "bco/loss", "sft/loss"}
    assert output.metrics["sft/loss"].tolist() == pytest.approx(nll(case))
    assert torch.equal(output.metrics["dpo/loss"], alone.losses.detach())
    assert output.chosen_rewards is not None
    assert alone.chosen_rewards is not None
    assert torch.equal(output.chosen_rewards, alone.chosen_rewards)
    assert not any(values.requires_grad for values in output.metrics.values())


def test_the_leading_part_is_the_heaviest_but_sft() -> None:
    assert leading_loss(Stage(loss=MPO).loss) == "dpo"
    assert leading_loss(Stage(loss={"simpo": 1, "orpo": 1}).loss) == "orpo"
    assert leading_loss("kto") == "kto"
    assert loss_text(Stage(loss=MPO).loss) == "0.2 bco + 0.8 dpo + 1 sft"


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_made_of_its_slice_is_that_mixture(name: str) -> None:
    stage = Stage(**MIXTURES[name])
    again = Stage(**yaml.safe_load(dump(stage_slice(stage))))
    assert again.make_loss() == stage.make_loss()
    assert stage_slice(again) == stage_slice(stage)


def test_the_order_and_the_place_of_settings_are_no_part_of_an_identity() -> None:
    one = Stage(loss={"dpo": 0.8, "bco": "2e-1"}, beta=0.3)
    other = Stage(loss={"bco": {"weight": 0.2, "beta": 0.3}, "dpo": {"weight": 0.8, "beta": "3e-1"}})
    assert dump(stage_slice(one)) == dump(stage_slice(other))
    assert one.make_loss() == other.make_loss()
    assert stage_slice(Stage(loss={"dpo": 0.7, "bco": 0.2}, beta=0.3)) != stage_slice(one)


def test_a_hyperparameter_beside_the_loss_is_that_of_all_parts_without_one_of_their_own() -> None:
    loss = Stage(loss={"dpo": {"weight": 0.8, "beta": 0.2}, "bco": 0.2, "ipo": 1}, beta=0.5).make_loss()
    assert isinstance(loss, Mixture)
    assert loss.parts["dpo"].loss == LOSSES["dpo"](beta=0.2)
    assert loss.parts["bco"].loss == LOSSES["bco"](beta=0.5)
    assert loss.parts["ipo"].loss == LOSSES["ipo"]()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown part": ({"loss": {"dpo": 1, "dop": 1}}, "unknown loss 'dop'; did you mean 'dpo'"),
    "other views": ({"loss": {"dpo": 1, "kto": 1}}, "'kto' cannot be mixed with 'dpo': reads the unpaired view"),
    "sft without a chosen response": ({"loss": {"kto": 1, "sft": 0.1}}, "'sft' cannot be mixed with 'kto'"),
    "tokens and examples": ({"loss": {"kto": 1, "ppo": 1}}, "only one of them is a mean over tokens"),
    "a mean over tokens beside pairs": ({"loss": {"csft": 1, "dpo": 1}}, "only one of them is a mean over tokens"),
    "a reward model": ({"loss": {"bradley_terry": 1, "dpo": 1}}, "only one of them trains a reward model"),
    "one part": ({"loss": {"dpo": 1}}, "a mixture is of two losses at least"),
    "no part": ({"loss": {}}, "a mixture is of two losses at least"),
    "no loss": ({"loss": 3}, "3 is no loss: name a loss, or weigh several"),
    "a list": ({"loss": ["dpo", "bco"]}, "is no loss: name a loss, or weigh several"),
    "a weight of 0": ({"loss": {"dpo": 1, "bco": 0}}, "the weight of 'bco' must be a number above 0, not 0"),
    "a weight below 0": ({"loss": {"dpo": 1, "bco": -1}}, "must be a number above 0, not -1"),
    "an endless weight": ({"loss": {"dpo": 1, "bco": float("inf")}}, "must be a number above 0, not inf"),
    "a weight that is none": ({"loss": {"dpo": 1, "bco": float("nan")}}, "must be a number above 0, not nan"),
    "true": ({"loss": {"dpo": True, "bco": 1}}, "must be a number above 0, not True"),
    "a part without weight": ({"loss": {"dpo": {"beta": 0.1}, "bco": 1}}, "the weight of 'dpo' must be a number"),
    "a stranger in a part": ({"loss": {"dpo": {"weight": 1, "bta": 1}, "bco": 1}}, "'bta' is no hyperparameter of the"),
    "a stranger beside": ({"loss": {"dpo": 1, "bco": 1}, "tau": 1}, "'tau' is neither a training setting nor"),
    "a bad value": ({"loss": {"dpo": {"weight": 1, "beta": -1}, "bco": 1}}, "beta: Input should be greater than 0"),
    "nobody's value": (
        {"loss": {"dpo": {"weight": 1, "beta": 1}, "sft": 1}, "beta": 2},
        "every loss that reads 'beta'",
    ),
    "sft twice": ({"loss": MPO, "sft_weight": 1}, "sft is a part of it"),
    "sft_weight of labels": ({"loss": "kto", "sft_weight": 1}, "no likelihood of a chosen response"),
    "sft_weight of targets": ({"loss": "sft", "sft_weight": 1}, "no likelihood of a chosen response"),
    "sft_weight of a reward model": ({"loss": "bradley_terry", "sft_weight": 1}, "no likelihood of a chosen response"),
    "sft_weight over tokens": ({"loss": "csft", "sft_weight": 1}, "only one of them is a mean over tokens"),
    "a negative sft_weight": ({"loss": "dpo", "sft_weight": -1}, "sft_weight must be a number of at least 0, not -1"),
    "a reference of none": ({"loss": {"simpo": 1, "orpo": 1}, "humanline": True}, "has no reference"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mixture_that_cannot_be_is_refused_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Stage(**settings)
    assert str(caught.value).startswith("1 validation error")


# ---- plugins -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centred(Loss):
    """A loss of labels with statistics of its own, of the responses themselves."""

    view = VIEWS["unpaired"]
    prepass = ("response",)

    def statistics(self, policy: Logps, reference: Logps, batch: Batch) -> dict[str, torch.Tensor]:
        return {"kl": log_ratio(policy, reference, "response")}

    def __call__(self, policy: Logps, reference: Logps, batch: Batch) -> Output:
        assert batch.desirable is not None
        signs = batch.desirable * 2.0 - 1
        return Output(-signs * (log_ratio(policy, reference, "response") - batch.statistics["kl"].mean()))


def test_statistics_of_the_same_name_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """KTO's `kl` is of mismatched responses, and the other's of the responses themselves."""
    monkeypatch.setitem(LOSSES._entries, "centred", Centred)
    loss, case = Stage(loss={"kto": 0.5, "centred": 2}).make_loss(), random_case()
    assert loss.prepass == ("response", "mismatched")
    output, _ = run(loss, case)
    found = {name: run(LOSSES[name](), case)[0].losses for name in ("kto", "centred")}
    torch.testing.assert_close(output.losses, 0.5 * found["kto"] + 2 * found["centred"])


def test_a_mixture_depends_on_the_plugin_of_each_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text("one")
    monkeypatch.setitem(LOSSES._entries, "centred", Centred)
    monkeypatch.setitem(LOSSES._plugins, "centred", file)
    assert list(stage_plugins(Stage(loss={"kto": 0.5, "centred": 2}))) == [str(file)]
    assert stage_plugins(Stage(loss=MPO)) == {}


def test_humanline_clamps_no_likelihood_of_a_mixture(world: World, tmp_path: Path) -> None:
    """The gradient of the likelihood is as without humanline, where that clamps every token."""
    tight = {"humanline": True, "log_eps_p": -1e-9, "log_eps_r": 1e-9}
    cases = {"both": {**tight, "sft_weight": 1.0}, "clamped": tight, "likelihood": {"sft_weight": 1.0}}
    gradients = {}
    for name, changes in cases.items():
        trainer = setup(world, tmp_path / name, "dpo", beta=1e-9, **changes)
        if trainer.live is not None:
            with torch.no_grad():  # every token is out of bounds
                for parameter in trainer.live.parameters():
                    parameter.mul_(1.5)
        trainer.objective(trainer.ahead(0), backward=True)
        gradients[name] = torch.cat([p.grad.flatten() for p in trainer.policy.parameters()])
    assert not gradients["clamped"].any()
    assert float(gradients["likelihood"].abs().max()) > 1e-3
    torch.testing.assert_close(gradients["both"], gradients["likelihood"], rtol=1e-4, atol=1e-6)
