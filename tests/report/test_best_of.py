"""The best of several trials, against closed forms, by hand, and against the truth in simulations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from halos.report import best_of, statistics


def test_the_expected_best_of_three_by_hand() -> None:
    """Two draws from 1, 2 and 4: of nine pairs the maximum is 1 once, 2 three times and 4 five times."""
    best = best_of.expected([4, 1, 2])
    assert best.tolist() == pytest.approx([7 / 3, (1 + 3 * 2 + 5 * 4) / 9, (1 + 7 * 2 + 19 * 4) / 27])


@pytest.mark.parametrize("lowest", [False, True])
def test_the_expected_best_is_the_mean_over_all_draws_ties_included(lowest: bool) -> None:
    values = [0.3, 0.5, 0.5, 0.2]
    best = best_of.expected(values, lowest)
    for n in range(1, 5):
        assert best[n - 1] == pytest.approx(np.mean([(min if lowest else max)(d) for d in product(values, repeat=n)]))


def test_hundreds_of_trials_give_numbers_that_rise_to_the_best() -> None:
    best = best_of.expected(np.random.default_rng(0).normal(size=500))
    assert np.isfinite(best).all()
    assert (np.diff(best) > 0).all()


@pytest.mark.parametrize("lowest", [False, True])
def test_the_interval_of_one_trial_is_the_bootstrap_of_a_mean(lowest: bool) -> None:
    values = np.random.default_rng(0).normal(size=100)
    low, high = best_of.expected_interval(values, lowest)
    half = 1.96 * values.std() / 10
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    best = best_of.expected(values, lowest)
    assert ((low <= best) & (best <= high)).all()
    assert (low.min() if lowest else high.max()) == pytest.approx(values.min() if lowest else values.max(), rel=0.01)


def test_equal_trials_have_no_band() -> None:
    low, high = best_of.expected_interval([0.5] * 4)
    assert low.tolist() == high.tolist() == pytest.approx([0.5] * 4)


def test_the_optimism_of_equal_trials_is_the_expected_maximum_of_normals() -> None:
    """Of one 0, of two s / sqrt(pi), of three 1.5 s / sqrt(pi)."""
    assert best_of.optimism([0.4], [0.1]) == 0
    for n, factor in ((2, 1), (3, 1.5)):
        assert best_of.optimism([0.4] * n, [0.1] * n, draws=200_000) == pytest.approx(
            factor * 0.1 / np.pi**0.5, rel=0.01
        )


def test_a_trial_that_is_far_better_is_not_chosen_by_luck() -> None:
    """Which end is best decides how many trials compete for it."""
    values, errors = [0.5, 0.5, 0.9], [0.01] * 3
    assert best_of.optimism(values, errors) == pytest.approx(0, abs=1e-3)
    assert best_of.optimism(values, errors, lowest=True) == pytest.approx(0.01 / np.pi**0.5, rel=0.05)
    assert np.isnan(best_of.optimism(values, [0.1, np.nan, 0.1]))


def test_the_standard_error_is_that_of_a_normal_interval() -> None:
    assert best_of.standard_error(0.5 - 1.959964 * 0.02, 0.5 + 1.959964 * 0.02) == pytest.approx(0.02)
    assert np.isnan(best_of.standard_error(None, None))


def test_of_equal_trials_the_winners_test_value_is_sound_and_its_validation_value_too_high() -> None:
    """8 trials with a win rate of .6 on 128 validation prompts; the winner answers 256 test prompts."""
    rng, studies, truth = np.random.default_rng(0), 1000, 0.6
    validation = rng.random((studies, 8, 128)) < truth
    covered, excess, expected = [], [], []
    for trials in validation:
        estimates = [statistics.estimate(trial[None], bounded=True) for trial in trials]
        values = [e.mean for e in estimates]
        test = statistics.estimate((rng.random(256) < truth)[None], bounded=True)
        covered.append(test.low <= truth <= test.high)
        excess.append(max(values) - truth)
        errors = [best_of.standard_error(e.low, e.high) for e in estimates]
        expected.append(best_of.optimism(values, errors, draws=500))
    assert 0.93 <= np.mean(covered) <= 0.97
    known = best_of.optimism([truth] * 8, [(truth * (1 - truth) / 128) ** 0.5] * 8, draws=100_000)
    assert np.mean(excess) == pytest.approx(known, abs=3 * np.std(excess) / studies**0.5)
    assert np.mean(excess) > 0.05
    # without knowing that trials are equal it is a tenth less
    assert np.mean(expected) == pytest.approx(np.mean(excess), rel=0.12)


def test_of_trials_that_differ_the_optimism_is_right_on_average() -> None:
    """True values are spread as much as their errors; the plain bootstrap would say a sixth less."""
    rng, studies = np.random.default_rng(1), 2000
    true = rng.normal(0.5, 0.04, (studies, 8))
    values = true + rng.normal(0, 0.04, true.shape)
    best = values.argmax(axis=1)
    excess = (values - true)[np.arange(studies), best]
    expected = np.mean([best_of.optimism(row, [0.04] * 8, draws=500) for row in values])
    assert expected == pytest.approx(excess.mean(), rel=0.08)
