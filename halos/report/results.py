"""The results of a grid: every judgement, task result, training log and manifest of its cells."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from halos.data.report import DataReport, Overlap
from halos.errors import HalosError
from halos.evaluate.divergence.divergence import Divergence
from halos.evaluate.judging.judgement import ASKED, ROUNDING, Annotation, Judgement, Ties
from halos.evaluate.judging.settings import JudgeSlice
from halos.evaluate.rewards.rewards import Rewards
from halos.evaluate.tasks.result import TaskResult
from halos.manifest import Manifest
from halos.models.settings import ModelSlice
from halos.registry import LOSSES
from halos.report.lazy import pd
from halos.report.statistics import Array
from halos.sample.samples import Sample, read_samples
from halos.sample.settings import PromptsSlice
from halos.study.cells import BASE, Cell
from halos.study.choice import Choice
from halos.study.paths import Paths
from halos.study.settings import GridSlice
from halos.tokens.report import TokensReport
from halos.train.mixing import leading_loss, loss_text

CELL = ["dataset", "model", "method", "seed"]
WIN = "win_rate"
SCORE = "score"
STRICT = "wins_of_all"
"""The win rate that counts a tie for neither side, however the judge counts it."""
SIZE = re.compile(r"[ _-]*(\d+(?:\.\d+)?) ?([BM])\b", re.IGNORECASE)
"""The parameter count in a model's name: Pythia 1.4B, SmolLM2-135M-Instruct."""

TASK = ["metric", "value", "stderr", "n", "higher_is_better"]
"""Fields of a task's result."""


class Results:
    """The results of a grid, each file read when it is first asked for.

    Args:
        config: the grid's slice of the config, results/grids/{grid}/config.yaml.
        results: the results folder.

    Raises:
        HalosError: on reading, when a cell's file is missing or is not what it should be.
    """

    def __init__(self, config: Path, results: Path) -> None:
        grid = GridSlice.read(config)
        self.paths = Paths(results)
        self.grid = grid.grid
        self.datasets, self.models, self.methods = list(grid.datasets), list(grid.models), list(grid.methods)
        self.reward_models, self.seeds = list(grid.reward_models), list(grid.seeds)
        self.judges, self.tasks, self._prompts = list(grid.judges), list(grid.tasks), list(grid.prompts)
        self.published, self.refusals, self.divergence_prompts = grid.published, grid.refusals, grid.divergence
        self.preference_sets = grid.preference_sets
        self.overlaps, self.sweeps, self._counterparts = grid.overlaps, grid.sweeps, grid.counterparts
        self.courses, self.course_judges = grid.courses, list(grid.snapshots)
        self.pairs, self._compared = grid.pairs, grid.compared
        self._labels = grid.labels
        self._manifests: dict[Cell, Manifest] = {}
        self._answered_by: dict[str, tuple[str, Path]] = {}  # judge -> the model that answered, and for which file

    # ---- cells and their names -----------------------------------------------------------------------------

    @property
    def cells(self) -> list[Cell]:
        """The policies, which are judged and benchmarked."""
        return [Cell(*ids) for ids in product(self.datasets, self.models, self.methods, self.seeds)]

    @property
    def trained(self) -> list[Cell]:
        """The cells with a training: policies, then reward models."""
        rewards = [Cell(*ids) for ids in product(self.datasets, self.models, self.reward_models, self.seeds)]
        return [cell for cell in (*self.cells, *rewards) if cell.stage is not None]

    def cells_of(self, dataset: str, model: str, method: str) -> list[Cell]:
        """The seeds of one method."""
        return [Cell(dataset, model, method, seed) for seed in self.seeds]

    def label(self, kind: str, name: str) -> str:
        """The name in tables and figures of an entry of the config; its id where it has no label."""
        return self._labels.get(kind, {}).get(name) or name

    def method_label(self, method: str) -> str:
        """`sft-kto` -> `SFT + KTO`: the stages' labels, or their ids in capitals."""
        if method == BASE:
            return "Base"
        stages = self._labels.get("stages", {})
        return " + ".join(stages.get(stage) or stage.upper().replace("_", " ") for stage in method.split("-"))

    def panel_label(self, dataset: str, model: str) -> str:
        """Model and dataset, each only where the grid has more than one; the model alone when it has one of both."""
        parts = [self.label("models", model)] if len(self.models) > 1 or len(self.datasets) == 1 else []
        parts += [self.label("datasets", dataset)] if len(self.datasets) > 1 else []
        return ", ".join(parts)

    # ---- models and trainings ------------------------------------------------------------------------------

    def manifest(self, cell: Cell) -> Manifest:
        """The manifest of a cell's training; of its base model for the method `base`."""
        if cell not in self._manifests:
            self._manifests[cell] = Manifest.read(self.paths.run(cell).manifest)
        return self._manifests[cell]

    def hub(self, model: str) -> str:
        """A model's id on the hub, or its id in the catalogue."""
        config = self.paths.model(model).config
        return str((ModelSlice.read(config).hub if config.is_file() else None) or model)

    def family(self, model: str) -> str:
        """The label of a model without its size, which models of several sizes share."""
        return SIZE.sub("", self.label("models", model)).strip() or model

    def parameters(self, model: str) -> float:
        """Parameters of a model: as counted in a training of it, else as its label or id says; NaN if neither does."""
        counts = [self.manifest(cell).parameters for cell in self.trained if cell.model == model]
        match = SIZE.search(self.label("models", model)) or SIZE.search(model)
        named = float(match[1]) * {"B": 1e9, "M": 1e6}[match[2].upper()] if match else np.nan
        return next((float(count) for count in counts if count), named)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """The stage that a cell trained, with every setting; empty for a base model."""
        return {} if cell.stage is None else dict(self.manifest(cell).config["stage"])

    def stages(self, cell: Cell) -> list[dict[str, Any]]:
        """The settings of each stage of a cell's method, in order."""
        return [self.settings(made) for made in reversed(list(cell.lineage())) if made.stage is not None]

    def losses(self, cell: Cell) -> list[str]:
        """The loss of each stage of a cell's method, in words and in order."""
        return [loss_text(stage["loss"]) for stage in self.stages(cell)]

    def loss(self, method: str) -> str:
        """The loss of a method's last stage, of a mixture the leading one; `base` for the base model."""
        settings = self.settings(Cell(self.datasets[0], self.models[0], method, self.seeds[0]))
        return leading_loss(settings["loss"]) if settings else BASE

    def rounds(self, cell: Cell) -> int:
        """Rounds of a cell whose stage was trained online; 0 of another. The last round's result is the cell's own."""
        return len(self.manifest(cell).rounds) if cell.stage else 0

    @cached_property
    def training(self) -> pd.DataFrame:
        """The lines of every train.jsonl, numbers only, with the cell, the split and the examples seen by then."""
        frames = []
        for cell in self.trained:
            path = self.paths.run(cell).log
            frame = pd.DataFrame([json.loads(line) for line in _text(path).splitlines() if line.strip()])
            if not {"split", "step"} <= set(frame.columns):
                raise HalosError(f"{path} has no steps; delete it and run `snakemake` to train again")
            # a resumed run logs again the steps after its last checkpoint
            frame = frame.drop_duplicates(["split", "step"], keep="last").sort_values("step", kind="stable")
            if "examples" in frame:
                seen = frame[frame["split"] == "train"]
                known = np.interp(frame["step"], [0, *seen["step"]], [0, *seen["examples"]])
                frame["examples"] = frame["examples"].fillna(pd.Series(known, index=frame.index))
            numbers = frame.drop(columns="split").apply(pd.to_numeric, errors="coerce")
            frames.append(numbers.assign(split=frame["split"], **cell.ids))
        if not frames:
            return pd.DataFrame(columns=[*CELL, "split", "step", "examples"])
        log: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return log

    @cached_property
    def choices(self) -> dict[Cell, Choice]:
        """The choices between trials that the grid's methods are made by: cell of the method, of seed 0 -> choice."""
        cells = [Cell(*ids, 0) for ids in self.sweeps]
        return {cell: Choice.read(self.paths.choice(cell).choice) for cell in cells}

    def counterpart(self, kind: str, name: str) -> str | None:
        """The grid's judge or task that measures on test prompts what another one, which chooses, does on others."""
        return self._counterparts.get(kind, {}).get(name)

    # ---- responses -----------------------------------------------------------------------------------------

    @cached_property
    def judge_settings(self) -> dict[str, JudgeSlice]:
        """The settings of each judge."""
        return {name: JudgeSlice.read(self.paths.judge(name).config) for name in self.judges}

    @cached_property
    def prompt_sets(self) -> dict[str, PromptsSlice]:
        """The prompt sets that every policy answers: those of the judges, and the grid's own."""
        names = sorted({*(judge.prompts for judge in self.judge_settings.values()), *self._prompts})
        return {name: PromptsSlice.read(self.paths.prompts(name).config) for name in names}

    def prompts_of(self, judge: str) -> str:
        """The prompt set whose responses a judge sees, one of the grid's own or of snapshots."""
        return JudgeSlice.read(self.paths.judge(judge).config).prompts

    def samples(self, cell: Cell, prompts: str) -> list[Sample]:
        """The responses of a cell to a prompt set."""
        return read_samples(self.paths.run(cell).samples(prompts))

    def divergence(self, cell: Cell, prompts: str) -> dict[str, float]:
        """The log-ratio of a cell's own responses to its reference, in nats per response: {prompt_id: mean over its
        samples}. None of a base model, nor in a grid that does not ask for it."""
        if not self.divergence_prompts or cell.stage is None:
            return {}
        ratios = defaultdict(list)
        for response in Divergence.read(self.paths.run(cell).divergence(prompts, self.divergence_prompts)).responses:
            ratios[response.prompt_id].append(response.policy - response.reference)
        return {prompt: float(np.mean(values)) for prompt, values in ratios.items()}

    # ---- rewards of preference sets ------------------------------------------------------------------------

    @cached_property
    def rewarded(self) -> dict[tuple[str, str, str], list[Cell]]:
        """What is compared on the grid's preference sets: (dataset, model, method) -> its cells. These are trained
        policies, the grid's reward models, and those that its judges score by, the method of which is `base` where they
        are entries of `models:`."""
        if not self.preference_sets:
            return {}
        policies = [cell for cell in self.trained if cell.method in self.methods]
        found = dict.fromkeys((*policies, *(cell for cell in self.trained if cell.method in self.reward_models)))
        for judge, cell in product(self.judge_settings.values(), self.cells):
            if judge.named is not None:
                is_model = self.paths.model(judge.named).config.is_file()
                other = (judge.named, BASE, 0) if is_model else (cell.model, judge.named, judge.seed)
                found.setdefault(Cell(cell.dataset, *other))
        by_ids: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in found:
            by_ids.setdefault((cell.dataset, cell.model, cell.method), []).append(cell)
        return by_ids

    def rewards(self, cell: Cell, dataset: str) -> Rewards:
        """The rewards that a cell's model gives to the responses of a preference set."""
        return Rewards.read(self.paths.run(cell).rewards(dataset))

    def beta(self, cell: Cell) -> float:
        """The beta of a policy's loss, by which the log-ratio to its reference is its implicit reward; NaN where the
        loss has none, or no reference."""
        stage = self.settings(cell)
        loss = leading_loss(stage["loss"]) if stage else BASE
        if loss not in LOSSES or not LOSSES[loss].needs_reference:
            return np.nan
        parts = {} if isinstance(stage["loss"], str) else stage["loss"]
        return float((parts.get(loss) or stage).get("beta", np.nan))

    # ---- judgements ----------------------------------------------------------------------------------------

    @cached_property
    def judged(self) -> dict[tuple[Cell, str], Judgement]:
        """The judgements of every cell, and of the rounds of online stages but the last, which is the cell's own."""
        cells = [*self.cells, *(r for cell in self.cells for r in cell.rounds(self.rounds(cell) - 1))]
        return {(c, j): self._judgement(j, self.paths.run(c).judged(j)) for c, j in product(cells, self.judges)}

    def _judgement(self, judge: str, path: Path) -> Judgement:
        """A judgement that is read, and refused if it is of another model than those read before.

        Raises:
            HalosError: it is.
        """
        judgement = Judgement.read(path)
        name = None if judgement.question is None else judgement.question.answered_by
        if name is not None:
            known, of = self._answered_by.setdefault(judge, (name, path))
            if known != name:
                raise HalosError(
                    f"judge {judge} was not the same model throughout: {known} answered for {of}, and {name} for "
                    f"{path}: delete the judgements and .answers.jsonl of one of them, and run again"
                )
        return judgement

    def course(self, judge: str, cell: Cell, snapshots: int) -> list[tuple[float, Judgement]]:
        """The judgements of what a training passed through: (share of the training, judgement), from its parent at 0
        to its own model at 1.

        Args:
            judge: one of `course_judges`.
            cell: the cell.
            snapshots: their number, the last one included.
        """
        assert cell.parent is not None, "a base model has no training"
        passed = [cell.parent, *(replace(cell, snapshot=i) for i in range(1, snapshots)), cell]
        paths = [self.paths.run(at).judged(judge) for at in passed]
        return [(i / snapshots, self._judgement(judge, path)) for i, path in enumerate(paths)]

    def log_ratio(self, cell: Cell) -> float:
        """The log-ratio of model to reference on validation data at the end of a training, or of a snapshot; NaN where
        the loss has no reference."""
        path = self.paths.run(cell).log
        lines = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
        last: dict[str, Any] = next((line for line in reversed(lines) if line["split"] == "eval"), {})
        return float(last.get("kl", np.nan))

    def judgements(self, judge: str, dataset: str, model: str, method: str) -> list[Judgement]:
        """One judge's judgements of a method, seed by seed."""
        return [self.judged[cell, judge] for cell in self.cells_of(dataset, model, method)]

    @property
    def kinds(self) -> list[str]:
        """The kind of each judge."""
        return list(map(self.kind, self.judges))

    def kind(self, judge: str) -> str:
        """verifier, reward_model, ..."""
        return self.judged[self.cells[0], judge].kind

    def ties(self, judge: str) -> Ties:
        """How a judge counts ties."""
        return self.judged[self.cells[0], judge].ties_as

    def score_name(self, judge: str) -> str:
        """`reward` for a reward model, whose scores have no scale; `score` for other judges."""
        return "reward" if self.kind(judge) == "reward_model" else "score"

    def criteria(self, judge: str) -> list[str]:
        """The criteria that make up a judge's score, in its own order; none where the score is a single number."""
        if self.kind(judge) == "reward_model":
            return []
        scores = [j.scores.candidate for (_, name), j in self.judged.items() if name == judge and j.scores]
        return [name for name in dict.fromkeys(name for criteria in scores for name in criteria) if name != "mean"]

    def bounded(self, judge: str, measure: str) -> bool:
        """Whether a measure lies between 0 and 1: a win rate, or any score of a verifier."""
        return measure in (WIN, STRICT) or self.kind(judge) == "verifier"

    def cut(self, cell: Cell, judge: str) -> float:
        """Share of responses that reached the token limit."""
        annotations = self.judged[cell, judge].annotations
        return float(np.mean([a.finish_reason == "length" for a in annotations])) if annotations else np.nan

    @cached_property
    def _values(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """{(judge, dataset, model, method, round): measures by seed and prompt_id}, means over a prompt's samples."""
        rows = []
        for (cell, judge), judgement in self.judged.items():
            wins = zip(judgement.annotations, judgement.values(), judgement.values("neither"), strict=True)
            for a, win, strict in wins:
                rows.append(
                    {"judge": judge, **cell.__dict__, "prompt_id": a.prompt_id}
                    | {WIN: win, STRICT: strict, SCORE: a.candidate_score}
                    | {f"{SCORE}.{criterion}": value for criterion, value in a.criteria.items()}
                )
        keys = ["judge", *CELL[:-1], "round", "seed", "prompt_id"]
        frame = pd.DataFrame(rows, columns=None if rows else keys).set_index(keys).astype(float)
        means = frame.groupby(level=keys).mean()
        groups = means.groupby(level=keys[:5])
        return {tuple(map(str, key)): part.droplevel([0, 1, 2, 3, 4]) for key, part in groups}

    def values(
        self, judge: str, dataset: str, model: str, method: str, measure: str, after_round: int = 0
    ) -> pd.DataFrame:
        """One measure of a method: seeds x prompts, each the mean over a prompt's samples.

        Args:
            measure: `win_rate` (1 for a win, 0 for a loss, a tie as the judge counts it), `wins_of_all` (a tie is 0),
                `score`, or `score.{criterion}`.
            after_round: of an online stage; 0 for its last.

        Returns:
            (seeds, prompts); NaN where a prompt was not judged, empty where the judge does not give this measure.
        """
        measures = self._values.get((judge, dataset, model, method, str(after_round)))
        if measures is None or measure not in measures:
            return pd.DataFrame()
        table: pd.DataFrame = measures[measure].dropna().unstack("prompt_id")
        return table

    @cached_property
    def _judged_pairs(self) -> dict[tuple[str, Cell, str], Judgement]:
        """The judgements of judges that were asked about two methods: by judge, cell and the other's method."""
        asked = [judge for judge in self.pairs if self.kind(judge) in ASKED]
        places = list(product(self.datasets, self.models, self.seeds))
        cells = [(j, Cell(d, m, a, seed), b) for j in asked for d, m, seed in places for a, b in self.pairs[j]]
        paths = {key: self.paths.run(key[1]).judged_against(key[0], key[2]) for key in cells}
        return {key: self._judgement(key[0], path) for key, path in paths.items()}

    def judged_pairs(self, judge: str) -> list[Judgement]:
        """The judgements of a judge that was asked about two methods; none of another."""
        return [judgement for (name, _, _), judgement in self._judged_pairs.items() if name == judge]

    def pair_values(self, judge: str, dataset: str, model: str) -> Array:
        """How the pairs of methods that a judge compares, `pairs`, come out: 1 where the response of a pair's first
        method to a prompt is better, 0 where that of its second one is, .5 for a tie; means over a prompt's samples.

        A judge that scores prefers the higher of two scores that are more than its `tie_margin` apart; one that is
        asked was asked about the two.

        Returns:
            (pairs, seeds, prompts); NaN where nothing was decided.
        """
        pairs = self.pairs[judge]
        if self.kind(judge) in ASKED:
            cells = [(Cell(dataset, model, a, seed), b) for (a, b), seed in product(pairs, self.seeds)]
            asked = [self._judged_pairs[judge, cell, b] for cell, b in cells]
            values = _by_sample([list(zip(j.annotations, j.values("half"), strict=True)) for j in asked])
            values = values.reshape(len(pairs), len(self.seeds), *values.shape[1:])
        else:
            methods = list(dict.fromkeys(chain(*pairs)))
            given = [j for method in methods for j in self.judgements(judge, dataset, model, method)]
            scores = _by_sample([[(a, a.candidate_score) for a in j.annotations] for j in given])
            scores = scores.reshape(len(methods), len(self.seeds), *scores.shape[1:])
            first, second = ([methods.index(pair[side]) for pair in pairs] for side in (0, 1))
            lead = scores[first] - scores[second]
            tied = np.abs(lead) <= self._compared[judge].tie_margin + ROUNDING
            values = np.where(tied, 0.0, np.sign(lead)) / 2 + 0.5
        known = ~np.isnan(values)
        return np.where(known.any(-1), np.nansum(values, -1) / np.maximum(known.sum(-1), 1), np.nan)

    # ---- tasks and data ------------------------------------------------------------------------------------

    @cached_property
    def benchmarks(self) -> pd.DataFrame:
        """A row per cell and task; stderr is NaN where lm-eval gives none."""
        rows = []
        for cell, task in product(self.cells, self.tasks):
            result = TaskResult.read(self.paths.run(cell).task(task))
            shown = {name: getattr(result, name) for name in TASK}
            rows.append(
                {**cell.ids, "task": task, **shown, "stderr": np.nan if result.stderr is None else result.stderr}
            )
        return pd.DataFrame(rows, columns=[*CELL, "task", *TASK])

    def data_report(self, dataset: str) -> DataReport | None:
        """The report of `prepare`; None where the grid's data is not described."""
        path = self.paths.data(dataset).report
        return DataReport.read(path) if path.is_file() else None

    def overlap(self, dataset: str, other: str, split: str) -> Overlap:
        """What recurs of a dataset's train split among the prompts of another dataset's split."""
        return Overlap.read(self.paths.data(dataset).overlap(other, split))

    def tokens_report(self, dataset: str, model: str) -> TokensReport | None:
        """The report of `tokenize`; None where the grid's data is not described."""
        path = self.paths.store(dataset, model).report
        return TokensReport.read(path) if path.is_file() else None

    def validation_pairs(self, cell: Cell) -> int | None:
        """Pairs that a paired loss is evaluated on; None where they are not counted."""
        report = self.tokens_report(cell.dataset, cell.model)
        return None if report is None else report.views["validation"].get("paired")


def _by_sample(rows: Sequence[Sequence[tuple[Annotation, float | None]]]) -> Array:
    """Values of annotations as (rows, prompts, samples), NaN where there is none."""
    keys = [{(a.prompt_id, a.sample): value for a, value in row} for row in rows]
    prompts = sorted({prompt for row in keys for prompt, _ in row})
    samples = sorted({sample for row in keys for _, sample in row})
    every = [[row.get(key) for key in product(prompts, samples)] for row in keys]
    return np.array(every, dtype=float).reshape(len(rows), len(prompts), len(samples))


def _text(path: Path) -> str:
    if not path.is_file():
        raise HalosError(f"there is no {path}; run `snakemake {path}` to make it")
    return path.read_text()
