"""`stages:` of config.yaml: a loss with its hyperparameters, the optimiser, and which examples are trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from halos.online.settings import Online
from halos.settings import INCIDENTAL, Fraction, Label, Positive, Settings, Share, Strict, numbers
from halos.train.average import Average
from halos.train.early import EarlyStopping
from halos.train.mixing import mixture
from halos.train.sweep import Sampler, Select, Sweep


def _label_by(value: Any) -> Any:
    """A setting of `label_by`, refused here so that a mistake is one message, not one for each type of the union."""
    value = numbers(value)
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("best_worst", "mean", "median")):
        raise ValueError(f"{value!r} is none of best_worst, mean, median and a number")
    return value


def _less_than_all(value: Any) -> Any:
    """A share of a training; all of it is the same as none said."""
    value = numbers(value)
    return None if value == 1 and not isinstance(value, bool) else value


def _names(value: Any) -> Any:
    """Names of layers; a single one needs no list."""
    return [value] if isinstance(value, str) and value != "all-linear" else value


class Lora(Strict):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: adapters are trained, and merged into the weights at the end."""

    r: Positive = Field(64, description="rank of the adapters")
    alpha: Positive = Field(256, description="scale of the adapters: their update is multiplied by alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' inputs")
    target_modules: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_names)] = Field(
        "all-linear",
        description="names of the layers to adapt; all-linear: every linear layer but the output layer, and the "
        "matrices of experts",
    )
    target_parameters: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="names of parameters to adapt that are no layer's weight, such as those of experts"
    )
    modules_to_save: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="names of layers to train in full beside the adapters: embed_tokens, lm_head"
    )
    dora: bool = Field(
        False,
        exclude_if=lambda dora: not dora,
        description="DoRA (Liu et al. 2024, arXiv 2402.09353): train the size of the weights of each output apart from "
        "their direction",
    )
    rslora: bool = Field(
        False,
        exclude_if=lambda rslora: not rslora,
        description="rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): multiply the update by alpha / sqrt(r)",
    )
    path: str | None = Field(None, description="folder of saved adapters to train on, instead of fresh ones")

    @model_validator(mode="after")
    def something_to_adapt(self) -> Lora:
        """No layer and no parameter to adapt is refused."""
        if not self.target_modules and not self.target_parameters:
            raise ValueError("target_modules is empty: name the layers to adapt, or leave it out to adapt them all")
        return self


EIGHT_BIT = ("AdamW8bit", "PagedAdamW8bit")
"""Optimisers of bitsandbytes."""
UNSHARDED = ("Adafactor",)
"""Optimisers whose update of a number reads its whole row and column, so that they take whole weights alone."""
ADAMW = {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-5}
"""Arguments of AdamW, in 32 bits or 8, where `optimizer_args` does not name them."""
EVALUATIONS = {"eval_every", "eval_first"}
"""Settings of a stage's evaluations, which make another result with early stopping alone."""
LENGTH = {"lr", "scheduler", "min_lr_ratio", "warmup", "decay", "epochs", "examples", "resume_from"}
"""Settings that a stage with `resume_from` may have of its own."""

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
"""What can show a run while it is trained."""
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(_names)]
"""Some of them; a single one needs no list."""


class OwnForward(Strict):
    """A forward pass of a plugin, and its options."""

    name: str = Field(description="its name")
    options: Settings = Field({}, description="its options")


def _named(value: Any) -> Any:
    """A forward pass without options, which needs no more than its name."""
    return {"name": value} if isinstance(value, str) else value


class StageSettings(BaseModel):
    """The settings of a stage, each for itself; stage.py has what they mean together."""

    model_config = ConfigDict(extra="allow", frozen=True)

    loss: Annotated[
        str | dict[str, dict[str, Any]],
        BeforeValidator(mixture, json_schema_input_type=str | dict[str, float | dict[str, Any]]),
    ] = Field(
        description="name of the loss: `python -m halos list losses`; or a mixture, {a: 0.8, b: 0.2}, where "
        "{weight: 0.2, beta: 0.1} instead of a weight gives a loss hyperparameters of its own"
    )
    lr: float = Field(5e-6, gt=0, description="peak learning rate, after warm-up")
    optimizer: Literal[
        "AdamW", "Adam", "RMSprop", "SGD", "Adafactor", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam",
        "Rprop", "AdamW8bit", "PagedAdamW8bit",
    ] = Field(
        "AdamW",
        description="a class of torch.optim; or, by bitsandbytes, AdamW8bit, whose states take a quarter of AdamW's "
        "memory, and PagedAdamW8bit, whose states move to main memory while the GPU's is full",
    )  # fmt: skip
    optimizer_args: Settings = Field(
        {}, description="arguments of the optimiser; AdamW's defaults here: weight_decay 0.01, betas [0.9, 0.999], "
        "eps 1e-5"
    )  # fmt: skip
    decay_norms_and_biases: bool = Field(
        True, description="whether weight decay applies to one-dimensional weights too"
    )
    scheduler: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "constant",
        description="learning rate after warm-up: constant, a linear or cosine decay, or wsd: constant, then a linear "
        "decay",
    )
    min_lr_ratio: Fraction = Field(0.0, description="where a decay of the learning rate ends, as a fraction of lr")
    warmup: float = Field(0.1, ge=0, description="linear warm-up: below 1 a fraction of all steps, else steps")
    decay: float = Field(0.1, gt=0, description="wsd: length of the decay: below 1 a fraction of all steps, else steps")
    batch_size: Positive = Field(32, description="examples of a global batch, over all microbatches and processes")
    epochs: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = Field(
        1, description="passes over the data, such as 2 or 0.5, unless `examples` is given"
    )
    examples: Positive | None = Field(None, description="examples to train on, instead of whole epochs")
    inner_epochs: Positive = Field(1, description="optimiser steps on each global batch, one after the other")
    max_grad_norm: float = Field(
        1.0, ge=0, description="gradient clipping: largest norm, without a value head's; 0 for no clipping"
    )
    value_max_grad_norm: float = Field(
        0.1, ge=0, description="gradient clipping of a value head: largest norm; 0 for no clipping"
    )
    eval_every: Annotated[Positive, INCIDENTAL] = Field(
        32, description="steps between two evaluations on held-out examples; reruns nothing"
    )
    eval_first: Annotated[bool, INCIDENTAL] = Field(
        True, description="whether to evaluate before the first step, too; reruns nothing"
    )
    checkpoint_every: Annotated[Positive, INCIDENTAL] = Field(
        100, description="steps between two checkpoints, to resume from; reruns nothing"
    )
    early_stopping: EarlyStopping | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="end when evaluations no longer get better, and publish the weights of the best one; `eval_every` "
        "and `eval_first` then decide, too, so that a change of theirs is another run",
    )
    average: Average | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="evaluate and publish a mean of the weights after each step: {kind: ema, decay: 0.99}, or "
        "{kind: uniform, start: 0.5}",
    )
    keep_every: Annotated[Positive | None, INCIDENTAL] = Field(
        None,
        description="steps between two models that are kept in kept/step{N}; none are by default; reruns nothing, so a "
        "finished run keeps what it kept until it is deleted",
    )
    snapshots: Annotated[Positive | None, INCIDENTAL] = Field(
        None,
        description="models to keep after equal parts of the training, the last of them its result, which a grid's "
        "`snapshots:` judges and `select: {checkpoint: best}` chooses from; reruns nothing, so a finished run has none "
        "until it is deleted",
    )
    stop_after: Annotated[Share | None, BeforeValidator(_less_than_all)] = Field(
        None,
        exclude_if=lambda value: value is None,
        description="fraction of the steps after which to end, with the learning rates of the whole training; what "
        "`select: {checkpoint: best}` chooses",
    )
    keep_optimizer: Annotated[bool, INCIDENTAL] = Field(
        False,
        description="keep the state of the optimiser, and the weights as they were trained, at the end of a run, so "
        "that a stage with `resume_from` can go on from it; reruns nothing, so a finished run has none until it is "
        "deleted",
    )
    preview_prompts: Annotated[Positive | None, INCIDENTAL] = Field(
        None,
        description="number of validation prompts that the policy answers at each evaluation, greedily, into "
        "previews.jsonl; none are by default; reruns nothing",
    )
    preview_tokens: Annotated[Positive, INCIDENTAL] = Field(
        128, description="preview_prompts: token limit of a response; reruns nothing"
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="probability of all dropout of the model itself (adapters have lora.dropout); by default none "
        "for a loss with a reference, which is computed without, else the model's own",
    )
    router_weight: float | None = Field(
        None,
        ge=0,
        description="mixtures of experts: weight of the loss that balances the experts' load (Switch Transformers); by "
        "default the config's router_aux_loss_coef where it has output_router_logits: true, else 0",
    )
    lora: Lora | None = Field(None, description="train LoRA adapters; by default all weights are trained")
    freeze: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="patterns of names of weights that are not trained: [model.embed_tokens.*, model.layers.0.*]"
    )
    forward: Annotated[OwnForward | None, BeforeValidator(_named, json_schema_input_type=str | OwnForward | None)] = (
        Field(
            None,
            exclude_if=lambda value: value is None,
            description="forward pass of a plugin: its name, or {name: ..., options: {...}}",
        )
    )
    humanline: bool = Field(
        False, description="clamp token log-ratios to [log_eps_p, log_eps_r], and sync the reference every step"
    )
    log_eps_p: float = Field(-1.0, lt=0, description="humanline: least log-ratio of a token")
    log_eps_r: float = Field(1.5, gt=0, description="humanline: largest log-ratio of a token")
    sync_reference: Positive | None = Field(
        None, description="copy the policy into the reference before every N-th optimiser step (humanline: every step)"
    )
    sync_weight: Share = Field(
        1.0,
        description="share of the policy in a sync: each weight of the reference (LoRA: of its adapters) becomes "
        "sync_weight * policy + (1 - sync_weight) * reference (Gorbatovski et al. 2024, arXiv 2404.09656)",
    )
    reference: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="the reference: a method (the model of its cell with the same seed), or the id of a "
        "model with the same tokenizer; by default what the stage, or the round, starts from",
    )
    resume_from: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="go on from the end of another stage's run, with its optimiser, as far as this stage's `epochs` or "
        "`examples` reach, those of that run included; all other settings are that stage's, which has to have "
        "keep_optimizer, and only those of the learning rate may be changed",
    )
    reward_model: str | None = Field(
        None,
        description="what scores the responses, for a loss that reads scores: a method that ends in a reward model "
        "(sft-rm), or the id of an entry of models that holds one",
    )
    keep_desirable: Share = Field(1.0, description="fraction of the desirable training examples to keep")
    keep_undesirable: Share = Field(1.0, description="fraction of the undesirable training examples to keep")
    keep_pairs: Share = Field(
        1.0, exclude_if=lambda value: value == 1, description="fraction of the training pairs to keep"
    )
    pairs_per_prompt: Positive | None = Field(None, description="most training pairs of a prompt; all by default")
    one_per_prompt: bool = Field(False, description="keep one training response of each prompt, for unpaired losses")
    label_by: Annotated[Literal["best_worst", "mean", "median"] | float | None, BeforeValidator(_label_by)] = Field(
        None, description="desirable by score: the best and worst of each prompt, or above the mean, median or a number"
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda value: value == 0,
        description="fraction of the training pairs that are swapped, or of the labels that are turned round, to see "
        "what a loss makes of wrong labels",
    )
    balance_labels: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="weigh the training responses so that desirable and undesirable ones weigh the same in total",
    )
    online: Online | None = Field(None, description="train in rounds, on labelled samples of the policy itself")
    sweep: Annotated[Sweep, INCIDENTAL] = Field(
        {},
        description="settings or hyperparameters to try, {lr: [1.e-5, 1.e-4], beta: {min: 0.01, max: 1, log: true}}: "
        "each combination, or each of `trials` that are drawn, is a trial, and the best one's settings are the stage's",
    )
    trials: Annotated[Positive | None, INCIDENTAL] = Field(
        None, description="sweep: how many trials are drawn; by default every combination of lists"
    )
    sampler: Annotated[Sampler, INCIDENTAL] = Field(
        "qmc", description="sweep: how trials are drawn: qmc spreads them evenly, random draws each by itself"
    )
    sampler_seed: Annotated[int, INCIDENTAL, Field(ge=0)] = Field(0, description="sweep: seed of the draws")
    select: Annotated[Select | None, INCIDENTAL] = Field(
        None,
        description="sweep: what decides between the trials: {judge: ID}, {task: ID} or {metric: loss}; with "
        "checkpoint: best between their `snapshots` too, for which no sweep is needed",
    )
    label: Label = Field(None, description="name in tables and figures")
