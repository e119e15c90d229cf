"""What a page of responses shows: each prompt of a set, the responses of all methods and seeds, and the verdicts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, pvariance

import pyarrow as pa
from pydantic import ValidationError

from halos.data.feedback import Feedback, Turn, records_of
from halos.errors import HalosError
from halos.evaluate.judging.baseline import open_baseline
from halos.evaluate.judging.judgement import Annotation
from halos.evaluate.judging.settings import FromFile
from halos.files import hash_content
from halos.report.results import Results
from halos.seeds import derive
from halos.study.cells import Cell
from halos.study.study import baseline_of
from halos.train.log import Preview

TOP = 12
"""Prompts in a list of the most disputed, or of the most improved."""
DURING = "during training"
"""The prompt set of a view of previews."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a response.

    Attributes:
        win: its worth against the baseline, 0 to 1, .5 for a tie; None where the judge failed.
        baseline: index of the baseline's response among those of the prompt; None where it is not known.
        score, baseline_score: of a judge that scores.
        criteria, baseline_criteria: a score for each criterion of the judge, None where it has none.
        note: of a judge that is asked, its answer; of one that failed, why.
    """

    win: float | None
    baseline: int | None
    score: float | None
    baseline_score: float | None
    criteria: list[float | None]
    baseline_criteria: list[float | None]
    note: str | None


@dataclass(frozen=True)
class Response:
    """A response of a method to a prompt.

    Attributes:
        finish: `stop`, `length`, or None where it is not known.
        tokens: with its end-of-sequence token.
        verdicts: one for each judge of the view, None where it judged another prompt set or not this response.
        step: of a preview, the step of the training at which it was sampled.
    """

    method: str
    seed: int
    sample: int
    text: str
    finish: str | None = None
    tokens: int | None = None
    verdicts: tuple[Verdict | None, ...] = ()
    step: int | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its responses.

    Attributes:
        turns: (role, text), oldest first.
        baselines: distinct responses of baselines, to which verdicts refer.
    """

    id: str
    turns: list[tuple[str, str]]
    baselines: list[str]
    responses: list[Response]


@dataclass(frozen=True)
class View:
    """What is shown at one time: the prompts of one set, answered by one model trained on one dataset.

    Attributes:
        name: of the prompt set.
        judges: ids of those that judge the set.
        prompts: in the order of a hash, those of `disputed` and `improved` first.
        disputed, improved: (prompt id, why), the first being the most so.
    """

    dataset: str
    model: str
    name: str
    judges: list[str]
    prompts: list[Prompt]
    disputed: list[tuple[str, str]]
    improved: list[tuple[str, str]]


def parents(grid: Results) -> dict[str, str | None]:
    """{method: the nearest of its ancestors that the grid has, if it has one}."""
    lineages = {method: list(Cell("", "", method, 0).lineage())[1:] for method in grid.methods}
    return {m: next((c.method for c in line if c.method in grid.methods), None) for m, line in lineages.items()}


def views(grid: Results) -> Iterator[View]:
    """The views of a grid: for each dataset and model those of its prompt sets, then its previews, if there are any.

    Raises:
        HalosError: a file of samples, judgements or prompts is missing.
    """
    of_parents = parents(grid)
    for dataset, model in product(grid.datasets, grid.models):
        cells = [cell for cell in grid.cells if (cell.dataset, cell.model) == (dataset, model)]
        for name in grid.prompt_sets:
            judges = [judge for judge, settings in grid.judge_settings.items() if settings.prompts == name]
            yield _view(dataset, model, name, judges, _prompts(grid, cells, name, judges), of_parents)
        if previews := _previews(grid, cells):
            yield _view(dataset, model, DURING, [], previews, of_parents)


def _view(
    dataset: str, model: str, name: str, judges: list[str], prompts: list[Prompt], of_parents: dict[str, str | None]
) -> View:
    ordered = sorted(prompts, key=lambda prompt: derive(0, "responses", prompt.id))
    disputed, improved = most_disputed(ordered), most_improved(ordered, of_parents)
    first = [*dict.fromkeys(key for key, _ in (*disputed, *improved))]
    ordered.sort(key=lambda prompt: first.index(prompt.id) if prompt.id in first else len(first))
    return View(dataset, model, name, judges, ordered, disputed, improved)


# ---- responses ---------------------------------------------------------------------------------------------------


def _prompts(grid: Results, cells: list[Cell], name: str, judges: list[str]) -> list[Prompt]:
    samples = {cell: grid.samples(cell, name) for cell in cells}
    settings = grid.prompt_sets[name]
    feedback = grid.paths.data(settings.dataset or cells[0].dataset).split(settings.split)
    ids = pa.array({sample.prompt_id for of_cell in samples.values() for sample in of_cell}, pa.string())
    records = {record.prompt_id: record for record in records_of(feedback, ids)}
    prompts: dict[str, Prompt] = {}
    for cell, of_cell in samples.items():
        judged = [_Judged.of(grid, judge, cell) for judge in judges]
        for sample in of_cell:
            record = records.get(sample.prompt_id)
            if record is None:
                raise HalosError(
                    f"prompt {sample.prompt_id} of {grid.paths.run(cell).samples(name)} is not in {feedback}; run "
                    f"`snakemake` to sample again"
                )
            prompt = prompts.setdefault(record.prompt_id, Prompt(record.prompt_id, turns_of(record.prompt), [], []))
            verdicts = tuple(judge.verdict(record, sample.sample, prompt.baselines) for judge in judged)
            prompt.responses.append(
                Response(cell.method, cell.seed, sample.sample, sample.response, sample.finish_reason,
                         sample.response_tokens, verdicts)
            )  # fmt: skip
    return list(prompts.values())


@dataclass(frozen=True)
class _Judged:
    """A judge's annotations of a cell.

    Attributes:
        find: as `Baseline.find`.
    """

    criteria: list[str]
    annotations: dict[tuple[str, int], Annotation]
    find: Callable[[Feedback, int], tuple[str, int | None] | None]

    @classmethod
    def of(cls, grid: Results, judge: str, cell: Cell) -> _Judged:
        settings = grid.judge_settings[judge]
        other = baseline_of(settings, cell)
        files = [] if other is None else [grid.paths.run(other).samples(settings.prompts)]
        if isinstance(settings.baseline, FromFile):
            files = [Path(settings.baseline.file)]
        annotations = {(a.prompt_id, a.sample): a for a in grid.judged[cell, judge].annotations}
        return cls(grid.criteria(judge), annotations, open_baseline(settings.baseline, files).find)

    def verdict(self, record: Feedback, sample: int, baselines: list[str]) -> Verdict | None:
        """The verdict on a sample; a new response of the baseline is added to `baselines`."""
        a = self.annotations.get((record.prompt_id, sample))
        if a is None:
            return None
        found = self.find(record, sample)
        if found is not None and found[0] not in baselines:
            baselines.append(found[0])
        return Verdict(
            win=None if a.preference is None else _short(a.preference - 1),
            baseline=None if found is None else baselines.index(found[0]),
            score=_short(a.candidate_score),
            baseline_score=_short(a.baseline_score),
            criteria=[_short(a.criteria.get(name)) for name in self.criteria],
            baseline_criteria=[_short(a.baseline_criteria.get(name)) for name in self.criteria],
            note=a.answer or a.problem,
        )


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def turns_of(prompt: list[Turn]) -> list[tuple[str, str]]:
    """(role, text) of each turn; fields of a turn besides its text, such as calls of tools, are added as JSON."""
    shown = []
    for turn in prompt:
        more = {name: value for name, value in turn.items() if name not in ("role", "content")}
        shown.append((turn["role"], turn["content"] + (f"\n{json.dumps(more, ensure_ascii=False)}" if more else "")))
    return shown


def _previews(grid: Results, cells: list[Cell]) -> list[Prompt]:
    """The prompts whose responses were sampled during training, with those responses, step by step; of an online stage
    those of all rounds, whose steps are counted on.

    Raises:
        HalosError: a line is no preview.
    """
    prompts: dict[str, Prompt] = {}
    for cell in cells:
        rounds, done = cell.rounds(grid.rounds(cell)), 0
        for made in rounds or ([cell] if cell.stage else []):
            for line in _preview_lines(grid.paths.run(made).previews):
                # rounds have stores of their own, and so other rows
                prompt = Prompt(hash_content(line.prompt), [("user", line.prompt)], [], [])
                response = Response(cell.method, cell.seed, 0, line.response, tokens=line.tokens, step=done + line.step)
                prompts.setdefault(prompt.id, prompt).responses.append(response)
            done += grid.manifest(cell).rounds[made.round - 1].steps if rounds else 0
    return list(prompts.values())


def _preview_lines(path: Path) -> list[Preview]:
    try:
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        return [Preview.model_validate_json(line) for line in lines if line]
    except ValidationError:
        raise HalosError(f"{path} holds a line that is no preview; delete the file") from None


# ---- what to look at first ---------------------------------------------------------------------------------------


def most_disputed(prompts: Iterable[Prompt]) -> list[tuple[str, str]]:
    """The prompts on which verdicts differ most, and their numbers.

    First by the variance of the verdicts on one method, over its seeds, samples and judges (mean over methods); then by
    the variance between methods.
    """
    ranked = []
    for prompt in prompts:
        wins = defaultdict(list)
        for response, verdict in _verdicts(prompt):
            wins[response.method].append(verdict)
        if wins:
            within, between = fmean(map(pvariance, wins.values())), pvariance(map(fmean, wins.values()))
            ranked.append((within, between, prompt.id, _counts([w for of_method in wins.values() for w in of_method])))
    ranked.sort(key=lambda entry: entry[:2], reverse=True)
    return [(key, why) for within, between, key, why in ranked[:TOP] if within or between]


def most_improved(prompts: Iterable[Prompt], of_parents: dict[str, str | None]) -> list[tuple[str, str]]:
    """The prompts on which methods do better than their parents: the difference of the verdicts' worth, mean over
    methods, seeds, samples and judges."""
    ranked = []
    for prompt in prompts:
        verdicts = {(r.method, r.seed, r.sample): r.verdicts for r in prompt.responses}
        gains = [
            v.win - u.win
            for (method, seed, sample), ours in verdicts.items()
            for v, u in zip(ours, verdicts.get((of_parents[method] or "", seed, sample), ()), strict=False)
            if v and u and v.win is not None and u.win is not None
        ]
        if gains and fmean(gains) > 0:
            ranked.append((fmean(gains), prompt.id))
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    return [(key, f"{gain:+.2f}") for gain, key in ranked[:TOP]]


def _verdicts(prompt: Prompt) -> Iterator[tuple[Response, float]]:
    for response in prompt.responses:
        for verdict in response.verdicts:
            if verdict is not None and verdict.win is not None:
                yield response, verdict.win


def _counts(wins: list[float]) -> str:
    """`3 wins, 1 tie`"""
    kinds = {"win": sum(w > 0.5 for w in wins), "tie": wins.count(0.5), "loss": sum(w < 0.5 for w in wins)}
    plural = {"win": "wins", "tie": "ties", "loss": "losses"}
    return ", ".join(f"{n} {kind if n == 1 else plural[kind]}" for kind, n in kinds.items() if n)
