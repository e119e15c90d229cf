"""A few responses of each method, to the same prompts, for the grid's overview."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from halos.evaluate.judging.judgement import TIE
from halos.publish.views import turns_of
from halos.report.results import Results
from halos.seeds import derive
from halos.study.cells import Cell

LONGEST = 400
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Example:
    """A prompt, with (method, response, verdict) of each method; all are cut to LONGEST characters.

    Attributes:
        about: dataset and model.
        judge: whose verdicts these are; None where nobody judges.
    """

    about: str
    prompt: str
    judge: str | None
    rows: list[tuple[str, str, str]]


def examples(grid: Results, prompts: int = 3) -> list[Example]:
    """For each dataset and model, the responses of all methods to so many prompts of the first prompt set, with the
    first seed. The prompts are the first by a hash of their ids, the same for all models.

    Raises:
        HalosError: a file of samples is missing.
    """
    if not grid.prompt_sets:
        return []
    name = next(iter(grid.prompt_sets))
    judge = next((judge for judge, settings in grid.judge_settings.items() if settings.prompts == name), None)
    found = []
    for dataset, model in product(grid.datasets, grid.models):
        cells = [Cell(dataset, model, method, grid.seeds[0]) for method in grid.methods]
        texts = {cell: {s.prompt_id: s for s in grid.samples(cell, name) if not s.sample} for cell in cells}
        shared = set.intersection(*(set(of_cell) for of_cell in texts.values()))
        verdicts = {cell: _verdicts(grid, cell, judge) if judge else {} for cell in cells}
        for key in sorted(shared, key=lambda prompt: derive(0, "responses", prompt))[:prompts]:
            prompt = texts[cells[0]][key].prompt or []
            rows = [
                (grid.method_label(cell.method), _cut(texts[cell][key].response), verdicts[cell].get(key, ""))
                for cell in cells
            ]
            text = _cut("\n".join(f"{role}: {turn}" if len(prompt) > 1 else turn for role, turn in turns_of(prompt)))
            label = grid.label("judges", judge) if judge else None
            found.append(Example(grid.panel_label(dataset, model), text, label, rows))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


def _verdicts(grid: Results, cell: Cell, judge: str) -> dict[str, str]:
    annotations = [a for a in grid.judged[cell, judge].annotations if not a.sample]
    return {a.prompt_id: _verdict(a.preference) for a in annotations}


def _verdict(preference: float | None) -> str:
    if preference is None:
        return "failed"
    return "tie" if preference == TIE else "win" if preference > TIE else "loss"
