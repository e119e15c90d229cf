"""Reward models: ranking accuracy, margin and loss on validation pairs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from halos.report import statistics
from halos.report.lazy import pd
from halos.report.measures import ROW
from halos.report.render import Table, interval, number
from halos.report.results import Results
from halos.report.subject import Subject, subject
from halos.report.subjects.training import trainings
from halos.report.words import Page, records, row_names, seeds_text
from halos.study.cells import Cell

REWARD_METRICS = ["rewards/accuracy", "rewards/margin", "loss"]
REWARD_MODELS = [*ROW, "seeds", "accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs"]


@subject
class RewardModels(Subject):
    table = "reward_models"

    def frame(self, results: Results) -> pd.DataFrame:
        """Ranking accuracy, margin and loss of each reward model at its last evaluation: means over seeds."""
        lines, training = [], trainings(results)
        for ids in product(results.datasets, results.models, results.reward_models):
            of_method = training[(training[ROW] == list(ids)).all(axis=1)]
            values = {
                name: of_method.get(f"eval.{name}", pd.Series(np.nan, of_method.index)) for name in REWARD_METRICS
            }
            pairs = results.validation_pairs(Cell(*ids, results.seeds[0]))
            e = statistics.shares(values["rewards/accuracy"], pairs)
            means = {"margin": values["rewards/margin"].mean(), "loss": values["loss"].mean()}
            row: dict[str, Any] = {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high, **means}
            lines.append(dict(zip(ROW, ids, strict=True)) | {"seeds": len(of_method)} | row | {"pairs": pairs})
        return pd.DataFrame(lines, columns=REWARD_MODELS)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        """A part of the main results; nothing where the grid has no reward model."""
        if frame.empty:
            return []
        lines = [
            row_names(results, row)
            | {"Ranking accuracy": interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])}
            | {"Margin": number(row["margin"]), "Loss": number(row["loss"])}
            | {"Pairs": number(row["pairs"], 0), "Seeds": str(row["seeds"])}
            for row in records(frame)
        ]
        caption = (
            "Ranking accuracy: share of validation pairs whose chosen response scores above the rejected one, at the "
            f"last evaluation, mean over {seeds_text(results)}. Brackets: 95 % interval from the standard error over "
            "pairs, which all seeds share, and the spread between seeds. Margin: mean score of the chosen less that of "
            "the rejected."
        )
        return [Table(caption, lines, title="Reward models")]
