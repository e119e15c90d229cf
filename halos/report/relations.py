"""What stands in relation to a win rate: a model's size, the distance from the reference, the balance of the data, the
length of responses, the cost, and what others published. Tidy frames, as those of `estimates`."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from halos.grid import Cell
from halos.report import estimates as E
from halos.report import published as P
from halos.report import statistics
from halos.report.results import SCORE, STRICT, WIN, Results

SIZES = ["judge", "dataset", "family", "model", "parameters", "method", "mean", "low", "high", "seeds", "prompts"]
FRONTIER = ["judge", *E.ROW, "loss", "beta", "measure", "reward", "low", "high", "kl", "kl_min", "kl_max", "seeds"]
IMBALANCE = ["judge", *E.ROW, "kept", "share", "mean", "low", "high", "seeds", "prompts"]
LENGTHS = ["judge", *E.ROW, "length", "baseline_length", "cut", "ties", "failures", "not_judged", "win_rate", "low",
           "high", "controlled", "controlled_low", "controlled_high", "seeds"]  # fmt: skip
MANIFEST = ["parameters", "seconds", "gpu_hours", "peak_memory_gb", "tokens", "processes"]
LOGGED = {"tokens_per_second": "tokens_per_second", "eval_loss": "loss", "eval_reward_accuracy": "rewards/accuracy"}
COSTS = [*E.ROW, "cells", *MANIFEST, *LOGGED]
PUBLISHED = ["judge", *E.ROW, "ours", "low", "high", "published", "published_low", "published_high", "difference",
             "difference_low", "difference_high", "seeds", "prompts", "published_n", "published_dataset",
             "run"]  # fmt: skip


def sizes(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """Win rate of each method by the parameters of its model, over all seeds, with interval; models of one family
    together, the smallest first. Models whose size nobody knows are left out; one size alone is nothing to compare."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == E.ALL)]
    of_model = {model: (results.family(model), results.parameters(model)) for model in results.models}
    frame = wins.assign(
        family=[of_model[model][0] for model in wins["model"]],
        parameters=[of_model[model][1] for model in wins["model"]],
    ).dropna(subset="parameters")
    if frame["parameters"].nunique() < 2:
        frame = frame[:0]
    order = [results.methods.index(method) for method in frame["method"]]
    families = list(dict.fromkeys(frame["family"]))
    frame = frame.assign(at=[families.index(family) for family in frame["family"]], order=order)
    frame = frame.sort_values(["judge", "dataset", "at", "order", "parameters"], kind="stable")
    return frame[SIZES].reset_index(drop=True)


def frontier(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """What each method gained, and how far it went from its reference for it, over all seeds: the judge's score (or win
    rate, where it gives none; or the reward margin of the last evaluation, without a judge), and the log-ratio at the
    last evaluation, nats per response of the data. Losses without a reference are left out."""
    log = results.training
    if "kl" not in log:
        return pd.DataFrame(columns=FRONTIER)
    # "eval" comes before "train": what the fixed subset says, where it was asked
    ends = (
        log[log["kl"].notna()].groupby([*E.ROW, "seed", "split"])["kl"].last().groupby(level=[*E.ROW, "seed"]).first()
    )
    found = []
    for judge, (dataset, model, method) in product(results.judges or [""], E.rows(results)):
        cells = _cells(results, (dataset, model, method))
        distances = [ends[key] for cell in cells if (key := tuple(cell.ids.values())) in ends.index]
        reward = _reward(results, judge, cells, measures, log)
        if not distances or reward is None:
            continue
        settings = results.settings(cells[0])
        ids = (judge, dataset, model, method, results.losses(cells[0])[-1], settings.get("beta", np.nan))
        found.append((*ids, *reward, np.mean(distances), min(distances), max(distances), len(distances)))
    return pd.DataFrame(found, columns=FRONTIER)


def _reward(
    results: Results, judge: str, cells: list[Cell], measures: pd.DataFrame, log: pd.DataFrame
) -> tuple[str, float, float, float] | None:
    first = cells[0]
    if judge:
        mine = measures[(measures["judge"] == judge) & (measures["seed"] == E.ALL)]
        mine = mine[(mine[E.ROW] == [first.dataset, first.model, first.method]).all(axis=1)].set_index("measure")
        name = next((measure for measure in (SCORE, WIN) if measure in mine.index), None)
        return None if name is None else (name, *mine.loc[name, ["mean", "low", "high"]])
    logged = log[(log[E.ROW] == [first.dataset, first.model, first.method]).all(axis=1)]
    if "rewards/margin" not in logged or logged["rewards/margin"].isna().all():
        return None
    margins = logged.dropna(subset="rewards/margin").groupby("seed")["rewards/margin"].last()
    return "margin", float(margins.mean()), float(margins.min()), float(margins.max())


def imbalance(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """Win rate by the share of desirable, or of undesirable, responses that a method's last stage kept. Where the grid
    has the same losses on all of the data, that is the end of both curves."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == E.ALL)]
    shares: dict[str, tuple[tuple[str, ...], list[float]]] = {}
    for method in results.methods:
        cell = Cell(results.datasets[0], results.models[0], method, results.seeds[0])
        settings = results.settings(cell)
        kept = [float(settings.get(f"keep_{label}", np.nan)) for label in ("desirable", "undesirable")]
        shares[method] = (tuple(results.losses(cell)), kept)
    chains = {losses for losses, kept in shares.values() if min(kept) < 1}
    found = []
    for label, which in (("desirable", 0), ("undesirable", 1)):
        for row in wins.to_dict("records"):
            losses, kept = shares[row["method"]]
            if losses in chains and (kept[which] < 1 or kept == [1, 1]):
                found.append({**row, "kept": label, "share": kept[which]})
    frame = pd.DataFrame(found, columns=IMBALANCE)
    return frame.sort_values(["judge", "dataset", "model", "kept", "share"], kind="stable").reset_index(drop=True)


def lengths(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """What may flatter or spoil a win rate: mean response lengths (characters), responses cut off, ties, failures, and
    the win rate at equal lengths where the judge gives one."""
    wins = measures[(measures["measure"] == WIN) & (measures["seed"] == E.ALL)]
    rate = {tuple(row[:4]): tuple(row[4:]) for row in wins[["judge", *E.ROW, "mean", "low", "high"]].to_numpy()}
    found = []
    for judge, ids in product(results.judges, E.rows(results)):
        cells = _cells(results, ids)
        js = [results.judged[cell, judge] for cell in cells]
        length = [np.mean([_of(j, "mean_length", side) for j in js]) for side in ("candidate", "baseline")]
        counts = [sum(j.get(name) or 0 for j in js) for name in ("ties", "failures", "not_judged")]
        controlled = [_number(j.get("length_controlled_win_rate")) for j in js]
        errors = [_number(j.get("length_controlled_standard_error")) for j in js]
        e = statistics.over_seeds(controlled, errors)
        cut = np.mean([results.cut(cell, judge) for cell in cells])
        of_win = rate.get((judge, *ids), (np.nan,) * 3)
        found.append((judge, *ids, *length, cut, *counts, *of_win, e.mean, e.low, e.high, len(cells)))
    return pd.DataFrame(found, columns=LENGTHS)


def costs(results: Results) -> pd.DataFrame:
    """What training took, by method, reward models last: means over seeds of one cell's last stage (wall time, GPU
    time, the most memory of a device, tokens), the median of tokens per second over its steps, and loss and reward
    accuracy of the last evaluation."""
    log = results.training.reindex(columns=[*results.training.columns, *set(LOGGED.values()) - set(results.training)])
    by = [*E.ROW, "seed"]
    ends = log[log["split"] == "eval"].groupby(by)[["loss", "rewards/accuracy"]].last()
    logged = ends.join(log.groupby(by)["tokens_per_second"].median(), how="outer")
    found = []
    for ids in dict.fromkeys((cell.dataset, cell.model, cell.method) for cell in results.trained):
        cells = [cell for cell in results.trained if (cell.dataset, cell.model, cell.method) == ids]
        manifests = [results.manifest(cell) for cell in cells]
        row: dict[str, Any] = {**dict(zip(E.ROW, ids, strict=True)), "cells": len(cells)}
        row |= {key: np.mean([_number(m.get(key)) for m in manifests]) for key in MANIFEST}
        means = logged.loc[[tuple(cell.ids.values()) for cell in cells]].mean()
        found.append(row | {key: means[of] for key, of in LOGGED.items()})
    return pd.DataFrame(found, columns=COSTS)


def published(results: Results) -> pd.DataFrame:
    """Our win rate beside the one that is published of the same model, losses and settings, both with a tie for
    neither, and their difference; ours with its 95 % interval, theirs with the 90 % one that was printed."""
    if results.published is None:
        return pd.DataFrame(columns=PUBLISHED)
    runs = P.load(results.published)
    found = []
    for judge, ids in product(results.judges, E.rows(results)):
        cell = _cells(results, ids)[0]
        run = P.match(runs, results.hub(ids[1]), results.losses(cell), results.settings(cell))
        values = results.values(judge, *ids, STRICT)
        if run is None or values.empty:
            continue
        ours = statistics.estimate(values, bounded=True)
        theirs = statistics.Estimate(run["win_rate"], *statistics.wilson(run["wins"], run["n"]), 1, run["n"])
        of_run = (run["win_rate"], run["low"], run["high"], *statistics.gap(ours, theirs))
        counts = (ours.seeds, ours.prompts, run["n"], run["dataset"], run["run"])
        found.append((judge, *ids, ours.mean, ours.low, ours.high, *of_run, *counts))
    return pd.DataFrame(found, columns=PUBLISHED)


def _cells(results: Results, ids: tuple[str, str, str]) -> list[Cell]:
    return [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]


def _of(content: dict[str, Any], *keys: str) -> float:
    """A number deep in a JSON object; NaN where it is not there."""
    found: Any = content
    for key in keys:
        found = (found or {}).get(key)
    return _number(found)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
