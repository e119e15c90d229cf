"""`stages:` of config.yaml: a loss with its hyperparameters, the optimiser, and which examples are trained on."""

from __future__ import annotations

import dataclasses
from functools import cache, cached_property
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from halos.errors import HalosError
from halos.forward.own import Forward
from halos.losses import Loss
from halos.losses.mixture import Part, has_chosen, mix
from halos.online.settings import Online
from halos.registry import FORWARDS, LOSSES, suggest
from halos.settings import (
    INCIDENTAL,
    Fraction,
    Label,
    Positive,
    Settings,
    Share,
    Strict,
    incidental,
    numbers,
)
from halos.tokens.selection import Selection
from halos.train.average import Average, Uniform
from halos.train.early import EarlyStopping
from halos.train.mixing import SFT, SFT_WEIGHT, is_weight, loss_names, loss_text, mixture
from halos.train.sweep import FIXED, Sampler, Select, Sweep, drawn, with_settings
from halos.train.words import meaning


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


@cache
def _adapter(loss: type) -> TypeAdapter[Any]:
    """The validator of a loss's hyperparameters; cached, as it takes milliseconds and a grid needs thousands."""
    return TypeAdapter(loss)


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


class Stage(BaseModel):
    """One training step: a loss with its hyperparameters (under their own names, beside these), data and optimiser."""

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

    @model_validator(mode="after")
    def known_loss(self) -> Stage:
        """A loss that is not known, or is given a hyperparameter that it does not have, is refused."""
        mixed = {} if isinstance(self.loss, str) else self.loss
        fields: dict[str, list[str]] = {}
        for name in loss_names(self.loss):
            try:
                fields[name] = [f.name for f in dataclasses.fields(LOSSES[name])]
            except HalosError as error:
                raise ValueError(str(error)) from None
            for key in fields[name]:
                if key in type(self).model_fields or (mixed and key == "weight"):
                    raise ValueError(f"loss {name!r}: its {key!r} is the name of a training setting; give it another")
            for key in mixed.get(name, ()):
                if key != "weight" and key not in fields[name]:
                    raise ValueError(f"{key!r} is no hyperparameter of the loss {name!r}{suggest(key, fields[name])}")
        for key in self.hyperparameters:
            readers = [name for name, known in fields.items() if key in known]
            if readers and all(key in mixed.get(name, ()) for name in readers):
                raise ValueError(f"every loss that reads {key!r} has its own: take it out")
            if not readers and key != SFT_WEIGHT:
                known = [*dict.fromkeys(chain(*fields.values())), *type(self).model_fields]
                known += [SFT_WEIGHT] if all(has_chosen(LOSSES[name]) for name in fields) else []
                meant = meaning(key, known)
                raise ValueError(
                    f"{key!r} is neither a training setting nor a hyperparameter of the loss {self.loss_name!r}"
                    + (f": {meant}" if meant else suggest(key, known))
                )
        try:
            self.make_loss()
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"loss {self.loss_name!r}: {where}{first['msg'].removeprefix('Value error, ')}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"loss {self.loss_name!r}: {error}") from None
        return self

    @model_validator(mode="after")
    def known_forward(self) -> Stage:
        """A forward pass that is not known, is given options that it does not have, or lacks what the loss reads."""
        loss = self.make_loss()
        if self.forward is None and loss.needs_outputs:
            wanted = loss.needs_outputs[0]
            raise ValueError(f"the loss {self.loss_name!r} reads {wanted!r}: name the pass that gives it, as `forward`")
        if self.forward is not None and loss.head == "score":
            raise ValueError(
                f"the loss {self.loss_name!r} trains a reward model, which has one pass: take out `forward`"
            )
        if self.preview_prompts is not None and loss.head == "score":
            raise ValueError(
                f"the loss {self.loss_name!r} trains a reward model, which answers no prompts: take out preview_prompts"
            )
        try:
            self.make_forward()
        except HalosError as error:
            raise ValueError(f"forward: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"forward {self.forward.name if self.forward else None!r}: {where}: "
                             f"{first['msg'].removeprefix('Value error, ')}") from None  # fmt: skip
        return self

    @model_validator(mode="after")
    def no_contradiction(self) -> Stage:
        """Settings that the loss would silently ignore are refused."""
        loss = self.make_loss()
        if self.sync_every and not loss.needs_reference:
            raise ValueError(f"the loss {self.loss_name!r} has no reference: take out humanline and sync_reference")
        if self.reference is not None:
            if not loss.needs_reference:
                raise ValueError(f"the loss {self.loss_name!r} has no reference: take out `reference`")
            if self.sync_every:
                raise ValueError(
                    "humanline and sync_reference move the reference, which begins as the policy: take out `reference`"
                )
            if self.online is not None and self.online.reference == "fixed":
                raise ValueError("`reference` names a fixed reference: take out online.reference: fixed")
        if self.sync_weight != 1 and not self.sync_every:
            raise ValueError("sync_weight is read at a sync alone: set sync_reference, or take it out")
        if self.lora is not None and self.freeze:
            raise ValueError("lora freezes all weights: take out freeze, and name what to adapt in lora.target_modules")
        if self.reward_model is not None and not loss.needs_scores:
            raise ValueError(
                f"the loss {self.loss_name!r} reads no scores: take out reward_model (or set reward: score)"
            )

        if self.online is not None:
            if loss.head == "score" or loss.control:
                raise ValueError(f"the loss {self.loss_name!r} cannot be trained online: take out `online`")
            if loss.needs_margins:
                raise ValueError("a labeller gives no margins: take out margin_weight")
            if self.reward_model is not None:
                raise ValueError("with `online` the labeller gives the scores: take out reward_model")
            if self.online.continue_optimizer and self.lora is not None:
                raise ValueError(
                    "with lora each round trains new adapters, which the optimiser of the round before does not fit: "
                    "take out online.continue_optimizer"
                )
            if self.sync_every and self.online.reference == "fixed":
                raise ValueError("humanline and sync_reference move the reference: take out online.reference: fixed")
            if loss.view.compares and self.online.samples_per_prompt < 2:
                raise ValueError(f"the loss {self.loss_name!r} compares responses: raise online.samples_per_prompt")

        def changed(*settings: str) -> str:
            fields = type(self).model_fields
            return ", ".join(name for name in settings if getattr(self, name) != fields[name].default)

        if self.scheduler == "constant" and (found := changed("min_lr_ratio")):
            raise ValueError(f"the scheduler constant does not decay: take out {found}, or choose another")
        if self.scheduler != "wsd" and (found := changed("decay")):
            raise ValueError(f"the scheduler {self.scheduler} reads no {found}: take it out, or set scheduler: wsd")
        if self.scheduler == "wsd" and self.decay < 1 and self.warmup < 1 and self.decay + self.warmup > 1:
            raise ValueError(f"warmup {self.warmup:g} and decay {self.decay:g} are more than the run: lower one")
        if not self.humanline and (found := changed("log_eps_p", "log_eps_r")):
            raise ValueError(f"without humanline: true nothing reads {found}")
        if loss.head != "value" and (found := changed("value_max_grad_norm")):
            raise ValueError(f"the loss {self.loss_name!r} has no value head: take out {found}")
        if not loss.view.paired and (found := changed("pairs_per_prompt", "keep_pairs")):
            raise ValueError(f"the loss {self.loss_name!r} reads the {loss.view.name} view: take out {found}")
        unpaired = changed("keep_desirable", "keep_undesirable", "one_per_prompt", "label_by", "balance_labels")
        if not loss.view.labelled and unpaired:
            raise ValueError(f"the loss {self.loss_name!r} reads the {loss.view.name} view: take out {unpaired}")
        labels = loss.view.paired or (loss.view.labelled and not loss.needs_scores)
        if not labels and (found := changed("label_noise", "balance_labels")):
            raise ValueError(f"the loss {self.loss_name!r} reads neither pairs nor labels: take out {found}")
        return self

    @model_validator(mode="after")
    def sound_end(self) -> Stage:
        """Early stopping, averages, snapshots and an earlier end are refused beside what they contradict."""
        against = {
            "early_stopping": "which decides by itself when training ends",
            "resume_from": "whose steps are in part another run's",
            "online": "whose rounds are models on its way, and each is judged",
        }
        wholes = {"keep_optimizer": "which keeps the state at the end", "snapshots": "which are of a whole training"}
        for name, others in {"snapshots": against, "stop_after": {**against, **wholes}}.items():
            other = next((other for other in others if getattr(self, other)), None)
            if getattr(self, name) is not None and other is not None:
                raise ValueError(f"{name} is not for a stage with {other}, {others[other]}: take out one")
        continued = self.online is not None and self.online.continue_optimizer
        if self.early_stopping is not None:
            if self.average is not None:
                raise ValueError(
                    "early_stopping publishes the weights of one step, average a mean of many: take out one"
                )
            if self.resume_from is not None or self.keep_optimizer:
                name = "resume_from" if self.resume_from is not None else "keep_optimizer"
                raise ValueError(
                    f"{name} is of the state at the end, and early_stopping publishes weights before it: take out one"
                )
        if continued and (given := "early_stopping" if self.early_stopping else "average" if self.average else None):
            raise ValueError(f"with {given} a round does not publish its last weights, which the optimiser's state is "
                             f"of: take out online.continue_optimizer")  # fmt: skip
        if self.resume_from is not None and isinstance(self.average, Uniform):
            raise ValueError("a longer training begins its uniform average at another step: take out resume_from, or "
                             "set average: {kind: ema}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def sound_sweep(self) -> Stage:
        """A sweep over what cannot be tried, without a way to choose, or with a trial that is refused itself."""
        by_checkpoint = self.select is not None and self.select.checkpoint == "best"
        if by_checkpoint and (self.snapshots is None or self.snapshots < 2):
            raise ValueError("select.checkpoint: best: say between how many, as snapshots: 8")
        if by_checkpoint and "stop_after" in self.sweep:
            raise ValueError("select.checkpoint: best finds stop_after without a trial for each: take it out of sweep")
        for name in {"stop_after", "early_stopping"} & self.sweep.keys() if self.snapshots is not None else ():
            raise ValueError(f"sweep.{name}: snapshots are of a whole training: take out one")
        if not self.sweep and by_checkpoint and self.trials is None:
            return self
        if not self.sweep:
            given = [name for name in ("trials", "sampler", "sampler_seed", "select") if name in self.model_fields_set]
            if any(getattr(self, name) != type(self).model_fields[name].default for name in given):
                raise ValueError(f"without sweep nothing reads {', '.join(given)}: take it out, or say what to try")
            return self
        if self.select is None:
            raise ValueError("sweep: say what decides between the trials, as select: {judge: ID}, {task: ID} or "
                             "{metric: loss}")  # fmt: skip
        for name in self.sweep:
            if name in FIXED:
                raise ValueError(f"sweep.{name}: it changes what is made before, or no result: add a stage for each")
        for name, settings in self.tried.items():
            try:
                self.trial(name)
            except ValidationError as error:
                shown = ", ".join(f"{key} {value}" for key, value in settings.items())
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"])
                raise ValueError(
                    f"sweep: the trial with {shown}: {where}{first['msg'].removeprefix('Value error, ')}"
                ) from None
        return self

    @property
    def is_chosen(self) -> bool:
        """Whether settings of the stage are chosen between trials, or between the snapshots of one."""
        return self.select is not None

    @property
    def followed(self) -> int:
        """Number of snapshots that a run of the stage takes and keeps: 1, its result, where it takes none, or where
        they are those of its trials, which have been chosen from."""
        by_checkpoint = self.select is not None and self.select.checkpoint == "best"
        return 1 if by_checkpoint else self.snapshots or 1

    @cached_property
    def tried(self) -> dict[str, dict[str, Any]]:
        """The trials: id -> setting -> value; one without any where a choice is between snapshots alone."""
        if not self.is_chosen:
            return {}
        return drawn(self.sweep, self.trials, self.sampler, self.sampler_seed)

    @cached_property
    def candidates(self) -> dict[str, dict[str, Any]]:
        """What a choice is between: the trials, and with `checkpoint: best` the snapshots of each: id -> setting ->
        value. The snapshot 3 of 8 of the trial 3fa2c1 is 3fa2c1.3, which stops after .375 of the steps."""
        if self.select is None or self.select.checkpoint == "last" or self.snapshots is None:
            return self.tried
        shares = {f".{i}": i / self.snapshots for i in range(1, self.snapshots)} | {"": 1.0}
        return {
            f"{trial}{suffix}": {**settings, "stop_after": share}
            for trial, settings in self.tried.items()
            for suffix, share in shares.items()
        }

    def trial(self, name: str) -> Stage:
        """The stage with the settings of a trial, without a sweep, and without snapshots but those that a choice is
        between.

        Args:
            name: id of a trial, or of a candidate.

        Raises:
            KeyError: there is no such trial.
        """
        left_out = {"sweep", "trials", "sampler", "sampler_seed", "select"}
        if name not in self.tried or self.candidates is self.tried:
            left_out.add("snapshots")
        settings = self.tried[name] if name in self.tried else self.candidates[name]
        return Stage.model_validate(with_settings(self.model_dump(exclude_unset=True, exclude=left_out), settings))

    @property
    def without_result(self) -> set[str]:
        """Names of the settings that make no other result: evaluations do where they end the training."""
        return incidental(Stage) - (EVALUATIONS if self.early_stopping is not None else set())

    @property
    def loss_name(self) -> str:
        """The loss in words."""
        return loss_text(self.loss)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """name -> value of the loss's hyperparameters, as they are in the config."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def changed(self) -> dict[str, Any]:
        """Setting or hyperparameter -> value, of those that differ from their default."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name in loss_names(self.loss):
            defaults |= {f.name: f.default for f in dataclasses.fields(LOSSES[name])}
        given = {key: numbers(getattr(self, key)) for key in sorted(self.model_fields_set)}
        return {key: value for key, value in given.items() if value != defaults.get(key)}

    @property
    def sync_every(self) -> int | None:
        """Steps between two syncs of a live reference; None for a fixed, and so cached, reference."""
        return self.sync_reference or (1 if self.humanline else None)

    @property
    def dropout_in_force(self) -> float | None:
        """Probability of dropout; None for the model's own."""
        return 0.0 if self.dropout is None and self.make_loss().needs_reference else self.dropout

    @property
    def reads(self) -> str:
        """The view of the store that the stage reads: its loss's, or `scored` where labels are made from scores."""
        loss = self.make_loss()
        from_scores = self.label_by is not None or (loss.needs_scores and self.reward_model is None)
        return (loss.view.by_scores if from_scores else None) or loss.view.name

    @property
    def selection(self) -> Selection:
        """The examples of the view that the stage trains on."""
        return Selection(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Selection)})

    @property
    def parts(self) -> dict[str, Part]:
        """name -> weight and loss of each part of a mixture, `sft_weight` among them; else the only loss, by its name.

        Hyperparameters are converted to their declared types: YAML reads 1e-1 as text. One beside `loss` is that of
        every part that has one of this name and none of its own.
        """
        parts, given = {}, self.hyperparameters
        mixed = {self.loss: {"weight": 1.0}} if isinstance(self.loss, str) else self.loss
        for name, own in mixed.items():
            kind: Any = LOSSES[name]
            names = [f.name for f in dataclasses.fields(kind)]
            arguments = {key: {**given, **own}[key] for key in names if key in given or key in own}
            parts[name] = Part(own["weight"], _adapter(kind).validate_python(arguments))
        if SFT_WEIGHT in given and not any(hasattr(part.loss, SFT_WEIGHT) for part in parts.values()):
            if SFT in parts and len(parts) > 1:
                raise ValueError(f"{SFT} is a part of it: give that the weight, and take out {SFT_WEIGHT}")
            if not all(has_chosen(part.loss) for part in parts.values()):
                raise ValueError(f"it has no likelihood of a chosen response: take out {SFT_WEIGHT}")
            weight = numbers(given[SFT_WEIGHT])
            if not is_weight(weight):
                raise ValueError(f"{SFT_WEIGHT} must be a number of at least 0, not {weight!r}")
            if weight:
                parts[SFT] = Part(float(weight), LOSSES[SFT]())
        return parts

    def make_forward(self) -> Forward | None:
        """The plugin's forward pass with its options; None for the package's own.

        Raises:
            HalosError: there is none of this name, or it is not of the form that it must have.
        """
        if self.forward is None:
            return None
        name = self.forward.name
        kind: Any = FORWARDS[name]
        is_one: bool = dataclasses.is_dataclass(kind) and Forward in getattr(kind, "__mro__", ())
        if not is_one:
            raise HalosError(f"{name!r} must be a dataclass that derives from halos.forward.own.Forward")
        known = [f.name for f in dataclasses.fields(kind)]
        for option in self.forward.options:
            if option not in known:
                raise HalosError(f"{name!r} has no option {option!r}{suggest(option, known)}")
        made: Forward = _adapter(kind).validate_python(self.forward.options)
        return made

    def make_loss(self) -> Loss:
        """The loss with its hyperparameters."""
        parts = self.parts
        return mix(parts) if len(parts) > 1 else parts[self.loss_name].loss


EVALUATIONS = {"eval_every", "eval_first"}
"""Settings of a stage's evaluations, which make another result with early stopping alone."""
LENGTH = {"lr", "scheduler", "min_lr_ratio", "warmup", "decay", "epochs", "examples", "resume_from"}
"""Settings that a stage with `resume_from` may have of its own."""
