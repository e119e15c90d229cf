"""`export`, the verb that writes a grid's samples and results in the formats of other programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.comparisons import instruction_of
from halos.evaluate.judging.settings import JudgeSlice
from halos.files import write_json, write_text
from halos.report.lazy import pd
from halos.report.results import CELL, SCORE, WIN, Results
from halos.sample.samples import Sample, read_samples
from halos.sample.settings import PromptsSlice
from halos.study.cells import Cell
from halos.study.settings import GridSlice

AVERAGE = "average"
"""Mean over the tasks that have a metric between 0 and 1 of which more is better, in all cells of the grid."""


def export(config: Path, output: Path, results: Path = Path("results")) -> None:
    """Write a grid's samples as alpaca_eval reads them, and its results as one table.

    results.csv and results.json have a row for each cell: win rate and score by each judge, value and standard error of
    each task, and the average over the tasks that have a metric between 0 and 1 of which more is better. model_outputs/
    holds `--model_outputs` of alpaca_eval, a file for each cell and prompt set, with the number of the sample where
    there are several to a prompt; lm_eval/ holds lm-eval's own result of each task.

    Args:
        config: the grid's config.yaml: `python -m halos config FOLDER` writes one.
        output: folder to write to.
        results: the results folder.

    Raises:
        HalosError: a run of the grid is not finished, or a sample does not hold its prompt.
    """
    grid = Results(config, results)
    table = _table(grid)
    prompts = {*GridSlice.read(config).prompts, *(_prompts(grid, judge) for judge in grid.judges)}
    datasets = {name: PromptsSlice.read(grid.paths.prompts(name).config).dataset for name in sorted(prompts)}
    for cell in grid.cells:
        folder, run = Path(*map(str, cell.folder.split("/")[1:])), grid.paths.run(cell)
        for name, dataset in datasets.items():
            for number, outputs in _outputs(run.samples(name), cell, dataset or cell.dataset):
                write_json(output / "model_outputs" / folder / f"{name}{number}.json", outputs)
        for task in grid.tasks:
            (output / "lm_eval" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.task(task), output / "lm_eval" / folder / f"{task}.json")
    write_text(output / "results.csv", table.to_csv(index=False))
    write_json(output / "results.json", table.astype(object).where(table.notna(), None).to_dict("records"))


def _prompts(grid: Results, judge: str) -> str:
    return JudgeSlice.read(grid.paths.judge(judge).config).prompts


def _table(grid: Results) -> pd.DataFrame:
    """A row for each cell, a column for each number."""
    rows = []
    for cell in grid.cells:
        row: dict[str, Any] = dict(cell.ids)
        for name in grid.judges:
            judged = grid.judged[cell, name]
            row |= {f"{name}.{WIN}": judged.win_rate, f"{name}.standard_error": judged.standard_error,
                    f"{name}.length_controlled_{WIN}": judged.length_controlled_win_rate}  # fmt: skip
            if judged.scores:
                row |= {f"{name}.{SCORE}.{criterion}": value for criterion, value in judged.scores.candidate.items()}
        rows.append(row)
    table = pd.DataFrame(rows)
    averaged = []
    for task, group in grid.benchmarks.groupby("task", sort=False):
        shown = {"value": task, "stderr": f"{task}.stderr", "n": f"{task}.n"}
        table = table.merge(group[[*CELL, *shown]].rename(columns=shown), on=CELL, how="left")
        if group["higher_is_better"].all() and group["value"].between(0, 1).all():
            averaged.append(task)
    return table.assign(**{AVERAGE: table[averaged].mean(axis=1)}) if averaged else table


def _outputs(samples: Path, cell: Cell, dataset: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(suffix, rows of alpaca_eval) of the first sample of each prompt, of the second, and so on."""
    read = read_samples(samples)
    numbers = sorted({sample.sample for sample in read})
    generator = cell.folder.removeprefix("runs/")
    for number in numbers:
        rows = [
            {"instruction": _instruction(sample, samples), "output": sample.response, "generator": generator,
             "dataset": dataset}
            for sample in read if sample.sample == number
        ]  # fmt: skip
        yield "" if len(numbers) == 1 else f"-{number}", rows


def _instruction(sample: Sample, path: Path) -> str:
    if sample.prompt is None:
        raise HalosError(f"{path}: the sample of prompt {sample.prompt_id} does not hold its prompt; sample again")
    return instruction_of(sample.prompt)
