"""Datasets: records and responses of each, before and after tokenizing."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd

from halos.report.measures import ROW
from halos.report.render import Table, number
from halos.report.results import Results
from halos.report.words import Page, records


def data_page(results: Results, data: pd.DataFrame) -> Page:
    titles = {
        "prompts": "Prompts", "responses": "Responses", "pairs": "Pairs", "desirable": "Desirable",
        "undesirable": "Undesirable", "dropped": "Dropped", "truncated": "Truncated",
        "prompt_tokens": "Prompt tokens", "response_tokens": "Response tokens",
    }  # fmt: skip
    shown = [
        {"Dataset": results.label("datasets", row["dataset"])}
        | ({"Model": results.label("models", row["model"])} if len(results.models) > 1 else {})
        | {"Split": row["split"]}
        | {title: number(row[key], 0) for key, title in titles.items()}
        for row in records(data)
    ]
    caption = (
        "What was left of each dataset after drops, which are counted by reason in the dataset's report; tokens are "
        "medians. Of the test split, lengths and truncations are of the fixed evaluation subset."
    )
    return [Table(caption, shown)]


DATA = [*ROW[:2], "split", "prompts", "responses", "pairs", "desirable", "undesirable", "dropped", "truncated",
        "prompt_tokens", "response_tokens", "examples"]  # fmt: skip


def data_table(results: Results) -> pd.DataFrame:
    """One row per dataset, model and split: what was left of the data, and its lengths in tokens (medians)."""
    found = []
    for dataset, model in product(results.datasets, results.models):
        made, stored = results.data_reports(dataset, model)
        for split in ("train", "test"):
            of_data, of_store = made.get(split) or {}, stored.get(split) or {}
            views = (stored.get("views") or {}).get(split) or {}
            lengths = of_store.get("length_quantiles") or {}
            row: dict[str, Any] = {"dataset": dataset, "model": model, "split": split}
            row |= {"prompts": of_data.get("rows_out"), "responses": of_data.get("responses")}
            row |= {key: of_data.get(key) for key in ("pairs", "desirable", "undesirable")}
            row["dropped"] = sum((of_data.get("drops") or {}).values()) + sum((of_store.get("dropped") or {}).values())
            row["truncated"] = of_store.get("truncated_responses")
            row |= {f"{side}_tokens": (lengths.get(side) or {}).get("0.5") for side in ("prompt", "response")}
            found.append(row | {"examples": max(views.values(), default=None)})
    return pd.DataFrame(found, columns=DATA)
