"""What judges that are asked will cost: questions, tokens and dollars."""

from __future__ import annotations

from dataclasses import dataclass

from halos.data.report import DataReport
from halos.evaluate.judging.settings import Judge
from halos.plan.plan import Plan
from halos.sample.settings import Prompts
from halos.study.cells import Cell
from halos.study.paths import Paths

CHARACTERS_PER_TOKEN = 4
"""In English text, says OpenAI's documentation."""


@dataclass(frozen=True)
class Questions:
    """The questions of a grid to one judge that is asked.

    Attributes:
        comparisons: with the baseline.
        in_pairs: comparisons of two methods.
        questions: all, with both orders and those that are asked again.
        tokens_in: millions, if responses are as long as the dataset's.
        tokens_out: millions, at most.
        dollars: at most; NaN where the judge has no `prices`.
    """

    judge: str
    model: str
    comparisons: int
    in_pairs: int
    questions: int
    tokens_in: float
    tokens_out: float
    dollars: float


def questions(plan: Plan) -> list[Questions]:
    """The questions to each judge of a grid that is asked, as if none had been answered yet."""
    asked = {name: judge for name, judge in plan.study.judges.items() if judge.kind == "openai"}
    return [_questions(plan, name, judge) for name, judge in asked.items()]


def _questions(plan: Plan, name: str, judge: Judge) -> Questions:
    assert judge.openai is not None
    prompts = plan.config.prompts[judge.prompts]
    orders = 2 if judge.both_orders else 1
    template, max_tokens = judge.openai.question, judge.openai.longest_answer
    cells = [judged for cell in plan.study.cells for judged in (cell, *plan.study.rounds(cell)[:-1])]
    compared = [first for first, _ in plan.study.compared(name)]
    counts = [0, 0]
    number = tokens = 0.0
    for kind, cell in (*((0, cell) for cell in cells), *((1, cell) for cell in compared)):
        amount = plan.amounts[cell.dataset, cell.model]
        comparisons = _prompts(plan, cell, prompts, judge.prompts_per_pair if kind else None) * prompts.samples
        here = orders * comparisons + min(judge.ask_again, comparisons)
        counts[kind] += comparisons
        number += here
        response = min(amount.response, prompts.max_new_tokens) + amount.response
        tokens += here * (len(template) / CHARACTERS_PER_TOKEN + amount.prompt + response)
    out = number * max_tokens
    prices = judge.openai.prices
    dollars = float("nan") if prices is None else (tokens * prices.input + out * prices.output) / 1e6
    model, millions = judge.openai.asked_model, (tokens / 1e6, out / 1e6)
    return Questions(name, model, counts[0], counts[1], int(number), *millions, dollars)


def _prompts(plan: Plan, cell: Cell, prompts: Prompts, most: int | None) -> int:
    """How many prompts are compared on: of the split where it is made, else as many as the train split has."""
    report = Paths(plan.results).data(prompts.dataset or cell.dataset).report
    known = getattr(DataReport.read(report), prompts.split).rows_out if report.is_file() else None
    n = int(known or plan.amounts[cell.dataset, cell.model].prompts)
    return min(n, prompts.limit or n, most or n)
