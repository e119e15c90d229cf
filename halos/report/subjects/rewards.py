"""Rewards: how reward models, and policies by their implicit rewards, rank and weigh the pairs of preference sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, product
from typing import Any

import numpy as np

from halos.evaluate.rewards.rewards import RewardedPrompt, Rewards
from halos.report import preferences, statistics
from halos.report.lazy import mpl, pd
from halos.report.measures import ROW
from halos.report.panels import draw_marker, empty, legend, panels_of, part_of, row_of_panels
from halos.report.render import NOTHING, Table, interval, number
from halos.report.results import Results
from halos.report.statistics import Estimate
from halos.report.style import looks, looks_of
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, interval_kind, records, row_names
from halos.study.cells import BASE

ABOUT = (
    "Test pairs of each preference set. Rewards are a reward model's scores, and a policy's log-ratios to its "
    "reference times the beta of its loss. Accuracy: share of pairs whose chosen response has the higher reward, a "
    "tie being half, and each prompt counting once. All right: share of prompts all of whose chosen responses are "
    "above all rejected ones. Calibration error: mean distance of sigmoid(margin) from the share of pairs that are "
    "ranked right, where rewards are on the scale of a Bradley-Terry model, and so not of a policy whose loss has "
    "no beta or no reference. Length: correlation of reward and length in characters, within prompts. Left out: "
    "records that the model cannot read whole. Brackets: 95 % intervals; of shares "
)
OF_ALL = "all"
"""In a `category` column: all categories together."""
REWARDS = ["preference_set", *ROW, "kind", "beta", "category", "accuracy", "accuracy_low", "accuracy_high", "best",
           "best_low", "best_high", "calibration_error", "length", "length_low", "length_high", "seeds", "prompts",
           "pairs", "left_out"]  # fmt: skip
CALIBRATION = ["preference_set", *ROW, "predicted", "observed", "low", "high", "pairs"]


@subject
class RewardsOfPreferences(Subject):
    table = "rewards"
    title = "Rewards on preference sets"

    def tabulates(self, grid: Outline | Results) -> bool:
        return bool(grid.preference_sets)

    def frame(self, results: Results) -> pd.DataFrame:
        """Of each reward model and trained policy on each preference set, and by category where there are several:
        accuracy over pairs (a prompt counts once, a tie half), the share of prompts all of whose pairs are right, the
        expected calibration error, and the correlation of reward and length within prompts."""
        lines = []
        for name in results.preference_sets:
            found = {ids: [results.rewards(cell, name) for cell in cells] for ids, cells in results.rewarded.items()}
            categories = dict.fromkeys(p.category for of in found.values() for rewards in of for p in rewards.prompts)
            for category in [OF_ALL, *(categories if len(categories) > 1 else ())]:
                prompts = {
                    ids: [[p for p in rewards.prompts if category in (OF_ALL, p.category)] for rewards in of_ids]
                    for ids, of_ids in found.items()
                }
                accuracy, best = (_estimates(results, prompts, share) for share in (np.mean, np.min))
                for ids in filter(accuracy.get, found):
                    beta, known = results.beta(results.rewarded[ids][0]), [*chain(*prompts[ids])]
                    points, length = _curve(found[ids], known, beta), preferences.length_correlation(known)
                    lines.append(
                        dict(zip(("preference_set", *ROW), (name, *ids), strict=True))
                        | {"kind": found[ids][0].kind, "beta": beta, "category": category}
                        | _numbers("accuracy", accuracy[ids])
                        | _numbers("best", best[ids])
                        | {"calibration_error": preferences.calibration_error(points) if points else np.nan}
                        | _numbers("length", length)
                        | {"seeds": len(found[ids]), "prompts": accuracy[ids].prompts}
                        | {"pairs": sum(len(p.pairs) for p in prompts[ids][0])}
                        | {"left_out": sum(found[ids][0].left_out.values()) if category == OF_ALL else np.nan}
                    )
        return pd.DataFrame(lines, columns=REWARDS)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        page: list[Table | str] = []
        for name, part in frame.groupby("preference_set", sort=False):
            whole = part[part["category"] == OF_ALL]
            lines = [
                _names(results, row)
                | {"Accuracy": interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])}
                | {"All right": interval(row["best"], row["best_low"], row["best_high"])}
                | {"Calibration error": number(row["calibration_error"])}
                | {"Length": interval(row["length"], row["length_low"], row["length_high"], sign=True)}
                | {"Pairs": number(row["pairs"], 0), "Left out": number(row["left_out"], 0)}
                for row in records(whole)
            ]
            caption = ABOUT + interval_kind(results)[len("95 % interval ") :] + "." if not page else ""
            page.append(Table(caption, lines, title=results.label("datasets", str(name))))
            parts = part[part["category"] != OF_ALL]
            lines = [
                _names(results, dict(zip(ROW, map(str, ids), strict=True)))
                | {row["category"]: interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])
                   for row in records(of_ids)}
                for ids, of_ids in parts.groupby(ROW, sort=False)
            ]  # fmt: skip
            if lines:
                counts = parts.drop_duplicates("category")
                known = ", ".join(f"{row['category']} {row['pairs']}" for row in records(counts))
                page.append(Table(f"Accuracy by category. Pairs: {known}.", lines))
        return page


@subject
class Calibration(Subject):
    figure = "calibration"

    def shows(self, grid: Outline) -> bool:
        return bool(grid.preference_sets)

    def frame(self, results: Results) -> pd.DataFrame:
        """Calibration curves of rewards that have the scale of a Bradley-Terry model: pairs of all seeds together."""
        lines = []
        for name, (ids, cells) in product(results.preference_sets, results.rewarded.items()):
            of_seeds = [results.rewards(cell, name) for cell in cells]
            prompts = [p for rewards in of_seeds for p in rewards.prompts]
            for point in _curve(of_seeds, prompts, results.beta(cells[0])):
                e = point.observed
                lines.append((name, *ids, point.predicted, e.mean, e.low, e.high, point.pairs))
        return pd.DataFrame(lines, columns=CALIBRATION)

    def draw(self, results: Results, frame: pd.DataFrame) -> mpl.figure.Figure:
        """A panel per preference set, dataset and model: observed against predicted shares; a line per method or reward
        model, and the diagonal, on which a calibrated one is."""
        if frame.empty:
            return empty("No reward of this grid has the scale of a Bradley-Terry model.")
        judging = [ids for ids in results.rewarded if ids[2] == BASE]  # reward models of `models:`, in every panel
        own = frame[frame["method"] != BASE]
        panels = panels_of(own if len(own) else frame, ("preference_set", "dataset", "model"))
        drawn = looks_of(results) | looks({model: "bradley_terry" for _, model, _ in judging})
        figure, axes = row_of_panels(panels, len(drawn), 2.9)
        labels: dict[str, str] = {}
        for ax, (name, dataset, model) in zip(axes, panels, strict=True):
            ax.plot([0.5, 1], [0.5, 1], color="#999999", linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
            here = part_of(frame, ("preference_set", "dataset"), (name, dataset))
            here = here[(here["model"] == model) | (here["method"] == BASE)]
            for (of_model, method), line in here.groupby(["model", "method"], sort=False):
                key = str(of_model if method == BASE else method)
                labels[key], look = _label(results, str(of_model), str(method)), drawn[key]
                ax.plot(line["predicted"], line["observed"], color=look.colour, linestyle=look.line, linewidth=1.1)
                ax.vlines(line["predicted"], line["low"], line["high"], color=look.colour, linewidth=0.7, alpha=0.55)
                for x, y in zip(line["predicted"], line["observed"], strict=True):
                    draw_marker(ax, look, x, y)
            ax.grid()
            place = results.panel_label(dataset, model)
            ax.set_title(f"{results.label('datasets', name)}, {place}" if len(panels) > 1 else place, loc="left")
            ax.set_ylabel("share ranked right")
            ax.set_xlabel("sigmoid(|margin|)")
        figure.supxlabel("vertical lines: 95 % interval over prompts", fontsize=7.5)
        legend(figure, drawn, labels, lines=True)
        return figure


Ids = tuple[str, str, str]
"""A dataset, a model and a method."""


def _estimates(
    results: Results, prompts: Mapping[Ids, Sequence[Sequence[RewardedPrompt]]], share: Callable[..., Any]
) -> dict[Ids, Estimate]:
    """The mean over prompts of a share of each prompt's pairs that are ranked right, over seeds, with interval."""
    tables = {
        ids: pd.DataFrame([{p.prompt_id: share(preferences.right(preferences.margins(p))) for p in one} for one in of])
        for ids, of in prompts.items()
    }
    tables = {ids: table for ids, table in tables.items() if table.size}
    found = {}
    for ids, table in tables.items():
        twice = [other for key, other in tables.items() if key[:2] == ids[:2] and len(other) == 2]
        seeds = statistics.pooled(twice, bounded=True) if len(table) == 2 else None
        found[ids] = statistics.estimate(table, bounded=True, seeds=seeds)
    return found


def _curve(rewards: Sequence[Rewards], prompts: Sequence[RewardedPrompt], beta: float) -> list[preferences.Bin]:
    """The calibration curve; none where rewards have not the scale of a Bradley-Terry model."""
    scale = 1.0 if rewards[0].kind == "score" else beta
    if np.isnan(scale) or not prompts:
        return []
    return preferences.calibration([(p.prompt_id, scale * preferences.margins(p)) for p in prompts])


def _numbers(name: str, e: Estimate) -> dict[str, float]:
    return {name: e.mean, f"{name}_low": e.low, f"{name}_high": e.high}


def _label(results: Results, model: str, method: str) -> str:
    """The name of a method; of a reward model of `models:` that of the model."""
    return results.label("models", model) if method == BASE else results.method_label(method)


def _names(results: Results, row: dict[str, Any]) -> dict[str, str]:
    names = row_names(results, row) | {"Method": _label(results, row["model"], row["method"])}
    return names | ({"Model": NOTHING} if "Model" in names and row["method"] == BASE else {})
