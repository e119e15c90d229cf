"""What one job costs: bytes of a GPU and of main memory, operations, seconds. What is taken for granted stands here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from halos.catalogue import Lora, Model, Resources, Size, Stage
from halos.config import Config
from halos.errors import HalosError
from halos.logprobs import CHUNK, KEPT
from halos.losses import Loss
from halos.losses.base import ROLES

GB = 1e9
GIB = 2**30
FLOAT, HALF = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""


@dataclass(frozen=True)
class Device:
    """A GPU: bytes of memory that torch reports, operations a second in dense matrix products, bytes read a second."""

    memory: float
    bf16: float
    fp32: float
    bandwidth: float


GPUS = {
    "a100-40gb": Device(39.4 * GIB, 312e12, 19.5e12, 1.555e12),
    "a100-80gb": Device(79.1 * GIB, 312e12, 19.5e12, 2.039e12),
    "h100-80gb": Device(79.1 * GIB, 989e12, 67e12, 3.35e12),
    "l40s-48gb": Device(44.4 * GIB, 362e12, 91.6e12, 0.864e12),
}
"""Speeds are those of NVIDIA's data sheets, without sparsity; float32 is without TF32, as torch computes it."""

CORE = Device(math.inf, 5e10, 5e10, 1e10)
"""A CPU core, for models without GPUs: the order of magnitude of a server's. Its memory is main memory."""

UTILISATION = 0.4
"""Share of a GPU's peak that training and reference passes reach, communication, attention and padding included."""
DECODING = 0.4
"""Share of the memory bandwidth that generation reaches."""
RESERVE = 0.03
"""Share of a GPU's memory that is lost to fragmentation."""
CONTEXT = 1.5 * GB
"""Bytes of a GPU that CUDA, NCCL and cuBLAS take."""
PROCESS = 1.0 * GB
"""Bytes of main memory of a process without any tensor."""
LAYER = 1.5
"""What the layer that is computed backwards takes, by what it keeps: the gradients of its parts come on top."""


@dataclass(frozen=True)
class Published:
    """A source's train split before it was read: pairs, prompts, and mean tokens.

    Attributes:
        origin: where the figures come from.
    """

    pairs: float
    prompts: float
    prompt: float
    response: float
    origin: str


PUBLISHED = {
    "toy": Published(3755, 2000, 16, 14, "what the source makes"),
    "shp": Published(81_000, 32_000, 250, 150, "SteamSHP's card: 125K train examples with ratio >= 2 and at most 5 "
                     "pairs a post, less HH's 43,835 helpful ones; posts and lengths are assumed"),
    "hh": Published(160_800, 160_800, 150, 70, "rows on the hub; lengths from its bytes, at 4.4 a token"),
    "hh_helpful": Published(43_835, 43_835, 150, 70, "rows on the hub; lengths as of hh"),
    "hh_harmless": Published(42_537, 42_537, 150, 70, "rows on the hub; lengths as of hh"),
    "oasst": Published(16_000, 8_000, 300, 250, "17,966 ranked prompts in all languages, 45 % of messages English, two "
                       "pairs of each assumed, and the lengths"),
    "ultrabin": Published(61_135, 61_135, 180, 230, "rows on the hub; lengths from the median of 409 tokens"),
}  # fmt: skip
UNKNOWN = Published(1000, 1000, 200, 200, "unknown: the plan is for 1000 examples")


@dataclass(frozen=True)
class Amount:
    """A dataset as a model reads it.

    Attributes:
        examples: view -> examples of train.
        prompts: of train.
        responses: distinct ones.
        prompt, response: mean tokens.
        origin: where the figures come from.
    """

    examples: Mapping[str, float]
    prompts: float
    responses: float
    prompt: float
    response: float
    origin: str

    @property
    def group(self) -> float:
        """Responses to a prompt."""
        return self.responses / max(self.prompts, 1)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the fullest moment of a job.

    Attributes:
        weights: float32 masters, or the weights as they are run.
        copies: of the weights, in the type that is computed in.
        gradients: float32. Those of the last layers come when most activations are still there, those of the first when
            hardly any is: of a single microbatch, the two never are there at once.
        buffers: what DDP or FSDP has of gradients and weights beside them.
        optimizer: its state.
        reference: a live reference.
        activations: kept for the backward pass, and of the layer that is at work; or keys and values.
        logits: chunks of the output layer.
        step: what the optimiser's step makes beside its state, when activations are gone.
        several: whether gradients of one microbatch wait while another's activations are made.
    """

    weights: float = 0
    copies: float = 0
    gradients: float = 0
    buffers: float = 0
    optimizer: float = 0
    reference: float = 0
    activations: float = 0
    logits: float = 0
    step: float = 0
    several: bool = False

    @property
    def total(self) -> float:
        lasting = self.weights + self.optimizer + self.reference + self.buffers
        passing = self.copies + self.activations + self.logits
        backward = self.gradients + passing if self.several else max(self.gradients, passing)
        return lasting + max(backward, self.gradients + self.step)


# ---- sizes of models and of data ------------------------------------------------------------------------------------


def size_of(name: str, model: Model, results: Path) -> Size:
    """How large a model is: by its config where that is here or is the entry's own, else by its `size:`.

    Raises:
        HalosError: neither is there.
    """
    folders = [results / "models" / name / "model", *([Path(model.path)] if model.path else [])]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if found is None and model.architecture is None:
        if model.size is None:
            raise HalosError(f"models.{name}: there is nothing yet that says how large it is: give it a `size:`")
        return model.size
    from transformers import AutoConfig

    if found is not None:
        return measured_size(AutoConfig.from_pretrained(found))
    assert model.architecture is not None
    assert model.tokenizer is not None
    fields = dict(model.architecture)
    kind = fields.pop("model_type")
    return measured_size(AutoConfig.for_model(kind, **{"vocab_size": model.tokenizer.vocab_size, **fields}))


def measured_size(config: Any) -> Size:
    """The size of the model that a transformers config makes, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        key_value_size=text.hidden_size * (getattr(text, "num_key_value_heads", None) or heads) // heads,
        tied=bool(text.tie_word_embeddings),
    )


def amount_of(config: Config, dataset: str, model: str, results: Path) -> Amount:
    """How much there is to train on: by the reports of tokenize and prepare where they are, else as published."""
    tokens, data = results / "tokens" / dataset / model / "report.json", results / "data" / dataset / "report.json"
    if tokens.is_file():
        report = json.loads(tokens.read_text())
        prompt, response = (_mean(report["train"]["length_quantiles"][part]) for part in ("prompt", "response"))
        train = report["train"]
        return Amount(report["views"]["train"], train["records"], train["sequences"], prompt, response, str(tokens))
    sources = config.datasets[dataset].sources
    known = [PUBLISHED.get(source.name, UNKNOWN) for source in sources]
    limits = [source.options.get("limit") for source in sources]
    shares = [min(1.0, limit / k.prompts) if limit else 1.0 for k, limit in zip(known, limits, strict=True)]
    pairs, prompts = ([share * getattr(k, what) for k, share in zip(known, shares, strict=True)]
                      for what in ("pairs", "prompts"))  # fmt: skip
    weights = [n / sum(pairs) for n in pairs]
    prompt, response = (sum(w * getattr(k, what) for k, w in zip(known, weights, strict=True))
                        for what in ("prompt", "response"))  # fmt: skip
    origin = "; ".join(f"{source.name}: {k.origin}" for source, k in zip(sources, known, strict=True))
    if data.is_file():
        train = json.loads(data.read_text())["train"]
        views = {"sft": train["targets"], "paired": train["pairs"], "scored": train["responses"],
                 "unpaired": train["desirable"] + train["undesirable"], "grouped": train["rows_out"]}  # fmt: skip
        where = f"{data}; lengths: {origin}"
        return Amount(views, train["rows_out"], train["responses"], prompt, response, where)
    n, m = sum(pairs), sum(prompts)
    views = {"sft": m, "paired": n, "unpaired": 2 * n, "scored": 2 * n, "grouped": m}
    return Amount(views, m, 2 * n, prompt, response, origin)


def _mean(quantiles: Mapping[str, float]) -> float:
    """The mean of a quantity that is evenly spread between its quantiles."""
    points = sorted((float(share), value) for share, value in quantiles.items())
    return sum((high - low) * (a + b) / 2 for (low, a), (high, b) in pairwise(points))


# ---- memory ---------------------------------------------------------------------------------------------------------


def output_parameters(size: Size) -> int:
    """Parameters of the embedding and the output layer."""
    return size.vocab_size * size.hidden_size * (1 if size.tied else 2)


def layer_parameters(size: Size) -> float:
    return (size.parameters - output_parameters(size)) / size.layers


def _matrices(size: Size) -> int:
    """Of a feed-forward layer: 3 where one is a gate, else 2."""
    h = size.hidden_size
    attention = 2 * h * (h + (size.key_value_size or h))
    return 3 if (layer_parameters(size) - attention) / (h * size.intermediate_size) > 2.5 else 2


def added_parameters(size: Size, lora: Lora | None, loss: Loss) -> float:
    """Parameters that a stage trains beside the model's own: LoRA's of all linear layers, a value head's."""
    h, kv, i = size.hidden_size, size.key_value_size or size.hidden_size, size.intermediate_size
    widths = 2 * (2 * h) + 2 * (h + kv) + _matrices(size) * (h + i)
    adapters = 0 if lora is None else size.layers * lora.r * widths
    return adapters + (2 * (h * h + h) + h + 1 if loss.head == "value" else 0)


def kept_in_a_layer(size: Size, precision: str, sharded: bool) -> float:
    """Bytes that one layer keeps of a token for its backward pass.

    Counted with torch's saved-tensor hooks: of the hidden size, 40 bytes in float32, 34 under autocast, whose residual
    stream is float32, and 24 on bfloat16 weights; of each feed-forward matrix but the last, two numbers.
    """
    per_hidden = 40 if precision == "fp32" else 24 if sharded else 34
    wide = 2 * (_matrices(size) - 1) * (FLOAT if precision == "fp32" else HALF)
    return per_hidden * size.hidden_size + wide * size.intermediate_size


def activations(size: Size, precision: str, sharded: bool, checkpointing: bool, tokens: float) -> float:
    """Bytes of the activations of a microbatch at their most, in the backward pass of the last layer."""
    layer, h = kept_in_a_layer(size, precision, sharded), size.hidden_size
    stream = HALF if precision == "bf16" and sharded else FLOAT
    ends = 10 * h  # the embeddings, the last norm, and the states before responses
    kept = stream * h if checkpointing else layer
    return tokens * (size.layers * kept + (LAYER - (not checkpointing)) * layer + ends)


def optimizer_numbers(stage: Stage) -> float:
    """Numbers of state that the stage's optimiser keeps for each parameter: tried out on a matrix."""
    import torch

    from halos.optimizer import make_optimizer

    matrix = torch.nn.Linear(512, 512, bias=False)
    optimizer = make_optimizer(matrix, stage)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in state if value.numel() > 1) / matrix.weight.numel()


def longest_example(view: str, max_length: int, group: float) -> int:
    """Tokens of the longest example there may be, its prompt counted once: next to nothing."""
    return math.ceil(max_length * (2 if view == "paired" else max(1.0, group) if view == "grouped" else 1))


def accumulates(stage: Stage, budget: int, longest: int, world: int) -> bool:
    """Whether a process may run a global batch in several microbatches."""
    return math.ceil(stage.batch_size / world) * longest > budget


def training_memory(size: Size, stage: Stage, precision: str, resources: Resources, longest: int) -> Memory:
    """Of the training of a stage on one of the model's devices.

    Args:
        longest: tokens of the longest example.
    """
    world = max(1, resources.gpus) * resources.nodes
    loss = stage.make_loss()
    sharded = resources.parallel == "fsdp" and world > 1
    budget = max(resources.tokens_per_microbatch, longest)
    several = accumulates(stage, resources.tokens_per_microbatch, longest, world)
    tokens = min(budget, math.ceil(stage.batch_size / world) * longest)
    added = added_parameters(size, stage.lora, loss)
    trained = added + (0 if stage.lora else size.parameters)
    share = world if sharded else 1
    compute = HALF if precision == "bf16" else FLOAT
    copies = 0.0 if sharded or precision == "fp32" else HALF * size.parameters
    buffers = FLOAT * trained if world > 1 and not sharded else 0.0  # DDP's buckets
    if sharded:  # two layers, and the ends of the model, are whole at a time; so are the gradients of one unit
        layer, ends = layer_parameters(size), output_parameters(size)
        buffers = compute * (2 * layer + ends) + (0 if stage.lora else (compute + FLOAT) * max(layer, ends))
        buffers += FLOAT * trained if several else 0  # gradients that wait for the last microbatch are whole
    live = size.parameters if stage.lora is None or sharded else added  # what is not trained is shared with the policy
    shared_prompts = {*loss.prepass} - {*ROLES[loss.view]} and not several
    keys = 2 * compute * (size.key_value_size or size.hidden_size) * size.layers * tokens if shared_prompts else 0
    fused = stage.optimizer in ("Adam", "AdamW") or sharded
    return Memory(
        weights=FLOAT * (size.parameters + added) / share,
        copies=copies,
        gradients=FLOAT * trained / share,
        buffers=buffers,
        optimizer=FLOAT * optimizer_numbers(stage) * trained / share,
        reference=FLOAT * live / share if stage.sync_every else 0,
        activations=activations(size, precision, sharded, resources.gradient_checkpointing, tokens) + keys,
        logits=_logits(size, tokens),
        step=0 if fused or not resources.gpus else FLOAT * trained,
        several=several,
    )


def _logits(size: Size, tokens: float) -> float:
    """Bytes of the output layer: chunks that are kept, one at work with its gradient, and both in the compute type."""
    return min((KEPT + 4) * CHUNK, (FLOAT + 2 * HALF) * tokens * size.vocab_size)


def reference_memory(size: Size, precision: str, tokens: float) -> Memory:
    """Of a reference pass, which one process makes: the weights (in bf16 all but the embedding's are in bfloat16), half
    of what a layer would keep, and one chunk of the output layer."""
    at_work = kept_in_a_layer(size, precision, sharded=False) / 2 + 6 * size.hidden_size
    embedding = size.vocab_size * size.hidden_size
    others = (HALF if precision == "bf16" else FLOAT) * (size.parameters - embedding)
    chunk = min(2 * CHUNK, (FLOAT + HALF) * tokens * size.vocab_size)
    return Memory(FLOAT * embedding + others, activations=tokens * at_work, logits=chunk)


def uses_vllm(resources: Resources) -> bool:
    return resources.sampler == "vllm" or (resources.sampler == "auto" and resources.gpus > 0)


def sampling_memory(size: Size, precision: str, resources: Resources, length: int) -> Memory:
    """Of one GPU of sampling: the weights, keys and values. vLLM takes as many responses at a time as there is room
    for, so one has to fit; transformers has a whole batch side by side."""
    number = HALF if precision == "bf16" and resources.gpus else FLOAT
    keys = 2 * number * size.layers * (size.key_value_size or size.hidden_size) * length
    batch, gpus = (1, resources.tensor_parallel) if uses_vllm(resources) else (resources.generate_batch, 1)
    at_work = number * length * (2 * size.intermediate_size + 4 * size.hidden_size) + FLOAT * batch * size.vocab_size
    return Memory(number * size.parameters / gpus, activations=batch * keys / gpus + at_work)


def main_memory(size: Size, resources: Resources, device: Memory) -> float:
    """Bytes on one node: every process reads all float32 weights before they are moved or sharded. The first process
    puts sharded ones together in the end, in a second copy; without a GPU, all else is here too."""
    processes = max(1, resources.gpus)
    copies = max(processes, 2) if resources.parallel == "fsdp" and processes > 1 else processes
    held = copies * FLOAT * size.parameters if resources.gpus else max(device.total, 2 * FLOAT * size.parameters)
    return processes * PROCESS + held


# ---- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model in a training.

    Attributes:
        trained: forward and backward.
        scored: forward only, by the policy or a live reference.
        examples: that are trained on.
    """

    trained: float
    scored: float
    examples: float


def work_of(stage: Stage, amount: Amount, budget: int, world: int, eval_examples: int) -> Work:
    """The tokens of a training, its evaluations included."""
    loss = stage.make_loss()
    per_prompt = amount.examples[stage.reads] / max(amount.prompts, 1)
    epoch = amount.examples[stage.reads]
    if loss.view == "unpaired":
        epoch *= (stage.keep_desirable + stage.keep_undesirable) / 2
        epoch = amount.prompts if stage.one_per_prompt else epoch
    examples = stage.examples or stage.epochs * epoch
    if stage.online is not None:
        per_prompt = 1 if loss.view in ("paired", "grouped") else stage.online.samples_per_prompt
        examples = stage.online.rounds * stage.online.prompts_per_round * per_prompt
    examples *= stage.inner_epochs
    prompt, response = amount.prompt, amount.response
    answers = amount.group if loss.view == "grouped" else len(ROLES[loss.view])
    tokens = prompt + answers * response
    # a pass for statistics: of other responses to the prompts of the batch, or only where it is not one microbatch
    at_once = stage.batch_size * tokens / world <= budget
    others = len({*loss.prepass} - {*ROLES[loss.view]})
    before = others * response if at_once else len(loss.prepass) and prompt + len(loss.prepass) * response
    live = tokens + others * response if stage.sync_every else 0
    evaluations = examples / (stage.batch_size * stage.eval_every) + 2
    evaluated = evaluations * eval_examples * per_prompt
    return Work(examples * tokens, examples * (before + live) + evaluated * (tokens + before + live), examples)


def training_operations(size: Size, stage: Stage, checkpointing: bool, work: Work) -> float:
    """Floating-point operations: 2 for each parameter and token forward, 4 backward (2 where the weights are frozen,
    with LoRA), 2 for a forward pass that is run again."""
    passes = 1 + (1 if stage.lora else 2) + checkpointing
    return 2.0 * size.parameters * (passes * work.trained + work.scored)


def sampling_seconds(size: Size, device: Device, gpus: int, batch: int, responses: float, new_tokens: int) -> float:
    """Every response is taken to be as long as it may be; each step of a batch reads all weights once."""
    rounds = math.ceil(responses / batch)
    step = max(HALF * size.parameters / device.bandwidth, 2 * size.parameters * batch / device.bf16)
    return rounds * new_tokens * step / (DECODING * gpus)
