"""Every cell: its settings, its training and its results in one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from halos.report import statistics
from halos.report.results import CELL, SCORE, STRICT, WIN, Results
from halos.report.subjects.published import PAPER_LEVEL

COUNTS = ["n", "wins", "losses", "ties", "failures", "not_judged"]


def cells_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: counts, lengths and scores of each judge, tasks, and the row of training.csv."""
    found = []
    for cell in results.cells:
        row: dict[str, Any] = dict(cell.ids)
        for judge in results.judges:
            j = results.judged[cell, judge]
            row |= {f"{judge}.{name}": j.get(name) for name in COUNTS}
            row[f"{judge}.cut"] = results.cut(cell, judge)
            decided = sum(j.get(name) or 0 for name in ("wins", "losses", "ties"))
            low, high = statistics.wilson((j.get("wins") or 0) + (j.get("ties") or 0) / 2, decided)
            row |= {f"{judge}.{WIN}": j.get(WIN), f"{judge}.{WIN}_low": low, f"{judge}.{WIN}_high": high}
            row[f"{judge}.standard_error"] = j.get("standard_error")
            # as Ethayarajh et al. (2024) count and print
            exact = statistics.clopper_pearson(j.get("wins") or 0, decided, PAPER_LEVEL) if decided else (0.0, 1.0)
            row[f"{judge}.{STRICT}"] = (j.get("wins") or 0) / decided if decided else np.nan
            row |= {f"{judge}.{STRICT}_low90": exact[0], f"{judge}.{STRICT}_high90": exact[1]}
            for side in ("candidate", "baseline"):
                row[f"{judge}.length.{side}"] = (j.get("mean_length") or {}).get(side)
                scores = (j.get("scores") or {}).get(side) or {}
                row |= {f"{judge}.{SCORE}.{side}.{name}": value for name, value in scores.items()}
        found.append(row)
    frame = pd.DataFrame(found)
    for task, group in results.benchmarks.groupby("task", sort=False):
        part = group[[*CELL, "value", "stderr", "n"]].rename(
            columns={k: f"{task}.{k}" for k in ("value", "stderr", "n")}
        )
        frame = frame.merge(part, on=CELL, how="left")
    return frame.merge(training, on=CELL, how="left") if len(training) else frame
