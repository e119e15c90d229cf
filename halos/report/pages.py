"""What a reader sees of a grid's tables: their columns, captions and bold numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd

from halos.report import estimates as E
from halos.report import statistics
from halos.report.render import NOTHING, Bold, Table, interval, number, p_value, percent
from halos.report.results import SCORE, WIN, Results

NO_JUDGE = "No judge in this grid: give it `judges:` to compare responses."
NO_TASK = "No task in this grid: give it `tasks:` to benchmark models."
NO_PUBLISHED = "No run of this grid is among the published ones."

Page = Sequence[Table | str]


def main_page(results: Results, main: pd.DataFrame) -> Page:
    """For each judge a table of methods: their measures, or, of several models or datasets, a table of methods by
    models for the score and for the win rate."""
    several = len(results.models) * len(results.datasets) > 1
    page: list[Table | str] = []
    for judge in results.judges:
        caption = main_caption(results, judge, main)
        if several:
            for measure, title in _judged(results, judge, main):
                page.append(Table(caption, _by_model(results, main, judge, measure), title=title))
        else:
            lines = [_names(results, row) | _measured(results, main, judge, row) for row in records(main)]
            page.append(Table(caption, lines))
    if not results.judges:
        lines = [_names(results, row) | {"Seeds": str(row["seeds"])} for row in records(main)]
        page.append(Table(NO_JUDGE, lines))
    return page


def _judged(results: Results, judge: str, main: pd.DataFrame) -> list[tuple[str, str]]:
    """What a judge gives, of its score and win rate, with its name."""
    names = ((SCORE, results.score_name(judge).capitalize()), (WIN, "Win rate"))
    return [(measure, title) for measure, title in names if main[f"{judge}.{measure}"].notna().any()]


def _cell_text(row: dict[str, Any], name: str) -> str:
    text = interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
    return Bold(text) if row[f"{name}_best"] else text


def _by_model(results: Results, main: pd.DataFrame, judge: str, measure: str) -> list[dict[str, str]]:
    at = {tuple(row[key] for key in E.ROW): row for row in records(main)}
    panels = {ids: results.panel_label(*ids) for ids in product(results.datasets, results.models)}
    return [
        {"Method": results.method_label(method)}
        | {name: _cell_text(at[*ids, method], f"{judge}.{measure}") for ids, name in panels.items()}
        for method in results.methods
    ]


def _measured(results: Results, main: pd.DataFrame, judge: str, row: dict[str, Any]) -> dict[str, str]:
    titles = dict(_judged(results, judge, main))
    line = {titles[SCORE]: _cell_text(row, f"{judge}.{SCORE}")} if SCORE in titles else {}
    for criterion in results.criteria(judge):
        line[metric_title(criterion)] = number(row[f"{judge}.{SCORE}.{criterion}"])
    if WIN in titles:
        line[titles[WIN]] = _cell_text(row, f"{judge}.{WIN}")
    line["Length"] = " / ".join(number(row[f"{judge}.length_{side}"], 0) for side in ("candidate", "baseline"))
    return line


def main_caption(results: Results, judge: str, main: pd.DataFrame) -> str:
    """Who judged, against what, how many, and what the brackets hold."""
    first = results.judged[results.cells[0], judge]
    kind, rewards = results.kind(judge).replace("_", " "), results.score_name(judge) == "reward"
    baseline = first.get("baseline", "target")
    against = "the dataset's target" if baseline == "target" else baseline
    values = main.get(f"{judge}.{SCORE}_baseline", pd.Series(dtype=float)).dropna()
    scores = " to ".join(dict.fromkeys((number(values.min()), number(values.max())))) if len(values) else ""
    scored = f", which itself scores {scores}" if scores else ""
    failed = int(main[f"{judge}.failures"].sum()), int(main[f"{judge}.not_judged"].sum())
    ties = "half a win" if results.ties(judge) == "half" else "a win of neither"
    return (
        f"Judge: {results.label('judges', judge)} ({kind}), against {against}{scored}; "
        f"n = {_range(main[f'{judge}.prompts'])} prompts, {_seeds(results)}. Brackets: {interval_kind(results)}. "
        f"Bold: better than every other method of its model (p < 0.05, paired, Holm's correction). A tie is {ties}. "
        f"{failed[0]} failed and {failed[1]} unjudged responses are left out. "
        "Length: mean characters, method / baseline."
        + (" Rewards have no scale: only their differences, by this one judge, mean something." if rewards else "")
    )


def reward_models_page(results: Results, rewards: pd.DataFrame) -> Page:
    """The table of the grid's reward models; nothing where it has none."""
    if rewards.empty:
        return []
    shown = [
        _names(results, row)
        | {"Ranking accuracy": interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])}
        | {"Margin": number(row["margin"]), "Loss": number(row["loss"])}
        | {"Pairs": number(row["pairs"], 0), "Seeds": str(row["seeds"])}
        for row in records(rewards)
    ]
    caption = (
        "Ranking accuracy: share of held-out pairs whose chosen response scores above the rejected one, at the last "
        f"evaluation, mean over {_seeds(results)}. Brackets: 95 % interval from the standard error over pairs, which "
        "all seeds share, and the spread between seeds. Margin: mean score of the chosen less that of the rejected."
    )
    return [Table(caption, shown, title="Reward models")]


def comparisons_page(results: Results, compared: pd.DataFrame) -> Page:
    page: list[Table | str] = []
    header = ["Method", "Against", "Score difference", "p", "p (Holm)", "Win-rate difference", "p", "p (Holm)"]
    if compared.empty:
        why = "No two methods of this grid are parent and child, or `sft` and another: nothing to compare."
        page.append(Table(why if results.judges else NO_JUDGE, [], header))
    for judge, of_judge in compared.groupby("judge", sort=False):
        shown = []
        for (*ids, against), pair in of_judge.groupby([*E.ROW, "against"], sort=False):
            line = _names(results, dict(zip(E.ROW, ids, strict=True))) | {"Against": results.method_label(str(against))}
            for measure, title in ((SCORE, results.score_name(str(judge)).capitalize()), (WIN, "Win-rate")):
                d = records(pair[pair["measure"] == measure])
                if (of_judge["measure"] == measure).any():
                    text = interval(d[0]["difference"], d[0]["low"], d[0]["high"], sign=True) if d else NOTHING
                    line[f"{title} difference"] = text
                    # a space makes two columns of the same title two keys
                    end = "" if measure == SCORE else " "
                    line["p" + end] = p_value(d[0]["p"]) if d else NOTHING
                    line["p (Holm)" + end] = _significant(d[0]["p_holm"]) if d else NOTHING
            better = records(pair)[0]  # of scores where there are, for win rates tie more often
            line["P(better)"] = interval(better["improvement"], better["improvement_low"], better["improvement_high"])
            shown.append(line)
        caption = (
            f"Judge: {results.label('judges', str(judge))}; method minus the one it is compared with, paired over the "
            f"n = {_range(of_judge['prompts'])} prompts that both answered, {_seeds(results)}. Brackets: "
            f"{interval_kind(results)}. p: two-sided, no difference; Holm: adjusted for the "
            f"{of_judge['measure'].value_counts().max()} comparisons of a column, bold below 0.05. P(better): "
            "probability that the method's response to a prompt is better than the other's, a tie counting half."
        )
        page.append(Table(caption, shown))
    return page


def _significant(p: float) -> str:
    return Bold(p_value(p)) if p < 1 - statistics.LEVEL else p_value(p)


def benchmarks_page(results: Results, benchmarked: pd.DataFrame) -> Page:
    if benchmarked.empty:
        return [Table(NO_TASK, [], ["Method"])]
    # lm-eval names a metric with its filter: acc,none
    metrics = benchmarked.groupby("task", sort=False)["metric"].first().str.removesuffix(",none")
    shown = []
    for ids, group in benchmarked.groupby(E.ROW, sort=False):
        line = _names(results, dict(zip(E.ROW, ids, strict=True)))
        for e in records(group):
            title = f"{results.label('tasks', e['task'])} ({metrics[e['task']]})"
            text = interval(e["value"], e["low"], e["high"])
            line[title] = Bold(text) if e["clear"] and e["change"] > 0 else text
        shown.append(line)
    sizes = benchmarked.groupby("task", sort=False)["n"].max().dropna()
    n = ", ".join(f"{results.label('tasks', str(task))} {size:.0f}" for task, size in sizes.items())
    caption = (
        f"Mean over {_seeds(results)}{f'; items: {n}' if n else ''}. Brackets: 95 % interval from the standard error "
        "over a task's items, which all seeds share, and the spread between seeds."
    )
    reference = results.method_label(benchmarked["reference"].iloc[0])
    better = f" Bold: better than {reference} (p < 0.05, Holm's correction for all changes)."
    return [Table(caption + better, shown)]


def lengths_page(results: Results, long: pd.DataFrame) -> Page:
    if long.empty:
        return [Table(NO_JUDGE, [], ["Method"])]
    page: list[Table | str] = []
    for judge, of_judge in long.groupby("judge", sort=False):
        controlled = of_judge["controlled"].notna().any()
        shown = []
        for row in records(of_judge):
            line = _names(results, row)
            line["Length"] = number(row["length"], 0)
            line["Baseline"] = number(row["baseline_length"], 0)
            line["Win rate"] = interval(row["win_rate"], row["low"], row["high"])
            if controlled:
                line["At equal length"] = interval(row["controlled"], row["controlled_low"], row["controlled_high"])
            line |= {"Cut off": percent(row["cut"]), "Ties": str(row["ties"]), "Failures": str(row["failures"])}
            shown.append(line)
        caption = (
            f"Judge: {results.label('judges', str(judge))}. Length, baseline: mean characters of both's responses. "
            f"Brackets: {interval_kind(results)}. Cut off: responses that reached the token limit. "
            f"Ties and failures: of {_seeds(results)}."
            + (" At equal length: the length-controlled win rate." if controlled else "")
        )
        page.append(Table(caption, shown))
    return page


def cost_page(results: Results, cost: pd.DataFrame) -> Page:
    shown = [
        _names(results, row)
        | {"Parameters": _millions(row["parameters"]), "Minutes": number(row["seconds"] / 60, 1)}
        | {"GPU hours": number(row["gpu_hours"], 2), "Memory (GB)": number(row["peak_memory_gb"], 1)}
        | {"Tokens": _millions(row["tokens"]), "Tokens/s": number(row["tokens_per_second"], 0)}
        | {"Processes": number(row["processes"], 0), "Cells": str(row["cells"])}
        | {"Eval loss": number(row["eval_loss"]), "Reward accuracy": number(row["eval_reward_accuracy"])}
        for row in records(cost)
    ]
    hours = (cost["gpu_hours"] * cost["cells"]).sum(), (cost["seconds"] * cost["cells"]).sum() / 3600
    caption = (
        "Training of one cell's last stage, mean over its seeds: wall time, GPU time, the most memory of one device "
        "(of the process, on a CPU), tokens trained on, and the median of tokens per second over steps. All cells "
        f"together: {number(hours[0], 1)} GPU hours, {number(hours[1], 1)} hours of wall time one after the other; "
        "parents outside of the grid, sampling and judging not counted. Eval loss and reward accuracy are those of the "
        "last evaluation; losses of different kinds share no scale."
    )
    return [Table(caption, shown, ["Method"])]


def data_page(results: Results, data: pd.DataFrame) -> Page:
    titles = {
        "prompts": "Prompts", "responses": "Responses", "pairs": "Pairs", "desirable": "Desirable",
        "undesirable": "Undesirable", "dropped": "Dropped", "truncated": "Truncated",
        "prompt_tokens": "Prompt tokens", "response_tokens": "Response tokens",
    }  # fmt: skip
    shown = [
        {"Dataset": results.label("datasets", row["dataset"])}
        | ({"Model": results.label("models", row["model"])} if len(results.models) > 1 else {})
        | {"Split": row["split"]}
        | {title: number(row[key], 0) for key, title in titles.items()}
        for row in records(data)
    ]
    caption = (
        "What was left of each dataset after drops, which are counted by reason in the dataset's report; tokens are "
        "medians. Of the test split, lengths and truncations are of the fixed evaluation subset."
    )
    return [Table(caption, shown)]


def published_page(results: Results, beside: pd.DataFrame) -> Page:
    if beside.empty:
        return [Table(NO_PUBLISHED, [], ["Method"])]
    page: list[Table | str] = []
    for judge, of_judge in beside.groupby("judge", sort=False):
        shown = [
            _names(results, row)
            | {"Ours": interval(row["ours"], row["low"], row["high"])}
            | {"Published": interval(row["published"], row["published_low"], row["published_high"])}
            | {"Difference": _apart(row), "On": row["published_dataset"]}
            for row in records(of_judge)
        ]
        caption = (
            f"Win rates beside those published as {results.published} (its source is in halos/report/published), a tie "
            f"for neither in both. Judge of ours: {results.label('judges', str(judge))}. Brackets: of ours 95 %, over "
            "prompts and seeds; of the published ones the 90 % Clopper-Pearson interval that was printed; of the "
            "difference 95 %, bold where it leaves out zero. On: the dataset of the published run."
        )
        page.append(Table(caption, shown))
    return page


def _apart(row: dict[str, Any]) -> str:
    text = interval(row["difference"], row["difference_low"], row["difference_high"], sign=True)
    return Bold(text) if row["difference_low"] > 0 or row["difference_high"] < 0 else text


def _millions(value: float) -> str:
    return NOTHING if pd.isna(value) else f"{value / 1e6:,.1f}M" if value < 1e9 else f"{value / 1e9:,.1f}B"


def interval_kind(results: Results, short: bool = False) -> str:
    """What an interval holds, in words; it follows `statistics.bootstrap`."""
    seeds = len(results.seeds)
    if short:
        return "95 % interval over prompts" + (f" and {seeds} seeds" if seeds > 1 else ", 1 seed")
    if seeds == 1:
        return "95 % interval over prompts; of one seed, so it says nothing about other seeds"
    if seeds == 2:
        return "95 % interval over prompts and seeds (whose variance is taken to be the same for all methods)"
    return f"95 % interval over prompts and seeds (t, {seeds - 1} df)"


def _names(results: Results, row: dict[str, Any]) -> dict[str, str]:
    """The columns that name a row; dataset and model only where the grid has more than one."""
    names = {"Dataset": results.label("datasets", row["dataset"])} if len(results.datasets) > 1 else {}
    names |= {"Model": results.label("models", row["model"])} if len(results.models) > 1 else {}
    return names | {"Method": results.method_label(row["method"])}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def metric_title(measure: str) -> str:
    return measure.removeprefix(f"{SCORE}.").replace("_", " ").capitalize()


def _range(values: pd.Series) -> str:
    known = values.dropna()
    return " to ".join(dict.fromkeys((f"{known.min():.0f}", f"{known.max():.0f}"))) if len(known) else "0"


def _seeds(results: Results) -> str:
    return "1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"
