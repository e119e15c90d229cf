"""The verb `train`: train the last stage of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from halos.distributed import slurm
from halos.errors import HalosError
from halos.train.adopt import adopt, is_same
from halos.train.inputs import Inputs
from halos.train.settings import EVALUATIONS
from halos.train.stopping import Stopping
from halos.train.trackers import Tracking, check_trackers
from halos.train.trainer import Trainer


def train(
    config: Path,
    parent: Path,
    store: Path,
    output: Path,
    reference: Sequence[Path] = (),
    reference_of: Path | None = None,
    scores: Sequence[Path] = (),
    resumed: Sequence[Path] = (),
    tokens_per_microbatch: int = 16384,
    gradient_checkpointing: bool = False,
    eval_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    snapshots: int | None = None,
    skip_first_evaluation: bool = False,
    keep_optimizer: bool = False,
    preview_prompts: int | None = None,
    preview_tokens: int | None = None,
    trackers: Sequence[str] = (),
    tracker_project: str = "halos",
    tracker_folder: Path = Path("results/trackers"),
    trial: Path | None = None,
    time_limit: float | None = None,
) -> None:
    """Train the last stage of a cell.

    Args:
        config: config.yaml of the run: `python -m halos config FOLDER` writes one
        parent: folder of the parent, with model/ and manifest.json
        store: sequence store of the dataset and model
        output: the run's folder, where model/, train.jsonl and, last, manifest.json are written
        reference: files of the reference's log-probabilities, one for each part that the loss reads
        reference_of: folder of the reference, with manifest.json, where it is not the parent
        scores: file of a reward model's scores, for a stage with a reward_model
        resumed: manifest.json of the run to go on from, for a stage with resume_from
        tokens_per_microbatch: tokens of one forward pass on one device, padding included
        gradient_checkpointing: save memory by running forward passes again in the backward pass
        eval_every: steps between two evaluations; by default as in the config, like the two that follow; with
            early_stopping another value is another run
        checkpoint_every: steps between two checkpoints
        keep_every: steps between two models that are kept in kept/
        snapshots: models that are kept in kept/ after equal parts of the training, the last of them its result
        skip_first_evaluation: do not evaluate before the first step
        keep_optimizer: keep the optimiser's state at the end, to go on from
        preview_prompts: validation prompts that the policy answers at each evaluation, into previews.jsonl
        preview_tokens: token limit of such an answer
        trackers: trackers that show the run: tensorboard, wandb, trackio, mlflow
        tracker_project: name under which they file it
        tracker_folder: folder of their files
        trial: run, or snapshot of one, whose settings were chosen: if it was this same training, the result is its
        time_limit: minutes after which to stop with a checkpoint; Slurm's own limit counts too

    Raises:
        HalosError: an input is missing, stale or not what the stage reads, a tracker is not installed or does not
            start, or the training diverges.
        Stopped: the time limit or a signal came first; the same command goes on from the checkpoint.
    """
    check_trackers(trackers)
    stopping = Stopping(slurm.time_limit(time_limit))
    inputs = Inputs.open(config, parent, store, reference, reference_of, scores, resumed)
    numbers = {"eval_every": eval_every, "checkpoint_every": checkpoint_every, "keep_every": keep_every,
               "snapshots": snapshots,
               "preview_prompts": preview_prompts, "preview_tokens": preview_tokens}  # fmt: skip
    given: dict[str, int | bool] = {name: number for name, number in numbers.items() if number is not None}
    if skip_first_evaluation:
        given["eval_first"] = False
    if keep_optimizer:
        given["keep_optimizer"] = True
        if inputs.stage.early_stopping is not None:
            raise HalosError("early_stopping publishes the weights before the end: leave out --keep-optimizer")
    settings = inputs.settings
    if inputs.stage.early_stopping is not None:  # which evaluations there are makes another run
        decisive = {name: value for name, value in given.items() if name in EVALUATIONS}
        settings = settings.model_copy(update={"stage": inputs.stage.model_copy(update=decisive)})
    inputs = replace(inputs, settings=settings, stage=inputs.stage.model_copy(update=given))
    if trial is not None and is_same(trial, inputs):
        adopt(trial, inputs, output)
        return
    tracking = Tracking(tuple(trackers), tracker_project, tracker_folder)
    Trainer(inputs, output, tokens_per_microbatch, gradient_checkpointing, stopping, tracking).run()
