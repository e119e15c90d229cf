"""What tuning did, as tables, figures and words show it: two methods with trials of their own, one without."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from halos.data.report import Rows, SourceRows
from halos.publish import overview
from halos.publish.methods import methods
from halos.report import best_of, figures, tables
from halos.report.choices import value_text
from halos.report.results import Results
from halos.report.subjects.curves import Curves
from halos.report.subjects.trials import Trials
from halos.report.subjects.tuned import Tuned
from halos.report.subjects.tuning import Tuning
from halos.study.cells import Cell
from halos.study.choice import Choice, Tried
from halos.study.paths import Paths
from halos.train.slices import stage_slice
from halos.train.stage import Stage
from halos.train.sweep import Range, Select
from halos.train.sweep import drawn as draws
from tests.report.conftest import data_report

WriteTree = Callable[..., tuple[Path, Path]]
KTO: list[tuple[dict[str, Any], float | None]] = [
    ({"lr": 1e-5, "beta": 0.1}, 0.5), ({"lr": 1e-4, "beta": 0.1}, 0.75), ({"lr": 1e-5, "beta": 0.5}, 0.625),
    ({"lr": 1e-4, "beta": 0.5}, 0.25), ({"lr": 1e-3, "beta": 0.5}, None),
]  # fmt: skip
DPO: list[tuple[dict[str, Any], float | None]] = [
    ({"lr": 3e-5, "scheduler": "linear"}, 0.25), ({"lr": 1e-4, "scheduler": "cosine"}, 0.375),
]  # fmt: skip
BY_JUDGE = Select(judge="toy_validation")


def choose(
    results: Path, method: str, tried: list[tuple[dict[str, Any], float | None]], select: Select = BY_JUDGE,
    model: str = "tiny", measure: str = "win rate by toy_validation", half: float | None = 0.1, **fields: Any,
) -> tuple[str, str, str]:  # fmt: skip
    """Write a choice whose trials are t0, t1, ... with intervals of +- `half`; those without value diverged."""
    trials = {
        f"t{i}": Tried(
            settings=settings, values={1: value}, value=value, steps=10, seconds=1800,
            low=None if value is None or half is None else value - half,
            high=None if value is None or half is None else value + half,
        )
        for i, (settings, value) in enumerate(tried)
    }  # fmt: skip
    known = {name: trial.value for name, trial in trials.items() if trial.value is not None}
    best = (min if fields.get("lowest") else max)(known, key=known.__getitem__)
    about = {"unit_interval": True, "lowest": False, "n": 128, **fields}
    choice = Choice(dataset="toy", model=model, method=method, select=select, measure=measure, trials=trials,
                    chosen=best, **about)  # fmt: skip
    choice.write(Paths(results).choice(Cell("toy", model, method, 0)).choice)
    return "toy", model, method


def swept(config: Path, *choices: tuple[str, str, str], **fields: Any) -> None:
    """Tell a grid's config of its choices."""
    content = yaml.safe_load(config.read_text()) | {"sweeps": [[*ids] for ids in choices], **fields}
    config.write_text(yaml.safe_dump(content))


@pytest.fixture
def tree(tmp_path: Path, write_tree: WriteTree) -> tuple[Path, Path]:
    """KTO with five trials, of which one diverged, and DPO with two; SFT, which KTO starts from, is not tuned."""
    config, results = write_tree(tmp_path)
    chosen = choose(results, "sft-kto", KTO), choose(results, "dpo", DPO)
    swept(config, *chosen, counterparts={"judges": {"toy_validation": "toy"}, "tasks": {}})
    return config, results


def drawn(subject: Trials | Tuning, results: Results) -> Figure:
    return subject.draw(results, subject.frame(results))


def test_trials_are_listed_best_first_with_the_chosen_one_and_those_that_diverged(tree: tuple[Path, Path]) -> None:
    trials = Trials().frame(Results(*tree))
    kto = trials[trials["method"] == "sft-kto"]
    assert kto["trial"].tolist() == ["t1", "t2", "t0", "t3", "t4"]
    assert kto["chosen"].tolist() == [True, False, False, False, False]
    assert kto["diverged"].tolist() == [False, False, False, False, True]
    assert kto["value"].tolist()[:4] == [0.75, 0.625, 0.5, 0.25]
    assert kto["settings.lr"].tolist() == [1e-4, 1e-5, 1e-5, 1e-4, 1e-3]
    assert trials.loc[trials["method"] == "dpo", "settings.scheduler"].tolist() == ["cosine", "linear"]
    assert trials.loc[trials["method"] == "dpo", "settings.beta"].isna().all()


def test_the_page_of_trials_says_how_methods_were_tuned(tree: tuple[Path, Path], tmp_path: Path) -> None:
    config, results = tree
    tables.make(config, results=results, output=tmp_path / "tables")
    page = (tmp_path / "tables/trials.md").read_text()
    assert (
        "SFT + KTO (5 trials), DPO (0.1) (2 trials): win rate by toy_validation, 128 validation prompts, seed 1."
        in page
    )
    assert "different numbers of trials" in page
    assert "Last stage not tuned: SFT." in page
    lines = [[text.strip() for text in line.strip("|").split("|")] for line in page.splitlines() if "lr " in line]
    assert lines[0] == ["SFT + KTO", "**lr 1e-4, beta 0.1**", "**0.750 [0.650, 0.850]**"]
    assert lines[1] == ["SFT + KTO", "lr 1e-5, beta 0.5", "0.625 [0.525, 0.725]"]
    assert lines[4] == ["SFT + KTO", "lr 1e-3, beta 0.5", "diverged"]
    assert lines[5] == ["DPO (0.1)", "**lr 1e-4, scheduler cosine**", "**0.375 [0.275, 0.475]**"]


def test_methods_that_were_tuned_alike_are_not_warned_of(tree: tuple[Path, Path], tmp_path: Path) -> None:
    config, results = tree
    swept(config, choose(results, "sft-kto", KTO[:2]), choose(results, "dpo", DPO), choose(results, "sft", KTO[1:3]))
    tables.make(config, results=results, output=tmp_path / "tables")
    page = (tmp_path / "tables/trials.md").read_text()
    assert "different numbers of trials" not in page
    assert "not tuned" not in page


def test_chosen_settings_have_their_value_on_test_prompts_beside_their_optimism(tree: tuple[Path, Path]) -> None:
    """Of 8 prompts KTO wins 6 and 7, and DPO 1 and 3; one more is a tie."""
    kto, dpo = Tuned().frame(Results(*tree)).to_dict("records")
    assert (kto["trials"], kto["diverged"], kto["value"], kto["settings.lr"]) == (5, 1, 0.75, 1e-4)
    assert (kto["tested_by"], kto["test"], dpo["test"]) == ("toy", 7 / 8, 2.5 / 8)
    assert kto["test_low"] < 7 / 8 < kto["test_high"]
    errors = [0.1 / 1.959964] * 4
    assert kto["optimism"] == pytest.approx(best_of.optimism([0.5, 0.75, 0.625, 0.25], errors))
    assert 0 < kto["optimism"] < 0.1


def test_without_a_judge_of_the_same_measure_nothing_stands_for_the_test_value(tree: tuple[Path, Path]) -> None:
    config, results = tree
    loss = {"measure": "loss of the last evaluation", "select": Select(metric="loss"), "half": None, "n": None}
    chosen = choose(results, "dpo", DPO, lowest=True, unit_interval=False, **loss)
    swept(config, chosen, counterparts={})
    r = Results(config, results)
    [row] = Tuned().frame(r).to_dict("records")
    assert (row["value"], row["tested_by"]) == (0.25, None)
    assert pd.isna([row["low"], row["optimism"], row["test"]]).all()
    assert list(Trials().frame(r)["value"]) == [0.25, 0.375]
    [table] = Tuned().page(r, Tuned().frame(r))
    assert table.rows == [["DPO (0.1)", "lr 3e-5, scheduler linear", "2", "0.250", "–", "–"]]
    assert "DPO (0.1) (2 trials): loss of the last evaluation, seed 1." in table.caption


def test_the_value_of_a_task_is_that_of_the_grids_own_on_test_prompts(tree: tuple[Path, Path]) -> None:
    config, results = tree
    select = Select(task="arc_validation")
    swept(config, choose(results, "dpo", DPO, select, measure="acc,none of arc_validation"),
          counterparts={"judges": {}, "tasks": {"arc_validation": "arc"}})  # fmt: skip
    r = Results(config, results)
    [row] = Tuned().frame(r).to_dict("records")
    assert (row["tested_by"], row["test"]) == ("arc", pytest.approx(0.27))
    assert "acc of arc_validation, 128 documents, seed 1" in Tuned().page(r, Tuned().frame(r))[0].caption


def test_settings_are_drawn_on_the_axis_that_suits_their_values(tree: tuple[Path, Path]) -> None:
    r = Results(*tree)
    figure = drawn(Trials(), r)
    lr, beta, dpo_lr, scheduler = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["lr", "beta", "lr", "scheduler"]
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear", "linear", "linear"]
    assert [text.get_text() for text in lr.get_xticklabels()] == ["1e-5", "1e-4", "1e-3"]
    assert [text.get_text() for text in scheduler.get_xticklabels()] == ["linear", "cosine"]
    assert [lr.get_title(loc="left"), dpo_lr.get_title(loc="left")] == ["SFT + KTO", "DPO (0.1)"]
    points = {round(float(y[0]), 9) for line in beta.lines if len(y := line.get_ydata()) and line.get_marker() != "x"}
    assert points == {0.5, 0.75, 0.625, 0.25}
    rings = [line for line in lr.lines if line.get_markersize() == 9]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(pytest.approx(1e-4, rel=0.5), 0.75)]
    assert [line.get_marker() for line in lr.lines].count("x") == 1
    assert "×: diverged" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("values", "scale"),
    [((8, 16, 64), "log"), (Range(min=1e-5, max=1e-4, log=True), "log"), (Range(min=0.01, max=1.0), "linear"),
     ((0.0, 1e-4, 1e-2), "linear"), ((1e-5, 1e-3), "log"), ((0.1, 0.5), "linear"),
     ((2.55e-5, 1.19e-4, 2.55e-4, 1e-3), "log"), ((0.1, True), "linear")],
)  # fmt: skip
def test_an_axis_is_logarithmic_where_values_are_spread_evenly_on_it_and_labels_never_overlap(
    tree: tuple[Path, Path], values: Any, scale: str
) -> None:
    config, results = tree
    tried = draws({"x": values}, 8 if isinstance(values, Range) else None, "qmc", 0).values()
    swept(config, choose(results, "dpo", [(settings, 0.5) for settings in tried]))
    figure = drawn(Trials(), Results(config, results))
    assert [ax.get_xscale() for ax in figure.axes] == [scale]
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    shown = [text for text in figure.axes[0].get_xticklabels() if low <= text.get_position()[0] <= high]
    boxes = [text.get_window_extent() for text in shown if text.get_text()]
    assert len(boxes) >= 2
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_trials_of_equal_values_stand_side_by_side(tree: tuple[Path, Path]) -> None:
    beta = drawn(Trials(), Results(*tree)).axes[1]
    places = [float(line.get_xdata()[0]) for line in beta.lines if line.get_markersize() != 9]
    assert len({round(x, 6) for x in places}) == 5
    assert sorted(x < 0.3 for x in places) == [False, False, False, True, True]


def test_the_expected_best_counts_a_trial_that_diverged_as_the_worst(tree: tuple[Path, Path]) -> None:
    r = Results(*tree)
    curves = Tuning().frame(r)
    kto = curves[curves["method"] == "sft-kto"]
    assert kto["trials"].tolist() == [1, 2, 3, 4, 5]
    assert kto["mean"].tolist() == pytest.approx(best_of.expected([0.5, 0.75, 0.625, 0.25, 0.25]).tolist())
    assert ((kto["low"] <= kto["mean"]) & (kto["mean"] <= kto["high"])).all()
    figure = drawn(Tuning(), r)
    [ax] = figure.axes
    assert [len(line.get_xdata()) for line in ax.lines] == [5, 5, 2, 2]
    assert ax.get_ylabel() == "expected best win rate\nby toy_validation"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SFT + KTO", "DPO (0.1)"]


def test_only_methods_of_one_measure_share_a_panel(tree: tuple[Path, Path]) -> None:
    config, results = tree
    loss = {"measure": "loss of the last evaluation", "select": Select(metric="loss"), "half": None, "n": None}
    losses = [choose(results, m, DPO, lowest=True, unit_interval=False, **loss) for m in ("sft-kto", "dpo")]
    swept(config, *losses)
    r = Results(config, results)
    assert set(Tuning().frame(r)["measure"]) == {f"loss of the last evaluation, {name}" for name in ("kto", "dpo")}
    assert len(drawn(Tuning(), r).axes) == 2
    swept(config, losses[0], choose(results, "dpo", DPO))
    assert len(drawn(Tuning(), Results(config, results)).axes) == 2


def test_a_stage_on_the_way_is_shown_as_well(tmp_path: Path, write_tree: WriteTree) -> None:
    """`sft` is no method of the grid, but its settings are chosen for `sft-kto`."""
    config, results = write_tree(tmp_path, methods=("base", "sft", "sft-kto"), models=("tiny", "other"))
    content = yaml.safe_load(config.read_text()) | {"methods": ["base", "sft-kto"]}
    config.write_text(yaml.safe_dump(content))
    swept(config, *(choose(results, m, DPO, model=model) for m in ("sft", "sft-kto") for model in ("tiny", "other")))
    figures.make(config, results=results, output=tmp_path / "figures", only=["tuning", "sensitivity"])
    assert {"SFT", "SFT + KTO"} < set(texts(tmp_path / "figures/tuning.svg"))
    assert "SFT + KTO (other)" in texts(tmp_path / "figures/sensitivity.svg")
    tables.make(config, results=results, output=tmp_path / "tables")
    tuned = pd.read_csv(tmp_path / "tables/tuned.csv")
    assert tuned[["model", "method"]].to_numpy().tolist() == [
        ["tiny", "sft"], ["other", "sft"], ["tiny", "sft-kto"], ["other", "sft-kto"]]  # fmt: skip
    assert "| Tiny Llama |" in (tmp_path / "tables/trials.md").read_text()


NOISE: list[tuple[dict[str, Any], float | None]] = [
    ({"label_noise": x}, y) for x, y in ((0.4, 0.5), (0.0, 0.9), (0.1, None))
]


def test_methods_that_vary_one_number_are_curves_in_one_panel(tmp_path: Path, write_tree: WriteTree) -> None:
    config, results = write_tree(tmp_path)
    balanced = [({**settings, "balance": on}, value) for on in (False, True) for settings, value in NOISE[:2]]
    swept(config, choose(results, "sft-kto", balanced), choose(results, "dpo", NOISE), choose(results, "sft", KTO))
    r = Results(config, results)
    frame = Curves().frame(r)
    assert frame[["setting", "method", "others", "x", "value"]].to_numpy().tolist() == [
        ["label_noise", method, others, x, value]
        for method, others in (("sft-kto", "balance false"), ("sft-kto", "balance true"), ("dpo", ""))
        for x, value in ((0.0, 0.9), (0.4, 0.5))
    ]
    figure = Curves().draw(r, frame)
    [ax] = figure.axes
    assert ax.get_xlabel() == "label_noise"
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.9, 0.5]] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "SFT + KTO, balance false", "SFT + KTO, balance true", "DPO (0.1)"]  # fmt: skip


def texts(svg: Path) -> list[str]:
    return [line.split(">")[1].split("<")[0] for line in svg.read_text().splitlines() if "<text" in line]


def test_a_grid_without_sweeps_has_none_of_it(tmp_path: Path, write_tree: WriteTree) -> None:
    config, results = write_tree(tmp_path)
    tables.make(config, results=results, output=tmp_path / "out")
    figures.make(config, results=results, output=tmp_path / "out")
    assert not [p for p in (tmp_path / "out").iterdir() if p.stem in ("trials", "tuned", "sensitivity", "tuning")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-5"), (2.5e-4, "2.5e-4"), (0.001, "1e-3"), (0.01, "0.01"), (0.1, "0.1"), (16, "16"), (0, "0"),
     (True, "true"), (None, "none"), ("cosine", "cosine"), ([0.9, 0.95], "[0.9, 0.95]"), (250_000, "2.5e5")],
)  # fmt: skip
def test_values_are_written_as_in_a_config(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_the_page_of_a_grid_says_and_shows_how_settings_were_chosen(tmp_path: Path, write_tree: WriteTree) -> None:
    stages = {name: stage_slice(Stage(loss=name)) for name in ("sft", "kto", "dpo")}
    config, results = write_tree(tmp_path, judges=(), tasks=(), stages=stages)
    base = {"architecture": None, "hub": "a/b", "template": None, "attention": "auto", "precision": "fp32"}
    manifest = json.loads((results / "runs/toy/tiny/sft/seed1/manifest.json").read_text())
    model = Paths(results).model("tiny").manifest
    model.parent.mkdir(parents=True)
    model.write_text(json.dumps({**manifest, "config": base}))
    source = SourceRows(name="toy", **data_report({}, {}).train.model_dump(include=set(Rows.model_fields)))
    data_report({"sources": (source,)}, {"sources": (source,)}).write(Paths(results).data("toy").report)
    plain = methods(Results(config, results))
    assert "Tuning" not in plain
    swept(config, choose(results, "sft-kto", KTO), choose(results, "dpo", DPO))
    text = methods(Results(config, results))
    assert (
        "**Tuning.** The settings of SFT + KTO were chosen among five trials (lr 1e-5 to 1e-3, beta 0.1 to 0.5) by "
        "win rate by toy_validation, 128 validation prompts, seed 1: lr 1e-4, beta 0.1. One trial diverged." in text
    )
    assert "two trials (lr 3e-5 to 1e-4, scheduler linear and cosine)" in text
    assert "All 7 trials trained for 3.5 hours." in text
    assert "| SFT + KTO " in text  # the settings of that method alone, where KTO would be those of any
    assert "| KTO " in plain
    assert all(line in text for line in plain.splitlines() if line.startswith("| SFT "))
    tables.make(config, results=results, output=results / "tables/small")
    figures.make(config, results=results, output=results / "figures/small", only=["tuning"])
    overview.make(config, tmp_path / "page", results)
    page = (tmp_path / "page/overview.html").read_text()
    assert [part in page for part in ("Chosen settings: A small grid", "Trials: A small grid", 'alt="tuning"')] == [
        True
    ] * 3
