"""Figures of a grid: SVG to print, PNG to look at, and the numbers drawn as CSV beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halos.config import BASE
from halos.report import estimates as E
from halos.report.results import SCORE, WIN, Results
from halos.report.statistics import Array
from halos.report.tables import NO_JUDGE, NO_TASK, interval_kind, metric_title

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "axes.grid": False,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "axes.axisbelow": True,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "figure.constrained_layout.w_pad": 0.07,
    "figure.constrained_layout.h_pad": 0.05,
    "svg.fonttype": "none",  # text stays text: searchable, and editable in a drawing program
    "svg.hashsalt": "halos",  # the same ids, and so the same bytes, each time
}

COLOURS = {
    "base": "#8c8c8c",
    "sft": "#222222",
    "csft": "#8a6a3b",
    "dpo": "#0072b2",
    "cdpo": "#56b4e9",
    "ipo": "#332288",
    "simpo": "#44aa99",
    "slic": "#117733",
    "orpo": "#999933",
    "kto": "#d55e00",
    "ppo": "#cc79a7",
    "grpo": "#882255",
}
"""One colour per loss, of the palettes of Okabe & Ito and of Tol, which colour-blind readers tell apart; what colour
alone cannot tell (thirteen losses), position, lines and labels do."""

SPARE = ("#e69f00", "#009e73", "#aa4499", "#6699cc", "#661100")
LINES = ("-", (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
"""Lines of one colour: of a loss, its variants; and of losses that share a spare colour."""
FROM_BASE = (0, (4, 1.5))
GUIDE = "#999999"
DIRECT_LABELS = 6
"""Curves that a panel can name at their ends; more have a legend."""


def make(config: Path, results: Path, output: Path) -> None:
    """Write win_rate, score, training, rounds and benchmarks as .svg, .png and .csv.

    Args:
        config: the grid's slice of the config.
        results: the results folder.
        output: the folder for the files.

    Raises:
        HalosError: a file of a cell is missing.
    """
    r = Results(config, results)
    measures = E.measures(r)
    wins = measures[measures["measure"] == WIN]
    scores = measures[measures["measure"] != WIN]
    curves, over_rounds, benchmarks = E.curves(r), E.rounds(r), E.benchmarks(r)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        save(win_rate(r, wins), wins, output / "win_rate")
        save(score(r, scores), scores, output / "score")
        save(training(r, curves), curves, output / "training")
        save(rounds(r, over_rounds), over_rounds, output / "rounds")
        save(benchmark(r, benchmarks), benchmarks, output / "benchmarks")


def save(figure: Figure, data: pd.DataFrame, path: Path) -> None:
    """{path}.svg, .png and .csv, with nothing in them that changes from one run to the next."""
    E.write_csv(data, path.with_suffix(".csv"))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout that was just found: to find it is most of the work
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})


def win_rate(results: Results, wins: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model; a point with interval per method, seeds as faint dots."""
    if wins.empty:
        return _empty(NO_JUDGE if not results.judges else "No response of this grid was judged.")
    panels = list(product(results.judges, results.datasets, results.models))
    columns = min(len(panels), 4)
    figure, axes = _grid(results, math.ceil(len(panels) / columns), columns, width=2.3 if columns > 1 else 3.4)
    limits = _limits([*wins["mean"], *wins["low"], *wins["high"], 0.5])
    for ax, ids in zip(axes.flat, panels, strict=False):
        _points(results, ax, _of(wins, ("judge", "dataset", "model"), ids), guide=0.5)
        ax.set(xlim=limits, title=_panel_title(results, ids))
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    figure.supxlabel(f"win rate against the baseline\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def score(results: Results, scores: pd.DataFrame) -> Figure:
    """A row per judge, dataset and model; a column for the score and one for each criterion; dashed: the baseline."""
    if scores.empty:
        return _empty(NO_JUDGE if not results.judges else "No judge of this grid gives scores.")
    panels = list(scores[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    columns = max(len(E.measures_of(results, ids[0])) - 1 for ids in panels)
    figure, axes = _grid(results, len(panels), columns, width=1.9, row=0.19 if len(panels) < 4 else 0.155)
    for row, ids in zip(axes, panels, strict=True):
        mine = _of(scores, ("judge", "dataset", "model"), ids)
        limits = _limits(scores.loc[scores["judge"] == ids[0], ["mean", "low", "high", "baseline"]].to_numpy().flat)
        names = E.measures_of(results, ids[0])[1:]
        for ax, measure in zip(row, names, strict=False):
            part = mine[mine["measure"] == measure]
            _points(results, ax, part, guide=part["baseline"].mean())
            name = results.score_name(ids[0]).capitalize() if measure == SCORE else metric_title(measure)
            ax.set(xlim=limits, title=name)
        for ax in row[len(names) :]:
            ax.remove()
        if len(panels) > 1:
            row[0].set_title(f"{_panel_title(results, ids)}: {results.score_name(ids[0])}")
    what = " or ".join(dict.fromkeys(results.score_name(ids[0]) for ids in panels))
    figure.supxlabel(f"{what}; dashed: the baseline's own\n({interval_kind(results, short=True)})", fontsize=8)
    return figure


def training(results: Results, curves: pd.DataFrame) -> Figure:
    """A row per dataset and model: reward margin, KL and loss against the examples seen; band: range over seeds."""
    if curves.empty:
        return _empty("No training in this grid: its only method is `base`.")
    quantities = [q for q in E.QUANTITIES if q in set(curves["quantity"])]
    panels = [ids for ids in product(results.datasets, results.models) if len(_of(curves, ("dataset", "model"), ids))]
    drawn = [m for m in results.methods if m in set(curves["method"])]
    names = 0.065 * max(len(results.method_label(m)) for m in drawn)
    crowded = len(drawn) > DIRECT_LABELS
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(panels), len(quantities), squeeze=False)
    height = max(2.1, 0.13 * len(drawn) + 0.75)
    width = 2.3 * len(quantities) + names * (1 if crowded else len(quantities)) + 0.4 * crowded
    figure.set_size_inches(width, height * len(panels) + 0.3)
    for (i, ids), (j, quantity) in product(enumerate(panels), enumerate(quantities)):
        ax = axes[i, j]
        mine = _of(curves, ("dataset", "model", "quantity"), (*ids, quantity))
        for method, line in mine.groupby("method", sort=False):
            s = style(results, str(method))
            ax.plot(line["examples"], line["mean"], color=s["color"], linestyle=s["line"], linewidth=1.3)
            if (line["seeds"] > 1).any():
                ax.fill_between(line["examples"], line["min"], line["max"], color=s["color"], alpha=0.15, linewidth=0)
        ax.grid(axis="y")
        ax.margins(x=0)
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_thousands))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        if j == 0:
            ax.set_title(results.panel_label(*ids), loc="left")
        ax.set_ylabel(_curve_title(mine) if len(mine) else "")
        ax.set_xlabel("examples seen" if i == len(panels) - 1 else "")
        _compress(ax, mine)
        if not crowded:
            _end_labels(results, ax, mine, height)
    if crowded:
        styles = [style(results, m) for m in drawn]
        lines = [Line2D([], [], color=s["color"], linestyle=s["line"], linewidth=1.5) for s in styles]
        names_of = [results.method_label(m) for m in drawn]
        figure.legend(lines, names_of, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
    return figure


def rounds(results: Results, over_rounds: pd.DataFrame) -> Figure:
    """A panel per judge, dataset and model: the score after each round of the methods that are trained online."""
    if over_rounds.empty:
        return _empty("No method of this grid is trained online, in rounds.")
    panels = list(over_rounds[["judge", "dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    figure = Figure(layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=len(set(over_rounds["measure"])) == 1)[0]
    figure.set_size_inches(2.6 * len(panels) + 1.6, 2.5)
    last = int(over_rounds["round"].max())
    for ax, ids in zip(axes, panels, strict=True):
        mine = _of(over_rounds, ("judge", "dataset", "model"), ids)
        methods = list(dict.fromkeys(mine["method"]))
        for k, method in enumerate(methods):
            line = mine[mine["method"] == method]
            s = style(results, method)
            x = line["round"] + 0.05 * (k - (len(methods) - 1) / 2)  # intervals beside each other
            ax.plot(x, line["mean"], "o-", color=s["color"], linewidth=1.3, markersize=4,
                    label=results.method_label(method))  # fmt: skip
            ax.vlines(x, line["low"], line["high"], color=s["color"], linewidth=1.1)
        ax.grid(axis="y")
        ax.set_xticks(range(last + 1))
        ax.set_xlabel("rounds done")
        ax.set_title(_panel_title(results, ids), loc="left")
        name = "win rate" if mine["measure"].iloc[0] == WIN else results.score_name(ids[0])
        ax.set_ylabel(f"{name}\n({interval_kind(results, short=True)})")
    names = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(names.values()), list(names), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def benchmark(results: Results, benchmarks: pd.DataFrame) -> Figure:
    """Methods x tasks, a panel per dataset and model: the value as text, its change from the reference as colour."""
    if benchmarks.empty:
        return _empty(NO_TASK)
    panels = list(product(results.datasets, results.models))
    columns = min(len(panels), 4 if len(results.tasks) <= 4 else 2)
    shape = math.ceil(len(panels) / columns), columns
    figure, axes = _grid(results, *shape, width=0.52 * len(results.tasks) + 0.1, row=0.22, extra=1.1)
    most = max(0.02, benchmarks["change"].abs().max())
    image = None
    for index, (ax, ids) in enumerate(zip(axes.flat, panels, strict=False)):
        mine = _of(benchmarks, ("dataset", "model"), ids)
        values, change, clear = (
            mine.pivot(index="method", columns="task", values=key).loc[results.methods, results.tasks].to_numpy()
            for key in ("value", "change", "clear")
        )
        image = ax.imshow(change, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for i, j in np.ndindex(values.shape):
            text = f"{values[i, j]:.3f}".replace("0.", ".", 1) if abs(values[i, j]) < 1 else f"{values[i, j]:.3g}"
            colour = "white" if abs(change[i, j]) > 0.65 * most else "#222222"
            weight = "bold" if clear[i, j] else "normal"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
        ax.set_xticks(
            range(len(results.tasks)), [results.label("tasks", t) for t in results.tasks], rotation=40, ha="right"
        )
        ax.set_xticks(np.arange(len(results.tasks) + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(len(results.methods) + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.2)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(results.panel_label(*ids))
        if index + columns < len(panels):
            ax.tick_params(labelbottom=False)
        _method_axis(results, ax, first=index % columns == 0)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    assert image is not None
    bar = figure.colorbar(image, ax=list(axes.flat[: len(panels)]), shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(f"change from {results.method_label(benchmarks['reference'].iloc[0])}")
    bar.outline.set_visible(False)
    return figure


def style(results: Results, method: str) -> dict[str, Any]:
    """Colour by the loss of the last stage, paler and with a line of its own for its variants (`kto_b05`); filled after
    another stage, open and dashed straight from the base model."""
    family = _family(method)
    unknown = [f for f in dict.fromkeys(map(_family, results.methods)) if f not in COLOURS]
    turn, spare = divmod(unknown.index(family), len(SPARE)) if family in unknown else (0, 0)
    variants = list(dict.fromkeys(m.rsplit("-", 1)[-1] for m in results.methods if _family(m) == family))
    variant = variants.index(method.rsplit("-", 1)[-1])
    pale = 0.45 * variant / max(1, len(variants) - 1)
    red, green, blue = (c + (1 - c) * pale for c in to_rgb(COLOURS.get(family) or SPARE[spare]))
    chained = "-" in method or family in (BASE, "sft")
    line = LINES[(turn + variant) % len(LINES)] if chained else FROM_BASE
    return {"color": to_hex((red, green, blue)), "line": line, "filled": chained}


def _family(method: str) -> str:
    """`sft-kto_b05` -> `kto`."""
    stage = method.rsplit("-", 1)[-1]
    return stage if stage in COLOURS else stage.split("_")[0]


def _points(results: Results, ax: Axes, part: pd.DataFrame, guide: float) -> None:
    if not math.isnan(guide):
        ax.axvline(guide, color=GUIDE, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
    for y, method in enumerate(results.methods):
        mine = part[part["method"] == method]
        s = style(results, method)
        seeds = mine[mine["seed"] != E.ALL]
        if len(seeds) > 1:
            ax.plot(seeds["mean"], [y + 0.27] * len(seeds), "o", color=s["color"], alpha=0.4, markersize=2.4, mew=0)
        for mean, low, high in mine.loc[mine["seed"] == E.ALL, ["mean", "low", "high"]].to_numpy(dtype=float):
            ax.plot([low, high], [y, y], color=s["color"], linewidth=1.3, solid_capstyle="butt")
            face = s["color"] if s["filled"] else "white"
            ax.plot([mean], [y], "o", color=s["color"], markerfacecolor=face, markersize=4.6, markeredgewidth=1.1)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(results.methods) - 0.4, -0.6)


def _method_axis(results: Results, ax: Axes, first: bool) -> None:
    labels = [results.method_label(m) for m in results.methods]
    ax.set_yticks(range(len(labels)), labels if first else [""] * len(labels))


def _grid(
    results: Results, rows: int, columns: int, width: float, row: float = 0.19, extra: float = 0.55
) -> tuple[Figure, Any]:
    """Axes with a line for each method, whose names stand at the left column only."""
    figure = Figure(layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    names = 0.075 * max(len(results.method_label(m)) for m in results.methods)
    figure.set_size_inches(
        width * columns + names + extra, max(1.6, rows * (row * len(results.methods) + 0.45) + extra)
    )
    for row_of_axes in axes:
        for column, ax in enumerate(row_of_axes):
            _method_axis(results, ax, first=column == 0)
    return figure, axes


def _curve_title(mine: pd.DataFrame) -> str:
    quantity, split, unit = mine[["quantity", "split", "unit"]].iloc[0]
    name = {"rewards/margin": "reward margin", "kl": "log-ratio to the reference", "loss": "loss"}[quantity]
    where = "evaluation" if split == "eval" else "training"
    return f"{name}\n({where})" if unit in name or unit == "reward" else f"{name}\n({unit}; {where})"


def _compress(ax: Axes, mine: pd.DataFrame) -> None:
    """A scale that is linear about 0 and logarithmic beyond, where one method would flatten the others: the sum of
    log-probabilities that SLiC has for a reward is a hundred times the odds of ORPO."""
    largest = mine.assign(mean=mine["mean"].abs()).groupby("method")["mean"].max()
    usual = largest[largest > 0].median()
    if largest.max() > 5 * usual:
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(usual)), linscale=0.6)
        ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(f"{ax.get_ylabel().removesuffix(')')}; log scale)")


def _end_labels(results: Results, ax: Axes, mine: pd.DataFrame, height: float) -> None:
    """Each line's name right of its end, moved up or down where names would overlap."""
    if mine.empty:
        return
    last = mine.groupby("method", sort=False).last().sort_values("mean", kind="stable")
    ax.set(xlim=(0, mine["examples"].max()), ylim=ax.get_ylim())
    ends = (ax.transScale + ax.transLimits).transform(last[["examples", "mean"]].to_numpy(dtype=float))
    places = spread(ends[:, 1], gap=0.125 / (height - 0.7))
    for (method, end), place in zip(last.iterrows(), places, strict=True):
        colour = style(results, str(method))["color"]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 1, "shrinkB": 0}
        ax.annotate(
            results.method_label(str(method)),
            (end["examples"], end["mean"]),
            (1.07, place),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={**arrow, "relpos": (0, 0.5)},
            color=colour,
            fontsize=7,
            va="center",
        )


def spread(places: Array, gap: float) -> Array:
    """Ascending places between 0 and 1, moved as little as possible (least squares) to be at least `gap` apart."""
    blocks: list[list[float]] = []
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    steps = gap * np.arange(len(places))
    apart = np.concatenate([np.full(int(n), value) for value, n in blocks]) + steps
    within: Array = np.maximum(np.minimum(apart, 1 - steps[::-1]), steps)
    return within


def _limits(values: Iterable[float]) -> tuple[float, float]:
    known = [v for v in values if not math.isnan(v)]
    pad = 0.04 * (max(known) - min(known)) or 0.05
    return min(known) - pad, max(known) + pad


def _panel_title(results: Results, ids: tuple[str, ...]) -> str:
    judge, dataset, model = ids
    name = results.panel_label(dataset, model)
    return f"{name}, {results.label('judges', judge)}" if len(results.judges) > 1 else name


def _of(frame: pd.DataFrame, keys: tuple[str, ...], ids: tuple[str, ...]) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[key] == value for key, value in zip(keys, ids, strict=True)])]


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(4.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", wrap=True)
    return figure
