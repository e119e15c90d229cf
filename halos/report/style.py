"""How figures look: one style, one colour for each loss, and the parts that figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from halos.config import BASE
from halos.report import estimates as E
from halos.report.results import Results
from halos.report.statistics import Array

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


@contextmanager
def styled() -> Iterator[None]:
    """Figures made within it have STYLE, and nothing of what a user's own matplotlib settings say."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, data: pd.DataFrame, path: Path) -> None:
    """{path}.svg, .png and .csv, with nothing in them that changes from one run to the next."""
    E.write_csv(data, path.with_suffix(".csv"))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout that was just found: to find it is most of the work
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})


def style(methods: Sequence[str], method: str) -> dict[str, Any]:
    """Colour by the loss of the last stage, paler and with a line of its own for its variants (`kto_b05`); filled after
    another stage, open and dashed straight from the base model."""
    family = family_of(method)
    unknown = [f for f in dict.fromkeys(map(family_of, methods)) if f not in COLOURS]
    turn, spare = divmod(unknown.index(family), len(SPARE)) if family in unknown else (0, 0)
    variants = list(dict.fromkeys(m.rsplit("-", 1)[-1] for m in methods if family_of(m) == family))
    variant = variants.index(method.rsplit("-", 1)[-1])
    pale = 0.45 * variant / max(1, len(variants) - 1)
    hue = COLOURS.get(family) or SPARE[spare]
    red, green, blue = (c + (1 - c) * pale for c in to_rgb(hue))
    chained = "-" in method or family in (BASE, "sft")
    line = LINES[(turn + variant) % len(LINES)] if chained else FROM_BASE
    return {"color": to_hex((red, green, blue)), "hue": hue, "line": line, "filled": chained}


def family_of(method: str) -> str:
    """`sft-kto_b05` -> `kto`."""
    stage = method.rsplit("-", 1)[-1]
    return stage if stage in COLOURS else stage.split("_")[0]


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


def limits_of(values: Iterable[float]) -> tuple[float, float]:
    known = [v for v in values if not math.isnan(v)]
    pad = 0.04 * (max(known) - min(known)) or 0.05
    return min(known) - pad, max(known) + pad


def panel_title(results: Results, ids: tuple[str, ...]) -> str:
    judge, dataset, model = ids
    name = results.panel_label(dataset, model)
    return f"{name}, {results.label('judges', judge)}" if len(results.judges) > 1 else name


def of(frame: pd.DataFrame, keys: tuple[str, ...], ids: tuple[str, ...]) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[key] == value for key, value in zip(keys, ids, strict=True)])]


def empty(text: str) -> Figure:
    figure = Figure(figsize=(4.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", wrap=True)
    return figure
