"""One split of a sequence store, as a data report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from halos.tokens.report import SplitTokens, TokensReport
from halos.tokens.store import SPLITS, Store

ROLES: dict[str, dict[str, Any]] = {
    "target": {"color": "#222222", "linewidth": 2.6},
    "desirable": {"color": "#0072b2", "linewidth": 1.4},
    "undesirable": {"color": "#d55e00", "linewidth": 1.4},
    "chosen": {"color": "#56b4e9", "linewidth": 1.2, "linestyle": (0, (3, 2))},
    "rejected": {"color": "#e69f00", "linewidth": 1.2, "linestyle": (0, (3, 2))},
}
"""The roles of a response for a loss, and their lines: colours of Okabe & Ito, thinner and dashed where it may lie on
another line, as the winners of pairs often are the targets and the desirable responses."""


@dataclass(frozen=True)
class Split:
    """The sequences of one split.

    Attributes:
        name: train or validation.
        store: the sequence store.
        rows: (N,) the split's real sequences.
        roles: by role, the sequences that have it: once for each pair, so perhaps several times.
        views: rows of each view.
        tokens: counts of the split when it was tokenized.
        max_length: tokens of a sequence at most.
        end: id of the end-of-turn token, which ends every response that is whole.
    """

    name: str
    store: Store
    rows: np.ndarray
    roles: dict[str, np.ndarray]
    views: dict[str, int]
    tokens: SplitTokens
    max_length: int
    end: int

    @cached_property
    def prompts(self) -> np.ndarray:
        """(P,) one sequence of each prompt."""
        first = np.unique(self.store.prompt_of(self.rows), return_index=True)[1]
        return np.asarray(self.rows[first])

    @cached_property
    def truncated(self) -> np.ndarray:
        """(T,) the sequences whose response was cut at the limit."""
        return np.asarray(self.rows[self.store.full_lengths(self.rows) > self.store.lengths[self.rows, 1]])

    def whole(self, row: int) -> bool:
        """Whether a response has its end-of-turn token."""
        ids = self.store.sequence(int(row))[1]
        return bool(len(ids) and ids[-1] == self.end)

    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each prompt, of each response, of both together, and of the responses of each role."""
        stored = self.store.lengths
        prompt, response, total = stored[self.prompts, 0], stored[self.rows, 1], stored[self.rows].sum(axis=1)
        by_role = {role: stored[rows, 1] for role, rows in self.roles.items() if len(rows)}
        return {"prompt": prompt, "response": response, "total": total, **by_role}


def open_splits(store: Store, tokens: TokensReport, end: int) -> dict[str, Split]:
    """The splits of a store, where they follow one another."""
    splits, first = {}, 0
    for name in SPLITS:
        of_split: SplitTokens = getattr(tokens, name)
        rows, views = np.arange(first, first + of_split.sequences), tokens.views[name]
        roles = _roles(store, name, views)
        splits[name] = Split(name, store, rows, roles, views, of_split, tokens.max_length, end)
        first += of_split.sequences
    return splits


def _roles(store: Store, split: str, counts: dict[str, int]) -> dict[str, np.ndarray]:
    none = np.array([], dtype=np.int32)
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
