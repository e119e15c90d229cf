"""Intervals hold what they promise: against closed forms, and against the truth in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from halos.report import proportions, statistics


def test_wilson_is_the_closed_form_of_scipy():
    for successes, n in [(0, 10), (3, 10), (10, 10), (416, 805)]:
        expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert proportions.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_trial_knows_nothing_and_of_half_a_success_is_symmetric():
    assert proportions.wilson(0, 0) == (0, 1)
    low, high = proportions.wilson(4.5, 9)
    assert low + high == pytest.approx(1)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="between 0 and n=3"):
        proportions.wilson(4, 3)


def test_one_seed_gives_the_interval_of_a_mean():
    """With one seed the bootstrap is the plain one over prompts: for many prompts mean +- 1.96 s / sqrt(n)."""
    x = np.random.default_rng(0).normal(0.3, 2.0, 400)
    e = statistics.estimate(x)
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert e.mean == pytest.approx(x.mean())
    assert (e.low, e.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.05 * half)
    assert (e.seeds, e.prompts) == (1, 400)


def test_equal_seeds_add_nothing_to_one_seed():
    """The same answers from three seeds are no more than from one: prompts are shared, not independent."""
    x = np.random.default_rng(1).normal(size=(1, 100))
    one, three = statistics.estimate(x), statistics.estimate(np.repeat(x, 3, axis=0))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_seeds_that_differ_give_the_t_interval_over_seeds():
    """Without any noise within a seed, all that varies is the seeds' means: mean +- t s / sqrt(S)."""
    means = np.array([0.2, 0.3, 0.5, 0.6])
    e = statistics.estimate(np.repeat(means[:, None], 50, axis=1), draws=40_000)
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (e.low, e.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.05 * half)


def test_two_seeds_by_themselves_say_next_to_nothing_of_others():
    e = statistics.estimate(np.repeat([[0.4], [0.6]], 50, axis=1), bounded=False, draws=200_000)
    half = stats.t.ppf(0.975, 1) * np.std([0.4, 0.6], ddof=1) / np.sqrt(2)
    assert (e.low, e.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.05 * half)


def test_two_seeds_of_several_methods_are_pooled():
    """Variances of the means .005, .02 and .005 without noise: their mean .01, with three degrees of freedom."""
    tables = [np.repeat([[0.5 - d], [0.5 + d]], 50, axis=1) for d in (0.1, 0.2, 0.1)]
    seeds = statistics.pooled([0.5 + (table - 0.5) * 0.5**0.5 for table in tables])
    assert (seeds.between, seeds.df) == (pytest.approx(0.01), 3)
    e = statistics.estimate(tables[0], seeds=seeds, draws=100_000)
    assert e.high - e.mean == pytest.approx(stats.t.ppf(0.975, 3) * 0.1, rel=0.03)


def test_pooled_seeds_differ_less_near_0_than_in_the_middle():
    """The variance .01 of a mean of .5 is one of .01 / (.5 * .5)^2 of its logit, and the same of another's logit."""
    middle, low = np.repeat([[0.4], [0.6]], 50, axis=1), np.repeat([[0.1], [0.1]], 50, axis=1)
    seeds = statistics.pooled([middle], bounded=True)
    assert seeds.between == pytest.approx(0.01 / 0.25**2)
    wide, narrow = (statistics.estimate(table, bounded=True, seeds=seeds) for table in (middle, low))
    assert wide.low < 0.1
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.95])
def test_a_win_rate_covers_the_truth_in_about_95_of_100_studies(rate):
    """Seeds and prompts crossed, without and with large seed effects; each share has a standard error of .011, and the
    limits are 3 of them below what benchmarks/results/coverage.csv holds."""
    for seeds, effect in ((1, 0.0), (1, 0.6), (3, 0.0), (3, 0.6), (5, 0.0), (5, 0.6)):
        assert 0.885 <= coverage.win_rates(coverage.Study((rate,), seeds, effect, prompts=120), 300, seed=1) <= 0.997


def test_two_seeds_cover_where_methods_share_what_seeds_add():
    for effect in (0.0, 0.6):
        study = coverage.Study((0.5,) * 12, 2, effect, prompts=120)
        assert 0.89 <= coverage.win_rates(study, 200, seed=1) <= 0.997


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (2, 0.6), (3, 0.0), (3, 0.6)])
def test_no_method_without_effect_is_marked_in_more_than_5_of_100_tables(seeds, effect):
    """Twelve methods, of which the two best are equal, or all are: 11 of 100 would be 3 standard errors too many."""
    ahead = coverage.Study((0.7, 0.7, *(0.3,) * 10), seeds, effect, prompts=100)
    equal = coverage.Study((0.5,) * 12, seeds, effect, prompts=100)
    assert coverage.winners(ahead, 100, seed=2, draws=1000) <= 0.11
    assert coverage.winners(equal, 40, seed=2, draws=1000) == 0
    assert coverage.findings(equal, 100, seed=2, draws=1000) <= 0.11


def test_the_best_of_clearly_different_methods_is_marked():
    rng = np.random.default_rng(0)
    tables = [(rng.random((3, 200)) < rate).astype(float) for rate in (0.3, 0.8, 0.5)]
    assert statistics.winner(tables) == 1
    assert statistics.winner([tables[0], None, tables[2]]) == 2
    assert statistics.winner([tables[0], None]) is None
    assert statistics.winner([tables[1], tables[1]]) is None


@pytest.mark.parametrize(
    ("seeds", "between", "prompt", "noise"),
    [(1, 0.0, 0.5, 0.3), (3, 0.0, 0.1, 0.5), (3, 0.2, 0.3, 0.4), (5, 0.05, 0.3, 0.4)],
    ids=["one seed", "equal seeds", "seeds differ", "five seeds"],
)
def test_paired_difference_covers_the_truth_in_about_95_of_100_studies(seeds, between, prompt, noise):
    """500 studies: the share that covers has a standard error of .01, and the limits are 4 and 5 of them away."""
    rng = np.random.default_rng(2)
    truth, studies, n, covered = 0.1, 500, 60, 0
    for study in range(studies):
        hard = rng.normal(size=n)  # hits both methods alike: pairing takes it out
        effect = truth + prompt * rng.normal(size=n) + between * rng.normal(size=(seeds, 1))
        a = hard + effect + noise * rng.normal(size=(seeds, n))
        d = statistics.difference(a, np.tile(hard, (seeds, 1)), draws=1000, seed=study)
        covered += d.low <= truth <= d.high
    assert 0.91 <= covered / studies <= 0.99


def test_p_values_of_no_difference_are_uniform():
    rng = np.random.default_rng(3)
    p = [statistics.difference(rng.normal(size=(1, 80)), rng.normal(size=(1, 80)), draws=500).p for _ in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_p_is_below_05_just_when_the_interval_leaves_out_zero():
    rng = np.random.default_rng(4)
    for shift in np.linspace(0, 0.5, 40):
        d = statistics.difference(rng.normal(shift, 1, (1, 100)), np.zeros((1, 100)), draws=2000)
        if abs(d.p - 0.05) > 0.002:
            assert (d.p < 0.05) == (d.low > 0 or d.high < 0)


def test_pairing_takes_out_what_both_methods_share():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, (5, 200))
    d = statistics.difference(hard + 0.1 + 0.01 * rng.normal(size=hard.shape), hard)
    assert d.high - d.low < 0.02
    assert d.p < 0.001


def test_no_difference_at_all_has_p_1():
    d = statistics.difference(np.ones((2, 5)), np.ones((2, 5)))
    assert (d.mean, d.low, d.high, d.p) == (0, 0, 0, 1)


def test_missing_judgements_are_left_out_and_a_prompt_counts_once():
    """Prompt means 1, 2 (of one seed) and nothing: 1.5 over two prompts."""
    e = statistics.estimate([[0.0, 2.0, np.nan], [2.0, np.nan, np.nan]])
    assert (e.mean, e.seeds, e.prompts) == (1.5, 2, 2)


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="no value"):
        statistics.estimate([[np.nan, np.nan]])


def test_a_proportion_stays_within_0_and_1_and_is_never_certain():
    assert statistics.estimate(np.zeros((3, 20)), bounded=True).high == pytest.approx(proportions.wilson(0, 20)[1])
    assert statistics.estimate(np.ones((1, 20)), bounded=True).low == pytest.approx(proportions.wilson(20, 20)[0])
    few = np.zeros((3, 20))
    few[0, :5] = 1
    assert statistics.estimate(few).low < 0
    bounded = statistics.estimate(few, bounded=True)
    assert 0 < bounded.low < bounded.mean < bounded.high < 1


def test_a_win_rate_of_one_seed_without_ties_has_wilsons_interval():
    e = statistics.estimate([1.0] * 7 + [0.0] * 193, bounded=True)
    assert (e.low, e.high) == pytest.approx(proportions.wilson(7, 200))
    tied = statistics.estimate([1.0] * 7 + [0.5] * 50 + [0.0] * 143, bounded=True)
    assert tied.high - tied.low < np.subtract(*proportions.wilson(32, 200)[::-1])


def test_clopper_pearson_by_its_definition():
    """The limits are where the tails beyond what was seen are a twentieth each."""
    low, high = proportions.clopper_pearson(14, 512, 0.9)
    assert stats.binom.sf(13, 512, low) == pytest.approx(0.05)
    assert stats.binom.cdf(14, 512, high) == pytest.approx(0.05)


def test_improvement_counts_ties_half():
    better = statistics.improved([[1.0, 2.0, 3.0, 0.0]], [[0.0, 2.0, 4.0, np.nan]])
    assert better.tolist() == [[1.0, 0.5, 0.0, pytest.approx(np.nan, nan_ok=True)]]


def test_a_gap_squares_and_adds_the_sides_that_face_each_other():
    a, b = statistics.Estimate(0.6, 0.5, 0.65, 1, 10), statistics.Estimate(0.4, 0.36, 0.48, 1, 10)
    assert statistics.gap(a, b) == pytest.approx((0.2, 0.2 - np.hypot(0.1, 0.08), 0.2 + np.hypot(0.05, 0.04)))


def test_draws_are_the_same_each_time_whatever_the_chunks(monkeypatch):
    x = np.random.default_rng(6).normal(size=(3, 40))
    whole = statistics.bootstrap(x, draws=1000)
    assert np.array_equal(whole, statistics.bootstrap(x, draws=1000))
    monkeypatch.setattr(statistics, "CHUNK", 40 * 7)
    assert np.allclose(whole, statistics.bootstrap(x, draws=1000))
    assert not np.array_equal(whole, statistics.bootstrap(x, draws=1000, seed=1))


def test_over_seeds_shares_the_items_error_and_adds_the_spread_of_seeds():
    """Variance .02^2 (not halved: the items are the same) beside that of the seeds, less two thirds of it: over 3."""
    e = statistics.over_seeds([0.44, 0.5, 0.56], [0.02] * 3)
    draws = np.random.default_rng(0).normal(size=400_000) * 0.02
    draws += np.random.default_rng(1).standard_t(2, 400_000) * np.sqrt((0.0036 - 2 / 3 * 0.02**2) / 3)
    assert e.mean == pytest.approx(0.5)
    assert e.high - e.mean == pytest.approx(np.quantile(np.abs(draws), 0.95), rel=0.02)
    alike = statistics.over_seeds([0.5, 0.501], [0.02] * 2)
    assert alike.high - alike.mean == pytest.approx(1.959964 * 0.02)


def test_over_seeds_without_standard_errors():
    e = statistics.over_seeds([0.4, 0.5, 0.6], [np.nan] * 3)
    assert e.high - e.mean == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    assert np.isnan(statistics.over_seeds([0.4], [np.nan]).low)


def test_holm_by_hand():
    """Sorted: .01 x 3, then .02 x 2, then .04 x 1, never below the one before."""
    assert statistics.holm([0.04, 0.01, np.nan, 0.02]) == pytest.approx([0.04, 0.03, np.nan, 0.04], nan_ok=True)
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert statistics.holm([]).size == 0


def test_shares_have_the_error_of_their_items_and_of_the_seeds_within_bounds():
    e = statistics.shares([0.74, 0.76], 50)
    half = 1.959964 * np.sqrt(np.mean([0.74 * 0.26, 0.76 * 0.24]) / 50)  # the seeds differ less than by chance
    assert (e.mean, e.low, e.high, e.seeds) == pytest.approx((0.75, 0.75 - half, 0.75 + half, 2), abs=1e-6)
    assert statistics.shares([0.5, 0.8], 50).low < 0.65 - half
    assert statistics.shares([0.98], 20).high == 1
    assert statistics.shares([0.02], 20).low == 0


def test_shares_that_are_all_right_are_no_certainty():
    e = statistics.shares([1.0, 1.0], 40)
    assert (e.low, e.high) == pytest.approx(proportions.wilson(40, 40))
    assert e.low < 0.95


def test_shares_of_unknown_many_items_know_the_seeds_alone():
    e = statistics.shares([0.7, 0.8, 0.9], None)
    assert (e.low, e.high) == pytest.approx((0.8 - 4.302653 * 0.1 / 3**0.5, 1.0))
    assert np.isnan(statistics.shares([0.7], None).low)
