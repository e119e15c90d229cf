"""How the sequences of a global batch are cut into microbatches, by a budget of tokens."""

from __future__ import annotations

from heapq import heapify, heapreplace
from itertools import pairwise

import numpy as np

OVERHEAD = 128
"""What one more microbatch costs, in tokens: it keeps `cut` from cutting finer than is worth it."""


def cut(lengths: np.ndarray, budget: int, world: int = 1) -> list[np.ndarray]:
    """Cut examples into microbatches of at most `budget` padded tokens, similar lengths together, least padding.

    Args:
        lengths: (n,) tokens of each example.
        budget: tokens of a microbatch, padding counted; an example longer than it gets one of its own.
        world: the number of microbatches is made a multiple of it, the largest first, so that each process, taking
            every world-th, has about as much to do as the others.

    Returns:
        Positions into `lengths`; empty arrays where there are fewer examples than processes.
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
    """Bounds of consecutive parts of descending `lengths` with the least padded tokens and overhead in all: cheapest[j]
    is the cost of the first j, and its last part begins at begins[j]."""
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
    """Share examples out to microbatches of at most `budget` tokens, in which each prompt counts once.

    Examples with the same prompt stay together unless they are more than a budget. The longest go first, each to the
    microbatch with the fewest tokens, so that all have about as many.

    Args:
        prompts: (n,) which prompt each example has.
        lengths: (n, 2) tokens of its prompt, and of all that follows it.
        budget: tokens of a microbatch; an example longer than it gets one of its own.
        world: the number of microbatches is made a multiple of it.

    Returns:
        Positions into `prompts`, the fullest microbatch first; empty arrays where there are fewer examples than
        processes.
    """
    units = _units(prompts, lengths, budget)
    sizes = np.array([_size(unit, prompts, lengths) for unit in units])
    number = -(-min(len(units), -(-int(sizes.sum()) // budget)) // world) * world
    while (parts := _share(sizes, number, budget)) is None:
        number += world
    found = [np.concatenate([units[k] for k in part]) if part else np.arange(0) for part in parts]
    while not all(map(len, found)):  # a process without any: take from who has most
        widest = max(range(len(found)), key=lambda k: len(found[k]))
        if len(found[widest]) < 2:
            break
        half = len(found[widest]) // 2
        empty = next(k for k, part in enumerate(found) if not len(part))
        found[widest], found[empty] = found[widest][:half], found[widest][half:]
    return sorted(found, key=lambda part: -_size(part, prompts, lengths))


def _size(part: np.ndarray, prompts: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of some examples, each prompt counted once."""
    _, firsts = np.unique(prompts[part], return_index=True)
    return int(lengths[part[firsts], 0].sum() + lengths[part, 1].sum())


def _units(prompts: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """The examples of each prompt, cut where they pass the budget."""
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


def _share(sizes: np.ndarray, number: int, budget: int) -> list[list[int]] | None:
    """Units for each of `number` microbatches, largest first, always to the emptiest; None where one does not fit."""
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
