"""Counts of a data report: rows in and out by reason, contents, and quantiles of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from halos.data.paths import SPLITS
from halos.data.report import DataReport, SourceRows, SplitRows
from halos.report.dataset.split import Split
from halos.tokens.report import SplitTokens, TokensReport

DUPLICATE = "duplicate record"
LEAKAGE = ("prompt is in the validation split", "prompt is in the test split")
NOT_EVALUATED = "not in the evaluation subset"
"""Reasons to leave a row out: three of `prepare`, and the rest of a validation split that is evaluated in part."""
KEPT = "kept"
TOKENIZED = "all sources, tokenized"
LIMITS = ("max_length", "max_prompt_length", "eval_examples", "keep_desirable", "keep_undesirable")
"""Settings of `tokenize` that cut or leave out rows."""
COUNTS = (
    "prompts_joined", "prompts_with_lost_text", "prompts_spelling_special_tokens", "responses_spelling_special_tokens",
    "responses_without_end", "sampled_responses", "sampled_with_another_template", "equal_pairs",
    "contradicting_labels", "equal_groups",
)  # fmt: skip
"""Counts of `tokenize` that the report repeats."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def rows_table(data: DataReport, tokens: TokensReport) -> pd.DataFrame:
    """The outcome of every row: by source when prepared, and of all that were left when tokenized, as test is not.

    Columns: split, source, outcome (kept, or why not), rows. The outcomes of a source add up to its rows.
    """
    rows: list[tuple[str, str, str, int]] = []
    for split in SPLITS:
        prepared: SplitRows = getattr(data, split)
        tokenized: SplitTokens | None = getattr(tokens, split, None)
        for name, source in zip(_names(prepared.sources), prepared.sources, strict=True):
            rows.append((split, name, KEPT, source.rows_out))
            rows += [(split, name, *drop) for drop in source.drops.items()]
        if tokenized is None:
            continue
        rows.append((split, TOKENIZED, KEPT, tokenized.records - sum(tokenized.dropped.values())))
        rows += [(split, TOKENIZED, *drop) for drop in tokenized.dropped.items()]
        if rest := prepared.rows_out - tokenized.records:
            rows.append((split, TOKENIZED, NOT_EVALUATED, rest))
    return pd.DataFrame(rows, columns=["split", "source", "outcome", "rows"])


def _names(sources: Sequence[SourceRows]) -> list[str]:
    """The sources' names, numbered where one is named again (with other options)."""
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        seen[source.name] += 1
        names.append(source.name + (f" ({seen[source.name]})" if seen[source.name] > 1 else ""))
    return names


def report(data: DataReport, tokens: TokensReport, splits: dict[str, Split], rows: pd.DataFrame) -> dict[str, Any]:
    """The content of report.json: by split, rows_in = rows_out + drops, and the contents of the rows that are left, of
    the splits that the store has.

    A response has no label (`none`) where its record gives none, or `keep_desirable` and `keep_undesirable` leave it
    out. Lengths of chosen and rejected responses are those of the pairs: a response in two pairs counts twice.
    """
    limits = {name: getattr(tokens, name) for name in LIMITS}
    content: dict[str, Any] = {"dataset": tokens.dataset, "model": tokens.model, "limits": limits}
    for name in SPLITS:
        prepared: SplitRows = getattr(data, name)
        flow = _flow(rows[rows["split"] == name])
        contents = _contents(splits[name]) if name in splits else {}
        content[name] = {**flow, "shared_prompts": prepared.shared_prompts, **contents}
    return content


def _flow(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows in and out, and drops by reason, of the split and of each of its sources."""
    groups = {source: dict(zip(g["outcome"], g["rows"].tolist(), strict=True))
              for source, g in rows.groupby("source", sort=False)}  # fmt: skip
    steps = {}
    for source, outcomes in groups.items():
        kept = outcomes.pop(KEPT)
        steps[source] = {"rows_in": kept + sum(outcomes.values()), "rows_out": kept, "drops": outcomes}
    last = steps.pop(TOKENIZED, None)
    rows_in, kept = (sum(step[side] for step in steps.values()) for side in ("rows_in", "rows_out"))
    drops: Counter[str] = Counter()
    for step in (*steps.values(), *([last] if last else [])):
        drops.update(step["drops"])
    return {"rows_in": rows_in, "rows_out": last["rows_out"] if last else kept,
            "drops": dict(drops), "sources": steps, **({"tokenized": last} if last else {}),
            "duplicates": drops[DUPLICATE], "leakage": sum(drops[reason] for reason in LEAKAGE)}  # fmt: skip


def _contents(split: Split) -> dict[str, Any]:
    lengths, n = split.lengths(), len(split.rows)
    kept = split.tokens.records - sum(split.tokens.dropped.values())
    cut = {role: int(np.isin(rows, split.truncated).sum()) for role, rows in split.roles.items() if len(rows)}
    desirable, undesirable = (len(split.roles[role]) for role in ("desirable", "undesirable"))
    turns, truncated = split.tokens.prompts_with_dropped_turns, len(split.truncated)
    return {
        "prompts": len(split.prompts),
        "responses": n,
        "targets": split.views["sft"],
        "pairs": split.views["paired"],
        "labels": {
            "desirable": desirable,
            "undesirable": undesirable,
            "none": n - desirable - undesirable,
            "desirable_share": _share(desirable, desirable + undesirable),
        },
        "scored_responses": split.views["scored"],
        "groups": split.views["grouped"],
        "truncated_responses": {"count": truncated, "share": _share(truncated, n), "by_role": cut},
        "prompts_with_dropped_turns": {"count": turns, "share": _share(turns, kept)},
        "dropped_responses": split.tokens.dropped_responses,
        **{name: getattr(split.tokens, name) for name in COUNTS},
        "lengths": {text: _summary(values) for text, values in lengths.items() if len(values)},
        "padding_share_at_max_length":
            round(1 - float(lengths["total"].mean()) / split.max_length, 4) if n else None,
    }  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _summary(lengths: np.ndarray) -> dict[str, Any]:
    """Number, mean and quantiles (numpy's, linear between two lengths) of lengths in tokens."""
    values = np.quantile(lengths, QUANTILES)
    quantiles = {str(q): round(float(value), 2) for q, value in zip(QUANTILES, values, strict=True)}
    return {"count": len(lengths), "mean": round(float(lengths.mean()), 2), "quantiles": quantiles}


def lengths_table(splits: dict[str, Split]) -> pd.DataFrame:
    """Distributions of token lengths: the cumulative share of texts at every length that occurs.

    Columns: split, text (prompt, response, total, or a role of responses), tokens, texts (of this length), share.
    """
    curves = []
    for name, split in splits.items():
        for text, lengths in split.lengths().items():
            tokens, count = np.unique(lengths, return_counts=True)
            share = np.cumsum(count) / max(1, len(lengths))
            curves.append(pd.DataFrame({"split": name, "text": text, "tokens": tokens, "texts": count, "share": share}))
    return pd.concat(curves, ignore_index=True)
