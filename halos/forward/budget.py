"""Division of a global batch into microbatches under a budget of tokens: `cut` for padded, `pack` for packed rows."""

from __future__ import annotations

from heapq import heapify, heapreplace
from itertools import pairwise

import numpy as np

OVERHEAD = 128
"""The cost of one more microbatch, in tokens. It keeps `cut` from trading a little padding for many small passes."""


def cut(lengths: np.ndarray, budget: int, world: int = 1) -> list[np.ndarray]:
    """Divide examples into microbatches of at most `budget` padded tokens, with similar lengths together.

    Args:
        lengths: (n,) tokens of each example.
        budget: tokens of a microbatch, padding included; a longer example gets a microbatch of its own.
        world: number of processes. The number of microbatches is a multiple of it, and the largest come first, so that
            processes that take every world-th microbatch have about equal work.

    Returns:
        For each microbatch, indices into `lengths`; some are empty if there are fewer examples than processes.
    """
    order = np.argsort(-lengths, kind="stable")
    parts: list[np.ndarray] = []
    for start in range(0, len(order), 512):
        window = order[start : start + 512]
        bounds = _best_cuts(lengths[window], budget)
        parts += [window[i:j] for i, j in pairwise(bounds)]
    while len(parts) % world:
        widest = max(range(len(parts)), key=lambda k: len(parts[k]))
        half = len(parts[widest]) // 2
        if half:
            parts[widest : widest + 1] = [parts[widest][:half], parts[widest][half:]]
        else:
            parts.append(order[:0])
    return sorted(parts, key=lambda part: -len(part) * int(lengths[part].max(initial=0)))


def _best_cuts(lengths: np.ndarray, budget: int) -> list[int]:
    """The bounds of consecutive parts of descending `lengths` with the least padded tokens and overhead in total.

    Dynamic programming: cheapest[j] is the least cost of the first j examples, and begins[j] the start of their last
    part.
    """
    n = len(lengths)
    cheapest, begins = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for j in range(1, n + 1):
        first = np.arange(j)
        padded = lengths[first] * (j - first)
        cost = np.where((padded <= budget) | (first == j - 1), cheapest[:j] + padded + OVERHEAD, np.inf)
        begins[j] = np.argmin(cost)
        cheapest[j] = cost[begins[j]]
    bounds = [n]
    while bounds[-1]:
        bounds.append(int(begins[bounds[-1]]))
    return bounds[::-1]


def pack(prompts: np.ndarray, lengths: np.ndarray, budget: int, world: int = 1) -> list[np.ndarray]:
    """Distribute examples over microbatches of at most `budget` tokens, in which each distinct prompt counts once.

    Examples with the same prompt stay together unless they exceed the budget. The largest groups go first, each to the
    microbatch with the fewest tokens, so that all microbatches are about equally full.

    Args:
        prompts: (n,) key of each example's prompt.
        lengths: (n, 2) tokens of each example's prompt, and of all that follows it.
        budget: tokens of a microbatch; a longer example gets a microbatch of its own.
        world: number of processes; the number of microbatches is a multiple of it.

    Returns:
        For each microbatch, the fullest first, indices into `prompts`; some are empty if there are fewer examples than
        processes.
    """
    units = _units(prompts, lengths, budget)
    sizes = np.array([_size(unit, prompts, lengths) for unit in units])
    number = -(-min(len(units), -(-int(sizes.sum()) // budget)) // world) * world
    while (parts := _distribute(sizes, number, budget)) is None:
        number += world
    microbatches = [np.concatenate([units[k] for k in part]) if part else np.arange(0) for part in parts]
    while not all(map(len, microbatches)):  # a process would have none: it gets half of those of the one with most
        widest = max(range(len(microbatches)), key=lambda k: len(microbatches[k]))
        if len(microbatches[widest]) < 2:
            break
        half = len(microbatches[widest]) // 2
        empty = next(k for k, part in enumerate(microbatches) if not len(part))
        microbatches[widest], microbatches[empty] = microbatches[widest][:half], microbatches[widest][half:]
    return sorted(microbatches, key=lambda part: -_size(part, prompts, lengths))


def _size(part: np.ndarray, prompts: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of the examples `part`, with each distinct prompt counted once."""
    _, firsts = np.unique(prompts[part], return_index=True)
    return int(lengths[part[firsts], 0].sum() + lengths[part, 1].sum())


def _units(prompts: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """The examples of each prompt, split where they would exceed the budget."""
    order = np.argsort(prompts, kind="stable")
    units = []
    for group in np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1):
        first, size = 0, int(lengths[group[0], 0])
        for k, tokens in enumerate(lengths[group, 1].tolist()):
            if k > first and size + tokens > budget:
                units.append(group[first:k])
                first, size = k, int(lengths[group[0], 0])
            size += tokens
        units.append(group[first:])
    return units


def _distribute(sizes: np.ndarray, number: int, budget: int) -> list[list[int]] | None:
    """The units of each of `number` microbatches: largest unit first, each to the emptiest microbatch (the greedy rule
    of longest processing time). None if a unit does not fit; a unit over the budget fits an empty microbatch only."""
    heap = [(0, k) for k in range(number)]
    heapify(heap)
    parts: list[list[int]] = [[] for _ in range(number)]
    for unit in np.argsort(-sizes, kind="stable").tolist():
        filled, k = heap[0]
        if filled and filled + sizes[unit] > budget:
            return None
        parts[k].append(unit)
        heapreplace(heap, (filled + int(sizes[unit]), k))
    return parts
