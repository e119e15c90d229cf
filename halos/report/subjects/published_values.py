"""Published scores of benchmarks and of AlpacaEval 2 beside the grid's own. The files are in ../published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, combinations, product

import numpy as np

from halos.evaluate.judging.settings import Annotator, FromFile
from halos.evaluate.tasks.settings import TaskSlice
from halos.report.lazy import pd
from halos.report.measures import ROW, rows
from halos.report.render import Table, interval, number
from halos.report.results import Results
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.benchmarks import Benchmarks
from halos.report.subjects.lengths import Lengths
from halos.report.subjects.published import FOLDER, is_plain
from halos.report.words import Page, records, row_names
from halos.study.settings import PUBLISHED_IN, PUBLISHED_VALUES

TASKS = {"mmlu": ("mmlu",), "gsm8k": ("gsm8k", "gsm8k_cot"), "humaneval": ("humaneval",),
         "bbh": ("bbh", "bbh_cot_fewshot")}  # fmt: skip
"""Measure -> the tasks of lm-eval that are of this benchmark."""
JUDGED = {"alpaca_eval_2": "win_rate", "alpaca_eval_2_lc": "controlled"}
"""Measure -> what of a judge that asks AlpacaEval 2's question about its instructions, of its model."""
TITLES = {"mmlu": "MMLU", "gsm8k": "GSM8K", "humaneval": "HumanEval", "bbh": "BBH", "arena_hard": "Arena-Hard",
          "alpaca_eval_2": "AlpacaEval 2, win rate",
          "alpaca_eval_2_lc": "AlpacaEval 2, length-controlled"}  # fmt: skip
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
VALUES = [*ROW, "measure", "ours_by", "ours", "low", "high", "published", "difference"]
Ours = tuple[str, float, float, float]
"""The id of a task or judge, and what it says: a mean, low and high."""


@subject
class PublishedValues(Subject):
    table = "published_values"
    title = "Published values"

    def tabulates(self, grid: Outline | Results) -> bool:
        return grid.published in PUBLISHED_IN[PUBLISHED_VALUES]

    def frame(self, results: Results) -> pd.DataFrame:
        """Every published value of a method of the grid, the same losses from the same model, beside the grid's own,
        which is NaN where the grid has no task or judge for it. Shares, 0 to 1."""
        if not self.tabulates(results):
            return pd.DataFrame(columns=VALUES)
        ours, lines = _ours(results), []
        published = {model: _published(results, model) for model in results.models}
        for ids in rows(results):
            cell, of_model = results.cells_of(*ids)[0], published[ids[1]]
            if not all(map(is_plain, results.stages(cell))):
                continue
            method = "-".join(results.losses(cell)) or "base"
            for row in records(of_model[of_model["method"] == method]):
                value = row["value"] / 100
                for by, mean, low, high in ours(row["measure"], ids) or [("", np.nan, np.nan, np.nan)]:
                    lines.append((*ids, row["measure"], by, mean, low, high, value, mean - value))
        return pd.DataFrame(lines, columns=VALUES)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table("No method of this grid is among the published ones.", [], ["Method"])]
        lines = [
            row_names(results, row)
            | {"What": TITLES[row["measure"]], "Ours": interval(row["ours"], row["low"], row["high"])}
            | {"Published": number(row["published"]), "Difference": number(row["difference"], sign=True)}
            for row in records(frame)
        ]
        caption = (
            f"Values published as {results.published} (its source is in halos/report/published), and those of this "
            "grid for the same losses from the same model, with their 95 % intervals; the published ones have none. "
            "What else a published run was made with is not known here: its data, examples in the prompt and decoding "
            "may be others. – where the grid has no such task or judge."
        )
        notes = chain(*(_copies(results, model) for model in dict.fromkeys(frame["model"])))
        caption = " ".join((caption, *notes))
        return [Table(caption, lines)]


def _published(results: Results, model: str) -> pd.DataFrame:
    """What is published of methods from a model."""
    published = pd.read_csv(FOLDER / f"{results.published}{PUBLISHED_VALUES}")
    name = results.hub(model).rsplit("/", 1)[-1].lower()
    return published[published["models"].str.split().map(set(name.split()).issubset)]


def _copies(results: Results, model: str) -> Iterator[str]:
    """A sentence for each two methods from a model whose published values are the same in all of several measures."""
    values = _published(results, model).pivot(index="method", columns="measure", values="value")
    for one, other in combinations(values.index, 2):
        if len(values.columns) > 1 and values.loc[one].equals(values.loc[other]):
            name = results.label("models", model)
            yield (f"The published values of {one.upper()} and {other.upper()} from {name} are equal in every measure: "
                   "one may be a copy of the other.")  # fmt: skip


def _ours(results: Results) -> Callable[[str, tuple[str, str, str]], list[Ours]]:
    """(measure, (dataset, model, method)) -> what the grid's tasks and judges say of it."""
    tasks = {task: TaskSlice.read(results.paths.task(task).config).task for task in results.tasks}
    benchmarks, lengths = Benchmarks().frame(results), Lengths().frame(results)
    found: dict[tuple[str, tuple[str, str, str]], list[Ours]] = {}
    for row in records(benchmarks):
        for measure in (name for name, known in TASKS.items() if tasks[row["task"]] in known):
            mine = (row["task"], row["value"], row["low"], row["high"])
            found.setdefault((measure, (row["dataset"], row["model"], row["method"])), []).append(mine)
    asked = [judge for judge in results.judges if _is_alpaca_eval(results, judge)]
    for row, (measure, name) in product(records(lengths[lengths["judge"].isin(asked)]), JUDGED.items()):
        low, high = ("low", "high") if name == "win_rate" else (f"{name}_low", f"{name}_high")
        mine = (row["judge"], row[name], row[low], row[high])
        found.setdefault((measure, (row["dataset"], row["model"], row["method"])), []).append(mine)
    return lambda measure, ids: found.get((measure, ids), [])


def _is_alpaca_eval(results: Results, judge: str) -> bool:
    """Whether a judge asks AlpacaEval 2's question of its own model, against its outputs."""
    settings = results.judge_settings[judge]
    asked = settings.openai
    own = asked is not None and asked.annotator == ANNOTATOR
    same = own and asked is not None and asked.asked_model == Annotator(annotator=ANNOTATOR).asked_model
    return same and isinstance(settings.baseline, FromFile) and settings.length_control == "alpaca_eval"
