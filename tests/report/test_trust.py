"""How far judges agree, and the shares of a reward model's verdicts: by hand, and beside other implementations."""

from __future__ import annotations

import json

import krippendorff
import numpy as np
import pandas as pd
import pytest

from halos.report import agreement, statistics, tables
from halos.report.proportions import wilson
from halos.report.subjects import SUBJECTS
from tests.report.conftest import judgement


def tree(tmp_path, write_tree, **sides):
    """The table of a grid with a cell of which each judge says these sides of prompt after prompt."""
    config, results = write_tree(tmp_path, methods=("sft",), seeds=(1,), judges=tuple(sides), tasks=(), compare=None)
    for judge, given in sides.items():
        rows = [{"prompt_id": f"p{i}", "preference": None if side is None else 1.5 + side / 2,
                 "candidate_length": 10 + i % 3, "baseline_length": 11} for i, side in enumerate(given)]  # fmt: skip
        kind = {"toy": "verifier", "rm": "reward_model"}.get(judge, "openai")
        counts = {"wins": given.count(1), "losses": given.count(-1), "ties": given.count(0)}
        said = judgement(kind, rows, n=len(rows), win_rate=0.5, **counts)
        said.write(results / f"runs/toy/tiny/sft/seed1/judged/{judge}.json")
    tables.make(config, results=results, output=tmp_path / "tables")
    file = tmp_path / "tables/trust.csv"
    return pd.read_csv(file, keep_default_na=False, na_values={"value": ""}) if file.is_file() else None


def test_agreement_of_two_judges_is_that_worked_by_hand(tmp_path, write_tree):
    """Of 10 comparisons both decided, 7 verdicts are equal. The verifier says 5 wins, 3 losses and 2 ties, the reward
    model 6, 2 and 2: by chance .5 * .6 + .3 * .2 + .2 * .2 = .4 would be equal, and kappa is (.7 - .4) / (1 - .4)."""
    toy = [1, 1, 1, 1, 1, -1, -1, -1, 0, 0, 1, None]
    rm = [1, 1, 1, 1, 0, -1, -1, 1, 1, 0, None, 1]
    frame = tree(tmp_path, write_tree, toy=toy, rm=rm).set_index("measure")
    assert frame.loc["agreement", ["judge", "other"]].tolist() == ["toy", "rm"]
    assert float(frame.loc["agreement", "value"]) == pytest.approx(0.7)
    low, high = wilson(7, 10)
    assert float(frame.loc["agreement", "low"]) == pytest.approx(low, abs=0.03)
    assert float(frame.loc["agreement", "high"]) == pytest.approx(high, abs=0.03)
    assert float(frame.loc["kappa", "value"]) == pytest.approx(0.5)
    assert float(frame.loc["kappa", "low"]) < 0.5 < float(frame.loc["kappa", "high"])
    both = np.array([[np.nan if side is None else side for side in given] for given in (toy, rm)])
    known = krippendorff.alpha(reliability_data=both, level_of_measurement="ordinal")
    assert float(frame.loc["alpha", "value"]) == pytest.approx(known)
    assert int(frame.loc["alpha", "n"]) == 10


def test_a_reward_models_preference_for_length_is_counted_over_unequal_lengths(tmp_path, write_tree):
    """The candidate's response is shorter, as long and longer by turns: of 9 verdicts 2 are ties, 2 of equal length."""
    frame = tree(tmp_path, write_tree, rm=[-1, 1, 1, 1, 0, 1, -1, 1, 0]).set_index("measure")
    assert frame.loc["prefers_longer", ["value", "n"]].astype(float).tolist() == [0.8, 5]
    assert list(frame.index) == ["prefers_longer"]


def test_a_grid_of_verifiers_alone_has_no_such_table(tmp_path, write_tree):
    assert tree(tmp_path, write_tree, toy=[1, 0, -1]) is None
    (trust,) = [subject for subject in SUBJECTS if subject.table == "trust"]
    assert trust.title == "How far to trust the judges"


def test_judges_of_different_baselines_are_not_compared(tmp_path, write_tree):
    tree(tmp_path, write_tree, toy=[1, 0, -1, 1], rm=[1, 0, -1, 1])
    file = tmp_path / "results/runs/toy/tiny/sft/seed1/judged/rm.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"baseline": "base"}))
    config, results = tmp_path / "results/grids/small/config.yaml", tmp_path / "results"
    tables.make(config, results=results, output=tmp_path / "again")
    assert "agreement" not in (tmp_path / "again/trust.csv").read_text()


def test_judges_of_different_prompt_sets_are_not_compared(tmp_path, write_tree):
    """Their prompts may be the same, and the responses are others."""
    tree(tmp_path, write_tree, toy=[1, 0, -1, 1], rm=[1, 0, -1, 1])
    results = tmp_path / "results"
    (results / "judges/rm/config.yaml").write_text("{judge: rm, kind: reward_model, reward_model: rm, prompts: q}")
    (results / "prompts/q").mkdir()
    (results / "prompts/q/config.yaml").write_text("{prompts: q, temperature: 0.0}")
    samples = results / "runs/toy/tiny/sft/seed1/samples"
    (samples / "q.jsonl").write_bytes((samples / "p.jsonl").read_bytes())
    tables.make(results / "grids/small/config.yaml", results=results, output=tmp_path / "again")
    assert "agreement" not in (tmp_path / "again/trust.csv").read_text()


def test_agreement_of_the_same_and_of_chance():
    rng = np.random.default_rng(0)
    first, second = rng.integers(-1, 2, (2, 600)).astype(float)
    prompts = list(range(600))
    for e in (agreement.kappa(first, first, prompts), agreement.alpha(np.array([first, first]), prompts)):
        assert (e.mean, e.low, e.high) == (1, 1, 1)
    for e in (agreement.kappa(first, second, prompts), agreement.alpha(np.array([first, second]), prompts)):
        assert e.low < 0 < e.high
        assert 0.1 < e.high - e.low < 0.25
    constant = np.ones(600)
    assert np.isnan(agreement.alpha(np.array([constant, constant]), prompts).mean)


def test_the_interval_of_a_share_is_over_prompts_and_holds_the_truth():
    """Each prompt has 1 to 12 trials, whose chance of a hit is its own: of mean .7, and widely spread."""
    rng, held, narrow = np.random.default_rng(0), 0, 0
    for _ in range(400):
        trials = rng.integers(1, 13, 80)
        hits = rng.binomial(trials, rng.beta(1.4, 0.6, 80))
        e = statistics.clustered(hits, trials)
        held += e.low <= 0.7 <= e.high
        low, high = wilson(hits.sum(), trials.sum())
        narrow += low <= 0.7 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert narrow / 400 < 0.75  # as if all trials were independent ones
    assert statistics.clustered([1, 1, 1, 0], [1, 1, 1, 1]).low == pytest.approx(wilson(3, 4)[0], abs=0.06)
    assert statistics.clustered([0, 0], [3, 0]).prompts == 1
    assert np.isnan(statistics.clustered([], []).mean)
