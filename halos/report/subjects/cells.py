"""Cells: the settings, training and results of every cell in one row."""

from __future__ import annotations

from typing import Any

import numpy as np

from halos.report import proportions
from halos.report.lazy import pd
from halos.report.results import CELL, SCORE, STRICT, WIN, Results
from halos.report.subject import Subject, subject
from halos.report.subjects.published import PAPER_LEVEL
from halos.report.subjects.training import trainings

COUNTS = ["n", "wins", "losses", "ties", "failures", "not_judged"]


@subject
class Cells(Subject):
    table = "cells"

    def frame(self, results: Results) -> pd.DataFrame:
        """One row per cell: counts, lengths and scores of each judge, tasks, and the row of training.csv."""
        rows = []
        for cell in results.cells:
            row: dict[str, Any] = dict(cell.ids)
            for judge in results.judges:
                j = results.judged[cell, judge]
                row |= {f"{judge}.{name}": getattr(j, name) for name in COUNTS}
                row[f"{judge}.cut"] = results.cut(cell, judge)
                decided = j.wins + j.losses + j.ties
                low, high = proportions.wilson(j.wins + j.ties / 2, decided)
                row |= {f"{judge}.{WIN}": j.win_rate, f"{judge}.{WIN}_low": low, f"{judge}.{WIN}_high": high}
                row[f"{judge}.standard_error"] = j.standard_error
                # as Ethayarajh et al. (2024) count and print
                exact = proportions.clopper_pearson(j.wins, decided, PAPER_LEVEL) if decided else (0.0, 1.0)
                row[f"{judge}.{STRICT}"] = j.wins / decided if decided else np.nan
                row |= {f"{judge}.{STRICT}_low90": exact[0], f"{judge}.{STRICT}_high90": exact[1]}
                for side in ("candidate", "baseline"):
                    row[f"{judge}.length.{side}"] = getattr(j.mean_length, side)
                    scores = getattr(j.scores, side) if j.scores else {}
                    row |= {f"{judge}.{SCORE}.{side}.{name}": value for name, value in scores.items()}
            rows.append(row)
        frame = pd.DataFrame(rows)
        for task, group in results.benchmarks.groupby("task", sort=False):
            columns = ["value", "stderr", "n"]
            part = group[[*CELL, *columns]].rename(columns={name: f"{task}.{name}" for name in columns})
            frame = frame.merge(part, on=CELL, how="left")
        training = trainings(results)
        return frame.merge(training, on=CELL, how="left") if len(training) else frame
