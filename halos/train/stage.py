"""A stage: the settings of settings.py, those of its loss beside them, and what they mean together."""

from __future__ import annotations

import dataclasses
from functools import cache, cached_property
from itertools import chain
from typing import Any

from pydantic import TypeAdapter, ValidationError, model_validator

from halos.errors import HalosError
from halos.forward.own import Forward
from halos.losses import Loss
from halos.losses.mixture import Part, has_chosen, mix
from halos.registry import FORWARDS, LOSSES, suggest
from halos.settings import incidental, numbers
from halos.tokens.selection import Selection
from halos.train.average import Uniform
from halos.train.mixing import SFT, SFT_WEIGHT, is_weight, loss_names, loss_text
from halos.train.settings import EVALUATIONS, StageSettings
from halos.train.sweep import FIXED, drawn, with_settings
from halos.train.words import meaning


@cache
def _adapter(loss: type) -> TypeAdapter[Any]:
    """The validator of a loss's hyperparameters; cached, as it takes milliseconds and a grid needs thousands."""
    return TypeAdapter(loss)


class Stage(StageSettings):
    """One training step: a loss with its hyperparameters (under their own names, beside these), data and optimiser."""

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
