"""Which examples of a view a training uses: shares of the labels, few pairs of a prompt, labels from scores.

It picks rows of the store's index tables, or relabels them, and leaves the store as it is: stages that select
differently share the data, the store and the reference log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from halos.errors import HalosError

if TYPE_CHECKING:
    from halos.tokens.store import Store


def drawn(groups: np.ndarray, numbers: int | np.ndarray, rng: np.random.Generator) -> pa.Array:
    """(N,) bool: a random `numbers` (one, or one a row) of the rows of each group, or all where there are fewer. A
    larger number adds to what a smaller one draws."""
    order = np.lexsort((rng.random(len(groups)), groups))
    ordered = groups[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the group
    return pa.array(rank < numbers)


def shares(groups: np.ndarray, fractions: Mapping[int, float], rng: np.random.Generator) -> pa.Array:
    """(N,) bool: of each group a random share, round(fraction * n) of n rows and at least one; all of other groups.

    The share of one group does not move what is drawn of another.
    """
    numbers = np.full(len(groups), len(groups))
    for group, fraction in fractions.items():
        rows = groups == group
        numbers[rows] = max(1, round(fraction * int(rows.sum())))
    return drawn(groups, numbers, rng)


@dataclass(frozen=True)
class Selection:
    """What a training uses of a view. `label_by` holds for both splits, the others for the train split alone.

    Attributes:
        keep_desirable, keep_undesirable: share of the desirable and of the undesirable examples that is kept,
            above 0 and at most 1: round(fraction * n) of n, and at least one.
        pairs_per_prompt: keep at most so many pairs of a prompt, at least 1.
        one_per_prompt: keep one response of each prompt.
        label_by: what the labels are made of, instead of the records' own; responses without a score are left out.
            "best_worst": the best-scored response of a prompt is desirable, the worst undesirable, the others are left
            out, and so are prompts whose scores are all equal (of equal responses the first counts as the worse one).
            A number: responses that score more are desirable, the others undesirable. "mean" and "median": the same
            with the mean or median of all scores of the train split.
    """

    keep_desirable: float = 1.0
    keep_undesirable: float = 1.0
    pairs_per_prompt: int | None = None
    one_per_prompt: bool = False
    label_by: Literal["best_worst", "mean", "median"] | float | None = None


def select(store: Store, split: str, view: str, selection: Selection, seed: int) -> pa.Table:
    """The rows of a view that a training uses, in the order of the store.

    Unpaired responses are labelled first, then one of each prompt is drawn, then the fractions of either label. Draws
    are nested: with equal seeds and all else equal, a smaller fraction (or number of pairs) keeps a part of what a
    larger one keeps, and the fraction of one label does not move what is kept of the other.

    Args:
        store: the sequence store.
        split: train or test.
        view: sft, paired, grouped, unpaired or scored; with `label_by` the last two are the same.
        selection: what is kept; settings that mean nothing to the view have no effect.
        seed: of the draws.

    Raises:
        HalosError: the store has nothing for the view, or `label_by` leaves nothing of it.
    """
    unpaired = view in ("unpaired", "scored")
    if unpaired and selection.label_by is not None:
        table = _labelled(store, split, selection.label_by)
    else:
        table = store.view(split, view)
    if split != "train":
        return table
    rng = np.random.default_rng([seed, 0, 1])  # [seed, epoch] shuffles
    if view == "paired" and selection.pairs_per_prompt is not None:
        prompts = store.prompt_of(table["chosen"].to_numpy())
        return table.filter(drawn(prompts, selection.pairs_per_prompt, rng))
    if unpaired and selection.one_per_prompt:
        table = table.filter(drawn(store.prompt_of(table["sequence"].to_numpy()), 1, rng))
    fractions = {1: selection.keep_desirable, 0: selection.keep_undesirable}
    if unpaired and min(fractions.values()) < 1:
        labels = table["desirable"].cast(pa.int8()).fill_null(-1).to_numpy()  # scored responses may have no label
        table = table.filter(shares(labels, fractions, rng))
    return table


def _labelled(store: Store, split: str, label_by: str | float) -> pa.Table:
    """The scored view with labels made of its scores, less the rows that get none."""
    table = store.view(split, "scored")
    scores = table["score"].to_numpy()
    if label_by == "best_worst":
        labels = _best_and_worst(store.prompt_of(table["sequence"].to_numpy()), scores)
    else:
        labels = pa.array(scores > (_threshold(store, label_by) if isinstance(label_by, str) else label_by))
    column = table.schema.get_field_index("desirable")
    table = table.set_column(column, "desirable", labels).filter(labels.is_valid())
    if not table.num_rows:
        raise HalosError(
            f"label_by {label_by} leaves nothing of the {split} split of dataset {store.meta['dataset']}, where no "
            f"prompt has responses with different scores; give it some that do, or choose another label_by"
        )
    return table


def _best_and_worst(prompts: np.ndarray, scores: np.ndarray) -> pa.Array:
    """(N,) bool: True for the best of a prompt, False for the worst, null for all others."""
    order = np.lexsort((scores, prompts))  # stable
    _, first, count = np.unique(prompts[order], return_index=True, return_counts=True)
    worst, best = order[first], order[first + count - 1]
    differ = scores[worst] < scores[best]
    desirable, none = np.zeros(len(scores), dtype=bool), np.ones(len(scores), dtype=bool)
    desirable[best] = True
    none[best[differ]] = none[worst[differ]] = False
    return pa.array(desirable, mask=none)


def _threshold(store: Store, statistic: str) -> float:
    scores = store.view("train", "scored")["score"].to_numpy()
    return float(np.mean(scores) if statistic == "mean" else np.median(scores))
