"""Published win rates beside the grid's own. The files are in ../published, with their sources and licences."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from halos.errors import HalosError
from halos.registry import LOSSES, suggest
from halos.report import proportions, statistics
from halos.report.lazy import pd
from halos.report.measures import ROW, rows
from halos.report.render import Bold, Table, interval
from halos.report.results import STRICT, Results
from halos.report.style import looks, save, styled
from halos.report.subject import Outline, Subject, subject
from halos.report.subjects.size import by_size
from halos.report.words import Page, records, row_names
from halos.study.settings import PUBLISHED_IN, PUBLISHED_WINRATES
from halos.train.mixing import SFT_WEIGHT

NO_PUBLISHED = "No run of this grid is among the published ones."
FOLDER = Path(__file__).parents[1] / "published"
PAPER_LEVEL = 0.9
"""Level of the intervals that Ethayarajh et al. (2024) print."""
LABELS = {"base": "Base", "slic": "SLiC"}
SETTINGS = ["keep_desirable", "keep_undesirable", "desirable_weight", "undesirable_weight", "one_per_prompt"]
"""Columns that a run must agree with beside model and method, where they are not empty."""
EXTENSIONS = ("humanline", "sync_reference", "sft_weight", "margin_weight", "online")
"""Settings by which a loss is another method than the published one of its name."""
COMPARED = ["judge", *ROW, "ours", "low", "high", "published", "published_low", "published_high", "difference",
             "difference_low", "difference_high", "seeds", "prompts", "published_n", "published_dataset",
             "run"]  # fmt: skip


@subject
class Published(Subject):
    table = "published"
    title = "Published results"

    def tabulates(self, grid: Outline | Results) -> bool:
        return grid.published in PUBLISHED_IN[PUBLISHED_WINRATES]

    def frame(self, results: Results) -> pd.DataFrame:
        """Win rates beside the published ones of the same model, losses and settings, both with a tie for
        neither, and their difference; ours with its 95 % interval, theirs with the 90 % one that was printed."""
        if not self.tabulates(results) or results.published is None:
            return pd.DataFrame(columns=COMPARED)
        runs = load(results.published)
        lines = []
        for judge, ids in product(results.judges, rows(results)):
            cell = results.cells_of(*ids)[0]
            run = match(runs, results.hub(ids[1]), results.losses(cell), results.settings(cell))
            values = results.values(judge, *ids, STRICT)
            if run is None or values.empty or not all(map(is_plain, results.stages(cell))):
                continue
            ours = statistics.estimate(values, bounded=True)
            theirs = statistics.Estimate(run["win_rate"], *proportions.wilson(run["wins"], run["n"]), 1, run["n"])
            of_run = (run["win_rate"], run["low"], run["high"], *statistics.gap(ours, theirs))
            counts = (ours.seeds, ours.prompts, run["n"], run["dataset"], run["run"])
            lines.append((judge, *ids, ours.mean, ours.low, ours.high, *of_run, *counts))
        return pd.DataFrame(lines, columns=COMPARED)

    def page(self, results: Results, frame: pd.DataFrame) -> Page:
        if frame.empty:
            return [Table(NO_PUBLISHED, [], ["Method"])]
        page: list[Table | str] = []
        for judge, of_judge in frame.groupby("judge", sort=False):
            lines = [
                row_names(results, row)
                | {"Ours": interval(row["ours"], row["low"], row["high"])}
                | {"Published": interval(row["published"], row["published_low"], row["published_high"])}
                | {"Difference": _apart(row), "On": row["published_dataset"]}
                for row in records(of_judge)
            ]
            caption = (
                f"Win rates beside those published as {results.published} (its source is in halos/report/published), "
                f"a tie for neither in both. Judge of ours: {results.label('judges', str(judge))}. Brackets: of ours "
                "95 %, over prompts and seeds; of the published ones the 90 % Clopper-Pearson interval that was "
                "printed; of the difference 95 %, bold where it leaves out zero. On: the dataset of the published run."
            )
            page.append(Table(caption, lines))
        return page


def _apart(row: dict[str, Any]) -> str:
    text = interval(row["difference"], row["difference_low"], row["difference_high"], sign=True)
    return Bold(text) if row["difference_low"] > 0 or row["difference_high"] < 0 else text


def load(name: str) -> pd.DataFrame:
    """The published runs, a row each: model, method (a chain of losses: sft-kto), dataset and settings, counts, and
    `win_rate`, `low` and `high` computed from them: wins of all comparisons, a tie for neither, with the
    Clopper-Pearson interval of PAPER_LEVEL.

    Raises:
        HalosError: nothing is published under this name.
    """
    if name not in (known := PUBLISHED_IN[PUBLISHED_WINRATES]):
        raise HalosError(f"there are no published results called {name!r}{suggest(name, known)}")
    runs = pd.read_csv(FOLDER / f"{name}{PUBLISHED_WINRATES}")
    limits = [proportions.clopper_pearson(w, n, PAPER_LEVEL) for w, n in zip(runs["wins"], runs["n"], strict=True)]
    return runs.assign(
        win_rate=runs["wins"] / runs["n"], low=[low for low, _ in limits], high=[high for _, high in limits]
    )


def models(name: str) -> pd.DataFrame:
    """Label, family and parameters of the models of `load`, by model."""
    table: pd.DataFrame = pd.read_csv(FOLDER / f"{name}_models.csv").set_index("model")
    return table


def match(runs: pd.DataFrame, model: str, losses: list[str], settings: dict[str, Any]) -> dict[str, Any] | None:
    """The published run with the model, losses and settings of a cell; None without one.

    Args:
        runs: as `load` gives them.
        model: id of the model, or its id on the hub; capitals and the owner do not matter.
        losses: of the stages of the cell's method, in order; none for a base model.
        settings: of its last stage.
    """
    name = model.rsplit("/", 1)[-1].lower()
    matches = runs[(runs["model"] == name) & (runs["method"] == ("-".join(losses) or "base"))]
    for key in SETTINGS:
        wanted = settings.get(key)
        matches = matches[matches[key].isna() | np.isclose(matches[key], np.nan if wanted is None else float(wanted))]
    return {str(k): v for k, v in matches.iloc[0].items()} if len(matches) else None


def is_plain(settings: dict[str, Any]) -> bool:
    """Whether a stage trains its loss and nothing beside; `sft_weight` is a part of losses that have one themselves."""
    loss = settings["loss"]
    own = [field.name for field in fields(LOSSES[loss])] if loss in LOSSES else []
    return not any(settings.get(name) for name in EXTENSIONS if name != SFT_WEIGHT or name not in own)


def draw(output: Path, name: str = "archangel") -> None:
    """Draw published win rates against model size, as a grid's own are drawn.

    Args:
        name: name of the published results: archangel.
        output: figure without its ending: .svg, .png and .csv are written.

    Raises:
        HalosError: nothing is published under this name, or no model in several sizes.
    """
    runs = load(name).join(models(name), on="model")
    # the study of a paper: every run in the same setting, and families of several sizes
    runs = runs[(runs["dataset"] == name) & runs[["keep_desirable", "keep_undesirable"]].fillna(1).eq(1).all(axis=1)]
    runs = runs[~runs["run"].str.startswith("fracdata")]
    runs = runs[runs.groupby("family")["parameters"].transform("nunique") > 1]
    if runs.empty:
        raise HalosError(f"{name} holds no family of models of several sizes")
    methods = sorted(set(runs["method"]), key=lambda m: (m not in ("base", "sft"), "-" not in m, m))
    frame = runs.rename(columns={"win_rate": "mean", "n": "prompts"}).assign(seeds=1)
    with styled():
        labels = {m: " + ".join(LABELS.get(part, part.upper()) for part in m.split("-")) for m in methods}
        drawn = looks({method: method.rsplit("-", 1)[-1] for method in methods})
        figure = by_size(frame, labels, drawn, {}, "90 % Clopper-Pearson interval, 1 seed")
        save(figure, frame.drop(columns=SETTINGS), output)
