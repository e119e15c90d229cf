"""Rewards on preference sets: accuracy, calibration and length by hand and against the truth; table and figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from halos.evaluate.rewards.rewards import RewardedPrompt, Rewards
from halos.report import figures, preferences, tables


def rewarded(rewards, pairs=((0, 1),), lengths=None, category="c", prompt="p0"):
    return RewardedPrompt(prompt_id=prompt, category=category, rewards=rewards, pairs=pairs,
                          lengths=lengths or [1] * len(rewards))  # fmt: skip


def pairs_of(rng, scale, size):
    """Margins of which a Bradley-Terry model says the truth when they are divided by `scale`."""
    true = rng.normal(0, 2, size)
    chosen = np.where(rng.random(size) < 1 / (1 + np.exp(-true)), true, -true)
    return [(f"p{i}", np.array([scale * margin])) for i, margin in enumerate(chosen)]


def test_rewards_on_the_scale_of_bradley_terry_are_calibrated_and_twice_them_are_too_sure():
    rng = np.random.default_rng(0)
    points = preferences.calibration(pairs_of(rng, 1, 20_000))
    assert len(points) == preferences.BINS
    assert sum(p.observed.low <= p.predicted <= p.observed.high for p in points) >= 8
    assert preferences.calibration_error(points) < 0.015
    too_sure = preferences.calibration(pairs_of(rng, 3, 20_000))
    assert all(p.observed.high < p.predicted for p in too_sure[3:])
    # the error of 3 m by quadrature over m ~ normal(0, 2)
    m = np.linspace(0, 14, 4001)
    density = np.exp(-(m**2) / 8)
    error = np.sum(density * (1 / (1 + np.exp(-3 * m)) - 1 / (1 + np.exp(-m)))) / density.sum()
    assert preferences.calibration_error(too_sure) == pytest.approx(error, abs=0.01)


def test_few_pairs_have_few_points_and_a_tie_is_half():
    [point] = preferences.calibration([("a", np.array([0.0, 2.0])), ("b", np.array([-2.0]))])
    assert point.predicted == pytest.approx((0.5 + 2 / (1 + np.exp(-2))) / 3)
    assert (point.observed.mean, point.pairs) == (0.5, 3)


def test_the_correlation_with_length_is_within_prompts():
    """Between prompts, the longer have the lower rewards; within each, the higher ones."""
    prompts = [rewarded([-i, 1.0 - i], lengths=[10 * i + 1, 10 * i + 4], prompt=f"p{i}") for i in range(30)]
    e = preferences.length_correlation(prompts)
    assert (e.mean, e.low, e.high) == pytest.approx((1, 1, 1))
    rng = np.random.default_rng(0)
    none = [rewarded(rng.normal(size=3).tolist(), lengths=rng.integers(1, 99, 3).tolist(), prompt=f"p{i}")
            for i in range(300)]  # fmt: skip
    e = preferences.length_correlation(none)
    assert e.low < 0 < e.high
    assert e.high - e.low == pytest.approx(2 * 1.96 / np.sqrt(2 * 300), rel=0.2)  # each prompt has two free responses
    assert np.isnan(preferences.length_correlation([rewarded([1, 2])]).mean)


def write_rewards(folder, of, kind="score", left_out=None):
    (folder / "rewards").mkdir(parents=True)
    Rewards(kind=kind, weights="w", reference_weights=None if kind == "score" else "r", left_out=left_out or {},
            prompts=of).write(folder / "rewards/set.json")  # fmt: skip


def grid_of(write_tree, folder, methods, rewards, reward_models=(), **stages):
    """The table and the curves of a grid of which {method: prompts' rewards} is known, the same for all seeds."""
    config, results = write_tree(folder, methods=methods, seeds=(1,), judges=(), tasks=(), reward_models=reward_models,
                                 stages=stages, preference_sets=["set"])  # fmt: skip
    for method, of in rewards.items():
        kind = "score" if method in reward_models else "log_ratio"
        write_rewards(results / f"runs/toy/tiny/{method}/seed1", of, kind, {"too long": 2})
    tables.make(config, folder / "tables", results)
    figures.make(config, folder / "figures", results, only=["calibration"])
    table = pd.read_csv(folder / "tables/rewards.csv", keep_default_na=False, na_values=[""])
    return table.set_index(["method", "category"]), pd.read_csv(folder / "figures/calibration.csv")


def test_the_table_has_each_category_and_the_figure_what_has_a_scale(tmp_path, write_tree):
    """Best of four responses in one category, pairs in the other. The reward model is right in 2 of 3 pairs of one
    prompt and in all of the other; DPO's beta makes probabilities of its log-ratios, and SFT has none."""
    four = ((0, 1), (0, 2), (0, 3))
    prompts = [
        rewarded([2, 1, 3, 0], four, [9, 5, 7, 1], "best", "a"),
        rewarded([2, 1, 0, 0], four, [9, 5, 7, 1], "best", "b"),
        rewarded([1, 1], ((0, 1),), [3, 4], "pairs", "c"),
    ]
    low = [p.model_copy(update={"rewards": tuple(-r for r in p.rewards)}) for p in prompts]
    table, curves = grid_of(write_tree, tmp_path, ("sft", "sft-dpo"), {"sft-rm": prompts, "sft-dpo": low, "sft": low},
                            ("sft-rm",), dpo={"beta": 0.1}, rm={"loss": "bradley_terry"})  # fmt: skip
    rm = table.loc["sft-rm"]
    assert rm["accuracy"].to_dict() == pytest.approx({"all": (2 / 3 + 1 + 0.5) / 3, "best": 5 / 6, "pairs": 0.5})
    assert rm["best"].to_dict() == pytest.approx({"all": 0.5, "best": 0.5, "pairs": 0.5})
    assert rm["pairs"].to_dict() == {"all": 7, "best": 6, "pairs": 1}
    assert rm.loc["all", ["prompts", "left_out"]].tolist() == [3, 2]
    assert rm.loc["all", "accuracy_low"] < rm.loc["all", "accuracy"] < rm.loc["all", "accuracy_high"]
    assert table.loc[("sft-dpo", "best"), "accuracy"] == pytest.approx(1 / 6)
    assert table.loc[("sft-dpo", "all"), "beta"] == 0.1
    assert table.loc["sft", ["beta", "calibration_error"]].isna().all(axis=None)
    assert table.loc[("sft-dpo", "all"), "length"] == pytest.approx(-rm.loc["all", "length"])
    predicted = curves.set_index("method")["predicted"]
    assert set(predicted.index) == {"sft-rm", "sft-dpo"}
    margins = np.array([1, -1, 2, 1, 2, 2, 0.0])
    assert predicted["sft-dpo"] == pytest.approx(np.mean(1 / (1 + np.exp(-0.1 * np.abs(margins)))))
    page = (tmp_path / "tables/rewards.md").read_text()
    assert "Accuracy by category. Pairs: best 6, pairs 1." in page
    assert "| SFT + RM" in page


def test_a_judges_reward_model_of_the_catalogue_is_compared_as_well(tmp_path, write_tree):
    config, results = write_tree(tmp_path, methods=("base", "sft"), seeds=(1, 2), judges=("rm",), tasks=(),
                                 preference_sets=["set"])  # fmt: skip
    (results / "models/rm").mkdir(parents=True)
    (results / "models/rm/config.yaml").write_text("model: rm\n")
    rng = np.random.default_rng(0)
    prompts = [rewarded([float(m), 0.0], prompt=f"p{i}") for i, m in enumerate(rng.normal(1, 1, 60))]
    write_rewards(results / "runs/toy/rm/base/seed0", prompts)
    for seed in (1, 2):
        write_rewards(results / f"runs/toy/tiny/sft/seed{seed}", prompts, "log_ratio")
    tables.make(config, tmp_path / "tables", results)
    table = pd.read_csv(tmp_path / "tables/rewards.csv")
    assert table[["model", "method", "seeds"]].to_numpy().tolist() == [["tiny", "sft", 2], ["rm", "base", 1]]
    assert table["accuracy"].nunique() == 1
    figures.make(config, tmp_path / "figures", results, only=["calibration"])
    assert (tmp_path / "figures/calibration.csv").read_text().count("toy,rm,base") == 3


def test_a_grid_without_preference_sets_has_neither(tmp_path, write_tree):
    config, results = write_tree(tmp_path)
    tables.make(config, tmp_path / "tables", results)
    assert not (tmp_path / "tables/rewards.md").exists()
