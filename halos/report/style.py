"""How figures look: one style, and a colour, a line and a marker for each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos.report.lazy import mpl, pd
from halos.report.measures import write_csv
from halos.report.results import Results
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
    BASE: "#8c8c8c",
    "sft": "#222222",
    "csft": "#8a6a3b",
    "dpo": "#0072b2",
    "cdpo": "#56b4e9",
    "robust": "#7887ff",
    "exo": "#ffb41e",
    "ipo": "#332288",
    "hinge": "#4b3c78",
    "nca": "#2d3c00",
    "bco": "#c32db4",
    "sppo": "#00e187",
    "aot": "#006978",
    "apo_zero": "#004bd2",
    "apo_down": "#a5d25a",
    "discopop": "#5a3c2d",
    "simpo": "#44aa99",
    "slic": "#117733",
    "orpo": "#999933",
    "bradley_terry": "#789669",
    "kto": "#d55e00",
    "ppo": "#cc79a7",
    "grpo": "#882255",
    "dpo_norm": "#0000fc",
    "rdpo": "#b40cfc",
    "ld_dpo": "#000cc0",
    "f_dpo": "#fc4860",
    "wpo": "#844800",
    "aot_unpaired": "#904854",
    "alphapo": "#48f03c",
    "cpo": "#b44890",
    "rrhf": "#9c54d8",
}
"""One colour for each loss of the package: the first are from the palettes of Okabe & Ito and of Tol, and each of the
others is as far from all of those as it can be in CIELAB, seen with and without red-green blindness. So many colours
cannot be told apart by everyone: markers differ as well, and positions and labels name each method."""
SPARE = ("#2dd2a5", "#c3c3e1", "#78a5ff")
"""Colours of other losses, which plugins bring, in the order in which a grid has them."""
LINES = ("-", (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
"""Lines of one colour: of the variants of a loss, and of losses that share a spare colour."""
MARKERS = "osD^v"
FROM_BASE = (0, (4, 1.5))
GUIDE = "#999999"


@dataclass(frozen=True)
class Look:
    """How a method is drawn.

    Attributes:
        colour: the loss's hue, paler for its variants.
        hue: the colour of its loss.
        line: a linestyle of matplotlib.
        filled: False for a method that was trained straight from the base model: its points are open.
    """

    colour: str
    hue: str
    line: Any
    marker: str
    filled: bool

    @property
    def face(self) -> str:
        """The colour inside a point."""
        return self.colour if self.filled else "white"


def looks(losses: Mapping[str, str]) -> dict[str, Look]:
    """The look of each method by the loss of its last stage. Stages with the same loss are its variants, and paler.

    Args:
        losses: method -> loss of its last stage; `base` for the base model.
    """
    spare = [loss for loss in dict.fromkeys(losses.values()) if loss not in COLOURS]
    variants: dict[str, list[str]] = {}
    for method, loss in losses.items():
        stages = variants.setdefault(loss, [])
        if _stage(method) not in stages:
            stages.append(_stage(method))
    drawn = {}
    for method, loss in losses.items():
        variant = variants[loss].index(_stage(method))
        turn, hue = 0, COLOURS.get(loss)
        if hue is None:
            turn, colour = divmod(spare.index(loss), len(SPARE))
            hue = SPARE[colour]
        pale = 0.45 * variant / max(1, len(variants[loss]) - 1)
        red, green, blue = (channel + (1 - channel) * pale for channel in mpl.colors.to_rgb(hue))
        chained = "-" in method or loss in (BASE, "sft")
        line = LINES[(turn + variant) % len(LINES)] if chained else FROM_BASE
        # losses that follow one another in COLOURS differ in their marker, and so do the methods of one loss
        first = list(COLOURS).index(loss) if loss in COLOURS else spare.index(loss)
        marker = MARKERS[(first + [m for m in losses if losses[m] == loss].index(method)) % len(MARKERS)]
        drawn[method] = Look(mpl.colors.to_hex((red, green, blue)), hue, line, marker, chained)
    return drawn


def _stage(method: str) -> str:
    return method.rsplit("-", 1)[-1]


def looks_of(results: Results) -> dict[str, Look]:
    """The look of each method and reward model of a grid, and of those on the way to them that a sweep has; the same in
    all of its figures."""
    own = [*results.methods, *results.reward_models]
    swept = [method for _, _, method in results.sweeps if method not in own]
    drawn = looks({method: results.loss(method) for method in (*own, *swept)})
    return drawn | (looks({method: results.loss(method) for method in own}) if swept else {})


@contextmanager
def styled() -> Iterator[None]:
    """Figures made within it have STYLE, whatever a user's own matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: mpl.figure.Figure, data: pd.DataFrame, path: Path) -> None:
    """{path}.svg, .png and .csv, with nothing in them that changes from one run to the next."""
    write_csv(data, path.with_suffix(".csv"))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout that was just computed: it is most of the work
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
