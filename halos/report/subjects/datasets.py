"""Datasets: records and responses of each, before and after tokenizing."""

from __future__ import annotations

from itertools import product
from typing import Any

from halos.data.paths import SPLITS
from halos.data.report import SplitRows
from halos.report.lazy import pd
from halos.report.measures import ROW
from halos.report.render import Table, number
from halos.report.results import Results
from halos.report.subject import Subject, subject
from halos.report.words import Page, records
from halos.tokens.report import SplitTokens

DATA = [*ROW[:2], "split", "prompts", "responses", "pairs", "desirable", "undesirable", "dropped", "truncated",
        "prompt_tokens", "response_tokens", "examples"]  # fmt: skip


@subject
class Datasets(Subject):
    table = "data"
    title = "Data"

    def frame(self, results: Results) -> pd.DataFrame:
        """One row per dataset, model and split: rows after drops, and their lengths in tokens (medians)."""
        rows = []
        for dataset, model in product(results.datasets, results.models):
            prepared, tokenized = results.data_report(dataset), results.tokens_report(dataset, model)
            for split in SPLITS:
                row: dict[str, Any] = {"dataset": dataset, "model": model, "split": split, "dropped": 0}
                if prepared is not None:
                    data: SplitRows = getattr(prepared, split)
                    row |= {"prompts": data.rows_out, "responses": data.responses, "pairs": data.pairs}
                    row |= {"desirable": data.desirable, "undesirable": data.undesirable}
                    row["dropped"] += sum(data.drops.values())
                tokens: SplitTokens | None = getattr(tokenized, split, None)
                if tokenized is not None and tokens is not None:
                    row |= {"truncated": tokens.truncated_responses}
                    row |= {"prompt_tokens": tokens.length_quantiles.prompt.get("0.5")}
                    row |= {"response_tokens": tokens.length_quantiles.response.get("0.5")}
                    row |= {"examples": max(tokenized.views[split].values(), default=None)}
                    row["dropped"] += sum(tokens.dropped.values())
                rows.append(row)
        return pd.DataFrame(rows, columns=DATA)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        titles = {
            "prompts": "Prompts", "responses": "Responses", "pairs": "Pairs", "desirable": "Desirable",
            "undesirable": "Undesirable", "dropped": "Dropped", "truncated": "Truncated",
            "prompt_tokens": "Prompt tokens", "response_tokens": "Response tokens",
        }  # fmt: skip
        lines = [
            {"Dataset": results.label("datasets", row["dataset"])}
            | ({"Model": results.label("models", row["model"])} if len(results.models) > 1 else {})
            | {"Split": row["split"]}
            | {title: number(row[key], 0) for key, title in titles.items()}
            for row in records(frame)
        ]
        caption = (
            "Rows of each dataset after drops, which are counted by reason in the dataset's report; tokens are "
            "medians. Of the validation split, lengths and truncations are of the fixed evaluation subset; the test "
            "split is not tokenized before it is answered."
        )
        return [Table(caption, lines)]
