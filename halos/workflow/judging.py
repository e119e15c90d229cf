"""Batches of judgements: which of them one process makes, so that it loads a reward model once.

A batch is all that a command asks for and that is not judged yet: by one reward model or one model that is asked,
whichever judges name it, or of one dataset and model by verifiers. Cells whose samples are there already are a batch of
their own, so that one that cannot be trained delays the others by one command, and no more. So are the trials of a
sweep, whose choice waits for their judgements. A judgement stays with the batch that made it: what is added, changed or
deleted is judged alone. Models behind a server and people have no batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromFile, Judge, JudgingSlice, ToJudge
from halos.files import hash_content
from halos.models.rewards import check_reward_model
from halos.scoring.settings import Scorer
from halos.settings import read_slice
from halos.study.cells import BASE, Cell
from halos.study.choice import chosen_by
from halos.study.paths import Folder, Paths
from halos.study.study import Study
from halos.train.sweep import TRIAL
from halos.workflow.batches import PAIR, PROMPT_SETS, Batches, Item, is_older

RULES = {"judge", "judge_pair", "decide"}
STAMP = ".snakemake_timestamp"
"""Snakemake's file within a folder that a job made, whose time is the folder's."""


@dataclass(frozen=True)
class Pair:
    """A judgement: a cell, or a round of one, the id of a judge, and, where the two are compared, another method."""

    cell: Cell
    judge: str
    opponent: str | None = None


def reward_model_files(study: Study, paths: Paths, scorer: Scorer, cell: Cell) -> list[Path]:
    """The reward model by which a judge or labeller scores a cell's responses, or the model that a judge asks, if one
    does: its folder, and its manifest if it is one of the catalogue.

    Raises:
        HalosError: the scorer names a folder without a reward model. (Snakemake would not notice a missing folder where
            there are judgements already.)
    """
    if scorer.folder is not None:
        check_reward_model(scorer.folder, trusted=False)
        return [scorer.folder]
    found = study.reward_model(scorer, cell)
    return [] if found is None else [paths.run(found).model, paths.run(found).manifest]


class Judging:
    """The batches of judgements of a study.

    Args:
        batches: those of its answers, which know the command, the records, and whose samples are there.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches, self.study, self.paths = batches, batches.study, batches.paths
        self._contents: dict[str, dict[str, Any]] = {}
        self._inputs: dict[Pair, list[str]] = {}  # kept: a file that a command makes does not change its batch
        self._new: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._registered: set[str] = set()
        self._choices: dict[tuple[Cell, ...], tuple[str | None, ...]] = {}

    def judgements(self, cell: Cell, judge: str, opponent: str | None = None) -> list[str]:
        """What the rules `judge` and `judge_pair` read for a cell: the folder of a batch. For a judgement of before
        there were batches, that is as it should be, the files that it was made from then."""
        pair = Pair(cell, judge, opponent)
        self._look_at_choices(pair)
        if pair not in self._inputs:
            self._inputs[pair] = self._made_from(pair) or [str(self.paths.judging(self._key(pair)).judgements)]
        return self._inputs[pair]

    def content(self, key: str) -> dict[str, Any]:
        """A batch's slice.

        Raises:
            HalosError: there is no such batch.
        """
        if key not in self._contents:
            self._contents[key] = read_slice(self.paths.judging(key).config)
        return self._contents[key]

    def own(self, key: str) -> list[ToJudge]:
        """What a batch is made anew for: the judgements that no other batch has made since."""
        asked, folder = self._asked(key), str(self.paths.judging(key).judgements)
        if key in self._registered or not self.batches.is_main or Path(folder).exists():
            return asked  # as Snakemake has recorded it, or will
        return [
            judgement
            for judgement in asked
            if self._is_known(pair := _pair(judgement))
            and folder in (self._inputs.get(pair) or self._made_from(pair) or ())
        ]

    def first(self, key: str) -> Pair:
        """One judgement of a batch, of those that the catalogue still knows: its resources and choices are those of
        all.

        Raises:
            HalosError: it knows none of them.
        """
        known = next(filter(self._is_known, map(_pair, self._asked(key))), None)
        if known is None:
            folder = self.paths.judging(key).folder
            raise HalosError(f"{folder} is of judgements that the config no longer has: ask for those of a grid")
        return known

    def clear(self) -> None:
        """As that of answers: at the end of a command, remove judgements that are in their places, and forget what they
        were made from."""
        for key in self._contents:
            folder = self.paths.judging(key).judgements
            files = (path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
            self.batches.tidy(folder, {path: path.relative_to(folder) for path in files})

    # ---- what is made anew ----------------------------------------------------------------------------------

    def _key(self, pair: Pair) -> str:
        """The key of a new batch, which is registered."""
        group = self._group(pair)
        if group not in self._new:
            self._new[group] = self._slice(other for other in self._wanted[group] if self._made_from(other) is None)
        content = self._new[group]
        if str(self._judged(pair)) not in (judgement["judged"] for judgement in content["judgements"]):
            content = self._slice(iter([pair]))
        key = hash_content(content)[:12]
        self._contents[key] = content
        self._registered.add(key)
        return key

    def _slice(self, pairs: Iterator[Pair]) -> dict[str, Any]:
        judgements = sorted((self.files(pair) for pair in pairs), key=lambda judgement: judgement.judged)
        return JudgingSlice(judgements=judgements).model_dump(mode="json", exclude_defaults=True)

    @property
    def _wanted(self) -> dict[tuple[Any, ...], list[Pair]]:
        """What the command asks for, by groups that one process judges."""
        wanted: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        for pair in self._pairs:
            wanted[self._group(pair)].append(pair)
        return wanted

    @cached_property
    def _pairs(self) -> list[Pair]:
        judges = self.study.config.judges
        wanted = [*(Pair(*judged) for judged in self.batches.judged), *(Pair(*pair) for pair in self.batches.compared)]
        return [pair for pair in wanted if judges[pair.judge].is_batched]

    def _group(self, pair: Pair) -> tuple[Any, ...]:
        """What is equal for judgements that one process makes."""
        cell, judge = pair.cell, self._settings(pair)
        sweep = None if cell.trial is None else (cell.dataset, cell.model, cell.method.partition(TRIAL)[0])
        reward_model = reward_model_files(self.study, self.paths, judge, cell)
        by: Any = reward_model[0] if reward_model else (cell.dataset, cell.model)
        if judge.folder is not None:  # a model of no entry is run with the resources of the cell's
            by = (by, cell.model)
        return by, sweep, *self.choices(pair), self._is_sampled(pair)

    # ---- what is there --------------------------------------------------------------------------------------

    def _made_from(self, pair: Pair) -> list[str] | None:
        """What the rule `judge` read for a judgement that is there; None if it is to be made, or made anew."""
        path, reward_model = self._judged(pair), self.study.reward_model(self._settings(pair), pair.cell)
        if self.batches.forced(path, RULES) or not path.is_file() or not self._is_sampled(pair):
            return None
        if reward_model is not None and self.batches.trained_anew(reward_model):
            return None
        folder = self._folder(pair)
        if self.batches.changed(str(folder.folder.relative_to(self.paths.results)), folder.config):
            return None
        files = [_stamp(Path(file)) for file in self.files(pair).files]
        if any(file.exists() and not is_older(file, path) for file in files):
            return None
        recorded = self.batches.recorded(path)
        if recorded is not None:
            return recorded
        found = (folder for folder in self.paths.judgings() if str(path) in map(_place, self._asked(folder.name)))
        return next(([str(folder.judgements)] for folder in found), None)

    def _is_sampled(self, pair: Pair) -> bool:
        """Whether a cell's samples, and the baseline's if it is a cell, are there, and as they should be."""
        judge = self._settings(pair)
        cells = (pair.cell, self._other(pair))
        items = (Item(cell, PROMPT_SETS, judge.prompts) for cell in cells if cell is not None)
        return all(self.batches.made_by(item) is not None for item in items)

    def _is_known(self, pair: Pair) -> bool:
        """Whether the catalogue still has all that a judgement is named by."""
        cell, config = pair.cell, self.study.config
        methods = (cell.method, *filter(None, [pair.opponent]))
        stages = [stage for method in methods if method != BASE for stage in method.partition(TRIAL)[0].split("-")]
        named = {"datasets": [cell.dataset], "models": [cell.model], "stages": stages, "judges": [pair.judge]}
        return all(name in getattr(config, kind) for kind, names in named.items() for name in names)

    def choices(self, pair: Pair) -> list[Cell]:
        """As that of a study, of both cells of a judgement."""
        cells = [pair.cell] if pair.opponent is None else [pair.cell, replace(pair.cell, method=pair.opponent)]
        return [*dict.fromkeys(choice for cell in cells for choice in self.study.choices(cell))]

    def _look_at_choices(self, pair: Pair) -> None:
        """Forget what was found of cells before the choices that they depend on were made, or made anew."""
        if not self.study.sweeps:
            return
        choices = tuple(self.choices(pair))
        now = tuple(chosen_by(self.paths, swept) for swept in choices)
        if self._choices.setdefault(choices, now) != now:
            self._choices[choices] = now
            self._new.clear()
            self._inputs = {p: f for p, f in self._inputs.items() if tuple(self.choices(p)) != choices}

    # ---- a judgement ----------------------------------------------------------------------------------------

    def _settings(self, pair: Pair) -> Judge:
        return self.study.config.judges[pair.judge]

    def _judged(self, pair: Pair) -> Path:
        run = self.paths.run(pair.cell)
        return run.judged_against(pair.judge, pair.opponent) if pair.opponent else run.judged(pair.judge)

    def _folder(self, pair: Pair) -> Folder:
        """The folder of a judge's settings."""
        if pair.opponent is None:
            return self.paths.judge(pair.judge)
        return self.paths.judge_against(pair.judge, pair.opponent)

    def _other(self, pair: Pair) -> Cell | None:
        """The cell whose samples a cell's are compared with, if they are a cell's."""
        if pair.opponent is not None:
            return replace(pair.cell, method=pair.opponent)
        return self.study.baseline(self._settings(pair), pair.cell)

    def files(self, pair: Pair) -> ToJudge:
        """The files that a judgement is made from.

        Raises:
            HalosError: its judge names a folder without a reward model.
        """
        cell, judge = pair.cell, self._settings(pair)
        prompts = self.study.config.prompts[judge.prompts]
        other = self._other(pair)
        baseline = [] if other is None else [self.paths.run(other).samples(judge.prompts)]
        outputs = [judge.baseline.file] if isinstance(judge.baseline, FromFile) and pair.opponent is None else []
        return ToJudge(
            judged=str(self._judged(pair)),
            config=str(self._folder(pair).config),
            samples=str(self.paths.run(cell).samples(judge.prompts)),
            feedback=str(self.paths.data(prompts.dataset or cell.dataset).split(prompts.split)),
            reward_model=tuple(map(str, reward_model_files(self.study, self.paths, judge, cell))),
            baseline=tuple(map(str, outputs or baseline)),
            difficulties=() if judge.difficulties is None or pair.opponent else (judge.difficulties,),
        )

    def _asked(self, key: str) -> list[ToJudge]:
        return JudgingSlice.model_validate(self.content(key)).judgements


def _pair(judgement: ToJudge) -> Pair:
    against = PAIR.search(judgement.judged)
    judge, opponent = against.groups() if against else (Path(judgement.judged).stem, None)
    return Pair(Cell.of(judgement.judged), judge, opponent)


def _place(judgement: ToJudge) -> str:
    return judgement.judged


def _stamp(path: Path) -> Path:
    """The file whose time Snakemake takes for that of a file or folder."""
    return path / STAMP if (path / STAMP).is_file() else path
