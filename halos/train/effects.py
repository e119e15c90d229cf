"""Settings that cannot take effect on a run's data or in its number of steps: each is said in one line of the log."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from halos.losses import Loss
from halos.tokens.selection import select
from halos.tokens.store import Store
from halos.train.batches import Examples
from halos.train.optimizer import optimizer_class, whole_steps
from halos.train.stage import Stage


def without_effect(stage: Stage, store: Store, examples: Examples, steps: int, scheduled: int, seed: int) -> list[str]:
    """A sentence for each setting of a stage, or column of its data, that cannot have the effect of its name.

    Args:
        stage: the stage.
        store: the sequence store that its examples are of.
        examples: the examples that it trains on.
        steps: number of the run's optimiser steps.
        scheduled: steps that the learning rate's schedule is over: those of the run, or of all rounds.
        seed: the cell's seed.
    """
    loss = stage.make_loss()
    return [
        *_of_schedule(stage, scheduled),
        *_of_steps(stage, steps),
        *_of_sizes(stage, len(examples)),
        *_of_weights(stage, loss),
        *_of_selection(stage, store, seed),
        *_of_labels(stage, loss, examples),
        *_of_columns(stage, loss, examples),
    ]


def _of_schedule(stage: Stage, steps: int) -> Iterator[str]:
    """Settings of the learning rate that count steps, or fractions of them."""
    ramp, decay = whole_steps(stage.warmup, steps), whole_steps(stage.decay, steps)
    decays = stage.scheduler != "constant"
    if ramp > steps:
        reached = f"the learning rate ends at {100 * steps / ramp:.2g} % of lr"
        yield f"warmup: {ramp} steps in a run of {steps}: {reached}{' and never decays' * decays}"
    elif ramp == steps and decays:
        yield f"scheduler: {stage.scheduler} begins after the warm-up, which is the whole run of {steps} steps"
    elif not ramp and 0 < stage.warmup != Stage.model_fields["warmup"].default:
        yield f"warmup: {stage.warmup:g} of {steps} steps is less than half a step: there is no warm-up"
    if stage.scheduler == "wsd" and not decay:
        yield f"decay: {stage.decay:g} of {steps} steps is less than half a step: the learning rate never decays"
    if stage.scheduler == "wsd" and ramp < steps < ramp + decay:
        yield f"decay: {decay} steps and {ramp} of warm-up in a run of {steps}: the decay has {steps - ramp}"
    if decays and stage.min_lr_ratio == 1:
        yield f"min_lr_ratio: 1 leaves the scheduler {stage.scheduler} nothing to decay to"


def _of_steps(stage: Stage, steps: int) -> Iterator[str]:
    """Other settings that count steps."""
    if stage.keep_every is not None and stage.keep_every >= steps:
        yield f"keep_every: {stage.keep_every} keeps no model of a run of {steps} steps but its last"
    evaluations = -(-steps // stage.eval_every) + stage.eval_first
    if stage.early_stopping is not None and evaluations <= stage.early_stopping.patience:
        patience = stage.early_stopping.patience
        yield (
            f"early_stopping: patience {patience} never ends a run of {evaluations} evaluations early; the weights of "
            f"the best one are published"
        )
    if stage.average is not None and stage.average.share(steps, steps) == 1:
        yield "average: it is of the weights after the last step alone"
    if stage.sync_reference is not None and stage.sync_reference >= steps:
        yield f"sync_reference: {stage.sync_reference} in a run of {steps} steps: the reference stays as it began"
    if stage.humanline and steps == 1:
        yield "humanline: nothing is clamped in a run of one step, at which policy and reference are equal"


def _of_sizes(stage: Stage, n: int) -> Iterator[str]:
    """The length of the run and the size of its batches, beside the number of examples."""
    if stage.examples is not None and stage.epochs != Stage.model_fields["epochs"].default:
        yield f"epochs: {stage.epochs:g} is not read, because `examples` sets the length of the run"
    if stage.batch_size > n:
        yield f"batch_size: {stage.batch_size} is more than the {n} examples: each step is on all of them"
    asked = round(stage.epochs * n) if stage.examples is None else stage.examples
    if asked < (batch := min(stage.batch_size, n)):
        what = "epochs" if stage.examples is None else "examples"
        yield f"{what}: {asked} examples are less than a batch: the run is one step on {batch}"


def _of_weights(stage: Stage, loss: Loss) -> Iterator[str]:
    """The optimiser's weight decay, and adapters that the reference does not have."""
    default = inspect.signature(optimizer_class(stage.optimizer)).parameters.get("weight_decay")
    decay = stage.optimizer_args.get("weight_decay", default.default if default else 0)
    if not stage.decay_norms_and_biases and not decay:
        yield "decay_norms_and_biases: there is no weight decay (set it by `optimizer_args: {weight_decay: ...}`)"
    fixed = loss.needs_reference and not stage.sync_every and stage.reference is None
    if stage.lora is not None and stage.lora.path is not None and fixed:
        yield (
            "lora.path: the policy begins with these adapters and its reference is the parent without them: they "
            "differ before the first step (merge them into a model of its own to begin at 0)"
        )


def _of_selection(stage: Stage, store: Store, seed: int) -> Iterator[str]:
    """Selections that leave nothing out."""
    view = stage.make_loss().view
    shares = {"desirable": stage.keep_desirable, "undesirable": stage.keep_undesirable}
    if stage.pairs_per_prompt is None and not stage.one_per_prompt and min(*shares.values(), stage.keep_pairs) == 1:
        return
    whole = replace(stage.selection, pairs_per_prompt=None, one_per_prompt=False, keep_desirable=1.0,
                    keep_undesirable=1.0, keep_pairs=1.0, label_noise=0.0)  # fmt: skip
    table = select(store, "train", stage.reads, whole, seed)
    prompts = store.prompt_of(table[view.columns[view.roles[0]]].to_numpy())
    most = int(np.unique(prompts, return_counts=True)[1].max())
    if stage.pairs_per_prompt is not None and most <= stage.pairs_per_prompt:
        yield f"pairs_per_prompt: {stage.pairs_per_prompt} leaves nothing out: no prompt has more than {most}"
    if stage.keep_pairs < 1 and max(1, round(stage.keep_pairs * table.num_rows)) >= table.num_rows:
        yield f"keep_pairs: {stage.keep_pairs:g} leaves out none of the {table.num_rows} pairs"
    if stage.one_per_prompt and most == 1:
        yield "one_per_prompt leaves nothing out: no prompt has more than one response"
    if min(shares.values()) == 1:
        return
    table = select(store, "train", stage.reads, replace(whole, one_per_prompt=stage.one_per_prompt), seed)
    labels = table[view.labels["desirable"]].drop_null().to_numpy()
    for name, share in shares.items():
        number = int((labels == (name == "desirable")).sum())
        if share < 1 and max(1, round(share * number)) >= number:
            yield f"keep_{name}: {share:g} leaves out none of the {number} {name} examples"


def _of_labels(stage: Stage, loss: Loss, examples: Examples) -> Iterator[str]:
    """Labels and scores that say nothing."""
    n, labels = len(examples), examples.labels
    if stage.label_noise and not round(stage.label_noise * n):
        yield f"label_noise: {stage.label_noise:g} turns round none of the {n} examples"
    if loss.view.grouped:
        if not labels["advantages"].any():
            alone = n == len(examples.weight)
            why = "every group has one response" if alone else "the responses of each group have equal scores"
            yield f"scores: {why}, so that all advantages are 0"
    elif loss.needs_scores and np.ptp(labels["scores"]) == 0:
        yield f"scores: all {n} are {labels['scores'][0]:g}, so that no response is better than another"
    elif "desirable" in labels and not loss.needs_scores:
        desirable = int(labels["desirable"].sum())
        numbers = {"desirable": desirable, "undesirable": n - desirable}
        for name, number in numbers.items():
            if number == n:
                yield f"labels: all {n} examples are {name}, and there is nothing to tell apart"
            elif all(getattr(part.loss, f"{name}_weight", 1) == 0 for part in stage.parts.values()):
                yield f"{name}_weight: 0 takes the {number} {name} examples out of the loss"


def _of_columns(stage: Stage, loss: Loss, examples: Examples) -> Iterator[str]:
    """The data's margins and weights."""
    margins, weights = examples.labels.get("margins"), examples.weights
    if margins is not None and not loss.needs_margins:
        reads = (
            "; margin_weight: 1 would" if any(hasattr(p.loss, "margin_weight") for p in stage.parts.values()) else ""
        )
        yield f"margins: the data has some, and the loss {stage.loss_name} does not read them as it is set{reads}"
    if margins is not None and loss.needs_margins and not margins.any():
        yield "margin_weight: the margins of all examples are 0"
    if np.ptp(weights) == 0 and weights[0] != 1:
        yield f"weights: all examples have {weights[0]:g}, and only their ratios count"
    if np.ptp(weights) > 0 and stage.batch_size == 1 and not loss.view.grouped:
        yield "weights: with batch_size: 1 they have no effect, because they weigh the examples of a batch"
