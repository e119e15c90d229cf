"""Work of trainings and samplings: tokens, floating-point operations and seconds."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from halos.distributed.peaks import Device
from halos.models.settings import Size
from halos.plan.devices import DECODING, HALF
from halos.plan.sizes import Amount
from halos.train.stage import Stage


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model in a training.

    Attributes:
        trained: tokens of forward and backward passes.
        scored: tokens of forward passes alone, by the policy or a live reference.
        examples: number of training examples.
    """

    trained: float
    scored: float
    examples: float

    def after(self, done: Work) -> Work:
        """What is left of it once some of it is done."""
        return Work(*(max(0.0, a - b) for a, b in zip(astuple(self), astuple(done), strict=True)))


def work_of(stage: Stage, amount: Amount, budget: int, world: int, eval_examples: int) -> Work:
    """Tokens of a training, including its evaluations.

    Args:
        budget: tokens of a microbatch.
        world: number of processes.
    """
    loss = stage.make_loss()
    epoch = amount.examples.get(stage.reads, amount.prompts)
    per_prompt = epoch / max(amount.prompts, 1)
    if loss.view.labelled:
        epoch *= (stage.keep_desirable + stage.keep_undesirable) / 2
        epoch = amount.prompts if stage.one_per_prompt else epoch
    if loss.view.paired:
        epoch *= stage.keep_pairs
    examples = stage.examples or stage.epochs * epoch
    if stage.online is not None:
        per_prompt = 1 if loss.view.compares else stage.online.samples_per_prompt
        examples = stage.online.rounds * stage.online.prompts_per_round * per_prompt
    examples *= stage.inner_epochs
    prompt, response = amount.prompt, amount.response
    answers = amount.group if loss.view.grouped else len(loss.view.roles)
    tokens = prompt + answers * response
    # statistics of a whole batch need a pass before it: always for other responses to its prompts, for its own
    # responses only where it is not one microbatch
    at_once = stage.batch_size * tokens / world <= budget
    others = len({*loss.prepass} - {*loss.view.roles})
    before = others * response if at_once else len(loss.prepass) and prompt + len(loss.prepass) * response
    # the load of experts has to be known too, before the first of several microbatches
    is_known = at_once or {*loss.view.roles} <= {*loss.prepass}
    routed = tokens if stage.router_weight and not is_known else 0
    live = tokens + others * response if stage.sync_every else 0
    evaluations = examples / (stage.batch_size * stage.eval_every) + 2
    evaluated = evaluations * eval_examples * per_prompt
    return Work(examples * tokens, examples * (before + live + routed) + evaluated * (tokens + before + live), examples)


def training_operations(size: Size, stage: Stage, checkpointing: bool, work: Work) -> float:
    """Floating-point operations: 2 for each parameter and token forward, 4 backward (2 where the weights are frozen,
    with LoRA), 2 for a forward pass that is run again."""
    passes = 1 + (1 if stage.lora else 2) + checkpointing
    return 2.0 * size.parameters * (passes * work.trained + work.scored)


def sampling_seconds(size: Size, device: Device, gpus: int, batch: int, responses: float, new_tokens: int) -> float:
    """Seconds of sampling, if all responses have `new_tokens` tokens and each step of a batch reads all weights."""
    rounds = math.ceil(responses / batch)
    step = max(HALF * size.parameters / device.bandwidth, 2 * size.parameters * batch / device.bf16)
    return rounds * new_tokens * step / (DECODING * gpus)
