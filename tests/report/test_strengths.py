"""Bradley-Terry strengths: the model's own odds, known strengths found again, and a published order."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import log_expit

from benchmarks import coverage
from halos.report.strengths import linked, strengths


def verdicts(wins, losses, ties=0, prompts=None):
    """One pair's comparisons, a seed and a prompt each; NaN beyond them."""
    values = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [values + [np.nan] * ((prompts or len(values)) - len(values))]


def means(estimates):
    return np.array([e.mean for e in estimates])


def test_the_odds_of_two_methods_are_those_of_their_wins():
    first, second = strengths([(0, 1)], [verdicts(300, 100)])
    # half a win is added to both sides
    assert first.mean - second.mean == pytest.approx(np.log(300.5 / 100.5))
    assert first.mean == pytest.approx(-second.mean)
    assert (first.seeds, first.prompts) == (1, 400)
    # the standard error of log odds is the root of 1/wins + 1/losses; a strength is half of them
    assert (first.high - first.low) / 2 == pytest.approx(1.96 * np.sqrt(1 / 300 + 1 / 100) / 2, rel=0.03)


def test_a_tie_is_half_a_win_and_half_a_loss():
    tied, none = (means(strengths([(0, 1)], [v])) for v in (verdicts(20, 10, ties=10), verdicts(25, 15)))
    assert tied == pytest.approx(none)
    wide, narrow = (strengths([(0, 1)], [v])[0] for v in (verdicts(100, 100), verdicts(0, 0, ties=200)))
    assert narrow.mean == wide.mean == pytest.approx(0)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5


def test_strengths_maximise_the_likelihood_that_they_are_defined_by():
    rng = np.random.default_rng(3)
    pairs = [(0, 1), (0, 2), (1, 2), (2, 3)]  # 0 and 1 never meet 3
    values = rng.integers(0, 3, (4, 2, 60)) / 2
    values[1, 0, :30] = np.nan
    won, of = np.nansum(np.nanmean(values, axis=1), axis=1), 60
    prior = 0.5 * 4 / 8

    def negative(s):
        lead = np.array([s[i] - s[j] for i, j in pairs])
        return -((won + prior) @ log_expit(lead) + (of - won + prior) @ log_expit(-lead))

    best = minimize(negative, np.zeros(4), tol=1e-10).x
    assert means(strengths(pairs, values)) == pytest.approx(best - best.mean(), abs=1e-4)


def test_a_method_that_always_wins_has_a_finite_strength_and_a_wide_interval():
    first, second = strengths([(0, 1)], [verdicts(50, 0)])
    assert first.mean - second.mean == pytest.approx(np.log(50.5 / 0.5))
    # a little more cautious than Wilson's interval of 50 wins of 50, which begins at odds of 13
    assert 0.5 * np.log(6) < first.low < 0.5 * np.log(13)
    assert np.isfinite(first.high)
    assert first.high > first.mean + 0.5


def test_prompts_and_not_comparisons_are_the_sample():
    """Ten methods of which each is compared with each by one score of its response: 45 comparisons a prompt say little
    more of a method than 9 do, and three seeds that answer alike say no more than one."""
    rng = np.random.default_rng(0)
    pairs = list(combinations(range(10), 2))
    first, second = np.array(pairs).T
    scores = rng.gumbel(size=(10, 1, 300))
    scored = (scores[first] > scores[second]).astype(float)
    asked = rng.integers(0, 2, (45, 1, 300)).astype(float)
    alone, apart = (np.mean([e.high - e.low for e in strengths(pairs, v)]) for v in (scored, asked))
    assert alone > 1.4 * apart
    alike = np.mean([e.high - e.low for e in strengths(pairs, np.repeat(scored, 3, axis=1))])
    assert alike == pytest.approx(alone, rel=0.01)


def test_known_strengths_are_found_again():
    study = coverage.Tournament((-1.0, -0.5, 0.0, 0.0, 0.5, 1.0), 3, 0.0, scored=False, prompts=4000, own=0.0)
    comparisons, truth = study.draw(np.random.default_rng(0))
    assert truth == pytest.approx(np.array(study.strengths), abs=1e-6)
    assert means(strengths(study.pairs, comparisons, draws=100)) == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (2, 0.2), (3, 0.0), (5, 0.6)])
@pytest.mark.parametrize("far", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, effect, far):
    """The share of 80 x 6 intervals has a standard error of .01 or so: the limits are 3 of them about what
    benchmarks/results/coverage.csv holds, 92 % to 98 %."""
    middle = coverage.TOURNAMENTS["far" if far else "near"]
    study = coverage.Tournament(middle, seeds, effect, scored=bool(seeds % 2), prompts=120)
    assert 0.91 <= coverage.tournaments(study, 80, seed=5, draws=1000).mean() <= 0.995


def test_a_published_leaderboard_comes_out_in_its_order():
    """alpaca_eval's own, of one annotator: wins, losses and draws of each model against the same baseline."""
    package = Path(find_spec("alpaca_eval").origin).parent
    board = pd.read_csv(
        package / "leaderboards/data_AlpacaEval_2/alpaca_eval_gpt4_turbo_fn_leaderboard.csv", index_col=0
    )
    board = board[board["n_total"] == 805].drop(index="gpt4_turbo")
    assert len(board) >= 5
    rows = board[["n_wins", "n_wins_base", "n_draws"]].astype(int).to_numpy()
    values = np.array([verdicts(*row, prompts=805) for row in rows])
    found = means(strengths([(i, len(rows)) for i in range(len(rows))], values, draws=100))
    order = [board.index[i] for i in np.argsort(-found[:-1], kind="stable")]
    assert order == list(board["win_rate"].sort_values(ascending=False, kind="stable").index)
    # each has met the baseline alone, so that its strength gives its published win rate again
    rates = 1 / (1 + np.exp(found[-1] - found[:-1]))
    assert 100 * rates == pytest.approx(board["win_rate"].to_numpy(), abs=0.1)


def test_methods_that_never_met_have_no_common_scale():
    assert linked([(0, 1), (1, 2)], 3)
    assert not linked([(0, 1), (2, 3)], 4)
    assert not linked([(0, 1)], 3)
