"""A study: the cells of one grid, and the other cells that each is made from and judged with."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import chain, product

from halos.errors import HalosError
from halos.evaluate.judging.settings import FromCell, Judge, pairs_of
from halos.online.settings import Labeller
from halos.reference.cache import parts_for
from halos.scoring.settings import Scorer
from halos.study.catalogue import Config
from halos.study.cells import BASE, Cell
from halos.study.sampled import Sampling, samplings
from halos.study.slices import entry
from halos.train.stage import Stage
from halos.train.sweep import TRIAL, Select


class Study:
    """One grid of the catalogue.

    Args:
        config: the catalogue.
        grid: id of the grid; None for the one that the catalogue names.

    Attributes:
        settings: the grid's entry.
        cells: policies, in the order of the entry: what is sampled, judged and tabulated.
        reward_models: reward models, in the order of the entry: what is trained and tabulated.
        prompts: prompt sets that are sampled: those that the judges name, and the grid's own.

    Raises:
        HalosError: the catalogue has no such grid.
    """

    def __init__(self, config: Config, grid: str | None = None) -> None:
        self.config = config
        self._made_from: dict[Cell, tuple[Cell, ...]] = {}
        self._stages: dict[tuple[str, str, str | None], Stage] = {}  # kept: rules ask for them thousands of times
        self.grid = grid or config.grid
        self.settings = entry(config, "grids", self.grid)
        self.judges = {name: config.judges[name] for name in self.settings.judges}
        self.tasks = {name: config.tasks[name] for name in self.settings.tasks}
        prompts = {judge.prompts for judge in self.judges.values()}.union(self.settings.prompts)
        self.prompts = {name: config.prompts[name] for name in sorted(prompts)}
        self.cells = self._cells(self.settings.methods)
        self.reward_models = self._cells(self.settings.reward_models)

    def _cells(self, methods: tuple[str, ...]) -> list[Cell]:
        g = self.settings
        return [Cell(*ids) for ids in product(g.datasets, g.models, methods, g.seeds)]

    @cached_property
    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """The pairs of methods that a judge has to be asked about, by the judge's id: the first against the second. Of
        other judges, the scores of each response say which of two is better."""
        asked = {name: judge for name, judge in self.judges.items() if judge.is_asked}
        found = {name: pairs_of(judge.compares, self.settings.methods) for name, judge in asked.items()}
        return {name: pairs for name, pairs in found.items() if pairs}

    def compared(self, judge: str) -> list[tuple[Cell, Cell]]:
        """The pairs of cells of the same dataset, model and seed that a judge has to be asked about."""
        g = self.settings
        places = product(g.datasets, g.models, self.pairs.get(judge, ()), g.seeds)
        return [(Cell(d, m, a, seed), Cell(d, m, b, seed)) for d, m, (a, b), seed in places]

    @cached_property
    def judge_cells(self) -> list[Cell]:
        """The cells that judging needs beside those judged: reward models that judge, and baselines."""
        judged = [*product(self.judges.values(), self.cells)]
        judged += product((self.config.judges[name] for name in self.settings.snapshots), self.watched)
        return [*dict.fromkeys(chain(*(self._judged_with(judge, cell) for judge, cell in judged)))]

    @cached_property
    def trained(self) -> list[Cell]:
        """Every cell that is trained for the grid, each after those that it is made from."""
        needed = (*self.cells, *self.reward_models, *self.judge_cells)
        ordered = dict.fromkeys(chain(*map(self.made_from, needed)))
        return [cell for cell in ordered if cell.stage is not None]

    @cached_property
    def sampled(self) -> list[Sampling]:
        """What is sampled for the datasets of the grid's cells and prompt sets, each after what it is sampled on."""
        named = (prompts.dataset for prompts in self.prompts.values())
        found: dict[Sampling, None] = {}
        waiting = [*self.settings.datasets, *filter(None, named)]
        while waiting:
            of_dataset = samplings(self.config.datasets[waiting.pop()])
            found = dict.fromkeys([*of_dataset, *found])
            waiting += [sampling.cell.dataset for sampling in of_dataset]
        return list(found)

    @cached_property
    def answering(self) -> list[Cell]:
        """The cells whose models give the responses of sampled datasets."""
        return [*dict.fromkeys(sampling.cell for sampling in self.sampled)]

    @property
    def sampled_prompts(self) -> list[tuple[str, str, str]]:
        """(dataset, split, id) of each prompt set that is sampled for a dataset."""
        return [
            (self.config.prompts[name].dataset or sampling.cell.dataset, split, name)
            for sampling in self.sampled
            for split, name in sampling.prompts
        ]

    @cached_property
    def rewarded(self) -> list[Cell]:
        """The cells that are compared on the grid's preference sets: trained policies, and reward models, those that
        judge among them."""
        if not self.settings.preference_sets:
            return []
        judging = (self.reward_model(judge, cell) for judge, cell in product(self.judges.values(), self.cells))
        policies = (cell for cell in self.cells if cell.stage is not None)
        return [*dict.fromkeys((*policies, *self.reward_models, *filter(None, judging)))]

    # ---- sweeps ---------------------------------------------------------------------------------------------

    def swept(self, cell: Cell) -> Cell | None:
        """The cell whose settings a choice between trials makes, for all its seeds and rounds: it has seed 0. None for
        a cell whose stage is not swept, and for a trial."""
        if cell.stage is None or cell.trial is not None or not self.stage(cell).is_chosen:
            return None
        return Cell(cell.dataset, cell.model, cell.method, 0)

    def trials(self, cell: Cell) -> list[Cell]:
        """The trials between which the settings of a cell are chosen, trial by trial in the order of the sweep, and of
        each one cell for each seed that the choice looks at; none for a cell whose stage is not swept."""
        if self.swept(cell) is None:
            return []
        seeds = self.decided_by(cell).seeds
        return [cell.candidate(name, seed) for name, seed in product(self.stage(cell).tried, seeds)]

    def candidates(self, cell: Cell) -> list[Cell]:
        """The trials of a cell's stage, and the snapshots of them that are chosen from, too, in the order of
        `Stage.candidates`, and of each one cell for each seed that the choice looks at."""
        if self.swept(cell) is None:
            return []
        seeds = self.decided_by(cell).seeds
        return [cell.candidate(name, seed) for name, seed in product(self.stage(cell).candidates, seeds)]

    def snapshots(self, cell: Cell) -> list[Cell]:
        """The snapshots of a cell's training, in order, without the last, whose model is the cell's own; none where its
        stage takes none, or chose between those of its trials."""
        if cell.stage is None or cell.snapshot:
            return []
        return [replace(cell, snapshot=i) for i in range(1, self.stage(cell).followed)]

    def choices(self, cell: Cell) -> list[Cell]:
        """The swept cells, as `swept` gives them, on whose choices a cell depends, its own among them."""
        found = (self.swept(made) for made in self.made_from(cell))
        return [*dict.fromkeys(swept for swept in found if swept is not None)]

    @cached_property
    def sweeps(self) -> list[Cell]:
        """All swept cells of the grid, as `swept` gives them."""
        return [*dict.fromkeys(swept for cell in self.trained if (swept := self.swept(cell)) is not None)]

    @cached_property
    def tried(self) -> list[Cell]:
        """The trials of all swept cells."""
        return [*chain(*map(self.trials, self.sweeps))]

    def decided_by(self, trial: Cell) -> Select:
        """What decides between the trials of a sweep, given one of them or the cell whose settings it chooses."""
        select = self.stage(replace(trial, method=trial.method.partition(TRIAL)[0])).select
        assert select is not None, f"{trial.folder} has no sweep"
        return select

    @cached_property
    def watched(self) -> list[Cell]:
        """The models whose course the grid's judges of snapshots follow: of each cell with snapshots what it begins
        with, the snapshots, and itself."""
        if not self.settings.snapshots:
            return []
        courses = [(cell.parent, *self.snapshots(cell), cell) for cell in self.cells if self.snapshots(cell)]
        return [*dict.fromkeys(cell for course in courses for cell in course if cell)]

    @property
    def diverging(self) -> list[tuple[Cell, str]]:
        """The trained policies whose divergence from their reference the grid asks for, each with a prompt set that it
        answers: one of the grid's own, and, of snapshots and of what they end in, those of the judges of snapshots."""
        if not self.settings.divergence:
            return []
        own = product((cell for cell in self.cells if cell.stage), self.prompts)
        passed = [at for cell in self.cells if self.snapshots(cell) for at in (*self.snapshots(cell), cell)]
        followed = product(passed, (self.config.judges[name].prompts for name in self.settings.snapshots))
        return [*dict.fromkeys((*own, *followed))]

    @cached_property
    def apart(self) -> dict[str, Judge]:
        """The judges beside the grid's own, which see no test prompts: those by which trials are chosen, and those of
        snapshots."""
        names = {self.decided_by(cell).judge for cell in self.sweeps} | {*self.settings.snapshots}
        return {name: self.config.judges[name] for name in sorted(filter(None, names))}

    @cached_property
    def labellers(self) -> dict[str, Labeller]:
        """The labellers of the grid's online stages and sampled datasets, by their ids."""
        stages = [self.stage(cell) for cell in self.trained]
        names = {stage.online.label for stage in stages if stage.online} | {s.labeller for s in self.sampled}
        return {name: self.config.labellers[name] for name in sorted(names)}

    def readers(self, dataset: str, split: str) -> list[str]:
        """The entries of the config that read prompts of a dataset's validation or test split for the grid, by their
        places."""
        own = dataset in self.settings.datasets
        rules = [self.decided_by(cell) for cell in self.sweeps]
        sets = {**self.prompts, **{j.prompts: self.config.prompts[j.prompts] for j in self.apart.values()}}
        asked = {**self.tasks, **{rule.task: self.config.tasks[rule.task] for rule in rules if rule.task}}
        answered = {name: prompts.dataset for name, prompts in sets.items() if prompts.split == split}
        prompts = [
            f"prompts.{name}" for name, named in answered.items() if (own if named is None else named == dataset)
        ]
        prompts += [f"prompts.{name}" for *of, name in self.sampled_prompts if of == [dataset, split]]
        local = [name for name, task in asked.items() if task.local is not None and task.split == split]
        tasks = [f"tasks.{name}" for name in local if own]
        tasks += [f"grids.{self.grid}.preference_sets"] * (split == "test" and dataset in self.settings.preference_sets)
        stages = {cell.stage: self.stage(cell) for cell in self.trained if cell.dataset == dataset}
        deciding = [
            f"stages.{name}.{setting}"
            for name, stage in stages.items()
            for setting, reads in (
                ("online", stage.online is not None),
                ("early_stopping", stage.early_stopping is not None),
                ("select", stage.select is not None and stage.select.metric is not None),
            )
            if reads
        ]
        return [*prompts, *tasks, *(sorted(deciding) if split == "validation" else ())]

    def made_from(self, cell: Cell) -> tuple[Cell, ...]:
        """A cell, last, and all that it is made from, each after what it is made from itself: parents, reward models,
        named references, runs that are gone on from, and trials between which settings are chosen, with the baselines
        and reward models of the judges that choose.

        Raises:
            HalosError: a choice depends on what it chooses.
        """
        if cell not in self._made_from:
            self._made_from[cell] = ()  # while it is being looked for
            found = dict.fromkeys(chain(*map(self.made_from, self._needs(cell))))
            self._made_from[cell] = (*found, cell)
        elif not self._made_from[cell]:
            raise HalosError(
                f"stages.{cell.stage}: what chooses its settings is made from {cell.folder} itself: give the judge of "
                "its `select:` another baseline or reward model"
            )
        return self._made_from[cell]

    def _needs(self, cell: Cell) -> list[Cell]:
        """The cells that a cell is made from directly."""
        trials = self.trials(cell)
        name = self.decided_by(cell).judge if trials else None
        judge = None if name is None else self.config.judges[name]
        judged = chain(*(self._judged_with(judge, trial) for trial in trials)) if judge else ()
        whole = replace(cell, snapshot=0) if cell.snapshot else None
        own = (cell.parent, self.teacher(cell), self.named_reference(cell), self.resumed(cell), whole)
        sampled = (sampling.cell for sampling in samplings(self.config.datasets[cell.dataset]))
        return [other for other in (*sampled, *own, *trials, *judged) if other is not None]

    def _judged_with(self, judge: Judge, cell: Cell) -> list[Cell]:
        """The cells that a judge needs to judge a cell: a reward model that judges, and a baseline."""
        return [other for other in (self.reward_model(judge, cell), self.baseline(judge, cell)) if other is not None]

    def stage(self, cell: Cell) -> Stage:
        """The stage that a cell trains, as its model runs it. A base model has none, and no caller asks for it."""
        assert cell.stage is not None, f"{cell.folder} trains nothing"
        key = cell.stage, cell.model, cell.trial
        if key not in self._stages:
            self._stages[key] = self.config.stage(*key)
        return self._stages[key]

    def rounds(self, cell: Cell) -> list[Cell]:
        """The rounds of a cell whose stage is online; none for another cell."""
        online = self.stage(cell).online if cell.stage else None
        return cell.rounds(online.rounds) if online else []

    def reference(self, cell: Cell) -> Cell:
        """The cell that is the reference of a training: the one that its stage names, else its parent, or, in a round
        with a fixed reference, the parent of the first round."""
        named = self.named_reference(cell)
        if named is not None:
            return named
        online = self.stage(cell).online
        fixed = online is not None and online.reference == "fixed"
        parent = (replace(cell, round=0) if fixed else cell).parent
        assert parent is not None
        return parent

    def named_reference(self, cell: Cell) -> Cell | None:
        """The cell that a stage names as its reference, of the same seed or of a base model; None if it names none."""
        named = None if cell.stage is None else self.config.reference(self.stage(cell))
        if named is None:
            return None
        name, is_model = named
        if is_model:
            return Cell(cell.dataset, name, BASE, 0)
        return Cell(cell.dataset, cell.model, name, 0 if name == BASE else cell.seed)

    @cached_property
    def reference_models(self) -> tuple[str, ...]:
        """Ids of the entries of `models:` that stages name as their reference, or of which they name a method."""
        named = [reference.model for cell in self.trained if (reference := self.named_reference(cell))]
        return tuple(dict.fromkeys(named))

    @cached_property
    def asked_models(self) -> tuple[str, ...]:
        """Ids of the entries of `models:` that judges ask."""
        judges = (*self.judges.values(), *self.apart.values())
        return tuple(dict.fromkeys(judge.model.model for judge in judges if judge.model is not None))

    def resumed(self, cell: Cell) -> Cell | None:
        """The cell whose run a training goes on from, if its stage has `resume_from`."""
        source = None if cell.stage is None else self.stage(cell).resume_from
        return None if source is None else replace(cell, method="-".join([*cell.method.split("-")[:-1], source]))

    def reference_parts(self, cell: Cell) -> tuple[str, ...]:
        """The parts of its reference's log-probabilities that a training reads."""
        stage = self.stage(cell)
        return parts_for(stage.make_loss(), live=stage.sync_every is not None)

    def teacher(self, cell: Cell) -> Cell | None:
        """The reward model that a cell learns from, by its scores of the data or as its labeller."""
        if cell.stage is None:
            return None
        stage = self.stage(cell)
        if stage.online is not None:
            return self.reward_model(self.config.labellers[stage.online.label], cell)
        return None if stage.reward_model is None else self._reward_model(stage.reward_model, cell, cell.seed)

    def reward_model(self, scorer: Scorer, cell: Cell) -> Cell | None:
        """The reward model by which a judge or labeller scores a cell's responses, if it is one of the catalogue; or
        the model of the catalogue that a judge asks."""
        return None if scorer.named is None else self._reward_model(scorer.named, cell, scorer.seed)

    def _reward_model(self, name: str, cell: Cell, seed: int) -> Cell:
        """A reward model: that of a method, or the cell `base` of an entry of `models:`, which trains nothing."""
        if name in self.config.models:
            return Cell(cell.dataset, name, BASE, 0)
        return Cell(cell.dataset, cell.model, name, seed)

    @cached_property
    def reward_models_of_others(self) -> dict[str, str]:
        """{id of an entry of `models:`: one place in the config that names it as its reward model}."""
        judges = {name: judge for name, judge in {**self.judges, **self.apart}.items() if judge.model is None}
        named = {judge.reward_model: f"judges.{name}" for name, judge in judges.items()}
        named |= {scorer.named: f"labellers.{name}" for name, scorer in self.labellers.items()}
        named |= {self.stage(cell).reward_model: f"stages.{cell.stage}" for cell in self.trained}
        return {name: place for name, place in named.items() if name is not None and name in self.config.models}

    def baseline(self, judge: Judge, cell: Cell) -> Cell | None:
        """The cell whose samples a judge compares with, if its baseline is a cell."""
        return baseline_of(judge, cell)

    def labeller(self, cell: Cell) -> str:
        """The id of the labeller of a cell's online stage."""
        online = self.stage(cell).online
        assert online is not None, f"{cell.folder} is not trained online"
        return online.label


def baseline_of(judge: Judge, cell: Cell) -> Cell | None:
    """The cell whose samples a judge compares a cell's with, if its baseline is a cell."""
    if not isinstance(judge.baseline, FromCell):
        return None
    seed = cell.seed if judge.baseline.seed == "same" else judge.baseline.seed
    return Cell(cell.dataset, cell.model, judge.baseline.method, seed)
