"""Trust: what a judge's verdicts depend on beside the responses, and how far judges agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import numpy as np

from halos.evaluate.judging.judgement import ASKED, TIE, Annotation, Asked
from halos.report import agreement, statistics
from halos.report.lazy import pd
from halos.report.render import NOTHING, Table, interval
from halos.report.results import Results
from halos.report.statistics import Array, Estimate
from halos.report.subject import Outline, Subject, subject
from halos.report.words import Page, records
from halos.study.cells import Cell

TRUST = ["judge", "other", "measure", "value", "low", "high", "n", "prompts"]
OPINIONS = (*ASKED, "reward_model")
"""Kinds of judges that can be wrong."""
LONGER, FIRST, FLIPS, AGAIN = "prefers_longer", "prefers_first", "flips", "same_again"
AGREE, KAPPA, ALPHA = "agreement", "kappa", "alpha"
TITLES = {LONGER: "Prefers longer", FIRST: "Prefers first", FLIPS: "Flips", AGAIN: "Same again",
          AGREE: "Agreement", KAPPA: "Cohen's kappa"}  # fmt: skip

Hit = tuple[str, bool]
"""A prompt, and whether a verdict on its responses is of a kind."""


@subject
class Trust(Subject):
    table = "trust"
    title = "How far to trust the judges"

    def tabulates(self, grid: Outline | Results) -> bool:
        return any(kind in OPINIONS for kind in grid.kinds)

    def frame(self, results: Results) -> pd.DataFrame:
        """Of each judge that has an opinion, shares of its verdicts, and where it is several people, their agreement;
        of each two judges, one of which has, agreement."""
        lines: list[tuple[object, ...]] = []
        for judge in results.judges:
            if results.kind(judge) not in OPINIONS:
                continue
            annotations = list(_annotations(results, judge))
            for measure, count in MEASURES.items():
                hits = [hit for a in annotations for hit in count(a)]
                if hits:
                    lines.append((judge, "", measure, *_line(_share(hits), len(hits))))
            votes, prompts = _votes(annotations)
            if votes.size:
                lines.append((judge, "", ALPHA, *_line(agreement.alpha(votes, prompts), len(prompts))))
        verdicts = {judge: _verdicts(results, judge) for judge in results.judges}
        for judge, other in combinations(results.judges, 2):
            if results.kind(judge) not in OPINIONS and results.kind(other) not in OPINIONS:
                continue
            common = [key for key in verdicts[judge] if key in verdicts[other]]
            if common:
                first, second = (np.array([verdicts[name][key] for key in common]) for name in (judge, other))
                prompts = [prompt for *_, prompt, _ in common]
                same = _share(list(zip(prompts, (first == second).tolist(), strict=True)))
                lines.append((judge, other, AGREE, *_line(same, len(common))))
                lines.append((judge, other, KAPPA, *_line(agreement.kappa(first, second, prompts), len(common))))
        several = [key for key, number in _counted(verdicts.values()).items() if number > 1]
        if several and any(kind in OPINIONS for kind in results.kinds):
            table = np.array([[given.get(key, np.nan) for key in several] for given in verdicts.values()])
            e = agreement.alpha(table, [prompt for *_, prompt, _ in several])
            lines.append(("", "", ALPHA, *_line(e, len(several))))
        return pd.DataFrame(lines, columns=TRUST)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        page: list[Table | str] = []
        own = frame[frame["measure"].isin(MEASURES)]
        titles = ("Judge", *(TITLES[measure] for measure in MEASURES))
        lines = []
        for judge, part in own.groupby("judge", sort=False):
            texts = {TITLES[row["measure"]]: interval(row["value"], row["low"], row["high"]) for row in records(part)}
            name = {"Judge": results.label("judges", str(judge))}
            lines.append(name | {title: texts.get(title, NOTHING) for title in titles[1:]})
        caption = (
            "Shares of a judge's verdicts, with their 95 % intervals over prompts. Prefers longer: of verdicts for one "
            "of two responses of different length, those for the longer one, which may be the better one. Prefers "
            "first: of verdicts for one response, those for the one shown first; 0.5 is no preference. Flips: of "
            "comparisons asked in both orders, those whose verdict changes with the order (with `both_orders`). Same "
            "again: of questions asked a second time, those with the same verdict (with `ask_again`)."
        )
        page.append(Table(caption, lines, titles))
        lines = []
        for (first_of, other), part in frame[frame["other"] != ""].groupby(["judge", "other"], sort=False):
            texts = {TITLES[row["measure"]]: interval(row["value"], row["low"], row["high"]) for row in records(part)}
            names = {"Judge": results.label("judges", str(first_of)), "Against": results.label("judges", str(other))}
            lines.append(names | texts | {"Comparisons": str(int(part["n"].iloc[0]))})
        if lines:
            caption = (
                "Agreement of two judges on the responses that both judged, against the same baseline: share of "
                "equal verdicts (a win, a tie, a loss), and kappa, the agreement beyond that of chance. Brackets: 95 % "
                "interval over prompts."
            )
            page.append(Table(caption, lines, title="Agreement between judges"))
        page += [
            f"Krippendorff's alpha of {_whom(results, row['judge'])}, verdicts in their order: "
            f"{interval(row['value'], row['low'], row['high'])}, over {int(row['n'])} comparisons that two or more of "
            "them decided."
            for row in records(frame[frame["measure"] == ALPHA])
        ]
        return page


# ---- verdicts ----------------------------------------------------------------------------------------------------


def _annotations(results: Results, judge: str) -> Iterable[Annotation]:
    """All that a judge said: against the baseline, and about pairs of methods where it was asked."""
    for (_, name), judgement in results.judged.items():
        if name == judge:
            yield from judgement.annotations
    for judgement in results.judged_pairs(judge):
        yield from judgement.annotations


def _whom(results: Results, judge: str) -> str:
    return f"the annotators of {results.label('judges', judge)}" if judge else "all judges"


def _votes(annotations: Iterable[Annotation]) -> tuple[Array, list[str]]:
    """The verdicts of people, (annotators, comparisons that two or more of them decided), of `agreement.SIDES` and
    NaN, with the prompts of the comparisons."""
    given = [(a.prompt_id, {q.by: _side(q.preference) for q in a.questions if q.by is not None}) for a in annotations]
    several = [(prompt, of) for prompt, of in given if sum(side is not None for side in of.values()) > 1]
    names = sorted({str(name) for _, of in several for name in of})
    table = np.array([[of.get(name) for _, of in several] for name in names], dtype=float)
    return table, [prompt for prompt, _ in several]


def _side(preference: float | None) -> int | None:
    """The better side, of `agreement.SIDES`; None where there is no verdict."""
    return None if preference is None else (preference > TIE) - (preference < TIE)


def _longer(a: Annotation) -> Iterable[Hit]:
    if _side(a.preference) and a.candidate_length != a.baseline_length:
        yield a.prompt_id, (_side(a.preference) == 1) == (a.candidate_length > a.baseline_length)


def _first(a: Annotation) -> Iterable[Hit]:
    for question in a.questions:
        if not question.again and _side(question.preference):
            yield a.prompt_id, (_side(question.preference) == 1) == (question.shown_first == "candidate")


def _flips(a: Annotation) -> Iterable[Hit]:
    once = [question for question in a.questions if not question.again]
    sides = [_side(question.preference) for question in once]
    if len({question.shown_first for question in once}) == 2 and None not in sides:
        yield a.prompt_id, sides[0] != sides[1]


def _again(a: Annotation) -> Iterable[Hit]:
    repeated = [question for question in a.questions if question.again]
    for question in repeated:
        sides = _side(_before(a, question).preference), _side(question.preference)
        if None not in sides:
            yield a.prompt_id, sides[0] == sides[1]


def _before(a: Annotation, repeated: Asked) -> Asked:
    """The same question when it was first asked."""
    return next(q for q in a.questions if not q.again and q.shown_first == repeated.shown_first)


MEASURES = {LONGER: _longer, FIRST: _first, FLIPS: _flips, AGAIN: _again}

Key = tuple[Cell, str, str, str, int]
"""A cell, its prompt set, the name of its opponent, a prompt and a sample's number."""


def _verdicts(results: Results, judge: str) -> dict[Key, int]:
    """A judge's verdict on each comparison with a baseline that it decided."""
    found, prompts = {}, results.judge_settings[judge].prompts
    for (cell, name), judgement in results.judged.items():
        for a in judgement.annotations if name == judge else ():
            side = _side(a.preference)
            if side is not None:
                found[cell, prompts, judgement.baseline, a.prompt_id, a.sample] = side
    return found


def _counted(verdicts: Iterable[dict[Key, int]]) -> dict[Key, int]:
    """By how many judges each comparison was decided."""
    numbers: dict[Key, int] = defaultdict(int)
    for given in verdicts:
        for key in given:
            numbers[key] += 1
    return numbers


def _share(hits: list[Hit]) -> Estimate:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for prompt, is_hit in hits:
        counts[prompt][0] += is_hit
        counts[prompt][1] += 1
    return statistics.clustered(*zip(*counts.values(), strict=True))


def _line(e: Estimate, n: int) -> tuple[float, float, float, int, int]:
    return e.mean, e.low, e.high, n, e.prompts
