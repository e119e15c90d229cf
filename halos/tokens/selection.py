"""Selection of the examples that a training uses: fractions of the labels, few pairs of a prompt, labels from scores.

It picks rows of the store's index tables, or relabels them, and leaves the store as it is: stages that select
differently share the data, the store and the reference log-probabilities.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from halos.errors import HalosError
from halos.seeds import derive
from halos.tokens.store import Store
from halos.views import VIEWS, View


def draw(groups: np.ndarray, numbers: int | np.ndarray, rng: np.random.Generator) -> pa.Array:
    """(N,) bool mask of a random choice of `numbers` rows of each group, or of all where there are fewer.

    A larger number adds to what a smaller one draws.

    Args:
        groups: (N,) the group of each row.
        numbers: rows to draw from each group: one number, or (N,) the number for each row's group.
        rng: source of the draws.
    """
    order = np.lexsort((rng.random(len(groups)), groups))
    ordered = groups[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the group
    return pa.array(rank < numbers)


def draw_fractions(groups: np.ndarray, fractions: Mapping[int, float], rng: np.random.Generator) -> pa.Array:
    """(N,) bool mask of a random fraction of each group: round(fraction * n) of its n rows, at least one.

    Groups without a fraction are kept whole. The fraction of one group does not change what is drawn from another.
    """
    numbers = np.full(len(groups), len(groups))
    for group, fraction in fractions.items():
        rows = groups == group
        numbers[rows] = max(1, round(fraction * int(rows.sum())))
    return draw(groups, numbers, rng)


def keep_labels(
    table: pa.Table, view: View, keep_desirable: float, keep_undesirable: float, rng: np.random.Generator
) -> pa.Table:
    """The rows of an index table with labels, less a random part of either label; rows without a label all stay."""
    labels = table[view.labels["desirable"]].cast(pa.int8()).fill_null(-1).to_numpy()
    return table.filter(draw_fractions(labels, {1: keep_desirable, 0: keep_undesirable}, rng))


@dataclass(frozen=True)
class Selection:
    """A training's choice among the examples of a view. `label_by` applies to both splits, the rest to train alone.

    Attributes:
        keep_desirable: fraction of the desirable examples that is kept, above 0 and at most 1: round(fraction * n) of
            n, and at least one.
        keep_undesirable: fraction of the undesirable examples that is kept, likewise.
        keep_pairs: fraction of the pairs that is kept, likewise.
        pairs_per_prompt: the most pairs of a prompt that are kept, at least 1; None for all.
        one_per_prompt: keep one response of each prompt.
        label_by: how scores become labels, in place of the records' labels; responses without a score are left out.
            "best_worst": the best-scored response of a prompt is desirable, the worst undesirable, the others are left
            out, and so are prompts whose scores are all equal (among equal responses the first counts as the worse
            one). A number: responses with a higher score are desirable, the others undesirable. "mean" and "median":
            likewise, with the mean or median of all scores of the train split as the number.
        label_noise: fraction of the examples that are kept, at least 0 and below 1, whose label is turned round:
            round(fraction * n) pairs are swapped, or desirable responses are undesirable and the other way about.
        balance_labels: weigh the responses, beside the data's weights, so that the desirable and the undesirable ones
            weigh the same in total.
    """

    keep_desirable: float = 1.0
    keep_undesirable: float = 1.0
    keep_pairs: float = 1.0
    pairs_per_prompt: int | None = None
    one_per_prompt: bool = False
    label_by: Literal["best_worst", "mean", "median"] | float | None = None
    label_noise: float = 0.0
    balance_labels: bool = False


def select(store: Store, split: str, name: str, selection: Selection, seed: int) -> pa.Table:
    """The rows of a view that a training uses, in the order of the store.

    Responses are labelled first, then one of each prompt (or some of its pairs) is drawn, then the fractions of either
    label (or of the pairs); of what is kept some labels are turned round, and weights balanced. Draws are nested: with
    equal seeds and all else equal, a smaller fraction (or number of pairs) keeps, or turns, a part of what a larger one
    does, and the fraction of one label does not change what is kept of the other.

    Args:
        store: the sequence store.
        split: train or validation.
        name: the view's name; with `label_by`, unpaired and scored are the same.
        selection: what to keep; settings that mean nothing to the view have no effect.
        seed: the cell's seed.

    Raises:
        HalosError: the store has no rows for the view, or `label_by` leaves none.
    """
    view = VIEWS[name]
    if view.labelled and selection.label_by is not None:
        table = _label_by_scores(store, split, view, selection.label_by)
    else:
        table = store.view(split, name)
    if split != "train":
        return table
    rng = np.random.default_rng(derive(seed, "selection"))
    if view.paired and selection.pairs_per_prompt is not None:
        prompts = store.prompt_of(table[view.columns["chosen"]].to_numpy())
        table = table.filter(draw(prompts, selection.pairs_per_prompt, rng))
    if view.labelled and selection.one_per_prompt:
        table = table.filter(draw(store.prompt_of(table[view.columns["response"]].to_numpy()), 1, rng))
    if view.labelled and min(selection.keep_desirable, selection.keep_undesirable) < 1:
        table = keep_labels(table, view, selection.keep_desirable, selection.keep_undesirable, rng)
    if view.paired and selection.keep_pairs < 1:
        everything = np.zeros(table.num_rows, dtype=int)
        table = table.filter(draw_fractions(everything, {0: selection.keep_pairs}, rng))
    if (view.paired or view.labelled) and selection.label_noise:
        table = _turn(table, view, selection.label_noise, np.random.default_rng(derive(seed, "label_noise")))
    if view.labelled and selection.balance_labels:
        table = _balance(table, view)
    return table


def _balance(table: pa.Table, view: View) -> pa.Table:
    """The table with weights by which both labels weigh the same in total; as it is where one is missing."""
    labels = table[view.labels["desirable"]].to_numpy()
    given = view.weight in table.column_names
    weights = table[view.weight].fill_null(1.0).to_numpy() if given else np.ones(len(labels))
    totals = {label: float(weights[labels == label].sum()) for label in (True, False)}
    if not all(totals.values()):
        return table
    weights = weights * np.where(labels, 1 / totals[True], 1 / totals[False]) * sum(totals.values()) / 2
    at = table.column_names.index(view.weight) if given else table.num_columns
    return (table.set_column if given else table.add_column)(at, view.weight, pa.array(weights))


def _turn(table: pa.Table, view: View, fraction: float, rng: np.random.Generator) -> pa.Table:
    """The table with a random fraction of its pairs swapped, or of its labels turned round, in its order."""
    turned = draw(np.zeros(table.num_rows, dtype=int), round(fraction * table.num_rows), rng)
    if view.paired:
        a, b = view.columns["chosen"], view.columns["rejected"]
        new = {a: pc.if_else(turned, table[b], table[a]), b: pc.if_else(turned, table[a], table[b])}
    else:
        label = view.labels["desirable"]
        new = {label: pc.xor(table[label], turned)}
    for name, column in new.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _label_by_scores(store: Store, split: str, view: View, label_by: str | float) -> pa.Table:
    """The rows of a view with a score, labelled by their scores, less the rows that get no label."""
    table = _scored(store, split, view)
    scores = table[view.labels["scores"]].to_numpy()
    if label_by == "best_worst":
        labels = _best_and_worst(store.prompt_of(table[view.columns["response"]].to_numpy()), scores)
    else:
        labels = pa.array(scores > (_threshold(store, view, label_by) if isinstance(label_by, str) else label_by))
    name = view.labels["desirable"]
    table = table.set_column(table.schema.get_field_index(name), name, labels).filter(labels.is_valid())
    if label_by == "best_worst":
        equal = _equal_to_the_opposite(store, table[view.columns["response"]].to_numpy(), table[name].to_numpy())
        if equal.any() and os.environ.get("RANK", "0") == "0":
            why = "the best and the worst of a prompt are the same tokens"
            print(f"{split}: {equal.sum()} responses are left out: {why}", file=sys.stderr)
        table = table.filter(pa.array(~equal))
    if not table.num_rows:
        raise HalosError(
            f"label_by {label_by} leaves nothing of the {split} split of dataset {store.meta.dataset}, where no "
            f"prompt has responses with different scores; give it some that do, or choose another label_by"
        )
    return table


def _equal_to_the_opposite(store: Store, rows: np.ndarray, desirable: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a response has the same tokens as one to the same prompt with the opposite label, as they are
    or as max_length cuts them.

    Args:
        rows: (N,) sequences of the responses.
        desirable: (N,) bool, their labels.
    """
    alike = np.stack([store.prompt_of(rows), store.lengths[rows, 1]], axis=1)
    _, group, sizes = np.unique(alike, axis=0, return_inverse=True, return_counts=True)
    labels: dict[tuple[int, bytes], set[bool]] = {}
    keys = {i: (int(group[i]), store.sequence(rows[i])[1].tobytes()) for i in np.flatnonzero(sizes[group] > 1)}
    for i, key in keys.items():
        labels.setdefault(key, set()).add(bool(desirable[i]))
    result = np.zeros(len(rows), dtype=bool)
    result[[i for i, key in keys.items() if len(labels[key]) > 1]] = True
    return result


def _scored(store: Store, split: str, view: View) -> pa.Table:
    return store.view(split, view.by_scores or view.name)


def _best_and_worst(prompts: np.ndarray, scores: np.ndarray) -> pa.Array:
    """(N,) bool: True for the best response of a prompt, False for the worst, null for all others."""
    order = np.lexsort((scores, prompts))  # stable
    _, first, count = np.unique(prompts[order], return_index=True, return_counts=True)
    worst, best = order[first], order[first + count - 1]
    differ = scores[worst] < scores[best]
    desirable, null = np.zeros(len(scores), dtype=bool), np.ones(len(scores), dtype=bool)
    desirable[best] = True
    null[best[differ]] = null[worst[differ]] = False
    return pa.array(desirable, mask=null)


def _threshold(store: Store, view: View, statistic: str) -> float:
    """The mean or median of all scores of the train split."""
    scores = _scored(store, "train", view)[view.labels["scores"]].to_numpy()
    return float(np.mean(scores) if statistic == "mean" else np.median(scores))
