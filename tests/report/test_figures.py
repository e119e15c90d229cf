"""What a figure draws is what its CSV says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from halos.errors import HalosError
from halos.report import estimates, figures
from halos.report.results import WIN, Results

NAMES = ("win_rate", "score", "training", "benchmarks")


@pytest.fixture
def results(tmp_path, write_tree):
    return Results(*write_tree(tmp_path))


def test_every_figure_is_written_three_times_the_same_each_time(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for run in ("a", "b"):
        figures.make(config, folder, tmp_path / run)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {f"{n}.{e}" for n in NAMES for e in ("svg", "png", "csv")}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    for name in NAMES:  # text stays text, with the labels, and nothing dates it
        svg = (tmp_path / "a" / f"{name}.svg").read_text()
        assert "SFT + KTO" in svg
        assert "DPO (0.1)" in svg
        assert "<dc:date>" not in svg


def test_win_rate_draws_the_numbers_of_its_csv(results):
    measures = estimates.measures(results)
    wins = measures[measures["measure"] == WIN]
    (ax,) = figures.win_rate(results, wins).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Base", "SFT", "SFT + KTO", "DPO (0.1)"]
    lines = [(tuple(np.round(line.get_xdata(), 9)), line.get_ydata()[0]) for line in ax.lines]
    assert ((0.5, 0.5), 0) in lines  # the baseline
    for y, method in enumerate(results.methods):
        mine = wins[wins["method"] == method]
        pooled = mine.loc[mine["seed"] == estimates.ALL, ["mean", "low", "high"]].astype(float).iloc[0].round(9)
        assert ((pooled["low"], pooled["high"]), y) in lines
        assert ((pooled["mean"],), y) in lines
        seeds = tuple(mine[mine["seed"] != estimates.ALL]["mean"].round(9))
        assert any(x == seeds and y < at < y + 0.5 for x, at in lines)
    assert wins.query("method == 'sft' and seed == 'all'")["mean"].item() == 0.4375


def test_score_has_a_panel_per_criterion_and_the_baselines_own_score(results):
    measures = estimates.measures(results)
    axes = figures.score(results, measures[measures["measure"] != WIN]).axes
    assert [ax.get_title() for ax in axes] == ["Score", "Right"]
    assert all(list(ax.lines[0].get_xdata()) == [0.5, 0.5] for ax in axes)


def test_training_draws_the_mean_over_seeds_against_examples(results):
    curves = estimates.curves(results)
    kto = curves[(curves["method"] == "sft-kto") & (curves["quantity"] == "rewards/margin")]
    # evaluated at steps 0, 5 and 10 of 4 examples; the margin ends at 1 for seed 1, at 2 for seed 2
    assert kto[["examples", "mean", "min", "max"]].to_numpy().tolist() == [
        [0, 0, 0, 0],
        [20, 0.75, 0.5, 1],
        [40, 1.5, 1, 2],
    ]
    figure = figures.training(results, curves)
    margin, kl, loss = figure.axes
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 3]
    assert margin.lines[0].get_ydata().tolist() == [0, 0.75, 1.5]
    assert margin.lines[0].get_xdata().tolist() == [0, 20, 40]
    assert margin.lines[0].get_color() == to_hex(figures.COLOURS["kto"])
    assert {t.get_text() for t in loss.texts} == {"SFT", "SFT + KTO", "DPO (0.1)"}
    assert kl.get_ylabel() == "log-ratio to the reference\n(nats per sequence; training)"


def test_losses_of_different_kinds_are_relative_to_their_start(results):
    loss = estimates.curves(results).query("quantity == 'loss'")
    assert set(loss["unit"]) == {"first = 1"}
    assert loss[loss["method"] == "sft"]["mean"].tolist() == [1, 0.75, 0.5]


def test_a_loss_that_starts_at_zero_has_no_relative_curve(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for log in folder.glob("runs/toy/tiny/dpo/*/train.jsonl"):
        lines = [{**json.loads(line), "loss": 0.0} for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss = estimates.curves(Results(config, folder)).query("quantity == 'loss'")
    assert set(loss["method"]) == {"sft", "sft-kto"}


def test_sft_alone_has_a_loss_in_its_own_unit_and_nothing_else(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path, methods=("base", "sft")))
    curves = estimates.curves(r)
    assert set(curves["quantity"]) == {"loss"}
    assert curves["mean"].tolist() == [2, 1.5, 1]
    (ax,) = figures.training(r, curves).axes
    assert ax.get_ylabel() == "loss\n(evaluation)"


def test_benchmarks_write_values_and_colour_the_change_from_base(results):
    frame = estimates.benchmarks(results)
    figure = figures.benchmark(results, frame)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.texts] == [".250", ".510", ".610", ".270"]
    assert ax.images[0].get_array().ravel().tolist() == pytest.approx([0, 0.26, 0.36, 0.02])
    assert [t.get_fontweight() for t in ax.texts] == ["normal", "bold", "bold", "normal"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["ARC"]


def test_less_is_better_turns_the_sign_of_a_change(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for path in folder.glob("runs/*/*/*/*/tasks/arc.json"):
        path.write_text(path.read_text().replace('"acc": true', '"acc": false'))
    assert estimates.benchmarks(Results(config, folder))["change"].tolist() == pytest.approx([0, -0.26, -0.36, -0.02])


def test_many_models_and_methods_have_a_panel_each(tmp_path, write_tree):
    models = tuple(f"m{i}" for i in range(7))
    r = Results(*write_tree(tmp_path, models=models, seeds=(1,)))
    measures = estimates.measures(r)
    assert [ax.get_title() for ax in figures.win_rate(r, measures[measures["measure"] == WIN]).axes] == list(models)


def test_without_judges_and_tasks_figures_say_so(tmp_path, write_tree):
    config, folder = write_tree(tmp_path, judges=(), tasks=())
    figures.make(config, folder, tmp_path / "figures")
    for name, note in (("win_rate", "No judge"), ("score", "No judge"), ("benchmarks", "No task")):
        assert note in (tmp_path / "figures" / f"{name}.svg").read_text()
        assert pd.read_csv(tmp_path / "figures" / f"{name}.csv").empty


def test_base_alone_has_no_training(tmp_path, write_tree):
    config, folder = write_tree(tmp_path, methods=("base",))
    figures.make(config, folder, tmp_path / "figures")
    assert "No training in this grid" in (tmp_path / "figures" / "training.svg").read_text()


def test_a_missing_file_is_an_error(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    (folder / "runs/toy/tiny/sft/seed1/judged/toy.json").unlink()
    with pytest.raises(HalosError, match="run `snakemake`"):
        figures.make(config, folder, tmp_path / "figures")


def test_a_loss_keeps_its_colour_and_variants_are_told_apart(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path))
    r.methods = ["base", "sft", "kto", "sft-kto", "sft-kto_b05", "sft-mine", "mine", "cdpo"]
    styles = {m: figures.style(r, m) for m in r.methods}
    assert styles["kto"]["color"] == styles["sft-kto"]["color"] == figures.COLOURS["kto"]
    assert (styles["kto"]["filled"], styles["sft-kto"]["filled"]) == (False, True)
    assert styles["sft-kto_b05"]["color"] not in (styles["sft-kto"]["color"], "#ffffff")
    assert styles["mine"]["color"] == styles["sft-mine"]["color"] == figures.SPARE[0]
    assert styles["cdpo"]["color"] == figures.COLOURS["cdpo"]


def test_end_labels_keep_their_distance_and_their_order():
    places = figures.spread(np.array([0.1, 0.5, 0.5, 0.52, 0.99, 1.0]), gap=0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-12)
    assert places[0] == 0.1
    assert places[2] == pytest.approx(np.mean([0.5, 0.5, 0.52]))
    assert places[-1] <= 1
