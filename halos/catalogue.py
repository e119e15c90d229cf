"""The entries of the catalogue: a model, a dataset, a stage, a prompt set, a labeller, a judge, a task, a grid.

The only place of a default. Each entry refuses what contradicts itself; what does not fit together is refused by
halos.config.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

import halos.data
import halos.losses
from halos.data.selection import Selection
from halos.errors import HalosError
from halos.registry import LOSSES, SOURCES, VERIFIERS, suggest

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


def _threshold(value: Any) -> Any:
    """The same for a labeller's threshold."""
    value = _numbers(value)
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("mean", "median")):
        raise ValueError(f"{value!r} is none of mean, median and a number")
    return value


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Strict):
    """What a job of this model needs. Never part of a run's identity: changing it reruns nothing."""

    gpus: int = Field(0, ge=0, description="GPUs of a node that a training has; 0 trains on the CPU")
    nodes: Positive = Field(1, description="nodes of a training, on a Slurm cluster; gpus, cpus and mem_gb are of each")
    cpus: Positive = Field(1, description="CPU cores of one job")
    mem_gb: Positive = Field(4, description="main memory of one job, GB; doubled on a retry")
    runtime: Positive = Field(60, description="minutes before the scheduler ends a job; doubled on a retry")
    tokens_per_microbatch: Positive = Field(
        16384, description="tokens in one forward pass on one device, padding included"
    )
    generate_batch: Positive = Field(
        64, description="responses generated side by side on one device; vLLM is handed 16 times as many at a time"
    )
    sampler: Literal["auto", "vllm", "transformers"] = Field(
        "auto",
        description="what generates responses and runs tasks; auto is vLLM where the model has GPUs, else transformers",
    )
    tensor_parallel: Positive = Field(1, description="GPUs of one sampling job, over which vLLM splits the model")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="several GPUs: each holds all weights, or its shard")
    gradient_checkpointing: bool = Field(False, description="less memory for more time: forward passes are run twice")

    @model_validator(mode="after")
    def shards_on_gpus(self) -> Resources:
        if self.parallel == "fsdp" and self.nodes > 1 and not self.gpus:
            raise ValueError("weights are sharded over GPUs: give `gpus`, or leave out `parallel: fsdp`")
        return self

    @model_validator(mode="after")
    def sampled_on_its_gpus(self) -> Resources:
        if self.tensor_parallel > max(1, self.gpus):
            raise ValueError(f"tensor_parallel {self.tensor_parallel} is above gpus ({self.gpus}): lower it")
        if self.tensor_parallel > 1 and self.sampler == "transformers":
            raise ValueError("transformers samples on one GPU: take out tensor_parallel, or say `sampler: vllm`")
        return self


class Tokenizer(Strict):
    """A small byte-level BPE tokenizer, trained on a dataset's text."""

    train_on: str = Field(description="id of the dataset whose train split it is trained on")
    vocab_size: Positive = 1024


class Size(Strict):
    """A causal language model's published figures, for planning before its files are here."""

    parameters: Positive
    layers: Positive
    hidden_size: Positive
    intermediate_size: Positive = Field(description="width of the feed-forward layers")
    vocab_size: Positive
    key_value_size: Positive | None = Field(
        None, description="width of all keys of a token, where heads share them; by default hidden_size"
    )
    tied: bool = Field(False, description="whether the output layer is the embedding")


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
    size: Size | None = Field(None, description="for `python -m halos plan`, of a hub model that is not here yet")
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
    keep_desirable: Share = Field(1.0, description="share of the desirable responses kept, of train")
    keep_undesirable: Share = Field(1.0, description="share of the undesirable responses kept, of train")
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


class Online(Strict):
    """Rounds of a stage: responses to fresh prompts are sampled from the policy, labelled, and trained on."""

    rounds: Positive
    prompts_per_round: Positive = Field(description="prompts of train that no earlier round had")
    samples_per_prompt: Positive = Field(2, description="responses to each prompt")
    label: str = Field(description="id of the labeller")
    reference: Literal["previous", "fixed"] = Field(
        "previous", description="the policy that a round starts from, or the one that the first round starts from"
    )
    eval_prompts: Positive = Field(64, description="prompts of test, the same in each round, to evaluate training on")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: Positive = 512

    def prompts(self, split: str, round_: int, seed: int) -> dict[str, Any]:
        """The prompt set of a round's train or test split."""
        n = self.prompts_per_round
        which = {"skip": (round_ - 1) * n, "limit": n} if split == "train" else {"skip": 0, "limit": self.eval_prompts}
        how = {key: getattr(self, key) for key in ("temperature", "top_p", "max_new_tokens")}
        shuffle = seed if split == "train" else None
        return {"split": split, **which, "shuffle": shuffle, "samples": self.samples_per_prompt, **how}


ADAMW = {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-5}


@cache
def _adapter(loss: type) -> TypeAdapter[Any]:
    """Kept, as making one takes milliseconds, and a grid asks for losses thousands of times."""
    return TypeAdapter(loss)


class Stage(BaseModel):
    """One training step: a loss, its hyperparameters (beside the fields below, under their own names), optimiser."""

    model_config = ConfigDict(extra="allow", frozen=True)

    loss: str
    lr: float = Field(5e-6, gt=0)
    optimizer: Literal[
        "AdamW", "Adam", "RMSprop", "SGD", "Adafactor", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam",
        "Rprop",
    ] = Field("AdamW", description="a class of torch.optim")  # fmt: skip
    optimizer_args: Settings = Field({}, description="its arguments; AdamW's defaults are ADAMW of halos.catalogue")
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
    keep_desirable: Share = Field(1.0, description="share of the desirable responses kept, of train")
    keep_undesirable: Share = Field(1.0, description="share of the undesirable responses kept, of train")
    pairs_per_prompt: Positive | None = Field(None, description="at most so many pairs of a prompt, of train")
    one_per_prompt: bool = Field(False, description="one response of each prompt, of train, for unpaired losses")
    label_by: Annotated[Literal["best_worst", "mean", "median"] | float | None, BeforeValidator(_label_by)] = Field(
        None, description="desirable by score: the best and worst of each prompt, or above the mean, median or a number"
    )
    online: Online | None = Field(None, description="train in rounds, on labelled samples of the policy itself")
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

        if self.online is not None:
            if loss.head == "score" or loss.control:
                raise ValueError(f"the loss {self.loss!r} cannot be trained online: take out `online`")
            if self.reward_model is not None:
                raise ValueError("with `online` the labeller gives the scores: take out reward_model")
            if self.sync_every and self.online.reference == "fixed":
                raise ValueError("humanline and sync_reference move the reference: take out online.reference: fixed")
            if loss.view in ("paired", "grouped") and self.online.samples_per_prompt < 2:
                raise ValueError(f"the loss {self.loss!r} compares responses: raise online.samples_per_prompt")

        def changed(*settings: str) -> str:
            fields = type(self).model_fields
            return ", ".join(name for name in settings if getattr(self, name) != fields[name].default)

        if not self.humanline and (found := changed("log_eps_p", "log_eps_r")):
            raise ValueError(f"without humanline: true nothing reads {found}")
        if loss.head != "value" and (found := changed("value_max_grad_norm")):
            raise ValueError(f"the loss {self.loss!r} has no value head: take out {found}")
        if loss.view != "paired" and (found := changed("pairs_per_prompt")):
            raise ValueError(f"the loss {self.loss!r} reads the {loss.view} view: take out {found}")
        unpaired = changed("keep_desirable", "keep_undesirable", "one_per_prompt", "label_by")
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
        kind: Any = LOSSES[self.loss]
        loss: halos.losses.Loss = _adapter(kind).validate_python(self.hyperparameters)
        return loss


class Prompts(Strict):
    """A prompt set and how responses to it are sampled."""

    dataset: str | None = Field(None, description="whose prompts; by default those of the cell's own dataset")
    split: Literal["train", "test"] = "test"
    skip: int = Field(0, ge=0, description="leave out so many prompts first")
    limit: Positive | None = Field(512, description="so many prompts: a fixed choice that mixes the sources")
    samples: Positive = Field(1, description="responses to each prompt")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: Positive = 2048


class Scorer(Strict):
    """What gives a score to a response: the kinds that judges and labellers share."""

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
    label: str | None = None

    @model_validator(mode="after")
    def known(self) -> Scorer:
        what = f"a {type(self).__name__.lower()} of kind {self.kind}"
        if given := sorted(self.foreign & self.model_fields_set):
            which = "" if self.folder is None else ", which names a folder,"
            raise ValueError(f"{what}{which} has no {' and no '.join(given)}: take that out")
        if getattr(self, self.kind) is None:
            raise ValueError(f"{what} names one: give it `{self.kind}:`")
        if self.verifier is not None and self.verifier not in VERIFIERS:
            raise ValueError(f"unknown verifier {self.verifier!r}{suggest(self.verifier, VERIFIERS)}")
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of a reward model from elsewhere."""
        return Path(self.reward_model) if self.reward_model is not None and "/" in self.reward_model else None

    @property
    def method(self) -> str | None:
        """The method whose reward model scores."""
        return None if self.folder is not None else self.reward_model

    @property
    def foreign(self) -> set[str]:
        """Keys that mean nothing to this kind."""
        own = {self.kind} | ({"seed"} if self.kind == "reward_model" and self.folder is None else set())
        return {"verifier", "reward_model", "openai", "seed"} - own


INSTRUCTIONS = """\
You rate responses of an assistant. Rate how well the response below ends its conversation, from {low} to {high}: is \
it helpful, correct and concise? Answer with one line, `Score: N`, and nothing else."""


class Server(Strict):
    """OpenAI, or any server that speaks its API, and how it is called."""

    base_url: str | None = Field(None, description="address of the server, up to /v1; by default OpenAI's own")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    seed: int | None = 0
    timeout: float = Field(60.0, gt=0, description="seconds for one attempt")
    attempts: Positive = Field(6, description="of one call, the first included")


class OpenAI(Server):
    """A model behind OpenAI's API that is asked to score a response."""

    model: str
    instructions: str = Field(INSTRUCTIONS, description="system message; {low} and {high} are the ends of the scale")
    scale: tuple[float, float] = (1.0, 10.0)
    temperature: float = Field(0.0, ge=0)
    max_tokens: Positive = Field(64, description="of an answer")


class Prices(Strict):
    """Dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


PLACES = ("{instruction}", "{output_1}", "{output_2}")
"""What a judge's prompt stands around: the conversation, and the two responses in the order in which they are shown."""


class Comparer(Server):
    """A model behind OpenAI's API that is asked which of two responses is better: by a prompt of one's own, which asks
    for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`, or by one of alpaca_eval's annotators."""

    model: str | None = Field(None, description="with an annotator, by default its own")
    prompt: str | None = Field(
        None, description="what is asked, around {instruction}, {output_1} and {output_2}: a turn, or several in ChatML"
    )
    annotator: str | None = Field(
        None, description="prompt, model and reading of the answer: weighted_alpaca_eval_gpt4_turbo"
    )
    temperature: float | None = Field(None, ge=0, description="by default the annotator's own, or 0")
    max_tokens: Positive | None = Field(None, description="of an answer; by default the annotator's own, or 512")
    prices: Prices | None = Field(None, description="to say what judging costs, before and after")

    @model_validator(mode="after")
    def one_question(self) -> Comparer:
        if (self.prompt is None) == (self.annotator is None):
            raise ValueError("give exactly one of prompt and annotator")
        if self.prompt is not None and self.model is None:
            raise ValueError("a prompt of one's own is for a model: give `model:`")
        if self.annotator is not None:
            from halos.annotators import read_annotator

            try:
                read_annotator(self.annotator)
            except HalosError as error:
                raise ValueError(str(error)) from None
        if missing := [place for place in PLACES if place not in (self.prompt or "".join(PLACES))]:
            raise ValueError(f"the prompt has no {' and no '.join(missing)}: put what is compared there")
        return self


class FromFile(Strict):
    """A file of outputs as AlpacaEval's: a JSON list, or JSON lines, of {instruction, output}."""

    file: str


class FromCell(Strict):
    """The samples of another cell of the same dataset and model, to the same prompts."""

    method: str
    seed: Literal["same"] | Annotated[int, Field(ge=0)] = "same"


def _baseline(value: Any) -> Any:
    """One sentence for a mistake, as above."""
    known = value == "target" or isinstance(value, FromFile | FromCell)
    if not known and not (isinstance(value, dict) and set(value) in ({"file"}, {"method"}, {"method", "seed"})):
        raise ValueError(f"{value!r} is none of target, {{file: PATH}} and {{method: METHOD, seed: same}}")
    return value


class Judge(Scorer):
    """What decides wins between a cell's responses and a baseline's."""

    kind: Literal["verifier", "reward_model", "openai"]  # type: ignore[assignment]
    openai: Comparer | None = None
    prompts: str = Field(description="id of the prompt set whose samples are judged")
    baseline: Annotated[Literal["target"] | FromFile | FromCell, BeforeValidator(_baseline)] = Field(
        "target", description="the dataset's target for the same prompt, a file of outputs, or another cell's samples"
    )
    ties: Literal["half", "neither"] = Field(
        "half", description="a tie is half a win; or a win of neither, so that the win rate is wins of all comparisons"
    )
    tie_margin: float = Field(0.0, ge=0, description="verifier and reward_model: scores this close together are a tie")
    whole_sentences: bool = Field(False, description="both responses are cut after their last full sentence")
    length_control: Literal["length_only", "alpaca_eval"] = Field(
        "length_only",
        description="a logistic model of the difference in length; or alpaca_eval's own, which knows how difficult "
        "each of its 805 instructions is: it needs AlpacaEval's reference outputs as baseline",
    )
    difficulties: str | None = Field(
        None, description="length_control alpaca_eval: AlpacaEval's df_gamed.csv; by default that of the hub's cache"
    )
    max_failures: Fraction = Field(0.05, description="openai: share of comparisons that may stay without an answer")
    concurrency: Positive = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Positive | None = Field(None, description="openai: reruns nothing")

    @property
    def foreign(self) -> set[str]:
        asks = {"max_failures", "concurrency", "requests_per_minute"}
        return super().foreign | ({"tie_margin"} if self.kind == "openai" else asks)

    @model_validator(mode="after")
    def no_contradiction(self) -> Judge:
        if self.length_control == "alpaca_eval" and not isinstance(self.baseline, FromFile):
            raise ValueError("length_control: alpaca_eval needs AlpacaEval's reference outputs: name them as baseline")
        if self.difficulties is not None and self.length_control != "alpaca_eval":
            raise ValueError("difficulties are read with length_control: alpaca_eval: take them out, or say so")
        return self


class Labeller(Scorer):
    """What turns samples into feedback: how they are scored, and what is made of the scores."""

    kind: Literal["verifier", "reward_model", "openai"]  # type: ignore[assignment]
    openai: OpenAI | None = None
    feedback: Literal["binary", "pairwise", "scalar"] = Field(
        description="desirable or not; pairs (and their sides as desirable or not); or the scores alone"
    )
    threshold: Annotated[Literal["mean", "median"] | float, BeforeValidator(_threshold)] = Field(
        "mean", description="binary: responses that score more are desirable"
    )
    pairs: Literal["max", "min", "random"] = Field(
        "max", description="pairwise: best and worst of a prompt, the two closest, or as many random pairs as there are"
    )
    min_margin: float = Field(0.0, ge=0, description="pairwise: scores of a pair differ by more than this")
    concurrency: Positive = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Positive | None = Field(None, description="openai: reruns nothing")

    @model_validator(mode="after")
    def no_contradiction(self) -> Labeller:
        read = {"threshold": "binary", "pairs": "pairwise", "min_margin": "pairwise"}
        for key, feedback in read.items():
            if key in self.model_fields_set and self.feedback != feedback:
                raise ValueError(f"{self.feedback} feedback has no {key}: take that out, or ask for {feedback}")
        return self


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


PUBLISHED_WINRATES = "_winrates.csv"
PUBLISHED = sorted(
    path.name.removesuffix(PUBLISHED_WINRATES)
    for path in (Path(__file__).parent / "report/published").glob(f"*{PUBLISHED_WINRATES}")
)
"""Results of others that a grid can stand beside; halos/report/published says where they are from."""


class Grid(Strict):
    """The cells of a study: every dataset x model x method x seed, and how they are judged and benchmarked."""

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    reward_models: tuple[str, ...] = Field((), description="methods that end in a reward model: trained and tabulated")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((1,), min_length=1)
    prompts: tuple[str, ...] = Field((), description="prompt sets to sample, beside those that the judges name")
    judges: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    published: str | None = Field(None, description="published results to stand beside the grid's own: archangel")
    label: str | None = None

    @model_validator(mode="after")
    def known(self) -> Grid:
        if self.published is not None and self.published not in PUBLISHED:
            raise ValueError(f"no results called {self.published!r} are published{suggest(self.published, PUBLISHED)}")
        return self
