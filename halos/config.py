"""The catalogue: models, datasets, stages, prompts, judges, tasks and grids. The only place of a default.

`load` reads config.yaml (or Snakemake's dictionary) into frozen objects and refuses what cannot work, one sentence a
mistake, before anything is run.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

import halos.data
import halos.losses
from halos.data.selection import Selection
from halos.errors import HalosError
from halos.registry import LOSSES, SOURCES, VERIFIERS, load_plugins, plugin_slice, suggest

KINDS = ("models", "datasets", "stages", "prompts", "judges", "tasks", "grids")
BASE = "base"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _numbers(content: Any) -> Any:
    """Numbers such as 1e-5, which YAML reads as text for want of a dot, as numbers."""
    if isinstance(content, dict):
        return {key: _numbers(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    if isinstance(content, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", content):
        return float(content)
    return content


Settings = Annotated[dict[str, Any], BeforeValidator(_numbers)]
"""Arguments of something that is not of this package."""


def _label_by(value: Any) -> Any:
    """So that a mistake is one sentence, and not one for each kind of value."""
    value = _numbers(value)
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("best_worst", "mean", "median")):
        raise ValueError(f"{value!r} is none of best_worst, mean, median and a number")
    return value


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Strict):
    """What a job of this model needs. Never part of a run's identity: changing it reruns nothing."""

    gpus: int = Field(0, ge=0, description="GPUs on one node; 0 trains on the CPU")
    cpus: Positive = Field(1, description="CPU cores of one job")
    mem_gb: Positive = Field(4, description="main memory of one job, GB; doubled on a retry")
    runtime: Positive = Field(60, description="minutes before the scheduler ends a job; doubled on a retry")
    tokens_per_microbatch: Positive = Field(16384, description="padded tokens in one forward pass on one device")
    generate_batch: Positive = Field(64, description="responses generated side by side on one device")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="several GPUs: each holds all weights, or its shard")
    gradient_checkpointing: bool = Field(False, description="less memory for more time: forward passes are run twice")


class Tokenizer(Strict):
    """A small byte-level BPE tokenizer, trained on a dataset's text."""

    train_on: str = Field(description="id of the dataset whose train split it is trained on")
    vocab_size: Positive = 1024


class Model(Strict):
    """A base model: exactly one of `hub`, `path` and `architecture`."""

    hub: str | None = Field(None, description="model id on the Hugging Face hub")
    revision: str = Field("main", description="branch, tag or commit on the hub; a commit is reproducible")
    path: str | None = Field(None, description="local folder in the transformers layout, weights as safetensors")
    architecture: Settings | None = Field(None, description="transformers config (model_type and its fields)")
    tokenizer: Tokenizer | None = Field(None, description="needed with `architecture`")
    seed: int = Field(0, description="seed of the random weights of an `architecture`")
    template: str | None = Field(None, description="chat template: a name in halos/templates or a .jinja file")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    precision: Literal["bf16", "fp32"] = Field("bf16", description="compute type; master weights are always float32")
    stages: dict[str, dict[str, Any]] = Field(
        {}, description="settings of stages that differ for this model: {stage id: {setting: value}}"
    )
    label: str | None = Field(None, description="name in tables and figures")
    resources: Resources = Resources()

    @model_validator(mode="after")
    def one_origin(self) -> Model:
        given = [k for k in ("hub", "path", "architecture") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path and architecture (now: {', '.join(given) or 'none'})")
        if (self.architecture is None) != (self.tokenizer is None):
            raise ValueError("architecture and tokenizer go together: a hub or local model brings its own tokenizer")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, for example llama")
        return self


class Source(Strict):
    """A named source, with the options of its function."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def known(self) -> Source:
        try:
            function = SOURCES[self.name]
        except HalosError as error:
            raise ValueError(str(error)) from None
        accepted = [p for p in inspect.signature(function).parameters if p != "split"]
        for option in self.options:
            if option not in accepted:
                raise ValueError(f"source {self.name} has no option {option!r}{suggest(option, accepted)}")
        return self

    @property
    def files(self) -> list[str]:
        """The local files it reads: its `path` option, one file or one a split."""
        path = self.options.get("path")
        return [] if path is None else list(path.values()) if isinstance(path, dict) else [path]


class Dataset(Strict):
    """One or more sources mixed, and how their text is cut to tokens."""

    sources: tuple[Source, ...] = Field(min_length=1)
    max_length: Positive = Field(1250, description="tokens of prompt and response together")
    max_prompt_length: Positive = Field(625, description="tokens of the prompt; oldest turns are dropped first")
    eval_examples: Positive = Field(256, description="test prompts in the fixed evaluation subset of training")
    label: str | None = None

    @model_validator(mode="after")
    def room_for_a_response(self) -> Dataset:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no token is left for a response")
        return self


class Lora(Strict):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: adapters are trained, and merged into the weights at the end."""

    r: Positive = 64
    alpha: Positive = 256
    dropout: Fraction = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    path: str | None = Field(None, description="folder of saved adapters to go on from, instead of fresh ones")


ADAMW = {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-5}


class Stage(BaseModel):
    """One training step: a loss, its hyperparameters (beside the fields below, under their own names), optimiser."""

    model_config = ConfigDict(extra="allow", frozen=True)

    loss: str
    lr: float = Field(5e-6, gt=0)
    optimizer: Literal[
        "AdamW", "Adam", "RMSprop", "SGD", "Adafactor", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam",
        "Rprop",
    ] = Field("AdamW", description="a class of torch.optim")  # fmt: skip
    optimizer_args: Settings = Field({}, description="its arguments; AdamW's defaults are ADAMW of halos.config")
    decay_norms_and_biases: bool = Field(
        True, description="whether weight decay applies to one-dimensional weights too"
    )
    scheduler: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(0.1, ge=0, description="below 1: fraction of all steps; else steps")
    batch_size: Positive = Field(32, description="examples in one global batch, over all processes")
    epochs: Positive = 1
    examples: Positive | None = Field(None, description="stop after so many examples, whatever the epochs")
    inner_epochs: Positive = Field(1, description="steps on each global batch, one after the other")
    max_grad_norm: float = Field(1.0, gt=0, description="of the gradient of all weights but a value head's")
    value_max_grad_norm: float = Field(0.1, gt=0, description="of the gradient of a value head, where the loss has one")
    eval_every: Positive = Field(32, description="steps between two evaluations")
    checkpoint_every: Positive = Field(100, description="steps between two checkpoints")
    keep_every: Positive | None = Field(None, description="steps between two models that are kept in kept/step{N}")
    lora: Lora | None = None
    humanline: bool = Field(
        False, description="clamp token log-ratios to [log_eps_p, log_eps_r], and sync the reference every step"
    )
    log_eps_p: float = Field(-1.0, lt=0)
    log_eps_r: float = Field(1.5, gt=0)
    sync_reference: Positive | None = Field(
        None, description="make the policy the reference, just before every so-many-th step moves it; with humanline: 1"
    )
    reward_model: str | None = Field(
        None, description="method whose reward model gives the scores, for a loss that reads scores: sft-rm"
    )
    desirable_fraction: Share = Field(1.0, description="share of the desirable responses kept, of train")
    undesirable_fraction: Share = Field(1.0, description="share of the undesirable responses kept, of train")
    pairs_per_prompt: Positive | None = Field(None, description="at most so many pairs of a prompt, of train")
    one_per_prompt: bool = Field(False, description="one response of each prompt, of train, for unpaired losses")
    label_by: Annotated[Literal["best_worst", "mean", "median"] | float | None, BeforeValidator(_label_by)] = Field(
        None, description="desirable by score: the best and worst of each prompt, or above the mean, median or a number"
    )
    label: str | None = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def known_loss(self) -> Stage:
        try:
            loss = LOSSES[self.loss]
        except HalosError as error:
            raise ValueError(str(error)) from None
        own = [f.name for f in dataclasses.fields(loss)]
        for key in own:
            if key in type(self).model_fields:
                raise ValueError(f"loss {self.loss!r}: its {key!r} is the name of a training setting; give it another")
        for key in self.hyperparameters:
            if key not in own:
                raise ValueError(
                    f"{key!r} is neither a training setting nor a hyperparameter of the loss {self.loss!r}"
                    f"{suggest(key, [*own, *type(self).model_fields])}"
                )
        try:
            self.make_loss()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"loss {self.loss!r}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"loss {self.loss!r}: {error}") from None
        return self

    @model_validator(mode="after")
    def no_contradiction(self) -> Stage:
        """Settings that this loss would silently ignore are refused."""
        loss = self.make_loss()
        if self.sync_every and not loss.needs_reference:
            raise ValueError(f"the loss {self.loss!r} has no reference: take out humanline and sync_reference")
        if self.reward_model is not None and not loss.needs_scores:
            raise ValueError(f"the loss {self.loss!r} reads no scores: take out reward_model (ppo wants reward: score)")

        def changed(*settings: str) -> str:
            fields = type(self).model_fields
            return ", ".join(name for name in settings if getattr(self, name) != fields[name].default)

        if not self.humanline and (found := changed("log_eps_p", "log_eps_r")):
            raise ValueError(f"without humanline: true nothing reads {found}")
        if loss.head != "value" and (found := changed("value_max_grad_norm")):
            raise ValueError(f"the loss {self.loss!r} has no value head: take out {found}")
        if loss.view != "paired" and (found := changed("pairs_per_prompt")):
            raise ValueError(f"the loss {self.loss!r} reads the {loss.view} view: take out {found}")
        unpaired = changed("desirable_fraction", "undesirable_fraction", "one_per_prompt", "label_by")
        if loss.view != "unpaired" and unpaired:
            raise ValueError(f"the loss {self.loss!r} reads the {loss.view} view: take out {unpaired}")
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    @property
    def sync_every(self) -> int | None:
        """Steps from one sync of a live reference to the next; None when the reference is frozen, and so cached."""
        return self.sync_reference or (1 if self.humanline else None)

    @property
    def reads(self) -> str:
        """The store's view that it needs: its loss's, or `scored` where scores stand for labels."""
        loss = self.make_loss()
        from_scores = self.label_by is not None or (loss.needs_scores and self.reward_model is None)
        return "scored" if loss.view == "unpaired" and from_scores else loss.view

    @property
    def selection(self) -> Selection:
        return Selection(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Selection)})

    def make_loss(self) -> halos.losses.Loss:
        """The loss, its hyperparameters brought to their declared types: YAML reads 1e-1 as text."""
        loss: halos.losses.Loss = TypeAdapter(LOSSES[self.loss]).validate_python(self.hyperparameters)
        return loss


class Prompts(Strict):
    """A prompt set and how responses to it are sampled."""

    dataset: str | None = Field(None, description="whose prompts; by default those of the cell's own dataset")
    split: Literal["train", "test"] = "test"
    limit: Positive | None = Field(512, description="the first so many prompts")
    samples: Positive = Field(1, description="responses to each prompt")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: Positive = 2048


class Judge(Strict):
    """What decides wins between a cell's responses and a baseline's."""

    kind: Literal["verifier", "reward_model"]
    verifier: str | None = Field(
        None, description="for kind verifier, a registered one: a program that scores a response to a prompt"
    )
    reward_model: str | None = Field(
        None,
        description="for kind reward_model: a method that ends in one (sft-rm), of the cell's dataset and model, "
        "or a folder, with a / in its name, of a sequence classifier with one label",
    )
    seed: int = Field(1, ge=0, description="with a method as reward_model: its seed, the same for all cells")
    prompts: str = Field(description="id of the prompt set whose samples are judged")
    baseline: Literal["target"] = Field("target", description="the dataset's SFT target for the same prompt")
    tie_margin: float = Field(0.0, ge=0, description="scores this close together are a tie")
    label: str | None = None

    @model_validator(mode="after")
    def known(self) -> Judge:
        if given := sorted(self.foreign & self.model_fields_set):
            what = f"a judge of kind {self.kind}{'' if self.folder is None else ', which names a folder,'}"
            raise ValueError(f"{what} has no {' and no '.join(given)}: take that out")
        if getattr(self, self.kind) is None:
            raise ValueError(f"a judge of kind {self.kind} names one: give it `{self.kind}:`")
        if self.verifier is not None and self.verifier not in VERIFIERS:
            raise ValueError(f"unknown verifier {self.verifier!r}{suggest(self.verifier, VERIFIERS)}")
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of a reward model from elsewhere."""
        return Path(self.reward_model) if self.reward_model is not None and "/" in self.reward_model else None

    @property
    def method(self) -> str | None:
        """The method whose reward model judges."""
        return None if self.folder is not None else self.reward_model

    @property
    def foreign(self) -> set[str]:
        """Keys that mean nothing to this judge."""
        if self.kind == "verifier":
            return {"reward_model", "seed"}
        return {"verifier"} if self.folder is None else {"verifier", "seed"}


class Task(Strict):
    """An lm-evaluation-harness task: one of its own by name, or a local one made from a dataset's test split."""

    task: str | None = Field(None, description="name of a task that lm-eval knows")
    local: Literal["preferences", "best_response"] | None = Field(
        None, description="preferences: chosen above rejected; best_response: the best-scored of a prompt's responses"
    )
    metric: str = Field("acc", description="the metric shown in tables and figures")
    limit: Positive | None = None
    num_fewshot: int | None = Field(None, ge=0)
    batch_size: int | Literal["auto"] = 16
    label: str | None = None

    @model_validator(mode="after")
    def one_origin(self) -> Task:
        if (self.task is None) == (self.local is None):
            raise ValueError("give exactly one of task and local")
        return self


class Grid(Strict):
    """The cells of a study: every dataset x model x method x seed, and how they are judged and benchmarked."""

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    reward_models: tuple[str, ...] = Field((), description="methods that end in a reward model: trained and tabulated")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((1,), min_length=1)
    judges: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    label: str | None = None


class Config(Strict):
    """config.yaml."""

    grid: str = Field("demo", description="id of the grid that `snakemake all` makes")
    plugins: tuple[str, ...] = Field((), description="Python files with losses, sources or verifiers of your own")
    models: dict[str, Model] = {}
    datasets: dict[str, Dataset] = {}
    stages: dict[str, Stage] = {}
    prompts: dict[str, Prompts] = {}
    judges: dict[str, Judge] = {}
    tasks: dict[str, Task] = {}
    grids: dict[str, Grid] = {}

    @model_validator(mode="after")
    def consistent(self) -> Config:
        for kind in KINDS:
            for name in getattr(self, kind):
                pattern = r"[A-Za-z0-9_]+" if kind == "stages" else r"[A-Za-z0-9][A-Za-z0-9._-]*"
                if not re.fullmatch(pattern, name):
                    raise ValueError(
                        f"{kind}.{name}: an id is letters, digits and _"
                        + (" (stages are joined by - in a method)" if kind == "stages" else ", . or - after the first")
                    )
        if BASE in self.stages:
            raise ValueError(f"stages.{BASE}: this id means a model without training; choose another")
        self._refer("grid", self.grid, "grids")
        for name, model in self.models.items():
            for stage in model.stages:
                self._refer(f"models.{name}.stages", stage, "stages")
                if model.stages[stage].get("loss", self.stages[stage].loss) != self.stages[stage].loss:
                    raise ValueError(f"models.{name}.stages.{stage}.loss: it is {self.stages[stage].loss} for every "
                                     f"model; add a stage for another")  # fmt: skip
                try:
                    self.stage(stage, name)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, (f"models.{name}.stages.{stage}", *first["loc"])))
                    raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
            if model.tokenizer is not None:
                self._refer(f"models.{name}.tokenizer.train_on", model.tokenizer.train_on, "datasets")
        for name, prompts in self.prompts.items():
            if prompts.dataset is not None:
                self._refer(f"prompts.{name}.dataset", prompts.dataset, "datasets")
        for name, judge in self.judges.items():
            self._refer(f"judges.{name}.prompts", judge.prompts, "prompts")
            if judge.method is not None:
                self._check_method(f"judges.{name}.reward_model", judge.method, rewards=True)
        for name, grid in self.grids.items():
            for kind in ("datasets", "models", "judges", "tasks"):
                for entry in getattr(grid, kind):
                    self._refer(f"grids.{name}.{kind}", entry, kind)
            for method in grid.methods:
                self._check_method(f"grids.{name}.methods", method, rewards=False)
            for method in grid.reward_models:
                self._check_method(f"grids.{name}.reward_models", method, rewards=True)
        stages = [(f"stages.{name}", entry) for name, entry in self.stages.items()]
        for name, model in self.models.items():
            stages += [(f"models.{name}.stages.{stage}", self.stage(stage, name)) for stage in model.stages]
        learning = {where.rsplit(".", 1)[-1] for where, entry in stages if entry.reward_model is not None}
        for where, entry in stages:
            if entry.reward_model is not None:
                self._check_method(f"{where}.reward_model", entry.reward_model, rewards=True)
                if again := sorted(learning.intersection(entry.reward_model.split("-"))):
                    raise ValueError(f"{where}.reward_model: {entry.reward_model}: {again[0]} learns from a reward "
                                     f"model itself; name one that does not")  # fmt: skip
        return self

    def _check_method(self, where: str, method: str, rewards: bool) -> None:
        """Refuse a method of unknown stages, one that goes on from what ends a chain, or one that ends in the wrong
        kind of model."""
        stages = [] if method == BASE else method.split("-")
        for stage in stages:
            self._refer(f"{where}: {method}", stage, "stages")
        losses = [self.stages[stage].make_loss() for stage in stages]
        for stage, loss in zip(stages[:-1], losses, strict=False):
            if loss.head == "score" or loss.control:
                why = "it trains a reward model" if loss.head == "score" else "its prompts end in a control token"
                raise ValueError(f"{where}: {method}: no stage can follow {stage}: {why}")
        if (bool(losses) and losses[-1].head == "score") != rewards:
            wants = (
                "must end in a reward model, such as bradley_terry"
                if rewards
                else "ends in a reward model, which answers no prompts: name it in reward_models"
            )
            raise ValueError(f"{where}: {method} {wants}")

    def stage(self, name: str, model: str) -> Stage:
        """A stage as a model runs it: the stage's entry with the model's own settings for it."""
        stage, own = self.stages[name], self.models[model].stages.get(name, {})
        return Stage.model_validate({**stage.model_dump(exclude_unset=True), **own}) if own else stage

    def _refer(self, where: str, name: str, kind: str) -> None:
        if name not in getattr(self, kind):
            raise ValueError(f"{where}: there is no {name!r} in {kind}{suggest(name, getattr(self, kind))}")


def _sentences(error: ValidationError) -> str:
    """pydantic's findings, a line each: where, what, and the nearest right key."""
    lines = []
    places = [found["loc"] for found in error.errors()]
    for found in error.errors():
        if any(len(place) > len(found["loc"]) and place[: len(found["loc"])] == found["loc"] for place in places):
            continue  # what follows from a mistake within, such as a list with too few sound items
        where = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            owners: dict[str, type[BaseModel]] = {
                "models": Model, "datasets": Dataset, "prompts": Prompts, "judges": Judge, "tasks": Task, "grids": Grid
            }  # fmt: skip
            loc = found["loc"]
            owner = Config if len(loc) == 1 else owners.get(str(loc[0])) if len(loc) == 3 else None
            hint = suggest(str(loc[-1]), owner.model_fields) if owner else "; take it out or correct its name"
            lines.append(f"{where}: unknown key{hint}")
        else:
            message = found["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return "\n".join(lines)


def load(source: str | Path | dict[str, Any]) -> Config:
    """The validated catalogue.

    Args:
        source: path of a YAML file, or the dictionary that Snakemake made of it and the command line.

    Raises:
        HalosError: with one line for each mistake.
    """
    if isinstance(source, dict):
        content = dict(source)
    else:
        if not Path(source).is_file():
            raise HalosError(f"there is no config file {source}; run from the project's folder or name one by --config")
        try:
            content = yaml.safe_load(Path(source).read_text()) or {}
        except yaml.YAMLError as error:
            raise HalosError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise HalosError(f"{source} must hold keys (models:, datasets:, ...), not a {type(content).__name__}")
    plugins = content.get("plugins")
    load_plugins(plugins if isinstance(plugins, list | tuple) else ())  # anything else is refused below
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise HalosError(_sentences(error)) from None


def read_slice(path: str | Path) -> dict[str, Any]:
    """A config.yaml of the results tree: the part of the catalogue that made one folder. Its plugins are loaded.

    Raises:
        HalosError: the file is missing.
    """
    if not Path(path).is_file():
        raise HalosError(f"there is no {path}; write one with `python -m halos config FOLDER`")
    content: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    load_plugins(content.get("plugins", ()))
    return content


def dump(content: Any) -> str:
    """YAML text, the same for equal content."""
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110)


def identity(entry: BaseModel) -> dict[str, Any]:
    """What of an entry makes a result: all but its label, its resources, and a model's settings for stages (which are
    the runs' own)."""
    return entry.model_dump(mode="json", exclude={"label", "resources", "stages"})


def stage_slice(stage: Stage) -> dict[str, Any]:
    """The stage with the loss's default hyperparameters filled in, so that a changed default is a changed run."""
    arguments = {**(ADAMW if stage.optimizer == "AdamW" else {}), **stage.optimizer_args}
    return {**identity(stage), **dataclasses.asdict(stage.make_loss()), "optimizer_args": arguments}


def stage_plugins(stage: Stage) -> dict[str, str]:
    return plugin_slice(LOSSES.plugin(stage.loss))


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml, for editors. A stage lists the hyperparameters of every loss of the package."""
    document = Config.model_json_schema()
    properties = document["$defs"]["Stage"]["properties"]
    for name in LOSSES:
        if LOSSES.plugin(name) is None:
            for f in dataclasses.fields(LOSSES[name]):
                entry = properties.setdefault(f.name, {"description": "hyperparameter of "})
                entry["description"] += ("" if entry["description"].endswith("of ") else ", ") + name
    return document
