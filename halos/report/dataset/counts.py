"""Counts of a data report: rows in and out by reason, contents, and quantiles of lengths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from halos.report.dataset.split import Split
from halos.tokens.store import SPLITS

DUPLICATE = "duplicate record"
LEAKAGE = "prompt is in the test split"
NOT_EVALUATED = "not in the evaluation subset"
"""Reasons to leave a row out: two of `prepare`, and the rest of a test split of which `tokenize` takes a part."""
KEPT = "kept"
TOKENIZED = "all sources, tokenized"
LIMITS = ("max_length", "max_prompt_length", "eval_examples", "keep_desirable", "keep_undesirable")
"""Settings of `tokenize` that cut or leave out what is there."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def rows_table(prepared: dict[str, Any], tokenized: dict[str, Any]) -> pd.DataFrame:
    """What became of every row: of each source when prepared, and of all that was left of them when tokenized.

    Columns: split, source, outcome (kept, or why not), rows. The outcomes of a source add up to its rows.
    """
    found: list[tuple[str, str, str, int]] = []
    for split in SPLITS:
        sources = prepared[split]["sources"]
        for name, source in zip(_names(sources), sources, strict=True):
            found.append((split, name, KEPT, source["rows_out"]))
            found += [(split, name, *drop) for drop in source["drops"].items()]
        records, dropped = tokenized[split]["records"], tokenized[split]["dropped"]
        found.append((split, TOKENIZED, KEPT, records - sum(dropped.values())))
        found += [(split, TOKENIZED, *drop) for drop in dropped.items()]
        if rest := prepared[split]["rows_out"] - records:
            found.append((split, TOKENIZED, NOT_EVALUATED, rest))
    return pd.DataFrame(found, columns=["split", "source", "outcome", "rows"])


def _names(sources: list[dict[str, Any]]) -> list[str]:
    """The sources' names, numbered where one is named again (with other options)."""
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        seen[source["name"]] += 1
        names.append(source["name"] + (f" ({seen[source['name']]})" if seen[source["name"]] > 1 else ""))
    return names


def report(
    prepared: dict[str, Any], tokenized: dict[str, Any], splits: dict[str, Split], rows: pd.DataFrame
) -> dict[str, Any]:
    """The content of report.json: by split, rows_in = rows_out + drops, and what the rows that are left hold.

    A response has no label (`none`) where its record gives none, or `keep_desirable` and `keep_undesirable` leave it
    out. Lengths of chosen and rejected responses are those of the pairs: a response in two pairs counts twice.
    """
    limits = {name: tokenized[name] for name in LIMITS if name in tokenized}
    found: dict[str, Any] = {"dataset": tokenized["dataset"], "model": tokenized["model"], "limits": limits}
    for name, split in splits.items():
        facts = {"shared_prompts": prepared[name].get("shared_prompts")} | _contents(split, tokenized[name])
        found[name] = _flow(rows[rows["split"] == name]) | {k: v for k, v in facts.items() if v is not None}
    return found


def _flow(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows in and out, and drops by reason, of the split and of each of its sources."""
    groups = {source: dict(zip(g["outcome"], g["rows"].tolist(), strict=True))
              for source, g in rows.groupby("source", sort=False)}  # fmt: skip
    steps = {}
    for source, outcomes in groups.items():
        kept = outcomes.pop(KEPT)
        steps[source] = {"rows_in": kept + sum(outcomes.values()), "rows_out": kept, "drops": outcomes}
    last = steps.pop(TOKENIZED)
    drops: Counter[str] = Counter()
    for step in (*steps.values(), last):
        drops.update(step["drops"])
    return {"rows_in": sum(step["rows_in"] for step in steps.values()), "rows_out": last["rows_out"],
            "drops": dict(drops), "sources": steps, "tokenized": last,
            "duplicates": drops[DUPLICATE], "leakage": drops[LEAKAGE]}  # fmt: skip


def _contents(split: Split, tokenized: dict[str, Any]) -> dict[str, Any]:
    lengths, n = split.lengths(), len(split.rows)
    kept = tokenized["records"] - sum(tokenized["dropped"].values())
    cut = {role: int(np.isin(rows, split.truncated).sum()) for role, rows in split.roles.items() if len(rows)}
    desirable, undesirable = (len(split.roles[role]) for role in ("desirable", "undesirable"))
    turns, truncated = tokenized["prompts_with_dropped_turns"], len(split.truncated)
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
        "lengths": {what: _summary(values) for what, values in lengths.items() if len(values)},
        "padding_share_at_max_length":
            round(1 - float(lengths["total"].mean()) / split.store.meta.max_length, 4) if n else None,
    }  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _summary(lengths: np.ndarray) -> dict[str, Any]:
    """Number, mean and quantiles (numpy's, linear between two lengths) of lengths in tokens."""
    values = np.quantile(lengths, QUANTILES)
    quantiles = {str(q): round(float(value), 2) for q, value in zip(QUANTILES, values, strict=True)}
    return {"count": len(lengths), "mean": round(float(lengths.mean()), 2), "quantiles": quantiles}


def lengths_table(splits: dict[str, Split]) -> pd.DataFrame:
    """Distributions of token lengths: the share of texts that are at most so long, at every length that occurs.

    Columns: split, text (prompt, response, total, or a role of responses), tokens, texts (of this length), share.
    """
    found = []
    for name, split in splits.items():
        for text, lengths in split.lengths().items():
            tokens, count = np.unique(lengths, return_counts=True)
            share = np.cumsum(count) / max(1, len(lengths))
            found.append(pd.DataFrame({"split": name, "text": text, "tokens": tokens, "texts": count, "share": share}))
    return pd.concat(found, ignore_index=True)
