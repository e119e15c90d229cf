"""The data report: what became of a dataset's rows, how long its texts are, and examples as one model sees them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halos.data.store import SPLITS, Store
from halos.data.template import Template
from halos.errors import HalosError
from halos.provenance import write_json, write_text
from halos.report import figures
from halos.report.examples import Chooser, page

DUPLICATE = "duplicate record"
LEAKAGE = "prompt is in the test split"
NOT_EVALUATED = "not in the evaluation subset"
"""Reasons to leave a row out: two of `prepare`, and the rest of a test split of which `tokenize` takes a part."""
KEPT = "kept"
TOKENIZED = "all sources, tokenized"

LIMITS = ("max_length", "max_prompt_length", "eval_examples", "keep_desirable", "keep_undesirable")
"""Settings of `tokenize` that cut or leave out what is there."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
ROLES: dict[str, dict[str, Any]] = {
    "target": {"color": "#222222", "linewidth": 2.6},
    "desirable": {"color": "#0072b2", "linewidth": 1.4},
    "undesirable": {"color": "#d55e00", "linewidth": 1.4},
    "chosen": {"color": "#56b4e9", "linewidth": 1.2, "linestyle": (0, (3, 2))},
    "rejected": {"color": "#e69f00", "linewidth": 1.2, "linestyle": (0, (3, 2))},
}
"""What a response can be to a loss, and its line: colours of Okabe & Ito, thinner and dashed where it may lie on
another line, as the winners of pairs often are the targets and the desirable responses."""
OUTCOMES = {KEPT: "#0072b2", NOT_EVALUATED: "#999999"}
DROPPED = "#d55e00"


def describe(data: Path, tokens: Path, store: Path, model: Path, output: Path) -> None:
    """The verb: report on a dataset as one model sees it.

    Args:
        data: the report of `prepare`, with the splits' feedback beside it (read where prompts lost turns).
        tokens: the report of `tokenize`.
        store: the sequence store.
        model: model folder, for its tokenizer.
        output: folder for report.json, rows and lengths (.svg, .png, .csv), and examples.html.

    Raises:
        HalosError: the inputs do not belong together, or the store is empty.
    """
    from transformers import AutoTokenizer

    prepared, tokenized = (json.loads(Path(path).read_text()) for path in (data, tokens))
    opened = Store(store)
    template = Template(AutoTokenizer.from_pretrained(model))
    _check(prepared, tokenized, opened, template)
    splits = _splits(opened, tokenized, template.end)
    rows, lengths = rows_table(prepared, tokenized), lengths_table(splits)
    feedback = {name: Path(data).with_name(f"{name}.parquet") for name in SPLITS}
    examples = Chooser(opened, template, splits, prepared, tokenized, feedback).examples()
    write_json(output / "report.json", report(prepared, tokenized, splits, rows))
    write_text(output / "examples.html", page(prepared["dataset"], tokenized, examples))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(figures.STYLE)
        figures.save(draw_rows(rows), rows, output / "rows")
        figures.save(draw_lengths(lengths, tokenized), lengths, output / "lengths")


def _check(prepared: dict[str, Any], tokenized: dict[str, Any], store: Store, template: Template) -> None:
    """Refuse reports, a store and a model that were not made from each other."""
    if tokenized["hash"] != store.hash:
        raise HalosError(f"the report of tokenize is not that of {store.folder}; run `tokenize` again to make both")
    if tokenized["template"] != template.hash:
        raise HalosError(f"{store.folder} was made with another tokenizer or chat template; give the model it is of")
    if prepared["dataset"] != tokenized["dataset"] or prepared["train"]["rows_out"] != tokenized["train"]["records"]:
        raise HalosError(f"{store.folder} was made of other data than the report of prepare tells of; run both again")
    if not store.n_responses:
        raise HalosError(f"{store.folder} holds no response: every row was dropped; give `max_prompt_length` more room")


# ---- what the store holds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The sequences of one split.

    Attributes:
        name: train or test.
        store: the sequence store.
        rows: (N,) the split's real sequences.
        roles: by role, the sequences that have it: once for each pair, so perhaps several times.
        views: how many rows each view has.
        end: id of the end-of-turn token, which ends every response that is whole.
    """

    name: str
    store: Store
    rows: np.ndarray
    roles: dict[str, np.ndarray]
    views: dict[str, int]
    end: int

    @cached_property
    def prompts(self) -> np.ndarray:
        """(P,) one sequence of each prompt."""
        found: np.ndarray = self.rows[np.unique(self.store.prompt_of(self.rows), return_index=True)[1]]
        return found

    @cached_property
    def truncated(self) -> np.ndarray:
        """(T,) the sequences whose response was cut: at the limit and without an end."""
        total = self.store.lengths[self.rows].sum(axis=1)
        full = self.rows[total >= self.store.meta["max_length"]]
        return np.array([row for row in full if not self.whole(row)], dtype=np.int64)

    def whole(self, row: int) -> bool:
        """Whether a response has its end-of-turn token."""
        ids = self.store.sequence(int(row))[1]
        return bool(len(ids) and ids[-1] == self.end)

    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens: of each prompt, of each response, of both together, and of the responses of each role."""
        of = self.store.lengths
        found = {"prompt": of[self.prompts, 0], "response": of[self.rows, 1], "total": of[self.rows].sum(axis=1)}
        return found | {role: of[rows, 1] for role, rows in self.roles.items() if len(rows)}


def _splits(store: Store, tokenized: dict[str, Any], end: int) -> dict[str, Split]:
    """The splits, which lie in the store one after the other."""
    found, first = {}, 0
    for name in SPLITS:
        last = first + tokenized[name]["sequences"]
        found[name] = Split(name, store, np.arange(first, last), _roles(store, name), store.meta["views"][name], end)
        first = last
    return found


def _roles(store: Store, split: str) -> dict[str, np.ndarray]:
    counts, none = store.meta["views"][split], np.array([], dtype=np.int32)
    roles = dict.fromkeys(ROLES, none)
    if counts["sft"]:
        roles["target"] = store.view(split, "sft")["sequence"].to_numpy()
    if counts["paired"]:
        pairs = store.view(split, "paired")
        roles |= {role: pairs[role].to_numpy() for role in ("chosen", "rejected")}
    if counts["unpaired"]:
        table = store.view(split, "unpaired")
        rows, desirable = table["sequence"].to_numpy(), table["desirable"].to_numpy()
        roles |= {"desirable": rows[desirable], "undesirable": rows[~desirable]}
    return roles


# ---- report.json and the tables of the figures ---------------------------------------------------------------------


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
            round(1 - float(lengths["total"].mean()) / split.store.meta["max_length"], 4) if n else None,
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


# ---- figures ------------------------------------------------------------------------------------------------------


def draw_rows(rows: pd.DataFrame) -> Figure:
    """A panel per split, a group of bars per source: what was kept, and what was dropped for which reason."""
    splits = [part for _, part in rows.groupby("split", sort=False) if part["rows"].any()]
    heights = [len(part) + 1.25 * part["source"].nunique() + 0.6 for part in splits]
    figure = Figure(layout="constrained", figsize=(6.4, 0.165 * sum(heights) + 0.75))
    axes = figure.subplots(len(splits), squeeze=False, sharex=True, height_ratios=heights)
    counts = rows.loc[rows["rows"] > 0, "rows"]
    log = counts.max() > 50 * counts.min()  # a bar of a fiftieth of the panel can just be seen
    for ax, part in zip(axes.flat, splits, strict=True):
        _bars(ax, part, log)
        ax.set_title(str(part["split"].iloc[0]), loc="left", fontweight="bold")
    left, right = (0.7, counts.max() ** 1.45) if log else (0, counts.max() * 1.3)
    axes[-1, 0].set(xlim=(left, max(right, 2)), xlabel="rows (log scale)" if log else "rows")
    return figure


def _bars(ax: Axes, part: pd.DataFrame, log: bool) -> None:
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    y, ticks, names = 0.0, [], []
    for source, outcomes in part.groupby("source", sort=False):
        total = int(outcomes["rows"].sum())
        ticks.append(y)
        names.append(f"{source}: {total:,} rows")
        for outcome, count in zip(outcomes["outcome"], outcomes["rows"], strict=True):
            y += 1
            ax.barh(y, count, height=0.72, color=OUTCOMES.get(outcome, DROPPED), linewidth=0)
            place = max(count, 0.7) if log else count
            label = f"{count:,}" + (f" ({_percent(count / total)})" if total else "")
            ax.annotate(label, (place, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
            ticks.append(y)
            names.append(outcome if outcome in (KEPT, NOT_EVALUATED) else f"dropped: {outcome}")
        y += 1.25
    ax.set_yticks(ticks, names)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if name.endswith(" rows") else "normal")
    ax.set_ylim(y - 0.6, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def draw_lengths(lengths: pd.DataFrame, tokenized: dict[str, Any]) -> Figure:
    """A row per split; the shares of prompts, of responses by role, and of both together that are at most so long."""
    splits = list(lengths["split"].unique())
    panels = {"prompt": "max_prompt_length", "response": None, "total": "max_length"}
    titles = {"prompt": "prompts", "response": "responses", "total": "sequences"}
    figure = Figure(layout="constrained", figsize=(7.2, 1.95 * len(splits) + 0.55))
    axes = figure.subplots(len(splits), len(panels), squeeze=False, sharex="col", sharey=True)
    for (row, split), (column, (panel, limit)) in product(enumerate(splits), enumerate(panels.items())):
        ax = axes[row, column]
        texts = dict(list(lengths[lengths["split"] == split].groupby("text")))
        roles = [role for role in ROLES if panel == "response" and role in texts]
        for text in roles or [panel]:
            part = texts[text]
            line = ROLES.get(text, {"color": "#222222", "linewidth": 1.4})
            ax.step([part["tokens"].iloc[0], *part["tokens"]], [0, *part["share"]], where="post", label=text, **line)
        _length_axis(ax, lengths.loc[lengths["text"] == panel, "tokens"], limit, tokenized)
        ax.set_title(f"{split}: {texts[panel]['texts'].sum():,} {titles[panel]}", loc="left")
    for ax in axes[:, 0]:
        ax.set_ylabel("share at most so long")
    for ax in axes[-1]:
        ax.set_xlabel("tokens (log scale)")
    drawn = {line.get_label(): line for ax in axes[:, 1] for line in ax.lines if line.get_label() in ROLES}
    if drawn:
        figure.legend(handles=drawn.values(), loc="outside lower center", ncols=len(drawn), frameon=False, fontsize=7.5)
    return figure


def _length_axis(ax: Axes, tokens: pd.Series[int], limit: str | None, tokenized: dict[str, Any]) -> None:
    most = tokens.max()
    if limit:
        most = max(most, tokenized[limit])
        ax.axvline(tokenized[limit], color=figures.GUIDE, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
        ax.annotate(f"{limit} {tokenized[limit]:,}", (tokenized[limit], 0.04), (-3, 0), textcoords="offset points",
                    rotation=90, fontsize=6.5, ha="right", va="bottom", color="#555555")  # fmt: skip
    ax.set(xscale="log", xlim=(max(1, tokens.min()) / 1.15, 1.15 * most), ylim=(0, 1.03))
    ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ax.grid(axis="both")
