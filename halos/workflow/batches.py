"""Batches: which of a cell's prompt sets and tasks one job answers, so that it loads the cell's model once.

A file of samples or of a task's result stays with the batch that made it, as long as its settings are those of then.
All others that a command asks for are one new batch of their cell. What is added, changed or deleted is thus answered
alone, and all is answered together where the model is new.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any

import yaml

from halos.files import hash_content
from halos.settings import dump, read_slice
from halos.study.cells import RESULTS, RUN, Cell
from halos.study.choice import chosen_by
from halos.study.paths import Paths
from halos.study.sampled import samplings
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.together import FAILED

PROMPT_SETS, TASKS = "prompts", "tasks"
"""Kinds of what is answered, as in config.yaml."""
REPORT = {"judged", "tasks"}
WHOLE = {"samples", *REPORT}
PHASES = {
    "all": WHOLE, "samples": {"samples"}, "judged": {"judged"}, "tasks": {"tasks"}, "tables": WHOLE,
    "figures": {"diverged", *REPORT}, "reports": WHOLE, "responses.html": {"samples", "judged"}, "cards": REPORT,
    "crates": WHOLE,
}  # fmt: skip
"""A target, the name of its file, or its folder of the results tree -> the phases that it is made from."""
FILE = re.compile(r"/(samples|judged|tasks)/([^/]+)\.jsonl?")
PAIR = re.compile(r"/judged/([^/]+)/against/([^/]+)\.json")
"""The end of a file of a run."""
RULES = {"sample", "task", "answer"}


@dataclass(frozen=True)
class Item:
    """A prompt set or a task of a cell."""

    cell: Cell
    kind: str
    name: str


class Batches:
    """The batches of a study.

    Args:
        study: the study.
        paths: the results tree.
        workflow: Snakemake's workflow, whose command says what is asked for, and whose records say what made a file;
            without one, everything is asked for, and there are no records.
    """

    def __init__(self, study: Study, paths: Paths, workflow: Any = None) -> None:
        self.study, self.paths, self._workflow = study, paths, workflow
        self._contents: dict[str, dict[str, Any]] = {}
        self._asked: set[tuple[Cell, str]] = set()
        self._keys: dict[Item, str] = {}  # kept: a file that a command makes does not change its batch
        self._new: dict[Cell, dict[str, Any]] = {}
        self._registered: set[tuple[Cell, str]] = set()
        self._changes: dict[str, bool] = {}
        self._choices: dict[Cell, tuple[str | None, ...]] = {}

    def key(self, cell: Cell, kind: str, name: str) -> str:
        """The key of the batch that answers a prompt set or a task of a cell."""
        item = Item(cell, kind, name)
        self._look_at_choices(cell)
        if item not in self._keys:
            self._keys[item] = self.made_by(item) or self._key(item)
        return self._keys[item]

    def _look_at_choices(self, cell: Cell) -> None:
        """Forget what was found of a cell before the choices that it depends on were made, or made anew."""
        if not self.study.sweeps:
            return
        now = tuple(chosen_by(self.paths, swept) for swept in self.study.choices(cell))
        if self._choices.setdefault(cell, now) != now:
            self._choices[cell] = now
            self._new.pop(cell, None)
            self._keys = {item: key for item, key in self._keys.items() if item.cell != cell}

    def config(self, cell: Cell, key: str) -> Path:
        """The config.yaml of a batch: one for all cells that answer the same, or, where the cell has one, its own, as
        all had before they were shared."""
        own = self.paths.run(cell).answers(key).with_name("config.yaml")
        return own if own.is_file() else self.paths.answering(key).config

    def content(self, config: Path) -> dict[str, Any]:
        """The slice that a batch's config.yaml has, or will have: its prompt sets and its tasks, with their settings.

        Raises:
            HalosError: there is no such batch.
        """
        key = config.parent.name
        if key not in self._contents:
            self._contents[key] = read_slice(config)
        return self._contents[key]

    def own(self, cell: Cell, key: str) -> dict[str, Any]:
        """What a batch's files are from, or will be: the part of its slice that no other batch has answered since, with
        the settings of now. What the rest is made from may change, and concerns it no longer."""
        content = self.content(self.config(cell, key))
        self._asked.add((cell, key))
        if (cell, key) in self._registered or not self.is_main or self.paths.run(cell).answers(key).exists():
            return content  # as Snakemake has recorded it, or will
        return {
            kind: {name: how for name, how in entries.items() if self._answers(key, Item(cell, kind, name))}
            for kind, entries in content.items()
        }

    def clear(self) -> None:
        """At the end of a command, remove answers of which all that did not fail are in their places, which Snakemake
        keeps where one failed, and forget what removed answers were made from: `own` says what it is later."""
        for cell, key in self._asked:
            run = self.paths.run(cell)
            folder = run.answers(key)
            self.tidy(folder, {path: run.folder / path.relative_to(folder) for path in folder.glob("*/*")})

    def tidy(self, folder: Path, places: dict[Path, Path]) -> None:
        """`clear` for one folder of files that are taken out, given the place of each."""
        from snakemake.io import IOFile

        persistence = self._workflow.persistence
        taken = (is_older(path, place) for path, place in places.items() if path.suffix != FAILED)
        if folder.is_dir() and all(taken):
            shutil.rmtree(folder)
        record = persistence.metadata(file := IOFile(str(folder)))
        if not folder.exists() and record is not None and record.input is not None:
            record.input = None  # else a list that is shorter would be a reason to make it again
            persistence._write_record(persistence._get_key(file), record)

    # ---- what is made anew ----------------------------------------------------------------------------------

    def _key(self, item: Item) -> str:
        """The key of a new batch, which is registered."""
        if item.cell not in self._new:
            items = sorted(self._wanted[item.cell], key=lambda other: (other.kind, other.name))
            self._new[item.cell] = self._slice(other for other in items if self.made_by(other) is None)
        content = self._new[item.cell]
        if item.name not in content.get(item.kind, {}):
            content = self._slice(iter([item]))
        key = hash_content(content)[:12]
        self._contents[key] = content
        self._registered.add((item.cell, key))
        return key

    def _slice(self, items: Iterator[Item]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for item in items:
            content.setdefault(item.kind, {})[item.name] = config_slice(self.study.config, f"{item.kind}/{item.name}")
        return content

    @cached_property
    def _wanted(self) -> dict[Cell, set[Item]]:
        """What the command asks for of each cell."""
        wanted: dict[Cell, set[Item]] = defaultdict(set)

        def want(cell: Cell | None, kind: str, *names: str) -> None:
            if cell is not None:
                wanted[cell] |= {Item(cell, kind, name) for name in names}

        phases = self._phases
        for cell in self.study.cells:
            diverged = self.study.settings.divergence and cell.stage and "diverged" in phases
            want(cell, PROMPT_SETS, *(self.study.prompts if "samples" in phases or diverged else ()))
            want(cell, TASKS, *(self.study.tasks if "tasks" in phases else ()))
        for judged, name in self.judged:
            judge = self.study.config.judges[name]
            want(judged, PROMPT_SETS, judge.prompts)
            want(self.study.baseline(judge, judged), PROMPT_SETS, judge.prompts)
        for sampling in self.study.sampled:
            want(sampling.cell, PROMPT_SETS, *(name for _, name in sampling.prompts))
        for trial in chain(*map(self.study.candidates, self.study.sweeps)):
            task = self.study.decided_by(trial).task
            want(trial, TASKS, *([] if task is None else [task]))
        for target in self._targets:
            run = RUN.search(target)
            if run is not None and (pair := PAIR.fullmatch(target, run.end())) is not None:
                judge_id, method = pair.groups()
                if judge_id in self.study.config.judges:
                    for cell in (Cell.of(target), replace(Cell.of(target), method=method)):
                        want(cell, PROMPT_SETS, self.study.config.judges[judge_id].prompts)
            if run is not None and (file := FILE.fullmatch(target, run.end())) is not None:
                of, name = file.groups()
                if of != "judged":
                    want(Cell.of(target), TASKS if of == "tasks" else PROMPT_SETS, name)
        return wanted

    @cached_property
    def judged(self) -> list[tuple[Cell, str]]:
        """The judgements that the command asks for: cells, or rounds of them, each with the id of a judge."""
        wanted: list[tuple[Cell, str]] = []
        if "judged" in self._phases:
            judged = (made for cell in self.study.cells for made in (cell, *self.study.rounds(cell)[:-1]))
            wanted += product(judged, self.study.judges)
            wanted += product(self.study.watched, self.study.settings.snapshots)
        for trial in chain(*map(self.study.candidates, self.study.sweeps)):
            judge = self.study.decided_by(trial).judge
            wanted += [] if judge is None else [(trial, judge)]
        for target in self._targets:
            run = RUN.search(target)
            file = None if run is None else FILE.fullmatch(target, run.end())
            if file is not None and file[1] == "judged" and file[2] in self.study.config.judges:
                wanted.append((Cell.of(target), file[2]))
        return [*dict.fromkeys(wanted)]

    @cached_property
    def compared(self) -> list[tuple[Cell, str, str]]:
        """The judgements of two methods that the command asks for: cells, each with the id of a judge and the method
        that it is compared with."""
        wanted: list[tuple[Cell, str, str]] = []
        if "judged" in self._phases:
            pairs = ((judge, *cells) for judge in self.study.pairs for cells in self.study.compared(judge))
            wanted += ((cell, judge, other.method) for judge, cell, other in pairs)
        for target in self._targets:
            run = RUN.search(target)
            pair = None if run is None else PAIR.fullmatch(target, run.end())
            if pair is not None and pair[1] in self.study.config.judges:
                wanted.append((Cell.of(target), pair[1], pair[2]))
        return [*dict.fromkeys(wanted)]

    @cached_property
    def _phases(self) -> set[str]:
        phases = (PHASES.get(Path(target).name) or PHASES.get(_place(target), set()) for target in self._targets)
        return {phase for of_target in phases for phase in of_target}

    # ---- what is there --------------------------------------------------------------------------------------

    def made_by(self, item: Item) -> str | None:
        """The key of the batch that made an item's file; None if it is to be made, or made anew."""
        run = self.paths.run(item.cell)
        path = run.task(item.name) if item.kind == TASKS else run.samples(item.name)
        if (
            self.forced(path, RULES)
            or not path.is_file()
            or self.trained_anew(item.cell)
            or self._asked_anew(item, path)
        ):
            return None
        if run.manifest.stat().st_mtime > path.stat().st_mtime:
            return None
        recorded = self.recorded(path)
        made = run.batches() if recorded is None else [Path(file).parent.name for file in recorded]
        settings = config_slice(self.study.config, f"{item.kind}/{item.name}")
        return next((key for key in made if self._entries(item.cell, key, item.kind).get(item.name) == settings), None)

    def _entries(self, cell: Cell, key: str, kind: str) -> dict[str, Any]:
        """The prompt sets or tasks of a batch, with their settings; none if there is no whole config.yaml."""
        config = self.config(cell, key)
        if key not in self._contents and config.is_file():
            content = yaml.safe_load(config.read_text())
            if isinstance(content, dict):
                self._contents[key] = content
        entries: dict[str, Any] = self._contents.get(key, {}).get(kind, {})
        return entries

    def _answers(self, key: str, item: Item) -> bool:
        """Whether an item's file is from a batch, or will be."""
        if item.name not in getattr(self.study.config, item.kind):
            return False
        return (self._keys.get(item) or self.made_by(item)) == key

    def _asked_anew(self, item: Item, path: Path) -> bool:
        """Whether the data of a prompt set that names a dataset of its own have changed since."""
        dataset = self.study.config.prompts[item.name].dataset if item.kind == PROMPT_SETS else None
        if dataset is None:
            return False
        data = self.paths.data(dataset)
        prompts = data.split(self.study.config.prompts[item.name].split)
        if self.changed(f"data/{dataset}", data.config) or not prompts.is_file():
            return True
        return prompts.stat().st_mtime > path.stat().st_mtime

    def recorded(self, path: Path) -> list[str] | None:
        """The inputs that Snakemake has recorded for a file, if it has."""
        if self._workflow is None:
            return None
        from snakemake.io import IOFile

        recorded: list[str] | None = self._workflow.persistence.input(IOFile(str(path)))
        return recorded

    def trained_anew(self, cell: Cell) -> bool:
        """Whether the settings of a cell's model, or of what that is made from, have changed, or it is not there."""
        return not self.paths.run(cell).manifest.is_file() or any(
            self.changed(*config) for config in self._configs(cell)
        )

    def changed(self, folder: str, config: Path) -> bool:
        """Whether the config.yaml of a folder is not there, or would be another one now."""
        if folder not in self._changes:
            swept = self.study.swept(Cell.of(folder)) if RUN.fullmatch(folder) else None
            if swept is not None and chosen_by(self.paths, swept) not in self.study.stage(swept).candidates:
                return True
            now = dump(config_slice(self.study.config, folder))
            changed = not config.is_file() or config.read_text() != now
            if swept is not None:  # another choice may be made meanwhile
                return changed
            self._changes[folder] = changed
        return self._changes[folder]

    def _configs(self, cell: Cell) -> Iterator[tuple[str, Path]]:
        for made in self.study.made_from(cell):
            yield f"data/{made.dataset}", self.paths.data(made.dataset).config
            yield f"models/{made.model}", self.paths.model(made.model).config
            yield f"tokens/{made.dataset}/{made.model}", self.paths.store(made.dataset, made.model).config
            for sampling in samplings(self.study.config.datasets[made.dataset]):
                yield f"labellers/{sampling.labeller}", self.paths.labeller(sampling.labeller).config
            if made.stage is not None:
                for trained in (made, *self.study.rounds(made)):
                    yield trained.folder, self.paths.run(trained).config

    # ---- the command ----------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this is the process that the user has started: those of its jobs on other nodes ask what it did."""
        return self._workflow is None or bool(self._workflow.is_main_process)

    @property
    def _targets(self) -> list[str]:
        targets = self._workflow.dag_settings.targets if self._workflow else ()
        return sorted(targets) or ["all"]

    def forced(self, path: Path, rules: set[str]) -> bool:
        """Whether the command has a file made anew whatever is there."""
        if self._workflow is None:
            return False
        settings = self._workflow.dag_settings
        forced = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
        return settings.forceall or bool(forced & {str(path), *rules})


def _place(target: str) -> str:
    """A target's rule, or the folder of the results tree that it lies in."""
    parts = Path(target).parts
    return parts[1] if parts[0] == RESULTS and len(parts) > 1 else target


def is_older(path: Path, than: Path) -> bool:
    return than.is_file() and path.stat().st_mtime <= than.stat().st_mtime
