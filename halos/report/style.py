"""How figures look: one style, one colour for each loss, and the parts that figures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from halos.report.measures import write_csv
from halos.study.cells import BASE

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
    write_csv(data, path.with_suffix(".csv"))
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
