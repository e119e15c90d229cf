"""Sweeps: which trials a stage has, under which ids, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from halos.train.slices import stage_slice
from halos.train.stage import Stage

LR = {"min": 1e-5, "max": 1e-3, "log": True}
BY = {"metric": "loss"}


def stage(**settings: Any) -> Stage:
    return Stage(loss="dpo", select=BY, **settings)


def test_lists_are_tried_in_every_combination_the_last_setting_first() -> None:
    swept = stage(sweep={"lr": ["1e-5", 1e-4], "beta": [0.1, 0.5, 1]})
    expected = [(lr, beta) for lr in (1e-5, 1e-4) for beta in (0.1, 0.5, 1)]
    assert [(t["lr"], t["beta"]) for t in swept.tried.values()] == expected
    last = swept.trial(list(swept.tried)[-1])
    assert (last.lr, last.hyperparameters, last.sweep, last.select) == (1e-4, {"beta": 1}, {}, None)


def test_a_trial_keeps_its_id_when_values_settings_order_or_other_settings_change() -> None:
    few, more = stage(sweep={"lr": [1e-5, 1e-4]}), stage(sweep={"lr": [1e-6, 1e-4, 1e-5]}, batch_size=8)
    assert set(few.tried) < set(more.tried)
    one, other = (stage(sweep=dict(order)) for order in ([("lr", [1]), ("beta", [2])], [("beta", [2]), ("lr", [1])]))
    assert set(one.tried) == set(other.tried)
    assert all(len(name) == 6 for name in more.tried)


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_more_trials_begin_with_those_of_fewer(sampler: str) -> None:
    sweep = {"lr": LR, "beta": [0.1, 0.5, 1], "batch_size": {"min": 8, "max": 64}}
    eight, ten = (stage(sweep=sweep, trials=n, sampler=sampler) for n in (8, 10))
    assert list(ten.tried.items())[:8] == list(eight.tried.items())
    assert len(ten.tried) == 10
    assert stage(sweep=sweep, trials=8, sampler=sampler, sampler_seed=1).tried != eight.tried
    for settings in ten.tried.values():
        assert 1e-5 <= settings["lr"] <= 1e-3
        assert settings["beta"] in (0.1, 0.5, 1)
        assert isinstance(settings["batch_size"], int)
        assert 8 <= settings["batch_size"] <= 64


def test_draws_are_spread_evenly_on_the_scale_that_is_asked_for() -> None:
    drawn = stage(sweep={"lr": LR, "beta": {"min": 0.0, "max": 1.0}, "batch_size": [8, 16]}, trials=256).tried.values()
    for values in (np.log10([t["lr"] for t in drawn]) / 2 + 2.5, [t["beta"] for t in drawn]):
        assert np.histogram(values, bins=4, range=(0, 1))[0] == pytest.approx(64, abs=4)
    assert sum(t["batch_size"] == 8 for t in drawn) == pytest.approx(128, abs=4)


def test_settings_of_settings_are_tried_by_a_dot_and_the_others_stay() -> None:
    swept = stage(lora={"r": 4, "alpha": 8}, sweep={"lora.r": [8, 16], "optimizer_args.weight_decay": [0.1]})
    trial = swept.trial(next(iter(swept.tried)))
    assert trial.lora is not None
    assert (trial.lora.r, trial.lora.alpha) == (8, 8)
    assert stage_slice(trial)["optimizer_args"] == {"weight_decay": 0.1, "betas": [0.9, 0.999], "eps": 1e-5}


def test_a_sweep_is_no_part_of_what_makes_a_result() -> None:
    assert stage_slice(stage(sweep={"lr": [1e-5]})) == stage_slice(Stage(loss="dpo"))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown setting": ({"sweep": {"betta": [1]}}, "the trial with betta 1: 'betta' is neither"),
    "a value that is refused": ({"sweep": {"lr": [1e-3, -1]}}, "the trial with lr -1: lr: Input should be greater"),
    "a combination that is refused": ({"sweep": {"log_eps_p": [-2]}}, "without humanline: true nothing reads"),
    "one value": ({"sweep": {"lr": 1e-3}}, "give a list of values"),
    "no value": ({"sweep": {"lr": []}}, "give a list of values"),
    "an empty range": ({"sweep": {"lr": {"min": 2, "max": 1}}, "trials": 2}, "min 2 must be below max 1"),
    "a logarithm of 0": ({"sweep": {"lr": {"min": 0, "max": 1, "log": True}}, "trials": 2}, "raise min above 0"),
    "a range without trials": ({"sweep": {"lr": LR}}, "lr is a range: say how many `trials:`"),
    "too many trials": ({"sweep": {"lr": [1, 2]}, "trials": 3}, "no 3 combinations"),
    "another loss": ({"sweep": {"loss": ["kto"]}}, "sweep.loss: it changes what is made before, or no result"),
    "an interval": ({"sweep": {"eval_every": [8]}}, "sweep.eval_every: it changes what is made before, or no result"),
    "trials without a sweep": ({"trials": 3}, "without sweep nothing reads trials, select"),
    "two measures": ({"sweep": {"lr": [1]}, "select": {"judge": "j", "metric": "loss"}}, "exactly one of judge, task"),
    "no measure": ({"sweep": {"lr": [1]}, "select": None}, "say what decides between the trials"),
    "an end before snapshots": ({"sweep": {"stop_after": [0.5]}, "snapshots": 2}, "snapshots are of a whole training"),
    "a goal of a judge": ({"sweep": {"lr": [1]}, "select": {"judge": "j", "goal": "lowest"}}, "`goal` is read with"),
    "a score of a task": ({"sweep": {"lr": [1]}, "select": {"task": "t", "by": "score"}}, "`by` is read with a judge"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_refused_in_a_sentence(mistake: str) -> None:
    settings, words = MISTAKES[mistake]
    with pytest.raises(ValidationError) as error:
        Stage(**{"loss": "dpo", "select": BY, **settings})
    assert words in error.value.errors()[0]["msg"]
