"""The files that each rule reads.

Functions take Snakemake's wildcards (dataset, model, method, run, judge, prompts, ...) and return paths. None names a
loss: they read the traits of the losses that stages name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from halos.answer.settings import AnswerSlice
from halos.evaluate.judging.settings import FromFile
from halos.models.attention import is_kernel
from halos.models.download import base_on_hub, tokenizer_on_hub
from halos.reference.cache import BOTH, PARTS, SCORES
from halos.settings import dump
from halos.study.cells import RUN, Cell
from halos.study.choice import chosen_by
from halos.study.paths import Paths, RunPaths
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.workflow.batches import PROMPT_SETS, TASKS, Batches
from halos.workflow.judging import Judging, reward_model_files
from halos.workflow.signatures import signed

PROMPTS = "prompts"
"""Takes the place of a view in the check of a dataset of which an online stage needs prompts alone."""

Asked = Callable[[Any], list[Path]] | list[Path]

BATCH = re.compile(r"(runs/.+/)?answering/[^/]+")
JUDGED = re.compile(r"judging/(?P<key>[^/]+)")


def cell_of(wildcards: Any) -> Cell:
    """The cell that a job is about; its run is `seed1`, or `seed1/round2` for a round of an online stage."""
    return Cell.of(f"runs/{wildcards.dataset}/{wildcards.model}/{wildcards.method}/{wildcards.run}")


def labeller_of(study: Study, wildcards: Any) -> str:
    """The labeller that a job names, or that of the stage of its round."""
    named: str | None = getattr(wildcards, "labeller", None)
    return named or study.labeller(cell_of(wildcards))


@signed
class Inputs:
    """The input functions of a study.

    Args:
        study: the study.
        paths: the results tree.
        workflow: Snakemake's workflow, by which batches are chosen.
        checkpoints: Snakemake's checkpoints, of which `choose` is one.

    Attributes:
        choice: asks for the choice that a folder's settings depend on.
        choices: asks for the choices that a cell depends on.
        decided_choices: asks for those of all cells that a batch judges.

    Each of the attributes is nothing in a study without a sweep, as calls of functions are most of a dry run.
    """

    def __init__(self, study: Study, paths: Paths | None = None, workflow: Any = None, checkpoints: Any = None) -> None:
        self.study, self.paths, self.config = study, paths or Paths(), study.config
        self.batches, self._checkpoints = Batches(study, self.paths, workflow), checkpoints
        self.judging = Judging(self.batches)
        swept = bool(study.sweeps)
        self.choice: Asked = self._choice if swept else []
        self.choices: Asked = self._choices if swept else []
        self.decided_choices: Asked = self._decided_choices if swept else []

    def clear(self) -> None:
        """At the end of a command, clear the batches of what is in its place."""
        self.batches.clear()
        self.judging.clear()

    # ---- a dataset, a model, a task -------------------------------------------------------------------------

    def slice(self, wildcards: Any) -> str:
        """The text of a folder's config.yaml."""
        if BATCH.fullmatch(wildcards.folder):
            return dump(self.batches.content(self.paths.results / wildcards.folder / "config.yaml"))
        if found := JUDGED.fullmatch(wildcards.folder):
            return dump(self.judging.content(found["key"]))
        swept = self._swept(wildcards.folder)
        if swept is not None and chosen_by(self.paths, swept) not in self.study.stage(swept).candidates:
            return ""  # Snakemake asks again once the choice is made
        return dump(config_slice(self.config, wildcards.folder))

    def _choice(self, wildcards: Any) -> list[Path]:
        """Nothing, once the choice is made that a folder's settings depend on, if they depend on one."""
        swept = self._swept(wildcards.folder)
        return [] if swept is None else self._chosen([swept])

    def _swept(self, folder: str) -> Cell | None:
        is_run = RUN.fullmatch(folder)
        return self.study.swept(Cell.of(folder)) if is_run and self.study.sweeps else None

    def source_files(self, wildcards: Any) -> list[str]:
        """The local files that a dataset is made from."""
        return [file for source in self.config.datasets[wildcards.dataset].all_sources for file in source.files]

    def fetched_data(self, wildcards: Any) -> list[Path]:
        """The commits that a dataset is made from, if one of its sources is on the hub."""
        remote = any(source.on_hub for source in self.config.datasets[wildcards.dataset].all_sources)
        return [self.paths.data(wildcards.dataset).fetched] if remote else []

    def fetched_model(self, wildcards: Any) -> list[Path]:
        """The commits of what a model reads from the hub: itself, the base model of local LoRA adapters, another's
        tokenizer, or an attention kernel."""
        model = self.config.models[wildcards.model]
        remote = model.hub is not None or (model.path is not None and base_on_hub(Path(model.path)) is not None)
        remote = remote or tokenizer_on_hub(model) is not None or is_kernel(model.attention)
        return [self.paths.model(wildcards.model).fetched] if remote else []

    def tokenizer_data(self, wildcards: Any) -> list[Path]:
        """The train split that a model's tokenizer is trained on, if it is trained here."""
        tokenizer = self.config.models[wildcards.model].tokenizer
        return [self.paths.data(tokenizer.train_on).train] if tokenizer and tokenizer.train_on else []

    def tokenizer_model(self, wildcards: Any) -> list[Path]:
        """The model of the catalogue whose tokenizer a model has, if it is not its own."""
        tokenizer = self.config.models[wildcards.model].tokenizer
        other = tokenizer.of_model if tokenizer else None
        return [self.paths.model(other).model] if other in self.config.models else []

    # ---- sweeps ---------------------------------------------------------------------------------------------

    def _choices(self, wildcards: Any) -> list[Path]:
        """Nothing, once all choices are made that a cell depends on.

        Until then Snakemake waits, and afterwards it decides anew whether the job has to run: after a choice that comes
        out as before nothing is made again. For this, each job of a cell has to ask, not only the first.
        """
        cells = [cell_of(wildcards), *self._opponent(wildcards)]
        return self._chosen([choice for cell in cells for choice in self.study.choices(cell)])

    def tried(self, wildcards: Any) -> list[Path]:
        """What decides between the candidates of a choice, and their manifests."""
        cell = Cell(wildcards.dataset, wildcards.model, wildcards.method, 0)
        select, runs = self.study.decided_by(cell), [self.paths.run(trial) for trial in self.study.candidates(cell)]
        if select.judge is not None:
            decides = [run.judged(select.judge) for run in runs]
        else:
            decides = [run.log if select.task is None else run.task(select.task) for run in runs]
        return [*decides, *(run.manifest for run in runs)]

    def _chosen(self, swept: list[Cell]) -> list[Path]:
        for cell in swept:
            self._checkpoints.choose.get(dataset=cell.dataset, model=cell.model, method=cell.method)
        return []

    # ---- a cell ---------------------------------------------------------------------------------------------

    def _run(self, wildcards: Any) -> RunPaths:
        return self.paths.run(cell_of(wildcards))

    def _parent(self, wildcards: Any) -> RunPaths:
        parent = cell_of(wildcards).parent
        assert parent is not None, "a base model has no parent; rules that ask for one never match method base"
        return self.paths.run(parent)

    def model(self, wildcards: Any) -> Path:
        return self._run(wildcards).model

    def manifest(self, wildcards: Any) -> Path:
        return self._run(wildcards).manifest

    def parent_model(self, wildcards: Any) -> Path:
        return self._parent(wildcards).model

    def parent_manifest(self, wildcards: Any) -> Path:
        return self._parent(wildcards).manifest

    def checked(self, wildcards: Any) -> Path:
        """The check that the store has the view that the cell's loss reads, and all others that the grid needs."""
        stage = self.study.stage(cell_of(wildcards))
        view = PROMPTS if stage.online and stage.online.evaluate == "fresh" else stage.reads
        return self.paths.store(wildcards.dataset, wildcards.model).checked(view)

    def reference(self, wildcards: Any) -> list[Path]:
        """The parts of its reference's log-probabilities that the cell's loss reads."""
        cell = cell_of(wildcards)
        reference, parts = self.study.reference(cell), self.study.reference_parts(cell)
        if reference.model != cell.model:
            store = self.paths.store(cell.dataset, cell.model)
            return [store.reference(reference.model, part) for part in parts]
        return [self.paths.run(reference).reference(part) for part in parts]

    def scores(self, wildcards: Any) -> list[Path]:
        """The scores that the cell's reward model gives to the dataset's responses, if it has one."""
        cell = cell_of(wildcards)
        teacher = self.study.teacher(cell)
        if teacher is None:
            return []
        if teacher.stage is None:
            return [self.paths.store(cell.dataset, cell.model).scores(teacher.model)]
        return [self.paths.run(teacher).reference(SCORES)]

    def reward_model(self, wildcards: Any) -> Path:
        return self.paths.model(wildcards.reward_model).model

    def reward_model_manifest(self, wildcards: Any) -> Path:
        return self.paths.model(wildcards.reward_model).manifest

    def adapters(self, wildcards: Any) -> list[str]:
        """The saved LoRA adapters that the cell goes on from, if any."""
        lora = self.study.stage(cell_of(wildcards)).lora
        return [] if lora is None or lora.path is None else [f"{lora.path}/adapter_model.safetensors"]

    def resumed(self, wildcards: Any) -> list[Path]:
        """The manifest of the run that the cell goes on from, if any."""
        cell = self.study.resumed(cell_of(wildcards))
        return [] if cell is None else [self.paths.run(cell).manifest]

    # ---- rounds of an online stage --------------------------------------------------------------------------

    def round_manifests(self, wildcards: Any) -> list[Path]:
        return [self.paths.run(round_).manifest for round_ in self.study.rounds(cell_of(wildcards))]

    def round_validation(self, wildcards: Any) -> Path:
        """The feedback records that a round is evaluated on: its own, or the dataset's."""
        online = self.study.stage(cell_of(wildcards)).online
        own = online is None or online.evaluate == "fresh"
        return self._run(wildcards).fresh.validation.feedback if own else self.paths.data(wildcards.dataset).validation

    def last_model(self, wildcards: Any) -> Path:
        """The model of a cell's last round."""
        return self.paths.run(self.study.rounds(cell_of(wildcards))[-1]).model

    def _reference(self, wildcards: Any) -> RunPaths:
        return self.paths.run(self.study.reference(cell_of(wildcards)))

    def reference_config(self, wildcards: Any) -> Path:
        return self._reference(wildcards).config

    def reference_model(self, wildcards: Any) -> Path:
        return self._reference(wildcards).model

    def reference_manifest(self, wildcards: Any) -> Path:
        return self._reference(wildcards).manifest

    def vocabulary(self, wildcards: Any) -> list[Path]:
        """The policy's base model, where the reference is another: their tokenizers must be the same."""
        cell = cell_of(wildcards)
        return [] if self.study.reference(cell).model == cell.model else [self.paths.model(cell.model).model]

    def compared_reference(self, wildcards: Any) -> list[Path]:
        """The reference of a policy, its model and manifest; none of a reward model."""
        cell = cell_of(wildcards)
        if cell.stage is None or self.study.stage(cell).make_loss().head == "score":
            return []
        reference = self._reference(wildcards)
        return [reference.model, reference.manifest]

    def compared_vocabulary(self, wildcards: Any) -> list[Path]:
        """As `vocabulary`; none for a reward model."""
        return self.vocabulary(wildcards) if self.compared_reference(wildcards) else []

    def round_reference(self, wildcards: Any) -> list[Path]:
        """Its reference's log-probabilities, on the round's own store: all parts that the round's loss reads, in one
        file, as nothing else reads them."""
        parts = self.study.reference_parts(cell_of(wildcards))
        names = (BOTH,) if parts == PARTS else parts
        return [self._run(wildcards).fresh.reference(name) for name in names]

    def labeller(self, wildcards: Any) -> Path:
        return self.paths.labeller(labeller_of(self.study, wildcards)).config

    def labelling_model(self, wildcards: Any) -> list[Path]:
        """The reward model that labels, if one does: its folder, and its manifest if it is a cell's."""
        labeller = self.config.labellers[labeller_of(self.study, wildcards)]
        return reward_model_files(self.study, self.paths, labeller, cell_of(wildcards))

    # ---- answers --------------------------------------------------------------------------------------------

    def answers(self, wildcards: Any) -> Path:
        """The folder that a cell's samples of a prompt set, or its result on a task, are made in, beside others."""
        prompts = getattr(wildcards, "prompts", None)
        kind, name = (TASKS, wildcards.task) if prompts is None else (PROMPT_SETS, prompts)
        return self._run(wildcards).answers(self.batches.key(cell_of(wildcards), kind, name))

    def answered_config(self, wildcards: Any) -> Path:
        """The prompt sets and tasks of a batch."""
        return self.batches.config(cell_of(wildcards), wildcards.batch)

    def answered_data(self, wildcards: Any) -> list[Path]:
        """The feedback file of each prompt set of a batch."""
        return self._answered_data(self._batch(wildcards), wildcards)

    def answered_local(self, wildcards: Any) -> list[Path]:
        """The feedback file that each local task of a batch is made from."""
        return self._answered_local(self._batch(wildcards), wildcards)

    def answered_fetched(self, wildcards: Any) -> list[Path]:
        """The commits of the data of each task of lm-eval's own in a batch."""
        return self._answered_fetched(self._batch(wildcards))

    def answered(self, wildcards: Any) -> list[Path]:
        """What a batch is made anew for: those of the files above that its own samples and results depend on."""
        own = AnswerSlice.model_validate(self.batches.own(cell_of(wildcards), wildcards.batch))
        files = [*self._answered_data(own, wildcards), *self._answered_local(own, wildcards)]
        return [*dict.fromkeys([*files, *self._answered_fetched(own)])]

    def _batch(self, wildcards: Any) -> AnswerSlice:
        return AnswerSlice.model_validate(self.batches.content(self.answered_config(wildcards)))

    def _answered_data(self, batch: AnswerSlice, wildcards: Any) -> list[Path]:
        sets = batch.prompts.values()
        return [self.paths.data(prompts.dataset or wildcards.dataset).split(prompts.split) for prompts in sets]

    def _answered_local(self, batch: AnswerSlice, wildcards: Any) -> list[Path]:
        return [self.paths.data(wildcards.dataset).split(task.split) for task in batch.tasks.values() if task.local]

    def _answered_fetched(self, batch: AnswerSlice) -> list[Path]:
        return [self.paths.task(name).fetched for name, task in batch.tasks.items() if task.task]

    # ---- judgements -----------------------------------------------------------------------------------------

    def judgements(self, wildcards: Any) -> list[str]:
        """The folder that a cell's judgement is made in, beside others."""
        opponent: str | None = getattr(wildcards, "opponent", None)
        return self.judging.judgements(cell_of(wildcards), wildcards.judge, opponent)

    def decided(self, wildcards: Any) -> list[str]:
        """What the judgements of a batch are made from."""
        files = (file for judgement in self.judging.own(wildcards.batch) for file in judgement.files)
        return [*dict.fromkeys(files)]

    def _decided_choices(self, wildcards: Any) -> list[Path]:
        """As `choices`, of all cells that a batch judges; they depend on the same ones."""
        return self._chosen(self.judging.choices(self.judging.first(wildcards.batch)))

    def prompts_data(self, wildcards: Any) -> Path:
        """The feedback file whose prompts are answered."""
        prompts = self.config.prompts[self.config.judges[wildcards.judge].prompts]
        return self.paths.data(prompts.dataset or wildcards.dataset).split(prompts.split)

    def judged_samples(self, wildcards: Any) -> Path:
        return self._run(wildcards).samples(self.config.judges[wildcards.judge].prompts)

    def baseline(self, wildcards: Any) -> list[str | Path]:
        """The baseline of a judge: a file of outputs, or another cell's samples; none for the dataset's targets."""
        judge = self.config.judges[wildcards.judge]
        if isinstance(judge.baseline, FromFile):
            return [judge.baseline.file]
        cell = self.study.baseline(judge, cell_of(wildcards))
        return [] if cell is None else [self.paths.run(cell).samples(judge.prompts)]

    def opponent_samples(self, wildcards: Any) -> list[Path]:
        """The samples of the other method that a cell is compared with."""
        prompts = self.config.judges[wildcards.judge].prompts
        return [self.paths.run(other).samples(prompts) for other in self._opponent(wildcards)]

    def _opponent(self, wildcards: Any) -> list[Cell]:
        """The cell that a job compares its own with, if it does."""
        method: str | None = getattr(wildcards, "opponent", None)
        return [] if method is None else [replace(cell_of(wildcards), method=method)]

    def votes(self, wildcards: Any) -> list[Path]:
        """The files of votes that there are for a judge of people; none for another."""
        people = self.config.judges[wildcards.judge].human
        return [] if people is None else people.files(wildcards.judge)

    def difficulties(self, wildcards: Any) -> list[str]:
        """The file of AlpacaEval's difficulties, if a judge names one."""
        path = self.config.judges[wildcards.judge].difficulties
        return [] if path is None else [path]
