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
PEOPLE = "people"


@dataclass(frozen=True)
class Questions:
    """The questions of a grid to one judge that is asked.

    Attributes:
        comparisons: with the baseline.
        in_pairs: comparisons of two methods.
        questions: all, with both orders, those that are asked again, and each of several votes.
        tokens_in: millions, if responses are as long as the dataset's; for people, what they read.
        tokens_out: millions, at most.
        dollars: at most; NaN where the judge has no `prices`, as people and models of the catalogue.
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
    """The questions to each judge of a grid that is asked, people and models of the catalogue included, as if none had
    been answered yet."""
    return [_questions(plan, name, judge) for name, judge in plan.study.judges.items() if judge.is_asked]


def _asked(judge: Judge) -> tuple[str, int, float, int]:
    """Who is asked, how often about one order of a comparison, and the tokens of the question's words and, at most, of
    its answer."""
    if judge.human is not None:
        return PEOPLE, judge.human.votes or len(judge.human.annotators) or 1, 0, 0
    if judge.model is not None:
        answer = 1 if judge.model.choices else judge.model.longest_answer
        return judge.model.model, 1, len(judge.model.question) / CHARACTERS_PER_TOKEN, answer
    assert judge.openai is not None
    asked = judge.openai
    return asked.asked_model, 1, len(asked.question) / CHARACTERS_PER_TOKEN, asked.longest_answer


def _questions(plan: Plan, name: str, judge: Judge) -> Questions:
    prompts, (model, times, words, answer) = plan.config.prompts[judge.prompts], _asked(judge)
    times *= 2 if judge.both_orders else 1
    most = None if judge.human is None else judge.human.limit
    cells = [judged for cell in plan.study.cells for judged in (cell, *plan.study.rounds(cell)[:-1])]
    compared = [first for first, _ in plan.study.compared(name)]
    counts = [0, 0]
    number = tokens = 0.0
    for kind, cell in (*((0, cell) for cell in cells), *((1, cell) for cell in compared)):
        amount = plan.amounts[cell.dataset, cell.model]
        per_pair = judge.prompts_per_pair if kind else None
        comparisons = _prompts(plan, cell, prompts, per_pair, most) * prompts.samples
        here = times * comparisons + min(judge.ask_again, comparisons)
        counts[kind] += comparisons
        number += here
        response = min(amount.response, prompts.max_new_tokens) + amount.response
        tokens += here * (words + amount.prompt + response)
    out = number * answer
    prices = judge.openai.prices if judge.openai is not None else None
    dollars = float("nan") if prices is None else (tokens * prices.input + out * prices.output) / 1e6
    return Questions(name, model, counts[0], counts[1], int(number), tokens / 1e6, out / 1e6, dollars)


def _prompts(plan: Plan, cell: Cell, prompts: Prompts, *most: int | None) -> int:
    """How many prompts are compared on: of the split where it is made, else as many as the train split has."""
    report = Paths(plan.results).data(prompts.dataset or cell.dataset).report
    known = getattr(DataReport.read(report), prompts.split).rows_out if report.is_file() else None
    n = int(known or plan.amounts[cell.dataset, cell.model].prompts)
    return min(n, *(limit or n for limit in (prompts.limit, *most)))
