"""Chosen settings: their value on validation prompts, how much of it is luck, and their value on test prompts."""

from __future__ import annotations

from typing import Any

from halos.report.best_of import optimism, standard_error
from halos.report.choices import cell_of, how_chosen, settings_columns, settings_text
from halos.report.lazy import pd
from halos.report.measures import ROW, pooled
from halos.report.panels import part_of
from halos.report.render import Table, interval, number
from halos.report.results import Results
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.benchmarks import Benchmarks
from halos.report.subjects.trials import NO_SWEEP
from halos.report.words import Page, interval_kind, number_of, records, row_names
from halos.study.cells import Cell
from halos.study.choice import Choice

TUNED = [*ROW, "trials", "diverged", "measure", "value", "low", "high", "optimism", "tested_by", "test", "test_low",
         "test_high"]  # fmt: skip


@subject
class Tuned(Subject):
    table = "tuned"
    title = "Chosen settings"

    def tabulates(self, grid: Outline | Results) -> bool:
        return bool(grid.sweeps)

    def frame(self, results: Results) -> pd.DataFrame:
        """A row per choice: the chosen trial's validation value, its expected optimism (`best_of.optimism`), and the
        value of the chosen settings on test prompts, over the grid's seeds, where the grid has a judge or task that
        measures the same there."""
        lines = []
        for cell, choice in results.choices.items():
            known = [trial for trial in choice.trials.values() if trial.value is not None]
            errors = [standard_error(trial.low, trial.high) for trial in known]
            best = choice.winner
            line: dict[str, Any] = dict(zip(ROW, (cell.dataset, cell.model, cell.method), strict=True))
            line |= {"trials": len(choice.trials), "diverged": len(choice.trials) - len(known)}
            line |= {"measure": choice.measure, **{k: number_of(getattr(best, k)) for k in ("value", "low", "high")}}
            line |= {"optimism": optimism([number_of(trial.value) for trial in known], errors, choice.lowest)}
            lines.append({**line, **_tested(results, cell, choice), **settings_columns(best.settings)})
        frame = pd.DataFrame(lines, columns=None if lines else TUNED)
        return frame[[*TUNED, *(column for column in frame if column not in TUNED)]]

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table(NO_SWEEP, [], ["Method"])]
        lines = [
            row_names(results, row)
            | {"Settings": settings_text(choice.winner.settings), "Trials": str(row["trials"])}
            | {"Validation value": interval(row["value"], row["low"], row["high"])}
            | {"Expected optimism": number(row["optimism"])}
            | {"Test value": interval(row["test"], row["test_low"], row["test_high"])}
            for row, choice in zip(records(frame), results.choices.values(), strict=True)
        ]
        caption = (
            f"{how_chosen(results)} Validation value: of the chosen trial, in brackets its 95 % interval by itself. "
            "Expected optimism: how much better than its true value the best of as many trials looks on average, if "
            "their errors are independent; less where trials answer the same prompts, and so share a part of them. "
            "Test value: the same measure on test prompts, which played no part in the choice, where the grid has it; "
            f"brackets: {interval_kind(results)}."
        )
        return [Table(caption, lines)]


def _tested(results: Results, cell: Cell, choice: Choice) -> dict[str, Any]:
    """The value of a choice's cells on test prompts, by the measure that chose; empty where the grid has none."""
    ids, select = (cell.dataset, cell.model, cell.method), choice.select
    kind, name = ("judges", select.judge) if select.judge is not None else ("tasks", select.task)
    own = results.counterpart(kind, name) if name is not None and cell_of(results, cell) in results.cells else None
    if own is None:
        return {"tested_by": None, "test": None, "test_low": None, "test_high": None}
    if kind == "judges":
        part = part_of(pooled(results, select.by), ("judge", *ROW), (own, *ids)).rename(columns={"mean": "value"})
    else:
        part = part_of(Benchmarks().frame(results), ("task", *ROW), (own, *ids))
    value, low, high = part[["value", "low", "high"]].to_numpy(dtype=float)[0]
    return {"tested_by": own, "test": value, "test_low": low, "test_high": high}
