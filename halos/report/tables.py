"""Tables of a grid: CSV with every number, Markdown to put into a paper."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halos.grid import Cell
from halos.report import estimates as E
from halos.report import statistics
from halos.report.results import CELL, SCORE, WIN, Results

REWARD_METRICS = ["rewards/accuracy", "rewards/margin", "loss"]
REWARD_MODELS = [*E.ROW, "seeds", "accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "pairs"]
COSTS = ["seconds", "tokens", "steps", "peak_memory_gb", "parameters"]
COUNTS = ["n", "wins", "losses", "ties", "failures", "not_judged"]
NOTHING = "–"
NO_JUDGE = "No judge in this grid: give it `judges:` to compare responses."
NO_TASK = "No task in this grid: give it `tasks:` to benchmark models."


def make(config: Path, results: Path, output: Path) -> None:
    """Write all tables of a grid.

    Args:
        config: the grid's slice of the config.
        results: the results folder.
        output: folder for cells.csv, training.csv, reward_models.csv, and main, benchmarks and comparisons as .csv and
            .md. Reward models are a section of main.md, where there are any.

    Raises:
        HalosError: a file of a cell is missing.
    """
    r = Results(config, results)
    training = training_table(r)
    measures, compared, benchmarked = E.measures(r), E.comparisons(r), E.benchmarks(r)
    main, rewards = main_table(r, measures, training), reward_models_table(r, training)
    E.write_csv(cells_table(r, training), output / "cells.csv")
    E.write_csv(training, output / "training.csv")
    E.write_csv(main, output / "main.csv")
    E.write_csv(rewards, output / "reward_models.csv")
    E.write_csv(compared, output / "comparisons.csv")
    E.write_csv(benchmarks_table(r, benchmarked), output / "benchmarks.csv")
    (output / "main.md").write_text(main_text(r, main) + reward_models_text(r, rewards))
    (output / "comparisons.md").write_text(comparisons_text(r, compared))
    (output / "benchmarks.md").write_text(benchmarks_text(r, benchmarked))


def training_table(results: Results) -> pd.DataFrame:
    """One row per trained cell: the last logged value of every training and evaluation metric, and what it cost."""
    log = results.training
    # `last` is a metric's last value, not the last line: not every line has every metric
    last = log.groupby([*CELL, "split"]).last().to_dict("index")
    found = []
    for cell in results.trained:
        row: dict[str, Any] = dict(cell.ids)
        for split in ("train", "eval"):
            numbers = last.get((*cell.ids.values(), split), {})
            row |= {f"{split}.{name}": value for name, value in numbers.items() if pd.notna(value)}
        manifest = results.manifest(cell)
        found.append(row | {name: manifest.get(name) for name in COSTS})
    frame = pd.DataFrame(found)
    metrics = sorted((c for c in frame.columns if "." in c), key=lambda c: c.startswith("eval."))
    return frame.reindex(columns=[*CELL, *metrics, *COSTS])


def cells_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: counts, lengths and scores of each judge, tasks, and the row of training.csv."""
    found = []
    for cell in results.cells:
        row: dict[str, Any] = dict(cell.ids)
        for judge in results.judges:
            j = results.judged[cell, judge]
            row |= {f"{judge}.{name}": j.get(name) for name in COUNTS}
            row[f"{judge}.cut"] = results.cut(cell, judge)
            decided = sum(j.get(name) or 0 for name in ("wins", "losses", "ties"))
            low, high = statistics.wilson((j.get("wins") or 0) + (j.get("ties") or 0) / 2, decided)
            row |= {f"{judge}.{WIN}": j.get(WIN), f"{judge}.{WIN}_low": low, f"{judge}.{WIN}_high": high}
            row[f"{judge}.standard_error"] = j.get("standard_error")
            for side in ("candidate", "baseline"):
                row[f"{judge}.length.{side}"] = (j.get("mean_length") or {}).get(side)
                scores = (j.get("scores") or {}).get(side) or {}
                row |= {f"{judge}.{SCORE}.{side}.{name}": value for name, value in scores.items()}
        found.append(row)
    frame = pd.DataFrame(found)
    for task, group in results.benchmarks.groupby("task", sort=False):
        part = group[[*CELL, "value", "stderr", "n"]].rename(
            columns={k: f"{task}.{k}" for k in ("value", "stderr", "n")}
        )
        frame = frame.merge(part, on=CELL, how="left")
    return frame.merge(training, on=CELL, how="left") if len(training) else frame


def main_table(results: Results, measures: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and method; a judge's columns start with its id."""
    found = []
    pooled = {
        (e["judge"], e["dataset"], e["model"], e["method"], e["measure"]): e
        for e in _records(measures[measures["seed"] == E.ALL])
    }
    for ids in E.rows(results):
        cells = [cell for cell in results.cells if (cell.dataset, cell.model, cell.method) == ids]
        row: dict[str, Any] = dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(cells)}
        for judge in results.judges:
            for measure in E.measures_of(results, judge):
                name = f"{judge}.{measure}"
                e = pooled.get((judge, *ids, measure)) or dict.fromkeys(E.MEASURES)
                row |= {name: e["mean"], f"{name}_low": e["low"], f"{name}_high": e["high"]}
                if measure == WIN:
                    row[f"{judge}.prompts"] = e["prompts"]
                else:
                    row[f"{name}_baseline"] = e["baseline"]
            js = [results.judged[cell, judge] for cell in cells]
            row |= {f"{judge}.{name}": sum(j.get(name) or 0 for j in js) for name in COUNTS}
            row[f"{judge}.cut"] = np.mean([results.cut(cell, judge) for cell in cells])
            for side in ("candidate", "baseline"):
                row[f"{judge}.length_{side}"] = np.mean([(j.get("mean_length") or {}).get(side, np.nan) for j in js])
        mine = training[(training[E.ROW] == list(ids)).all(axis=1)]
        for metric, name in (("eval.loss", "eval_loss"), ("eval.rewards/accuracy", "eval_reward_accuracy")):
            row[name] = mine[metric].mean() if metric in mine else np.nan
        found.append(row)
    return pd.DataFrame(found)


def reward_models_table(results: Results, training: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, model and reward model, of the last evaluation: ranking accuracy with interval, margin and
    loss, means over seeds."""
    found = []
    for ids in product(results.datasets, results.models, results.reward_models):
        mine = training[(training[E.ROW] == list(ids)).all(axis=1)]
        values = {name: mine.get(f"eval.{name}", pd.Series(np.nan, mine.index)) for name in REWARD_METRICS}
        pairs = results.held_out_pairs(Cell(*ids, results.seeds[0]))
        e = statistics.shares(values["rewards/accuracy"], pairs)
        means = {"margin": values["rewards/margin"].mean(), "loss": values["loss"].mean()}
        row: dict[str, Any] = {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high, **means}
        found.append(dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(mine)} | row | {"pairs": pairs})
    return pd.DataFrame(found, columns=REWARD_MODELS)


def benchmarks_table(results: Results, benchmarked: pd.DataFrame) -> pd.DataFrame:
    """Methods x tasks: {task}, {task}_low and {task}_high; with no task, a header only."""
    if benchmarked.empty:
        return pd.DataFrame(columns=[*E.ROW, "seeds"])
    found = []
    at = {(e["dataset"], e["model"], e["method"], e["task"]): e for e in _records(benchmarked)}
    for ids in E.rows(results):
        row: dict[str, Any] = dict(zip(E.ROW, ids, strict=True)) | {"seeds": len(results.seeds)}
        for task in results.tasks:
            e = at[*ids, task]
            row |= {task: e["value"], f"{task}_low": e["low"], f"{task}_high": e["high"], f"{task}_n": e["n"]}
        found.append(row)
    return pd.DataFrame(found)


def main_text(results: Results, main: pd.DataFrame) -> str:
    parts = [f"# Main results: {results.label('grids', results.grid)}"]
    trained = [("eval_loss", "Eval loss"), ("eval_reward_accuracy", "Reward accuracy")]
    trained = [(name, title) for name, title in trained if main[name].notna().any()]
    for judge in results.judges:
        shown = []
        for row in _records(main):
            line = _names(results, row)
            for measure in [SCORE, *(f"{SCORE}.{c}" for c in results.criteria(judge)), WIN]:
                name = f"{judge}.{measure}"
                if main[name].notna().any():
                    titles = {SCORE: results.score_name(judge).capitalize(), WIN: "Win rate"}
                    title = titles.get(measure) or metric_title(measure)
                    line[title] = (
                        interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
                        if measure in (SCORE, WIN)
                        else number(row[name])
                    )
            line |= {title: str(row[f"{judge}.{title.lower().replace(' ', '_')}"]) for title in ("Ties", "Failures")}
            line["Cut off"] = percent(row[f"{judge}.cut"])
            line["Length"] = " / ".join(number(row[f"{judge}.length_{side}"], 0) for side in ("candidate", "baseline"))
            line |= {title: number(row[name]) for name, title in trained}
            line |= {"Seeds": str(row["seeds"]), "Prompts": number(row[f"{judge}.prompts"], 0)}
            shown.append(line)
        parts += [main_caption(results, judge, main), markdown(shown)]
    if not results.judges:
        shown = [
            _names(results, row) | {title: number(row[name]) for name, title in trained} | {"Seeds": str(row["seeds"])}
            for row in _records(main)
        ]
        parts += [NO_JUDGE, markdown(shown)]
    if trained:
        parts.append(
            "Eval loss and reward accuracy are those of the last evaluation; losses of different kinds share no scale."
        )
    return "\n\n".join(parts) + "\n"


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
    return (
        f"Judge: {results.label('judges', judge)} ({kind}), against {against}{scored}; "
        f"n = {_range(main[f'{judge}.prompts'])} prompts, {_seeds(results)}. Brackets: {interval_kind(results)}. A tie "
        f"is half a win. {failed[0]} failed and {failed[1]} unjudged responses are left out. Cut off: responses that "
        "reached the token limit. Length: mean characters, method / baseline. Ties and failures: over all seeds."
        + (" Rewards have no scale: only their differences, by this one judge, mean something." if rewards else "")
    )


def reward_models_text(results: Results, rewards: pd.DataFrame) -> str:
    """The section of the grid's reward models; nothing where it has none."""
    if rewards.empty:
        return ""
    shown = [
        _names(results, row)
        | {"Ranking accuracy": interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])}
        | {"Margin": number(row["margin"]), "Loss": number(row["loss"])}
        | {"Pairs": number(row["pairs"], 0), "Seeds": str(row["seeds"])}
        for row in _records(rewards)
    ]
    caption = (
        "Ranking accuracy: share of held-out pairs whose chosen response scores above the rejected one, at the last "
        f"evaluation, mean over {_seeds(results)}. Brackets: 95 % interval from the standard error over pairs, which "
        "all seeds share, and the spread between seeds. Margin: mean score of the chosen less that of the rejected."
    )
    return "\n" + "\n\n".join(["## Reward models", caption, markdown(shown)]) + "\n"


def comparisons_text(results: Results, compared: pd.DataFrame) -> str:
    parts = [f"# Comparisons: {results.label('grids', results.grid)}"]
    header = ["Method", "Against", "Score difference", "p", "p (Holm)", "Win-rate difference", "p", "p (Holm)"]
    if compared.empty:
        why = "No two methods of this grid are parent and child, or `sft` and another: nothing to compare."
        parts += [why if results.judges else NO_JUDGE, markdown([], header)]
    for judge, of_judge in compared.groupby("judge", sort=False):
        shown = []
        for (*ids, against), pair in of_judge.groupby([*E.ROW, "against"], sort=False):
            line = _names(results, dict(zip(E.ROW, ids, strict=True))) | {"Against": results.method_label(str(against))}
            for measure, title in ((SCORE, results.score_name(str(judge)).capitalize()), (WIN, "Win-rate")):
                d = _records(pair[pair["measure"] == measure])
                if (of_judge["measure"] == measure).any():
                    text = interval(d[0]["difference"], d[0]["low"], d[0]["high"], sign=True) if d else NOTHING
                    line[f"{title} difference"] = text
                    # a space makes two columns of the same title two keys
                    end = "" if measure == SCORE else " "
                    line["p" + end] = p_value(d[0]["p"]) if d else NOTHING
                    line["p (Holm)" + end] = p_value(d[0]["p_holm"]) if d else NOTHING
            shown.append(line)
        caption = (
            f"Judge: {results.label('judges', str(judge))}; method minus the one it is compared with, paired over the "
            f"n = {_range(of_judge['prompts'])} prompts that both answered, {_seeds(results)}. Brackets: "
            f"{interval_kind(results)}. p: two-sided, no difference; Holm: adjusted for the "
            f"{of_judge['measure'].value_counts().max()} comparisons of a column."
        )
        parts += [caption, markdown(shown)]
    return "\n\n".join(parts) + "\n"


def benchmarks_text(results: Results, benchmarked: pd.DataFrame) -> str:
    parts = [f"# Benchmarks: {results.label('grids', results.grid)}"]
    if benchmarked.empty:
        return "\n\n".join([*parts, NO_TASK, markdown([], ["Method"])]) + "\n"
    # lm-eval names a metric with its filter: acc,none
    metrics = benchmarked.groupby("task", sort=False)["metric"].first().str.removesuffix(",none")
    shown = []
    for ids, group in benchmarked.groupby(E.ROW, sort=False):
        line = _names(results, dict(zip(E.ROW, ids, strict=True)))
        for e in _records(group):
            title = f"{results.label('tasks', e['task'])} ({metrics[e['task']]})"
            line[title] = interval(e["value"], e["low"], e["high"])
        shown.append(line)
    sizes = benchmarked.groupby("task", sort=False)["n"].max().dropna()
    n = ", ".join(f"{results.label('tasks', str(task))} {size:.0f}" for task, size in sizes.items())
    caption = (
        f"Mean over {_seeds(results)}{f'; items: {n}' if n else ''}. Brackets: 95 % interval from the standard error "
        "over a task's items, which all seeds share, and the spread between seeds."
    )
    return "\n\n".join([*parts, caption, markdown(shown)]) + "\n"


def interval_kind(results: Results, short: bool = False) -> str:
    """What an interval holds, in words; it follows `statistics.bootstrap`."""
    seeds = len(results.seeds)
    if short:
        return "95 % interval over prompts" + (f" and {seeds} seeds" if seeds > 1 else ", 1 seed")
    if seeds == 1:
        return "95 % bootstrap interval over prompts; of one seed, so it says nothing about other seeds"
    error = "normal" if seeds == 2 else f"t, {seeds - 1} df"
    return f"95 % interval over prompts (paired bootstrap) and seeds ({error})"


def interval(mean: float | None, low: float | None, high: float | None, sign: bool = False) -> str:
    if pd.isna(mean):
        return NOTHING
    return number(mean, sign=sign) + ("" if pd.isna(low) else f" [{number(low, sign=sign)}, {number(high, sign=sign)}]")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None or pd.isna(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{100 * value:.0f} %"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(lines: list[dict[str, str]], header: list[str] | None = None) -> str:
    """A table of aligned columns: text to the left, numbers to the right.

    Args:
        lines: {title: text}, with the same titles in each; a title's spaces at its end are dropped.
        header: the titles, when there are no lines.
    """
    titles = list(dict.fromkeys(t for line in lines for t in line)) if lines else list(header or [])
    table = [
        [t.strip() for t in titles],
        *([line.get(t, NOTHING).replace("|", r"\|") for t in titles] for line in lines),
    ]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(titles))]
    left = [title in ("Dataset", "Model", "Method", "Against") for title in titles]
    body = [[t.ljust(w) if x else t.rjust(w) for t, w, x in zip(row, widths, left, strict=True)] for row in table]
    rule = ["-" * w if x else "-" * (w - 1) + ":" for w, x in zip(widths, left, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [body[0], rule, *body[1:]])


def _names(results: Results, row: dict[str, Any]) -> dict[str, str]:
    """The columns that name a row; dataset and model only where the grid has more than one."""
    names = {"Dataset": results.label("datasets", row["dataset"])} if len(results.datasets) > 1 else {}
    names |= {"Model": results.label("models", row["model"])} if len(results.models) > 1 else {}
    return names | {"Method": results.method_label(row["method"])}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def metric_title(measure: str) -> str:
    return measure.removeprefix(f"{SCORE}.").replace("_", " ").capitalize()


def _range(values: pd.Series) -> str:
    known = values.dropna()
    return " to ".join(dict.fromkeys((f"{known.min():.0f}", f"{known.max():.0f}"))) if len(known) else "0"


def _seeds(results: Results) -> str:
    return "1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"
