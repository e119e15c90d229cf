"""Resources of jobs: cores, memory, time, GPUs and nodes, and options of commands that change no result.

Changing a resource reruns nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from halos.evaluate.judging.settings import Judge
from halos.models.settings import Resources
from halos.online.settings import Labeller
from halos.study.catalogue import Config
from halos.study.choice import chosen_by
from halos.study.paths import Paths
from halos.study.study import Study
from halos.workflow.inputs import PROMPTS, cell_of, labeller_of
from halos.workflow.judging import Judging
from halos.workflow.signatures import signed

OverNodes = Callable[[Any], int | str | None]


def _factor(attempt: int) -> int:
    return 1 << (attempt - 1)


def _gres(gpus: int) -> str:
    return f"gpu:{gpus}" if gpus else ""


def launch_options(resources: Resources) -> str:
    """The options of halos.distributed.launch for a model's resources."""
    options = [f"--{name} {getattr(resources, name)}" for name in ("nodes", "gpus", "parallel", "cpus")]
    return " ".join([*options, *(["--offload"] if resources.offload else [])])


def model_of(wildcards: Any) -> str:
    """The id of the model that a job names."""
    return str(wildcards.model)


@signed
class JobResources:
    """Resources of jobs that run a model. Memory and time double with each attempt.

    Args:
        config: the catalogue.
        model: from wildcards to the id of the model.
    """

    def __init__(self, config: Config, model: Callable[[Any], str]) -> None:
        self._config, self.model = config, model

    def _entry(self, wildcards: Any) -> Resources:
        return self._config.models[self.model(wildcards)].resources

    def cpus(self, wildcards: Any) -> int:
        return self._entry(wildcards).cpus

    def mem_mb(self, wildcards: Any, attempt: int) -> int:
        return 1000 * self._entry(wildcards).mem_gb * _factor(attempt)

    def runtime(self, wildcards: Any, attempt: int) -> int:
        """Minutes."""
        return self._entry(wildcards).runtime * _factor(attempt)

    # Jobs of one machine share its `gpus`; a job asks Slurm for as many by `gres`. (Slurm's plugin reads `gpu`, another
    # resource, and refuses it beside `gres`.)

    def gpus(self, wildcards: Any) -> int:
        """GPUs of a job with one process for each: all the model's GPUs of a node."""
        return self._entry(wildcards).gpus

    def single_gpus(self, wildcards: Any) -> int:
        """GPUs of a job of one process: one, if the model has any."""
        return min(1, self._entry(wildcards).gpus)

    def sampling_gpus(self, wildcards: Any) -> int:
        """GPUs of sampling: those over which the model is split, if it has any."""
        resources = self._entry(wildcards)
        return resources.tensor_parallel if resources.gpus else 0

    def gres(self, wildcards: Any) -> str:
        return _gres(self.gpus(wildcards))

    def single_gres(self, wildcards: Any) -> str:
        return _gres(self.single_gpus(wildcards))

    def sampling_gres(self, wildcards: Any) -> str:
        return _gres(self.sampling_gpus(wildcards))

    # With `mpi`, the Slurm plugin makes one job of several nodes, whose shell runs on the first of them and starts the
    # tasks itself. Snakemake leaves out a resource that is None: a job on one node must not have `mpi`.

    @property
    def mpi(self) -> OverNodes | None:
        return self._over_nodes(lambda entry: "srun")

    @property
    def nodes(self) -> OverNodes | None:
        return self._over_nodes(lambda entry: entry.nodes)

    @property
    def tasks_per_gpu(self) -> OverNodes | None:
        return self._over_nodes(lambda entry: 0)

    def _over_nodes(self, value: Callable[[Resources], int | str]) -> OverNodes | None:
        """A resource of jobs on several nodes; nothing to ask for each job where no model has several."""
        if all(model.resources.nodes == 1 for model in self._config.models.values()):
            return None

        def of_job(wildcards: Any) -> int | str | None:
            entry = self._entry(wildcards)
            return value(entry) if entry.nodes > 1 else None

        return of_job

    # ---- options of commands --------------------------------------------------------------------------------

    def launch(self, wildcards: Any) -> str:
        """Options of halos.distributed.launch: how many processes, and where."""
        return launch_options(self._entry(wildcards))

    def tokens(self, wildcards: Any) -> int:
        """Tokens of one microbatch."""
        return self._entry(wildcards).tokens_per_microbatch

    def checkpointing(self, wildcards: Any) -> str:
        """The option that saves memory of activations, or nothing."""
        return "--gradient-checkpointing" if self._entry(wildcards).gradient_checkpointing else ""

    def batch(self, wildcards: Any) -> int:
        """Responses generated side by side."""
        return self._entry(wildcards).generate_batch

    def backend(self, wildcards: Any) -> str:
        """The backend of sampling: the one that the model's entry names, else vLLM where there are GPUs."""
        resources = self._entry(wildcards)
        return ("vllm" if resources.gpus else "transformers") if resources.sampler == "auto" else resources.sampler

    def sampling(self, wildcards: Any) -> str:
        """Options of sampling: responses side by side, the backend, and GPUs over which vLLM splits each layer."""
        entry, backend = self._entry(wildcards), self.backend(wildcards)
        return f"--batch {entry.generate_batch} --backend {backend} --tensor-parallel {entry.tensor_parallel}"


class ScoreResources(JobResources):
    """Resources of jobs that score with a reward model: it runs on one node, and each process holds all of it."""

    def _entry(self, wildcards: Any) -> Resources:
        return super()._entry(wildcards).model_copy(update={"nodes": 1, "parallel": "ddp", "offload": False})


@signed
class ScorerResources(ScoreResources):
    """Resources of a judge or labeller: of a reward model, or of a model that is asked in a job, those of its entry in
    `models:` or of the cell's model, else the defaults of models.

    Args:
        study: the study.
        scorer: from wildcards to the judge or labeller.
        of_cell: from wildcards to the id of the cell's model.
    """

    def __init__(
        self, study: Study, scorer: Callable[[Any], Judge | Labeller], of_cell: Callable[[Any], str] = model_of
    ) -> None:
        def model(wildcards: Any) -> str:
            name = scorer(wildcards).named
            return name if name in study.config.models else of_cell(wildcards)

        super().__init__(study.config, model)
        self._scorer = scorer

    def _entry(self, wildcards: Any) -> Resources:
        scorer = self._scorer(wildcards)
        if scorer.named is None and scorer.folder is None:
            return Resources()
        return super()._entry(wildcards)

    def backend(self, wildcards: Any) -> str:
        """As that of sampling, of a model that is asked; a reward model is run by transformers alone."""
        return super().backend(wildcards) if self._scorer(wildcards).kind == "model" else "transformers"

    def sampling_gpus(self, wildcards: Any) -> int:
        """GPUs of a judge: those over which vLLM splits a model that is asked, else one, if it has any."""
        is_split = self.backend(wildcards) == "vllm"
        return super().sampling_gpus(wildcards) if is_split else self.single_gpus(wildcards)

    def limits(self, wildcards: Any) -> str:
        """Options that limit how fast a server is asked."""
        scorer = self._scorer(wildcards)
        rate = f" --requests-per-minute {scorer.requests_per_minute}" if scorer.requests_per_minute else ""
        return f"--concurrency {scorer.concurrency}{rate}"


@signed
class StudyResources(JobResources):
    """Resources of a study's jobs.

    Args:
        study: the study.
        judging: its batches of judgements.

    Attributes:
        score: those of passes of reward models of `models:` over a store.
        judge: those of batches of judgements.
        ask: those of judges that are models behind a server.
        label: those of labellers.
    """

    def __init__(self, study: Study, judging: Judging) -> None:
        super().__init__(study.config, model_of)
        self.score = ScoreResources(study.config, lambda wildcards: str(wildcards.reward_model))
        self.judge = ScorerResources(
            study,
            lambda wildcards: study.config.judges[judging.first(wildcards.batch).judge],
            lambda wildcards: judging.first(wildcards.batch).cell.model,
        )
        self.ask = ScorerResources(study, lambda wildcards: study.config.judges[wildcards.judge])
        self.label = ScorerResources(study, lambda wildcards: study.config.labellers[labeller_of(study, wildcards)])
        self._study, self._paths = study, Paths()

    # One text of several options, not a resource of each: Snakemake takes a tenth of a millisecond for each.

    def training(self, wildcards: Any) -> str:
        """Options of a training that change no result."""
        options = (self.checkpointing, self.intervals, self.trackers, self.trial)
        tokens = f"--tokens-per-microbatch {self.tokens(wildcards)}"
        return " ".join(filter(None, (tokens, *(option(wildcards) for option in options))))

    def intervals(self, wildcards: Any) -> str:
        """Options of a training's evaluations, checkpoints and what it keeps: intervals in steps, previews, flags."""
        stage = self._study.stage(cell_of(wildcards))
        names = ["eval_every", "checkpoint_every", "keep_every", "preview_prompts"]
        names += ["preview_tokens"] if stage.preview_prompts else []
        steps = {name: getattr(stage, name) for name in names}
        steps["snapshots"] = stage.followed if stage.followed > 1 else None
        options = [f"--{name.replace('_', '-')} {value}" for name, value in steps.items() if value]
        flags = {"--skip-first-evaluation": not stage.eval_first, "--keep-optimizer": stage.keep_optimizer}
        return " ".join([*options, *(flag for flag, wanted in flags.items() if wanted)])

    def trackers(self, wildcards: Any) -> str:
        """Options of the trackers that show a training, if there are any."""
        config = self._study.config
        if not config.trackers:
            return ""
        where = f"--tracker-project {shlex.quote(config.project)} --tracker-folder {self._paths.trackers}"
        return f"--trackers {' '.join(config.trackers)} {where}"

    def trial(self, wildcards: Any) -> str:
        """Option with the run whose settings were chosen for a cell, if they were, with the same seed: a trial, or a
        snapshot of one."""
        cell = cell_of(wildcards)
        swept = self._study.swept(cell)
        name = None if swept is None else chosen_by(self._paths, swept)
        if name is None:
            return ""
        return f"--trial {shlex.quote(str(self._paths.run(cell.candidate(name, cell.seed)).folder))}"

    def views(self, wildcards: Any) -> str:
        """Every view that trainings for the grid read of a store, separated by spaces."""
        place = (wildcards.dataset, wildcards.model)
        stages = [self._study.stage(c) for c in self._study.trained if (c.dataset, c.model) == place]
        views = {stage.reads for stage in stages if stage.online is None} | {wildcards.view}
        return " ".join(sorted(views - {PROMPTS}))

    def margins_for(self, wildcards: Any) -> str:
        """The stages of the grid whose losses read the margins of a store's pairs, separated by spaces."""
        place = (wildcards.dataset, wildcards.model)
        cells = [c for c in self._study.trained if (c.dataset, c.model) == place]
        return " ".join(sorted({str(c.stage) for c in cells if self._study.stage(c).make_loss().needs_margins}))

    def fresh_prompts(self, wildcards: Any) -> int:
        """The most prompts that the rounds of one online stage of the grid take from a dataset."""
        stages = [self._study.stage(c) for c in self._study.trained if c.dataset == wildcards.dataset]
        rounds = [stage.online for stage in stages if stage.online]
        return max((online.rounds * online.prompts_per_round for online in rounds), default=0)

    def validation_for(self, wildcards: Any) -> str:
        """The entries of the config that read prompts of a dataset's validation split, separated by spaces."""
        return " ".join(self._study.readers(wildcards.dataset, "validation"))

    def test_for(self, wildcards: Any) -> str:
        """The entries of the config that read prompts of a dataset's test split, separated by spaces."""
        return " ".join(self._study.readers(wildcards.dataset, "test"))
