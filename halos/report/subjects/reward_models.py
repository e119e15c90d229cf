"""Reward models: loss and accuracy on held-out pairs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from halos.report import statistics
from halos.report.measures import ROW
from halos.report.render import Table, interval, number
from halos.report.results import Results
from halos.report.words import Page, records, row_names, seeds_text
from halos.study.cells import Cell


def reward_models_page(results: Results, rewards: pd.DataFrame) -> Page:
    """The table of the grid's reward models; nothing where it has none."""
    if rewards.empty:
        return []
    shown = [
        row_names(results, row)
        | {"Ranking accuracy": interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])}
        | {"Margin": number(row["margin"]), "Loss": number(row["loss"])}
        | {"Pairs": number(row["pairs"], 0), "Seeds": str(row["seeds"])}
        for row in records(rewards)
    ]
    caption = (
        "Ranking accuracy: share of held-out pairs whose chosen response scores above the rejected one, at the last "
        f"evaluation, mean over {seeds_text(results)}. Brackets: 95 % interval from the standard error over pairs, "
        "which all seeds share, and the spread between seeds. Margin: mean "
        "score of the chosen less that of the rejected."
    )
    return [Table(caption, shown, title="Reward models")]


REWARD_METRICS = ["rewards/accuracy", "rewards/margin", "loss"]
REWARD_MODELS = [*ROW, "seeds", "accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs"]


def reward_models_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and reward model, of the last evaluation: ranking accuracy with interval, margin and
    loss, means over seeds."""
    found = []
    for ids in product(results.datasets, results.models, results.reward_models):
        mine = training[(training[ROW] == list(ids)).all(axis=1)]
        values = {name: mine.get(f"eval.{name}", pd.Series(np.nan, mine.index)) for name in REWARD_METRICS}
        pairs = results.held_out_pairs(Cell(*ids, results.seeds[0]))
        e = statistics.shares(values["rewards/accuracy"], pairs)
        means = {"margin": values["rewards/margin"].mean(), "loss": values["loss"].mean()}
        row: dict[str, Any] = {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high, **means}
        found.append(dict(zip(ROW, ids, strict=True)) | {"seeds": len(mine)} | row | {"pairs": pairs})
    return pd.DataFrame(found, columns=REWARD_MODELS)
