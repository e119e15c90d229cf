"""`models:` of config.yaml: where a base model comes from, how it computes, and the resources of its jobs."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from halos.models.rewards import RewardLogit
from halos.settings import INCIDENTAL, Label, Positive, Settings, Slice, Strict
from halos.tokens.chat import RESERVED

ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention implementations of transformers, by its own names."""
KERNEL = r"[\w.-]+/[\w.-]+@[0-9a-f]{40}"
"""Attention of a prebuilt kernel: its repository on the hub, and the commit of the code that is run."""


def _attention(value: str) -> str:
    """An attention implementation, by its name or as a kernel of the hub."""
    if value in ATTENTIONS or re.fullmatch(KERNEL, value):
        return value
    if "/" in value:
        raise ValueError(f"{value} is code of the hub: name the commit of it that you want, in full (40 digits), as in "
                         "kernels-community/flash-attn2@COMMIT")  # fmt: skip
    raise ValueError(f"there is no attention {value!r}: take one of {', '.join(ATTENTIONS)}, or a kernel of the hub, "
                     "OWNER/NAME@COMMIT")  # fmt: skip


Attention = Annotated[
    str,
    AfterValidator(_attention),
    WithJsonSchema({"anyOf": [{"enum": list(ATTENTIONS)}, {"type": "string", "pattern": f"^{KERNEL}$"}]}),
]
Precision = Literal["bf16", "fp32"]
SavePrecision = Literal["auto", "bf16", "fp32"]
Quantization = Literal["nf4", "int8"]


def saved_precision(setting: SavePrecision, precision: Precision, is_round: bool) -> Precision:
    """The type in which a run's weights are saved.

    Args:
        setting: `save_precision` of its model.
        precision: the compute type.
        is_round: whether the run is a round of an online stage. The next one trains on from its weights, in which
            bfloat16 would lose the small steps of every round.
    """
    if setting != "auto":
        return setting
    return "fp32" if is_round else precision


class Resources(Strict):
    """Resources of the jobs of a model. They are no part of a run's identity: changing them reruns nothing."""

    gpus: int = Field(0, ge=0, description="GPUs of a training or reference pass on each node; 0 for the CPU")
    nodes: Positive = Field(
        1, description="nodes of a training or reference pass, on a Slurm cluster; gpus, cpus and mem_gb are per node"
    )
    cpus: Positive = Field(1, description="CPU cores of one job")
    mem_gb: Positive = Field(4, description="main memory of one job, GB; doubled on a retry")
    runtime: Positive = Field(60, description="minutes before the scheduler ends a job; doubled on a retry")
    tokens_per_microbatch: Positive = Field(
        16384,
        description="tokens in one forward pass on one device, padding included; more is faster and takes more memory",
    )
    generate_batch: Positive = Field(
        64, description="responses generated side by side on one device; vLLM gets 16 times as many at a time"
    )
    sampler: Literal["auto", "vllm", "transformers"] = Field(
        "auto",
        description="library that generates and runs tasks; auto: vLLM if the model has GPUs, else transformers",
    )
    tensor_parallel: Positive = Field(1, description="GPUs of one sampling job, over which vLLM splits the model")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="with several GPUs: all weights on each (ddp) or a shard (fsdp)"
    )
    offload: bool = Field(
        False,
        description="with fsdp, of one GPU, too: keep the shards of weights, gradients and optimiser states in main "
        "memory, where the optimiser steps: less GPU memory, more time",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )

    @property
    def shards(self) -> bool:
        """Whether trainings shard the weights over their processes."""
        return self.parallel == "fsdp" and (self.gpus * self.nodes > 1 or self.offload)

    @model_validator(mode="after")
    def shards_on_gpus(self) -> Resources:
        if self.parallel == "fsdp" and self.nodes > 1 and not self.gpus:
            raise ValueError("weights are sharded over GPUs: give `gpus`, or leave out `parallel: fsdp`")
        if self.offload and not (self.gpus and self.parallel == "fsdp"):
            raise ValueError(
                "offload moves what fsdp shards over GPUs: give `gpus` and `parallel: fsdp`, or take it out"
            )
        return self

    @model_validator(mode="after")
    def sampled_on_its_gpus(self) -> Resources:
        if self.tensor_parallel > max(1, self.gpus):
            raise ValueError(f"tensor_parallel {self.tensor_parallel} is above gpus ({self.gpus}): lower it")
        if self.tensor_parallel > 1 and self.sampler == "transformers":
            raise ValueError("transformers samples on one GPU: take out tensor_parallel, or say `sampler: vllm`")
        return self


class Tokenizer(Strict, serialize_by_alias=True):
    """A small byte-level BPE tokenizer, trained on a dataset's text, or the tokenizer of another model."""

    train_on: str | None = Field(
        None, exclude_if=lambda dataset: dataset is None, description="id of the dataset whose train split trains it"
    )
    vocab_size: Positive = Field(1024, description="tokens of one that is trained, the special ones included")
    of_model: str | None = Field(
        None,
        alias="from",
        exclude_if=lambda model: model is None,
        description="the model whose tokenizer it is: an id of `models:`, a local folder, or one on the hub",
    )

    @model_validator(mode="after")
    def one_kind(self) -> Tokenizer:
        if (self.train_on is None) == (self.of_model is None):
            raise ValueError("give it train_on (a dataset, for a new tokenizer) or from (a model that has one)")
        if self.of_model is not None and self.vocab_size != type(self).model_fields["vocab_size"].default:
            raise ValueError("vocab_size is for a tokenizer that is trained: take it out beside from")
        return self


class Size(Strict):
    """Published sizes of a causal language model, for planning before it is downloaded."""

    parameters: Positive
    layers: Positive
    hidden_size: Positive
    intermediate_size: Positive = Field(description="width of the feed-forward layers")
    vocab_size: Positive
    key_value_size: Positive | None = Field(
        None, description="width of all key heads of a token, if fewer than the query heads; by default hidden_size"
    )
    tied: bool = Field(False, description="whether the output layer shares the embedding's weights")


class ModelIdentity(Strict):
    """The identity of a base model: where it comes from, and how it computes."""

    hub: str | None = Field(None, description="model id on the Hugging Face hub")
    revision: str = Field("main", description="branch, tag or commit on the hub; a commit is reproducible")
    path: str | None = Field(None, description="local folder in the transformers layout, weights as safetensors")
    architecture: Settings | None = Field(None, description="transformers config (model_type and its fields)")
    config: Settings = Field({}, description="fields of a hub or local model's transformers config to change")
    tokenizer: Tokenizer | None = Field(
        None, description="needed with `architecture`; in place of its own, a hub or local model can have another's"
    )
    add_tokens: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        (),
        exclude_if=lambda tokens: not tokens,
        description="special tokens that its template needs; each begins as the mean of the model's other embeddings",
    )
    seed: int = Field(0, description="seed of the random weights of an `architecture`")
    template: str | None = Field(None, description="chat template: a name in halos/tokens/templates, or a .jinja file")
    template_args: Settings = Field(
        {},
        description="defaults of the chat template's variables, e.g. enable_thinking; date: today's, else 2024-07-26",
    )
    attention: Attention = Field(
        "auto",
        description="attention implementation of transformers; auto: sdpa if the model's class has it, else eager; or "
        "a prebuilt kernel of the hub, OWNER/NAME@COMMIT",
    )
    liger: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,
        description="train, and compute references, with Liger's fused norms and feed-forward layers; on GPUs only",
    )
    compile: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,
        description="train, and compute references, with layers that torch.compile has compiled",
    )
    precision: Precision = Field(
        "bf16", description="compute type; weights that are trained are always float32, those below LoRA in it"
    )
    quantization: Quantization | None = Field(
        None,
        exclude_if=lambda kind: kind is None,
        description="hold the linear layers below LoRA in 4 (nf4: QLoRA) or 8 bits (int8), in trainings and reference "
        "passes; every stage needs `lora`, and a trained model is published in full",
    )
    reward_logit: RewardLogit = Field(
        "second",
        exclude_if=lambda logit: logit == "second",
        description="of a reward model with two labels, its score: the second one's logit, as in HALOs, or that minus "
        "the first one's",
    )

    trust_remote_code: bool = Field(
        False,
        exclude_if=lambda trusted: not trusted,
        description="run the code that comes with the model, and with what is trained from it; one of the hub needs a "
        "`revision` of 40 digits, so that no other code is run",
    )

    @field_validator("template_args")
    @classmethod
    def of_the_template(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(RESERVED.intersection(arguments)):
            raise ValueError(f"{own[0]} is set by the conversation or the tokenizer: take it out")
        if wrong := [name for name in arguments if not name.isidentifier()]:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a template's variable: use letters, digits and _")
        if (day := arguments.get("date")) is not None:
            try:
                arguments = {**arguments, "date": date.fromisoformat(str(day)).isoformat()}
            except ValueError:
                raise ValueError(f"date {day!r} is no day: write it as 2024-07-26") from None
        if not isinstance(arguments.get("tools", []), list):
            raise ValueError("tools is a list of JSON documents, one for each function")
        return arguments

    @model_validator(mode="after")
    def one_origin(self) -> ModelIdentity:
        given = [k for k in ("hub", "path", "architecture") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path and architecture (now: {', '.join(given) or 'none'})")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("architecture and tokenizer go together: add `tokenizer: {train_on: DATASET}`")
        if self.architecture is None and self.tokenizer is not None and self.tokenizer.train_on is not None:
            raise ValueError("architecture and tokenizer go together: a hub or local model brings its own tokenizer; "
                             "another model's is `tokenizer: {from: MODEL}`")  # fmt: skip
        if len(set(self.add_tokens)) < len(self.add_tokens):
            raise ValueError("add_tokens names a token twice: take one out")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, for example llama")
        if self.architecture is not None and self.config:
            raise ValueError("config changes a hub or local model: write these fields under architecture")
        return self

    @model_validator(mode="after")
    def code_that_stays(self) -> ModelIdentity:
        if not self.trust_remote_code:
            return self
        if self.architecture is not None:
            raise ValueError("an architecture is of transformers' own code: take out trust_remote_code")
        if self.config:
            raise ValueError("the fields of `config` are those of transformers' own code: change them in the model's "
                             "config.json, or take out trust_remote_code")  # fmt: skip
        if self.hub is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(f"trust_remote_code runs whatever code {self.hub} has at {self.revision}: set `revision:` "
                             "to the commit whose code you have read, in full (40 digits)")  # fmt: skip
        return self


class Model(ModelIdentity):
    """A base model: exactly one of `hub`, `path` and `architecture`."""

    stages: Annotated[dict[str, dict[str, Any]], INCIDENTAL] = Field(
        {}, description="settings of stages that differ for this model: {stage id: {setting: value}}"
    )
    save_precision: Annotated[SavePrecision, INCIDENTAL] = Field(
        "auto",
        description="type of trained weights on disk; auto: the compute type, but fp32 for rounds of an online stage",
    )
    label: Label = Field(None, description="name in tables and figures")
    size: Annotated[Size | None, INCIDENTAL] = Field(
        None, description="published sizes, for `python -m halos plan` before a hub model is downloaded"
    )
    resources: Annotated[Resources, INCIDENTAL] = Field(Resources(), description="what its jobs ask for")

    @model_validator(mode="after")
    def quantised_in_one_piece(self) -> Model:
        if self.quantization is not None and self.resources.shards:
            raise ValueError("quantised weights cannot be sharded: set `parallel: ddp` in resources, or take out "
                             "quantization")  # fmt: skip
        return self


class ModelSlice(ModelIdentity, Slice):
    """The config.yaml of a base model.

    Attributes:
        model: its id in the catalogue.
        chat_template: the text that `template` names; None keeps the model's own.
    """

    model: str
    chat_template: str | None
