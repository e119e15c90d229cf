"""Global batches, and how they are cut into microbatches.

A global batch is defined by (seed, epoch, step) alone. How it is cut, by a budget of tokens, sorted by length, over
processes, is a matter of memory and speed and does not change its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from halos.forward import layout as layouts
from halos.forward.budget import cut, pack
from halos.forward.layout import Text
from halos.forward.microbatch import Microbatch, microbatch, texts_of
from halos.losses.base import Loss
from halos.reference.cache import Reference
from halos.seeds import derive
from halos.tokens.store import Store
from halos.views import LABELS, View


@dataclass(frozen=True)
class LocalBatch:
    """The microbatches of a global batch that one process runs; every process has equally many.

    Attributes:
        parts: the microbatches that the loss is computed from.
        before: the microbatches of an earlier pass for the loss's statistics. Empty where the one microbatch of `parts`
            holds everything: then the statistics are known before the loss is computed.
        count: what the sum of the weighted losses of the whole global batch is divided by: its examples' weights, 1
            each without weights in the data; for a loss that is a mean over tokens, its response tokens, weighted.
        examples: number of examples of the whole global batch.
        metrics: name -> metrics of the global batch that are known before it is run: the sizes of its groups.
    """

    parts: list[Microbatch]
    before: list[Microbatch]
    count: float
    examples: int
    metrics: Mapping[str, float]

    def to(self, device: torch.device) -> LocalBatch:
        return replace(self, parts=[b.to(device) for b in self.parts], before=[b.to(device) for b in self.before])


class Examples:
    """The examples of a view, and the microbatches that they make.

    An example of a grouped view holds several responses, any other one; a global batch is of whole examples, and its
    microbatches are of responses.

    Args:
        store: the sequence store.
        table: the index table, or a part of it.
        view: the view that the table belongs to.
        reference: log-probabilities of the reference model, by sequence row, if the loss needs them.
        scores: (sequences,) a reward model's scores, by sequence row, in place of the data's.
        control: role -> a token between that role's prompts and responses.
        packed: whether microbatches are packed rows, with each prompt once, instead of padded ones.

    Attributes:
        rows: role -> (M,) sequence rows of the M responses.
        offsets: (N + 1,) index among the responses at which each of the N examples begins, and the end.
        weights: (M,) float64, each response's weight in the data; 1 where it has none.
        weight: (M,) float32, its weight over the number of responses of its example. The objective of a global batch
            is the mean of its losses by these weights: it depends on their ratios alone. The weight of a group is the
            mean of its responses'.
        labels: name -> (M,): `desirable` (bool; absent when some have no label), `scores` (float32, NaN for none),
            `margins` (float32, 0 for none; absent where the data has none), for a grouped view `advantages` (float32),
            and those of a plugin's view under their names (bool or float32).
    """

    def __init__(
        self,
        store: Store,
        table: pa.Table,
        view: View,
        reference: Reference | None = None,
        scores: np.ndarray | None = None,
        control: Mapping[str, int] | None = None,
        packed: bool = False,
    ) -> None:
        self.store, self.reference, self.control, self.packed = store, reference, control or {}, packed
        columns = {role: table[column] for role, column in view.columns.items()}
        labels = {name: table[column] for name, column in view.labels.items() if column in table.column_names}
        weights = table[view.weight] if view.weight in table.column_names else None
        sizes = np.ones(table.num_rows, dtype=np.int64)
        if view.grouped:
            sizes = pc.list_value_length(columns[view.roles[0]]).to_numpy().astype(np.int64)
            columns = {role: pc.list_flatten(column) for role, column in columns.items()}
            labels = {name: pc.list_flatten(column) for name, column in labels.items()}
            weights = None if weights is None else pc.list_flatten(weights)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.rows = {role: column.to_numpy() for role, column in columns.items()}
        self.weights = np.ones(sizes.sum()) if weights is None else weights.fill_null(1.0).to_numpy()
        self.weight = (self.weights / np.repeat(sizes, sizes)).astype(np.float32)
        self._of_examples = np.add.reduceat(self.weights, self.offsets[:-1]) / sizes
        self.labels: dict[str, np.ndarray] = {}
        if "scores" in labels:
            of_data = labels["scores"].to_numpy()
            self.labels["scores"] = (of_data if scores is None else scores[self.rows["response"]]).astype(np.float32)
        if "desirable" in labels and not labels["desirable"].null_count:  # a loss of scores reads unlabelled rows
            self.labels["desirable"] = labels["desirable"].to_numpy()
        if "margins" in labels:
            self.labels["margins"] = labels["margins"].fill_null(0.0).to_numpy().astype(np.float32)
        for name in labels.keys() - LABELS.keys():
            values = labels[name].to_numpy()
            self.labels[name] = values if values.dtype == bool else values.astype(np.float32)
        if view.grouped and "scores" in self.labels:
            self.labels["advantages"] = advantages(self.labels["scores"], self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> dict[str, int]:
        """Numbers of examples and responses, and of desirable and undesirable ones where they have labels."""
        counts = {"examples": len(self), "responses": len(self.weight)}
        if "desirable" in self.labels:
            desirable = int(self.labels["desirable"].sum())
            counts |= {"desirable": desirable, "undesirable": len(self) - desirable}
        return counts

    def responses(self, indices: np.ndarray) -> np.ndarray:
        """(n,) the responses of some examples, as indices into `rows` and `labels`."""
        return np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices])

    def total_weight(self, indices: np.ndarray) -> float:
        """Sum of the weights of some examples."""
        return float(self._of_examples[indices].sum())

    def response_tokens(self, indices: np.ndarray, roles: Sequence[str]) -> float:
        """Number of response tokens of some examples, over all these roles, each counted by its response's weight."""
        responses = self.responses(indices)
        tokens = sum(self.store.lengths[self.rows[role][responses], 1] for role in roles)
        return float((self.weights[responses] * tokens).sum())

    def lengths(self, responses: np.ndarray, roles: Sequence[str]) -> np.ndarray:
        """(n, 2) tokens of each response's prompt, and of all that follows it, over all these roles."""
        rows = [self.rows[role][responses] for role in roles]
        tails = [self.store.lengths[r, 1] + (role in self.control) for r, role in zip(rows, roles, strict=True)]
        return np.stack([self.store.lengths[rows[0], 0], np.sum(tails, axis=0)], axis=1)

    def local_batch(self, indices: np.ndarray, loss: Loss, budget: int, rank: int = 0, world: int = 1) -> LocalBatch:
        """The microbatches of one process, for a loss and the passes that its traits ask for.

        Args:
            indices: the examples of the global batch.
            loss: its view, `prepass` and `per_token` are read.
            budget: tokens of one microbatch.
            rank: this process.
            world: number of processes.
        """
        roles = loss.view.roles
        others = tuple(role for role in loss.prepass if role not in roles)
        parts = list(self.microbatches(indices, roles, budget, rank, world, following=others))
        at_once = len(parts) == 1 and (not others or parts[0].following is not None)
        apart = loss.prepass and not at_once
        before = list(self.microbatches(indices, loss.prepass, budget, rank, world)) if apart else []
        count = self.response_tokens(indices, roles) if loss.per_token else self.total_weight(indices)
        return LocalBatch(parts, before, count, len(indices), self._sizes(indices) if loss.view.grouped else {})

    def _sizes(self, indices: np.ndarray) -> dict[str, float]:
        """Mean and extremes of the numbers of responses of some examples."""
        sizes = np.diff(self.offsets)[indices]
        return {"group/size": float(sizes.mean()), "group/size_min": int(sizes.min()),
                "group/size_max": int(sizes.max())}  # fmt: skip

    def microbatches(
        self,
        indices: np.ndarray,
        roles: tuple[str, ...],
        budget: int,
        rank: int = 0,
        world: int = 1,
        following: tuple[str, ...] = (),
    ) -> Iterator[Microbatch]:
        """One process's microbatches of a global batch of examples, equally many in every process.

        Args:
            indices: the examples of the global batch.
            roles: the roles whose sequences are run.
            budget: tokens of one microbatch.
            rank: this process.
            world: number of processes.
            following: roles with the same prompts, to run after `roles` on the same keys and values. Added only where
                each process has a single packed microbatch.
        """
        responses = self.responses(indices)
        lengths = self.lengths(responses, roles)
        if self.packed:
            parts = pack(self.store.prompt_of(self.rows[roles[0]][responses]), lengths, budget, world)
        else:
            longest = [
                self.store.lengths[self.rows[role][responses]].sum(-1) + (role in self.control) for role in roles
            ]
            parts = cut(np.max(longest, axis=0), budget // len(roles), world)
        behind = following if self.packed and len(parts) == world else ()
        for part in parts[rank::world]:
            yield self._collate(responses[part if len(part) else [0]], roles, behind, filler=not len(part))

    def _collate(
        self, responses: np.ndarray, roles: tuple[str, ...], following: tuple[str, ...], filler: bool
    ) -> Microbatch:
        rows, texts = self._texts(responses, roles)
        layout = (layouts.packed if self.packed else layouts.padded)(texts)
        batch = self._labelled(microbatch(self.store, rows, layout, self.reference), responses, roles)
        if following and layout.segments is not None:
            rows, behind = self._texts(responses, following)
            after = microbatch(self.store, rows, layouts.follow(behind, texts, layout.segments), self.reference)
            batch = replace(batch, following=self._labelled(after, responses, following))
        return batch.emptied() if filler else batch

    def _texts(self, responses: np.ndarray, roles: tuple[str, ...]) -> tuple[np.ndarray, list[Text]]:
        rows = np.concatenate([self.rows[role][responses] for role in roles])
        return rows, texts_of(
            self.store, rows, np.repeat([self.control.get(role, -1) for role in roles], len(responses))
        )

    def _labelled(self, batch: Microbatch, responses: np.ndarray, roles: tuple[str, ...]) -> Microbatch:
        labels = {name: torch.from_numpy(values[responses]) for name, values in self.labels.items()}
        return replace(batch, roles=roles, weight=torch.from_numpy(self.weight[responses]), labels=labels)


def advantages(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(M,) float32: each score less the mean of its group, over the group's standard deviation; 0 where all are equal.

    Shao et al. 2024, DeepSeekMath, section 4.1.2 (arXiv 2402.03300).

    Args:
        scores: (M,) of all groups, one after the other.
        offsets: (N + 1,) where each group begins, and the end.
    """
    sizes = np.diff(offsets)
    mean = np.add.reduceat(scores.astype(np.float64), offsets[:-1]) / sizes
    difference = scores - np.repeat(mean, sizes)
    deviation = np.sqrt(np.add.reduceat(difference**2, offsets[:-1]) / sizes)
    standardized: np.ndarray = (difference / np.maximum(np.repeat(deviation, sizes), 1e-6)).astype(np.float32)
    return standardized


class GlobalBatches:
    """The examples of each global batch: a sequence of index arrays, one for each step.

    Args:
        n: number of examples.
        batch_size: examples of a global batch; the last one of an epoch may be smaller.
        epochs: passes over the examples, the last one in part; unused when `examples` is set.
        examples: stop at the first step by which so many were seen; None to stop after `epochs`.
        seed: the cell's seed; each epoch is shuffled anew.
        inner_epochs: steps on each global batch, one after the other.
    """

    def __init__(
        self, n: int, batch_size: int, epochs: float, examples: int | None, seed: int, inner_epochs: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed, self.inner_epochs = n, batch_size, seed, inner_epochs
        self.per_epoch = -(-n // batch_size)
        passes, rest = divmod(max(1, round(epochs * n)) if examples is None else examples, n)
        self.steps = (self.per_epoch * passes + -(-rest // batch_size)) * inner_epochs
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the examples of one step; steps are counted from 0."""
        epoch, within = divmod(step // self.inner_epochs, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng(derive(self.seed, "order", epoch)).permutation(self.n))
        return self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]

    def examples_until(self, step: int) -> int:
        """Examples seen in the first `step` steps."""
        epochs, within = divmod(-(-step // self.inner_epochs), self.per_epoch)
        return epochs * self.n + min(within * self.batch_size, self.n)


class Prefetch:
    """Prepares the next step's batch in a thread, while the current one is trained on.

    Args:
        prepare: step -> its batch.
        steps: number of steps.
    """

    def __init__(self, prepare: Callable[[int], LocalBatch], steps: int) -> None:
        self._prepare, self._steps = prepare, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._waiting: dict[int, Future[LocalBatch]] = {}

    def __call__(self, step: int) -> LocalBatch:
        """The batch of a step; preparation of the next one starts."""
        current = self._waiting.pop(step, None) or self._thread.submit(self._prepare, step)
        self._waiting.clear()
        if step + 1 < self._steps:
            self._waiting[step + 1] = self._thread.submit(self._prepare, step + 1)
        return current.result()
