"""Text: what training did to the responses, apart from whether they win."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import product

import numpy as np

from halos.report import statistics
from halos.report.lazy import pd
from halos.report.measures import ROW, rows
from halos.report.panels import part_of
from halos.report.render import NOTHING, Table, interval
from halos.report.results import Results
from halos.report.subject import Subject, subject
from halos.report.texts import PERIODS, SPAN, TIMES, distinct, is_repeated, language, self_bleu
from halos.report.words import Page, interval_kind, records, row_names
from halos.sample.samples import Sample
from halos.study.cells import BASE, Cell

KL = "kl"
SHARES = {"cut": "Cut off", "empty": "Empty", "repeated": "Repeated", "refusal": "Refusals"}
LANGUAGE = "other_language"
VARIETY = {"distinct_1": "Distinct-1", "distinct_2": "Distinct-2", "self_bleu": "Self-BLEU"}
TITLES = {KL: "KL", **SHARES, LANGUAGE: "Other language", **VARIETY}
Ids = tuple[str, str, str]
TEXT = ["prompts", *ROW, "measure", "mean", "low", "high", "seeds", "n"]


@subject
class Text(Subject):
    table = "text"
    title = "Texts"

    def frame(self, results: Results) -> pd.DataFrame:
        """Measures of each method's responses to each prompt set, with intervals over prompts and seeds; n: prompts."""
        lines = []
        refusal = re.compile(results.refusals)
        for name, (dataset, model) in product(results.prompt_sets, product(results.datasets, results.models)):
            methods = [ids for ids in rows(results) if ids[:2] == (dataset, model)]
            values = {ids: _values(results, name, ids, refusal) for ids in methods}
            for measure in TITLES:
                tables = {ids: of_method[measure] for ids, of_method in values.items() if measure in of_method}
                groups: dict[Cell | None, dict[Ids, pd.DataFrame]] = defaultdict(dict)
                for ids, table in tables.items():  # log-ratios to one reference have a scale in common, others do not
                    groups[Cell(*ids, 0).parent if measure == KL else None][ids] = table
                estimates: dict[Ids, statistics.Estimate] = {}
                for group in groups.values():
                    estimates |= _estimates(results, group, bounded=measure != KL)
                for ids, e in estimates.items():
                    lines.append((name, *ids, measure, e.mean, e.low, e.high, e.seeds, e.prompts))
        return pd.DataFrame(lines, columns=TEXT)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [
                Table(
                    "No prompt set in this grid: give it `judges:` or `prompts:` to sample responses.", [], ["Method"]
                )
            ]
        page: list[Table | str] = []
        for name, of_set in frame.groupby("prompts", sort=False):
            shown = [measure for measure in TITLES if (of_set["measure"] == measure).any()]
            lines = []
            for ids in rows(results):
                found = {row["measure"]: row for row in records(part_of(of_set, ROW, ids))}
                line = row_names(results, dict(zip(ROW, ids, strict=True)))
                for measure in shown:
                    row = found.get(measure)
                    line[TITLES[measure]] = interval(row["mean"], row["low"], row["high"]) if row else NOTHING
                lines.append(line)
            page.append(Table(_caption(results, str(name), shown), lines))
        return page


def _caption(results: Results, name: str, shown: list[str]) -> str:
    settings = results.prompt_sets[name]
    parts = [f"Prompts: {name}. Brackets: {interval_kind(results)}."]
    if KL in shown:
        parts.append(
            "KL: log-probability of a response under the method less that under its reference, in nats per response, "
            f"mean over responses drawn at temperature {settings.temperature:g}, top-p {settings.top_p:g}; at "
            "temperature 1 and top-p 1 it estimates the KL divergence of the method from its reference."
        )
    parts.append(
        f"Shares of responses: cut off at the token limit; empty; repeated (up to {PERIODS} words at least {TIMES} "
        f"times in a row, over at least {SPAN} words); refusals (by the pattern `refusals` of the grid, which reads "
        "words and not intentions)."
    )
    if LANGUAGE in shown:
        parts.append(
            "Other language: share in another language than their prompt, of those where the languages of both can be "
            "told."
        )
    if set(VARIETY) & set(shown):
        parts.append(
            f"Between the {settings.samples} responses to a prompt: distinct-n, the share of n-grams that are "
            "distinct, and self-BLEU, the BLEU-4 of each against the others (1: all the same)."
        )
    return " ".join(parts)


def _values(results: Results, name: str, ids: Ids, refusal: re.Pattern[str]) -> dict[str, pd.DataFrame]:
    """{measure: (seeds, prompts)} of a method, each value the mean over a prompt's samples or a measure of them all."""
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell in results.cells_of(*ids):
        by_prompt = defaultdict(list)
        for sample in results.samples(cell, name):
            by_prompt[sample.prompt_id].append(sample)
        for prompt, samples in by_prompt.items():
            for measure, value in _measures(samples, refusal).items():
                found[measure][cell.seed][prompt] = value
        for prompt, value in results.divergence(cell, name).items():
            found[KL][cell.seed][prompt] = value
    tables = {measure: pd.DataFrame.from_dict(by_seed, orient="index") for measure, by_seed in found.items()}
    return {measure: table for measure, table in tables.items() if table.notna().any(axis=None)}


def _measures(samples: list[Sample], refusal: re.Pattern[str]) -> dict[str, float]:
    """The measures of the responses to one prompt; NaN where one is not known."""
    texts = [sample.response for sample in samples]
    ends = [np.nan if s.finish_reason is None else float(s.finish_reason == "length") for s in samples]
    shares = {
        "cut": float(np.mean(ends)),
        "empty": float(np.mean([not text.strip() for text in texts])),
        "repeated": float(np.mean([is_repeated(text) for text in texts])),
        "refusal": float(np.mean([refusal.search(text) is not None for text in texts])),
        LANGUAGE: _in_another_language(samples),
    }
    if len(texts) < 2:
        return shares
    return {**shares, "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2), "self_bleu": self_bleu(texts)}


def _in_another_language(samples: list[Sample]) -> float:
    """The share of responses in another language than what the user says in their prompt."""
    pairs = [
        (language("\n".join(str(turn["content"]) for turn in sample.prompt or () if turn["role"] == "user")),
         language(sample.response))
        for sample in samples
    ]  # fmt: skip
    known = [asked != answered for asked, answered in pairs if asked and answered]
    return float(np.mean(known)) if known else np.nan


def _estimates(results: Results, tables: dict[Ids, pd.DataFrame], bounded: bool) -> dict[Ids, statistics.Estimate]:
    """The mean of each method with its interval. With two seeds, the variance between them is pooled over the trained
    methods; a base model is not trained, so its seeds are samples of one model."""
    trained = [table for ids, table in tables.items() if ids[2] != BASE and len(table) == 2]
    pooled = statistics.pooled(trained, bounded) if len(results.seeds) == 2 and trained else None
    estimates = {}
    for ids, table in tables.items():
        base = ids[2] == BASE
        values = table.mean().to_frame().T if base else table
        estimates[ids] = statistics.estimate(values, bounded=bounded, seeds=None if base else pooled)
    return estimates
