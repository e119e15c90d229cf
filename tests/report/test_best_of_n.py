"""Best-of-n: the estimator against every set of samples and closed forms, and the figure from judgements."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import yaml

from halos.report import best_of_n, figures
from halos.report.subject import Outline
from halos.report.subject import figures as figures_of
from halos.study.catalogue import load
from tests.report.conftest import judgement


def test_the_estimate_is_the_mean_over_every_set_of_samples():
    """Chosen by one score and measured by another, in prompts that differ."""
    proxy, gold = np.random.default_rng(0).normal(size=(2, 3, 6))
    best = best_of_n.best_of(proxy, gold)
    assert best.shape == (6, 3)
    for k in range(1, 7):
        for prompt in range(3):
            sets = [max(chosen, key=lambda i: proxy[prompt, i]) for chosen in combinations(range(6), k)]
            assert best[k - 1, prompt] == pytest.approx(np.mean(gold[prompt, sets]))


def test_of_equal_scores_each_is_as_likely_to_be_taken():
    """Proxy scores 1, 1, 0: of two samples, the first two are taken in turns where both are there."""
    best = best_of_n.best_of([[1, 1, 0]], [[10, 20, 60]])[:, 0]
    assert best.tolist() == pytest.approx([30, (15 + 10 + 20) / 3, 15])
    assert best_of_n.best_of([[2, 2, 2, 2]], [[0, 0, 0, 1]])[:, 0].tolist() == pytest.approx([0.25] * 4)


def test_a_thousand_samples_of_a_uniform_score_have_its_expected_maximum():
    """The maximum of k uniform numbers is k / (k + 1) on average, of evenly spaced ones k (N + 1) / (k + 1) / N."""
    scores = np.arange(1, 1001)[None] / 1000
    k = np.arange(1, 1001)
    assert best_of_n.best_of(scores, scores)[:, 0] == pytest.approx(k / (k + 1) * 1001 / 1000, rel=1e-9)


def test_the_divergence_of_best_of_n_is_that_of_the_density_of_a_maximum():
    """The better of two uniform numbers has the density 2 x: its divergence is the integral of 2 x log 2 x."""
    x = (np.arange(1_000_000) + 0.5) / 1_000_000
    assert best_of_n.kl(2) == pytest.approx(np.mean(2 * x * np.log(2 * x)), abs=1e-6)
    assert best_of_n.kl([1, 4]).tolist() == pytest.approx([0, np.log(4) - 3 / 4])


SAMPLES = 4


def write_scores(write_tree, folder, scores, methods=("sft",), seeds=(1,), elsewhere=None):
    """The figure's numbers of a grid whose judges gave {judge: (prompts, samples) scores}, None for none."""
    config, results = write_tree(folder, methods=methods, seeds=seeds, judges=tuple(scores), tasks=())
    (results / "prompts/p/config.yaml").write_text(yaml.safe_dump({"prompts": "p", "samples": SAMPLES}))
    (results / "prompts/q").mkdir()
    (results / "prompts/q/config.yaml").write_text(yaml.safe_dump({"prompts": "q", "samples": SAMPLES}))
    for judge, table in scores.items():
        if judge == elsewhere:
            config_of = results / f"judges/{judge}/config.yaml"
            config_of.write_text(config_of.read_text().replace("prompts: p", "prompts: q"))
        rows = [
            {"prompt_id": f"p{i}", "sample": k, "preference": None if score is None else 1.5, "candidate_score": score}
            for i, row in enumerate(table)
            for k, score in enumerate(row)
        ]
        said = judgement({"rm": "reward_model"}.get(judge, "verifier"), rows, n=len(rows), win_rate=0.5,
                         wins=0, losses=0, ties=len(rows))  # fmt: skip
        for method in methods:
            for seed in seeds:
                said.write(results / f"runs/toy/tiny/{method}/seed{seed}/judged/{judge}.json")
    figures.make(config, folder / "figures", results, only=["best_of_n"])
    return pd.read_csv(folder / "figures/best_of_n.csv")


def test_the_choice_of_one_judge_is_measured_by_both(tmp_path, write_tree):
    """The reward model likes the samples in their order; the verifier likes the third one best, or the first one. The
    last prompt lacks a score, and counts as left out."""
    rm = [[-4.0, -3.0, -2.0, -1.0], [-4.0, -3.0, -2.0, -1.0], [None, 0.0, 0.0, 0.0]]
    toy = [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    frame = write_scores(write_tree, tmp_path, {"rm": rm, "toy": toy}).set_index(["judge", "measured_by", "n"])
    assert frame.loc[("rm", "rm"), "mean"].tolist() == pytest.approx([-2.5, -2 + 1 / 3, -1.25, -1])
    # of two samples the third is best in 2 of 6 sets, the first in none; of three in 1 of 4
    assert frame.loc[("rm", "toy"), "mean"].tolist() == pytest.approx([0.25, 1 / 6, 1 / 8, 0])
    assert frame.loc[("toy", "toy", 4), "mean"] == 1
    assert frame["kl"].iloc[:4].tolist() == pytest.approx(best_of_n.kl([1, 2, 3, 4]).tolist())
    both = frame.loc[("rm", "toy", 2)]
    assert (both["prompts"], both["left_out"]) == (2, 1)
    assert 0 <= both["low"] < both["mean"] < both["high"] <= 1
    assert (frame.loc[("toy", "toy"), "left_out"] == 0).all()
    assert "best by RM" not in (text := (tmp_path / "figures/best_of_n.svg").read_text())
    assert "best by rm" in text
    assert "Toy verifier" in text


def test_seeds_that_are_equal_are_no_more_prompts_than_one(tmp_path, write_tree):
    scores = {"toy": [[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]}
    one = write_scores(write_tree, tmp_path / "1", scores)
    two = write_scores(write_tree, tmp_path / "2", scores, seeds=(1, 2), methods=("base", "sft", "dpo"))
    sft = two[two["method"] == "sft"]
    assert sft[["mean", "low", "high"]].to_numpy() == pytest.approx(one[["mean", "low", "high"]].to_numpy())
    assert set(sft["seeds"]) == {2}


def test_judges_of_different_prompts_are_not_taken_together(tmp_path, write_tree):
    table = [[0.0, 1.0, 1.0, 0.0]] * 3
    assert len(write_scores(write_tree, tmp_path / "both", {"rm": table, "toy": table})) == 4 * SAMPLES
    assert len(write_scores(write_tree, tmp_path / "apart", {"rm": table, "toy": table}, elsewhere="rm")) == 2 * SAMPLES


@pytest.mark.parametrize("samples", [1, 8])
def test_the_figure_is_of_grids_whose_judge_scores_several_samples(samples):
    config = load("config.yaml", {"prompts": {"held_out": {"samples": samples}}})
    assert ("best_of_n" in figures_of(Outline.of(config))) == (samples > 1)
