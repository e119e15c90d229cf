"""The table of docs/speed.md, of a table of results."""

from __future__ import annotations

import csv
from itertools import groupby
from operator import itemgetter
from pathlib import Path

NAMES = {"llama": "Llama, 19M", "smollm2": "SmolLM2-135M's shape"}
HEAD = """\
| Model | Loss | Lengths like | Examples/s | TRL's defaults × | TRL's best × | Memory, of default | Of matrix peak |
|---|---|---|---:|---:|---:|---:|---:|"""


def markdown(results: Path) -> str:
    """A row for each model, loss and profile.

    Args:
        results: CSV of the benchmark.
    """
    with results.open() as file:
        rows = list(csv.DictReader(file))
    lines = [HEAD]
    for (model, loss, profile), group in groupby(rows, itemgetter("model", "loss", "profile")):
        peers = {row["peer"]: row for row in group}
        default, best = peers["trl-default"], peers.get("trl-best")
        lines.append(
            f"| {NAMES[model]} | {loss.upper()} | {profile} | {float(default['examples_per_s']):.2f} "
            f"| {_ratio(default)} | {_ratio(best)} | {float(default['ratio_peak_memory']):.2f} "
            f"| {float(default['useful_share']):.0%} |"
        )
    return "\n".join(lines)


def _ratio(row: dict[str, str] | None) -> str:
    """The median ratio of speed, with the least and the most."""
    if row is None:
        return ""
    ratio, least, most = (float(row[f"ratio_{name}"]) for name in ("examples_per_s", "min", "max"))
    return f"{ratio:.1f} ({least:.1f}–{most:.1f})"
