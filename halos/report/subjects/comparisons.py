"""Comparisons: each method against its parent and against `sft`, paired by prompt and seed."""

from __future__ import annotations

from itertools import product

import numpy as np

from halos.report import statistics
from halos.report.lazy import pd
from halos.report.measures import ROW, pooled_seeds, rows
from halos.report.render import NOTHING, Bold, Table, interval, p_value
from halos.report.results import SCORE, WIN, Results
from halos.report.subject import Subject, subject
from halos.report.words import NO_JUDGE, Page, interval_kind, range_text, records, row_names, seeds_text
from halos.study.cells import BASE

COMPARISONS = [*ROW, "against", "judge", "measure", "difference", "low", "high", "p", "p_holm",
               "improvement", "improvement_low", "improvement_high", "seeds", "prompts"]  # fmt: skip


@subject
class Comparisons(Subject):
    table = "comparisons"
    title = "Comparisons"

    def frame(self, results: Results) -> pd.DataFrame:
        """Difference of score and of win rate between methods, over their common prompts and all seeds.

        `p_holm` is adjusted for all comparisons of one judge and measure. `improvement` is the probability that the
        method's response to a prompt is better than the other's.
        """
        differences, better = [], []
        for judge, (dataset, model, method) in product(results.judges, rows(results)):
            for against, measure in product(opponents(method, results.methods), (SCORE, WIN)):
                ours = results.values(judge, dataset, model, method, measure)
                theirs = results.values(judge, dataset, model, against, measure)
                ours, theirs = ours.align(theirs, join="inner")
                if (ours - theirs).isna().all(axis=None):
                    continue
                seeds = pooled_seeds(results, judge, dataset, model, measure)
                d = statistics.difference(ours, theirs, seeds=seeds, bounded=results.bounded(judge, measure))
                ids = (dataset, model, method, against, judge, measure)
                differences.append((*ids, d.mean, d.low, d.high, d.p, *[np.nan] * 4, d.seeds, d.prompts))
                better.append(statistics.improved(ours, theirs))
        frame = pd.DataFrame(differences, columns=COMPARISONS)
        for _, group in frame.groupby(["judge", "measure"]):
            tables = [better[i] for i in group.index]
            seeds = statistics.pooled(tables, bounded=True) if len(results.seeds) == 2 else None
            for i, table in zip(group.index, tables, strict=True):
                e = statistics.estimate(table, bounded=True, seeds=seeds)
                frame.loc[i, ["improvement", "improvement_low", "improvement_high"]] = [e.mean, e.low, e.high]
        frame["p_holm"] = frame.groupby(["judge", "measure"])["p"].transform(lambda p: statistics.holm(p))
        return frame

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        page: list[Table | str] = []
        header = ["Method", "Against", "Score difference", "p", "p (Holm)", "Win-rate difference", "p ", "p (Holm) "]
        if frame.empty:
            why = "No two methods of this grid are parent and child, or `sft` and another: nothing to compare."
            page.append(Table(why if results.judges else NO_JUDGE, [], header))
        for judge, of_judge in frame.groupby("judge", sort=False):
            lines = []
            for (*ids, against), pair in of_judge.groupby([*ROW, "against"], sort=False):
                line = row_names(results, dict(zip(ROW, ids, strict=True))) | {
                    "Against": results.method_label(str(against))
                }
                for measure, title in ((SCORE, results.score_name(str(judge)).capitalize()), (WIN, "Win-rate")):
                    d = records(pair[pair["measure"] == measure])
                    if (of_judge["measure"] == measure).any():
                        text = interval(d[0]["difference"], d[0]["low"], d[0]["high"], sign=True) if d else NOTHING
                        line[f"{title} difference"] = text
                        # a space makes two columns of the same title two keys
                        end = "" if measure == SCORE else " "
                        line["p" + end] = p_value(d[0]["p"]) if d else NOTHING
                        line["p (Holm)" + end] = _significant(d[0]["p_holm"]) if d else NOTHING
                better = records(pair)[0]  # of scores where there are any: win rates tie more often
                line["P(better)"] = interval(
                    better["improvement"], better["improvement_low"], better["improvement_high"]
                )
                lines.append(line)
            caption = (
                f"Judge: {results.label('judges', str(judge))}; method minus the one it is compared with, paired over "
                f"the n = {range_text(of_judge['prompts'])} prompts that both answered, {seeds_text(results)}. "
                f"Brackets: {interval_kind(results)}. p: two-sided, no difference; Holm: adjusted for the "
                f"{of_judge['measure'].value_counts().max()} comparisons of a column, bold below 0.05. P(better): "
                "probability that the method's response to a prompt is better than the other's, a tie counting half."
            )
            page.append(Table(caption, lines))
        return page


def opponents(method: str, methods: list[str]) -> list[str]:
    """The methods that a method is compared with: its parent method and `sft`, where the grid has them."""
    if method == BASE:
        return []
    parent = method.rsplit("-", 1)[0] if "-" in method else BASE
    return [m for m in dict.fromkeys((parent, "sft")) if m in methods and m != method]


def _significant(p: float) -> str:
    return Bold(p_value(p)) if p < 1 - statistics.LEVEL else p_value(p)
