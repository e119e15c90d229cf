"""What a figure draws is what its CSV says."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from halos.errors import HalosError
from halos.registry import LOSSES
from halos.report import figures, measures, style
from halos.report.panels import spread
from halos.report.results import Results
from halos.report.subjects.benchmarks import Benchmarks
from halos.report.subjects.cost import Cost
from halos.report.subjects.frontier import Frontier
from halos.report.subjects.imbalance import Imbalance
from halos.report.subjects.lengths import Lengths
from halos.report.subjects.rounds import Rounds
from halos.report.subjects.score import Score
from halos.report.subjects.size import Size
from halos.report.subjects.training import Training
from halos.report.subjects.win_rate import WinRate
from tests.report.conftest import SCORES, judged

NAMES = ("win_rate", "score", "training", "frontier", "length", "benchmarks", "cost", "pairs")
"""Those that have something to show of the tree of conftest.py: it has one model, no rounds, all of its data."""


@pytest.fixture
def results(tmp_path, write_tree):
    return Results(*write_tree(tmp_path))


def drawn(subject, results):
    return subject.draw(results, subject.frame(results))


def test_every_figure_is_written_three_times_the_same_each_time(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for run in ("a", "b"):
        figures.make(config, results=folder, output=tmp_path / run)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {f"{n}.{e}" for n in NAMES for e in ("svg", "png", "csv")}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    for name in set(NAMES) - {
        "rounds"
    }:  # of which this grid has none; text stays text, with the labels, and nothing dates it
        svg = (tmp_path / "a" / f"{name}.svg").read_text()
        assert "SFT + KTO" in svg
        assert "DPO (0.1)" in svg
        assert "<dc:date>" not in svg


def test_win_rate_draws_the_numbers_of_its_csv(results):
    wins = WinRate().frame(results)
    (ax,) = WinRate().draw(results, wins).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Base", "SFT", "SFT + KTO", "DPO (0.1)"]
    lines = [(tuple(np.round(line.get_xdata(), 9)), line.get_ydata()[0]) for line in ax.lines]
    assert ((0.5, 0.5), 0) in lines  # the baseline
    for y, method in enumerate(results.methods):
        mine = wins[wins["method"] == method]
        pooled = mine.loc[mine["seed"] == measures.ALL, ["mean", "low", "high"]].astype(float).iloc[0].round(9)
        assert ((pooled["low"], pooled["high"]), y) in lines
        assert ((pooled["mean"],), y) in lines
        seeds = tuple(mine[mine["seed"] != measures.ALL]["mean"].round(9))
        assert any(x == seeds and y < at < y + 0.5 for x, at in lines)
    assert wins.query("method == 'sft' and seed == 'all'")["mean"].item() == 0.4375


def test_score_has_a_panel_per_criterion_and_the_baselines_own_score(results):
    axes = drawn(Score(), results).axes
    assert [ax.get_title() for ax in axes] == ["Score", "Right"]
    assert all(list(ax.lines[0].get_xdata()) == [0.5, 0.5] for ax in axes)


def test_training_draws_the_mean_over_seeds_against_examples(results):
    lines_drawn = Training().frame(results)
    kto = lines_drawn[(lines_drawn["method"] == "sft-kto") & (lines_drawn["quantity"] == "rewards/margin")]
    # evaluated at steps 0, 5 and 10 of 4 examples; the margin ends at 1 for seed 1, at 2 for seed 2
    assert kto[["examples", "mean", "min", "max"]].to_numpy().tolist() == [
        [0, 0, 0, 0],
        [20, 0.75, 0.5, 1],
        [40, 1.5, 1, 2],
    ]
    figure = Training().draw(results, lines_drawn)
    margin, kl, loss = figure.axes
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 3]
    assert margin.lines[0].get_ydata().tolist() == [0, 0.75, 1.5]
    assert margin.lines[0].get_xdata().tolist() == [0, 20, 40]
    assert margin.lines[0].get_color() == to_hex(style.COLOURS["kto"])
    assert {t.get_text() for t in loss.texts} == {"SFT", "SFT + KTO", "DPO (0.1)"}
    assert kl.get_ylabel() == "log-ratio to the reference\n(nats; training)"


def test_losses_of_different_kinds_are_relative_to_their_start(results):
    loss = Training().frame(results).query("quantity == 'loss'")
    assert set(loss["unit"]) == {"first = 1"}
    assert loss[loss["method"] == "sft"]["mean"].tolist() == [1, 0.75, 0.5]


def test_a_loss_that_starts_at_zero_has_no_relative_curve(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for log in folder.glob("runs/toy/tiny/dpo/*/train.jsonl"):
        lines = [{**json.loads(line), "loss": 0.0} for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss = Training().frame(Results(config, folder)).query("quantity == 'loss'")
    assert set(loss["method"]) == {"sft", "sft-kto"}


def test_sft_alone_has_a_loss_in_its_own_unit_and_nothing_else(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path, methods=("base", "sft")))
    lines_drawn = Training().frame(r)
    assert set(lines_drawn["quantity"]) == {"loss"}
    assert lines_drawn["mean"].tolist() == [2, 1.5, 1]
    (ax,) = Training().draw(r, lines_drawn).axes
    assert ax.get_ylabel() == "loss\n(evaluation)"


def test_benchmarks_write_values_and_colour_the_change_from_base(results):
    frame = Benchmarks().frame(results)
    figure = Benchmarks().draw(results, frame)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.texts] == [".250", ".510", ".610", ".270"]
    assert ax.images[0].get_array().ravel().tolist() == pytest.approx([0, 0.26, 0.36, 0.02])
    assert [t.get_fontweight() for t in ax.texts] == ["normal", "bold", "bold", "normal"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["ARC"]


def test_less_is_better_turns_the_sign_of_a_change(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    for path in folder.glob("runs/*/*/*/*/tasks/arc.json"):
        path.write_text(path.read_text().replace('"acc": true', '"acc": false'))
    assert Benchmarks().frame(Results(config, folder))["change"].tolist() == pytest.approx([0, -0.26, -0.36, -0.02])


def test_many_models_and_methods_have_a_panel_each(tmp_path, write_tree):
    models = tuple(f"m{i}" for i in range(7))
    r = Results(*write_tree(tmp_path, models=models, seeds=(1,)))
    assert [ax.get_title() for ax in drawn(WinRate(), r).axes] == list(models)


def test_without_judges_and_tasks_figures_say_so(tmp_path, write_tree):
    config, folder = write_tree(tmp_path, judges=(), tasks=())
    figures.make(
        config, results=folder, output=tmp_path / "figures", only=["win_rate", "score", "length", "benchmarks"]
    )
    for name, note in (
        ("win_rate", "No judge"),
        ("score", "No judge"),
        ("length", "No judge"),
        ("benchmarks", "No task"),
    ):
        assert note in (tmp_path / "figures" / f"{name}.svg").read_text()
        assert pd.read_csv(tmp_path / "figures" / f"{name}.csv").empty


def test_base_alone_has_no_training(tmp_path, write_tree):
    config, folder = write_tree(tmp_path, methods=("base",))
    figures.make(config, results=folder, output=tmp_path / "figures", only=["training", "cost"])
    assert "No training in this grid" in (tmp_path / "figures" / "cost.svg").read_text()
    assert "No training in this grid" in (tmp_path / "figures" / "training.svg").read_text()


def test_a_missing_file_is_an_error(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    (folder / "runs/toy/tiny/sft/seed1/judged/toy.json").unlink()
    with pytest.raises(HalosError, match=r"run `snakemake .*sft/seed1/judged/toy\.json`"):
        figures.make(config, results=folder, output=tmp_path / "figures")


def test_colour_is_by_the_loss_of_the_last_stage_and_variants_are_told_apart():
    losses = {"base": "base", "sft": "sft", "kto": "kto", "sft-kto": "kto", "sft-kto_b05": "kto", "sft-mine": "kto",
              "sft-plugin": "plugin", "plugin": "plugin", "kto_like": "cdpo"}  # fmt: skip
    looks = style.looks(losses)
    assert looks["kto"].colour == looks["sft-kto"].colour == style.COLOURS["kto"]
    assert (looks["kto"].filled, looks["sft-kto"].filled) == (False, True)
    assert {looks[method].hue for method, loss in losses.items() if loss == "kto"} == {style.COLOURS["kto"]}
    variants = [looks[method] for method in ("sft-kto", "sft-kto_b05", "sft-mine")]
    assert len({look.colour for look in variants}) == len({look.line for look in variants}) == 3
    assert looks["plugin"].colour == looks["sft-plugin"].colour == style.SPARE[0]
    assert looks["kto_like"].colour == style.COLOURS["cdpo"]  # whatever a stage is called


def test_a_stage_of_any_name_has_the_colour_of_its_loss_in_a_figure(tmp_path, write_tree):
    stages = {"mine": {"loss": "kto"}, "kto_not": {"loss": "dpo"}}
    r = Results(*write_tree(tmp_path, methods=("base", "sft-mine", "kto_not"), stages=stages, score=two_thirds))
    margin = drawn(Training(), r).axes[0]
    assert [line.get_color() for line in margin.lines] == [style.COLOURS["kto"], style.COLOURS["dpo"]]


def test_a_mixture_has_the_colour_of_its_leading_loss(tmp_path, write_tree):
    mixture = {"sft": {"weight": 1.0}, "kto": {"weight": 0.8}, "dpo": {"weight": 0.2}}
    r = Results(
        *write_tree(tmp_path, methods=("base", "sft", "sft-mix"), stages={"mix": {"loss": mixture}}, score=two_thirds)
    )
    assert r.loss("sft-mix") == "kto"
    assert style.looks_of(r)["sft-mix"].colour == style.COLOURS["kto"]
    assert r.losses(r.trained[-1])[-1] == "1 sft + 0.8 kto + 0.2 dpo"


def test_every_loss_of_the_package_has_a_colour_unlike_all_others():
    package = {loss for loss in LOSSES if LOSSES.plugin(loss) is None}
    assert style.COLOURS.keys() == {"base"} | package
    assert style.COLOURS["apo_zero"] != style.COLOURS["apo_down"]
    colours = [cielab(colour) for colour in (*style.COLOURS.values(), *style.SPARE)]
    # 2.3 can just be seen side by side; a line or a point needs several times that
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in combinations(colours, 2)) > 20


def cielab(colour):
    """L, a and b (CIE 1976) of an sRGB colour under D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4125, 0.2127, 0.0193], [0.3576, 0.7152, 0.1192], [0.1804, 0.0722, 0.9503]])
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089])  # none is so dark that it would not be a cube root
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


# ---- reward models, and many methods --------------------------------------------------------------------------------

MANY = ("base", "sft", "csft", "kto", *(f"sft-{stage}" for stage in (
    "dpo", "dpo_humanline", "cdpo", "ipo", "simpo", "slic", "orpo", "kto", "ppo", "grpo")))  # fmt: skip


def two_thirds(method, seed, prompt):
    return float((len(method) + seed + prompt) % 3 > 0)


def no_two_overlap(texts):
    boxes = [text.get_window_extent() for text in texts]
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_rewards_are_drawn_where_they_lie_under_their_own_name(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path, judges=("rm", "toy")))
    figure = drawn(Score(), r)
    reward, score, right = figure.axes
    assert reward.get_title() == "Tiny Llama, rm: reward"
    assert [score.get_title(), right.get_title()] == ["Tiny Llama, Toy verifier: score", "Right"]
    assert -4.5 < reward.get_xlim()[0] < -4 < -2 < reward.get_xlim()[1] < -1.5
    assert -0.5 < score.get_xlim()[0] < 0 < 1 < score.get_xlim()[1] < 1.5
    assert list(reward.lines[0].get_xdata()) == [-3, -3]
    assert figure.get_supxlabel().startswith("reward or score")


def test_reward_models_are_in_no_figure(tmp_path, write_tree):
    plain, rewarded = (
        Results(*write_tree(tmp_path / str(len(models)), reward_models=models)) for models in ((), ("sft-rm",))
    )
    pd.testing.assert_frame_equal(Training().frame(plain), Training().frame(rewarded))
    figures.make(tmp_path / "1/results/grids/small/config.yaml", tmp_path / "figures", tmp_path / "1/results")
    assert "RM" not in (tmp_path / "figures/training.svg").read_text()


def test_a_loss_without_a_reference_has_no_log_ratio(tmp_path, write_tree):
    lines_drawn = Training().frame(Results(*write_tree(tmp_path, methods=MANY, score=two_thirds)))
    drawn = {quantity: list(dict.fromkeys(of["method"])) for quantity, of in lines_drawn.groupby("quantity")}
    reference = [m for m in MANY if m.split("-")[-1] not in ("base", "sft", "csft", "simpo", "slic", "orpo")]
    assert drawn["kl"] == reference
    assert drawn["rewards/margin"] == [m for m in MANY if m not in ("base", "sft")]
    assert drawn["loss"] == [m for m in MANY if m != "base"]


def test_many_curves_have_a_legend_beside_them_in_which_no_two_are_alike(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path, methods=MANY, score=two_thirds, seeds=(1,)))
    figure = Training().draw(r, Training().frame(r))
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [r.method_label(m) for m in MANY if m != "base"]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn_lines(legend)}) == len(MANY) - 1
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    assert min(ax.get_window_extent().width for ax in figure.axes) > 1.4 * figure.dpi
    assert figure.bbox.contains(box.x1, box.y1)
    assert figure.bbox.contains(box.x0, box.y0)
    assert no_two_overlap(legend.get_texts())
    assert not [text for ax in figure.axes for text in ax.texts]


def drawn_lines(legend):
    """What the legend's lines look like, their dashes told by more than `--`."""
    for line in legend.get_lines():
        line.get_linestyle = lambda line=line: line._unscaled_dash_pattern
        yield line


def test_few_curves_are_named_at_their_ends(results):
    figure = Training().draw(results, Training().frame(results))
    assert not figure.legends
    assert all(ax.texts for ax in figure.axes)


@pytest.mark.parametrize("methods", [MANY[1:5], MANY])
def test_one_loss_with_large_rewards_does_not_flatten_the_others(tmp_path, write_tree, methods):
    config, folder = write_tree(tmp_path, methods=(*methods, "slic"), score=two_thirds, seeds=(1,))
    r = Results(config, folder)
    assert {ax.get_yscale() for ax in Training().draw(r, Training().frame(r)).axes} == {"linear"}
    [log] = folder.glob("runs/toy/tiny/slic/*/train.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [{**line, "rewards/margin": 40 * line["rewards/margin"]} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    r = Results(config, folder)
    figure = Training().draw(r, Training().frame(r))
    margin = figure.axes[0]
    assert [ax.get_yscale() for ax in figure.axes] == ["symlog", "linear", "linear"]
    assert margin.get_ylabel() == "reward margin\n(evaluation; log scale)"
    figure.draw_without_rendering()
    height = margin.get_window_extent().height
    ends = {line.get_ydata()[-1]: margin.transData.transform((0, line.get_ydata()[-1]))[1] for line in margin.lines}
    start = margin.transData.transform((0, 0))[1]
    assert ends[1] - start > height / 4  # a margin of 1 beside one of 40
    places = {text.get_text(): margin.transAxes.transform(text.get_position())[1] for text in margin.texts}
    if places:  # named where the lines end
        assert places.pop("SLIC") == pytest.approx(ends[40], abs=height / 10)
        assert np.mean(list(places.values())) == pytest.approx(ends[1], abs=height / 10)


def test_fourteen_methods_fit_the_win_rates(tmp_path, write_tree):
    r = Results(*write_tree(tmp_path, methods=MANY, score=two_thirds, judges=("toy", "rm")))
    figure = drawn(WinRate(), r)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [r.method_label(m) for m in MANY]
    assert no_two_overlap(labels)
    assert all(figure.bbox.contains(*label.get_window_extent().min) for label in labels)


def test_losses_that_share_a_spare_colour_have_lines_of_their_own():
    looks = style.looks({f"sft-plugin{i}": f"plugin{i}" for i in range(8)}).values()
    assert len({look.colour for look in looks}) == len(style.SPARE) < len(looks)
    assert len({(look.colour, look.line) for look in looks}) == len(looks)


def test_end_labels_keep_their_distance_and_their_order():
    places = spread(np.array([0.1, 0.5, 0.5, 0.52, 0.99, 1.0]), gap=0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-12)
    assert places[0] == 0.1
    assert places[2] == pytest.approx(np.mean([0.5, 0.5, 0.52]))
    assert places[-1] <= 1


ROUND = {"weights": "w", "inputs": {}, "data": {}, "steps": 1, "tokens": 1, "seconds": 1.0, "labels": {}}


@pytest.fixture
def online(tmp_path, write_tree):
    """sft-kto in three rounds: as its parent after one, better by a prompt after two, and its cell's after three."""
    config, folder = write_tree(tmp_path)
    for seed in (1, 2):
        cell = folder / f"runs/toy/tiny/sft-kto/seed{seed}"
        manifest = json.loads((cell / "manifest.json").read_text())
        (cell / "manifest.json").write_text(json.dumps({**manifest, "rounds": [ROUND] * 3}))
        for number in (1, 2):
            content = judged("toy", "sft", seed, lambda m, s, p, n=number: float(p < SCORES[m][s - 1] + n - 1))
            content.write(cell / f"round{number}/judged/toy.json")
    return Results(config, folder)


def test_a_method_is_followed_over_its_rounds_from_its_parent_to_its_cell(online):
    table = Rounds().frame(online)
    assert table["method"].unique().tolist() == ["sft-kto"]
    assert table["round"].tolist() == [0, 1, 2, 3]
    means = [np.mean(scores) / 8 for scores in (SCORES["sft"], SCORES["sft"], (3, 5), SCORES["sft-kto"])]
    assert table["mean"].tolist() == pytest.approx(means)
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    (ax,) = Rounds().draw(online, table).axes
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    assert line.get_ydata().tolist() == pytest.approx(means)


def test_rounds_are_not_taken_for_the_method_itself(online, tmp_path, write_tree):
    (tmp_path / "plain").mkdir()
    plain = Results(*write_tree(tmp_path / "plain"))
    pd.testing.assert_frame_equal(measures.measures(online), measures.measures(plain))
    assert Rounds().frame(plain).empty


# ---- relations -----------------------------------------------------------------------------------------------------


def relation(write_tree, path, subject, **settings):
    r = Results(*write_tree(path, **settings))
    return r, subject.frame(r)


def test_a_figure_with_nothing_to_show_is_not_drawn_unless_it_is_asked_for(tmp_path, write_tree):
    config, folder = write_tree(tmp_path)
    figures.make(config, results=folder, output=tmp_path / "own")
    assert not (tmp_path / "own/size.svg").exists()
    figures.make(config, results=folder, output=tmp_path / "asked", only=["size"])
    assert {path.stem for path in (tmp_path / "asked").iterdir()} == {"size"}
    with pytest.raises(HalosError, match="no figure called 'sizes'; did you mean 'size'"):
        figures.make(config, results=folder, output=tmp_path / "asked", only=["sizes"])


MODELS = ("Pythia-1B", "pythia-2.8b", "small-125M", "nameless")


def test_win_rates_stand_at_their_models_sizes_by_family(tmp_path, write_tree):
    config, folder = write_tree(tmp_path, models=MODELS, methods=("base", "sft"), seeds=(1,))
    for path in folder.glob("runs/*/*/sft/seed1/manifest.json"):
        content = json.loads(path.read_text())
        count = {"Pythia-1B": 1_011_781_632}.get(path.parts[-4])  # counted when it was trained
        path.write_text(json.dumps({**content, "parameters": count}))
    r = Results(config, folder)
    frame = Size().frame(r)
    found = frame.drop_duplicates("model").set_index("model")
    assert found["parameters"].to_dict() == {"Pythia-1B": 1_011_781_632, "pythia-2.8b": 2.8e9, "small-125M": 125e6}
    assert found["family"].to_dict() == {"Pythia-1B": "Pythia", "pythia-2.8b": "pythia", "small-125M": "small"}
    figure = Size().draw(r, frame)
    axes = figure.axes
    [legend] = figure.legends
    markers = {line.get_marker() for line in axes[1].lines} - {"None"}
    assert {handle.get_marker() for handle in legend.legend_handles} == markers
    assert [ax.get_title(loc="left") for ax in axes] == ["Pythia", "pythia", "small"]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["1B"]
    assert axes[0].get_xscale() == "log"
    drawn = [line for line in axes[1].lines if line.get_linestyle() != "--"]
    assert drawn[0].get_ydata().tolist() == frame.query("model == 'pythia-2.8b'")["mean"].tolist()[:1]


def test_the_frontier_has_reward_and_distance_at_the_end_of_training(tmp_path, write_tree):
    r, frame = relation(write_tree, tmp_path, Frontier(), stages={"dpo": {"beta": 0.2}})
    assert frame["method"].tolist() == ["sft-kto", "dpo"]  # sft has no reference, base no training
    assert frame["reward"].tolist() == [0.8125, 0.25]
    assert frame["kl"].tolist() == [10, 10]
    assert frame["loss"].tolist() == ["kto", "dpo"]
    assert frame["beta"].tolist()[1] == 0.2
    (ax,) = Frontier().draw(r, frame).axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() in style.MARKERS]
    assert points == [(10, 0.8125), (10, 0.25)]


def test_the_frontier_has_the_beta_of_a_mixtures_leading_loss(tmp_path, write_tree):
    mixture = {"kto": {"weight": 0.2, "beta": 0.4}, "dpo": {"weight": 0.8, "beta": 0.3}}
    _, frame = relation(write_tree, tmp_path, Frontier(), stages={"dpo": {"loss": mixture}})
    row = frame[frame["method"] == "dpo"].iloc[0]
    assert (row["loss"], row["beta"]) == ("dpo", 0.3)


def test_the_frontier_without_a_judge_has_the_reward_margin(tmp_path, write_tree):
    r, frame = relation(write_tree, tmp_path, Frontier(), judges=())
    assert frame[["measure", "reward", "low", "high"]].to_numpy().tolist() == [["margin", 1.5, 1, 2]] * 2
    assert Frontier().draw(r, frame).axes[0].get_ylabel() == "reward margin\n(range over seeds)"


def test_imbalance_ends_in_the_same_loss_on_all_data(tmp_path, write_tree):
    kto = {"loss": "kto", "keep_desirable": 1.0, "keep_undesirable": 1.0}
    stages = {"all": kto, "d10": {**kto, "keep_desirable": 0.1}, "d50": {**kto, "keep_desirable": 0.5},
              "u10": {**kto, "keep_undesirable": 0.1}, "dpo": {**kto, "loss": "dpo"}}  # fmt: skip
    rates = {"all": 6, "d50": 5, "d10": 3, "u10": 4, "dpo": 8}
    r, frame = relation(
        write_tree, tmp_path, Imbalance(), stages=stages, methods=tuple(stages), seeds=(1,), tasks=(),
        counts=lambda _, method: (rates[method], 10 - rates[method], 0),
    )  # fmt: skip
    assert frame[["kept", "share", "mean"]].to_numpy().tolist() == [
        ["desirable", 0.1, 0.3], ["desirable", 0.5, 0.5], ["desirable", 1.0, 0.6],
        ["undesirable", 0.1, 0.4], ["undesirable", 1.0, 0.6],
    ]  # fmt: skip
    (ax,) = Imbalance().draw(r, frame).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.3, 0.5, 0.6], [0.4, 0.6]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10 %", "50 %", "100 %"]


def test_length_and_cost_draw_their_tables(tmp_path, write_tree):
    r, frame = relation(write_tree, tmp_path, Lengths(), reward_models=("sft-rm",))
    (ax,) = Lengths().draw(r, frame).axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() in style.MARKERS]
    assert points == list(frame[["length", "win_rate"]].itertuples(index=False, name=None))
    spent = Cost().frame(r)
    assert spent["method"].tolist() == ["sft", "sft-kto", "dpo", "sft-rm"]
    minutes, memory, speed = Cost().draw(r, spent).axes
    assert [bar.get_width() for bar in minutes.patches] == pytest.approx([12.5 / 60] * 4)
    assert [bar.get_width() for bar in memory.patches] == [1.5] * 4
    assert [bar.get_width() for bar in speed.patches] == [1000] * 4
