"""Memory of jobs: of each GPU, in the largest step, and of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from halos.forward.logprobs import CHUNK, KEPT
from halos.losses.base import Loss
from halos.models.settings import Resources, Size
from halos.plan.devices import FLOAT, HALF, PROCESS
from halos.plan.sizes import NF4_BYTES, NF4_TABLES, Trained
from halos.train.settings import EIGHT_BIT, Lora
from halos.train.stage import Stage
from halos.views import View

LAYER = 1.5
"""Peak memory of a layer in its backward pass, relative to its kept activations: gradients come on top of them."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device in a job, in bytes.

    Attributes:
        weights: float32 master weights, or the weights in the type of a forward pass without training.
        copies: copies of the weights in the compute type.
        gradients: float32 gradients. In the backward pass of a single microbatch they grow while activations are
            freed, so that only the larger of the two counts.
        buffers: buffers of DDP or FSDP for gradients and weights.
        optimizer: state of the optimiser.
        reference: weights of a live reference.
        average: average of the trained weights.
        activations: activations kept for the backward pass, and those of the current layer; or keys and values.
        logits: chunks of the output layer.
        step: temporary memory of the optimiser's step, when activations are freed.
        several: whether a batch has several microbatches, so that gradients and activations exist at once.
    """

    weights: float = 0
    copies: float = 0
    gradients: float = 0
    buffers: float = 0
    optimizer: float = 0
    reference: float = 0
    average: float = 0
    activations: float = 0
    logits: float = 0
    step: float = 0
    several: bool = False

    @property
    def total(self) -> float:
        lasting = self.weights + self.optimizer + self.reference + self.average + self.buffers
        passing = self.copies + self.activations + self.logits
        backward = self.gradients + passing if self.several else max(self.gradients, passing)
        return lasting + max(backward, self.gradients + self.step)


def output_parameters(size: Size) -> int:
    """Number of parameters of the embedding and the output layer."""
    return size.vocab_size * size.hidden_size * (1 if size.tied else 2)


def layer_parameters(size: Size) -> float:
    """Number of parameters of one layer."""
    return (size.parameters - output_parameters(size)) / size.layers


def _matrices(size: Size) -> int:
    """Number of matrices of a feed-forward layer: 3 with a gate, else 2."""
    h = size.hidden_size
    attention = 2 * h * (h + (size.key_value_size or h))
    return 3 if (layer_parameters(size) - attention) / (h * size.intermediate_size) > 2.5 else 2


def value_head_parameters(size: Size, loss: Loss) -> int:
    """Number of parameters of the value head that a loss adds to the model."""
    h = size.hidden_size
    return 2 * (h * h + h) + h + 1 if loss.head == "value" else 0


def _widths(size: Size) -> tuple[int, int]:
    """Numbers that go into all matrices of a layer for a token, and that come out of them."""
    h, kv, i, wide = size.hidden_size, size.key_value_size or size.hidden_size, size.intermediate_size, _matrices(size)
    return (3 + wide) * h + i, 3 * h + 2 * kv + (wide - 1) * i


def kept_by_adapters(size: Size, lora: Lora, precision: str) -> float:
    """Bytes that the adapters of one layer keep for each token until its backward pass.

    A matrix below them keeps no inputs. They keep their own, as many as it would, with dropout its mask, and in float32
    a copy for each matrix of inputs that several have in common; and what is between their factors. DoRA keeps the
    outputs of the matrix and of its adapters. Counted beside these were 2 numbers of the hidden size.
    """
    (inputs, outputs), number = _widths(size), HALF if precision == "bf16" else FLOAT
    dropped = inputs + (FLOAT * _matrices(size) * size.hidden_size if precision == "fp32" else 0)
    between = number * ((4 + _matrices(size)) * lora.r + 2 * size.hidden_size)
    return (dropped if lora.dropout else 0) + between + (2 * number * outputs if lora.dora else 0)


def held(size: Size, precision: str, quantization: str | None, embedding: float) -> float:
    """Bytes of the weights of a model that is not trained.

    Args:
        size: the model's size.
        precision: compute type, in which linear layers are held.
        quantization: how the layers but the output layer are held instead: `nf4`, `int8` or None.
        embedding: bytes of a number of the embeddings.
    """
    ends, table = output_parameters(size), size.vocab_size * size.hidden_size
    number = HALF if precision == "bf16" else FLOAT
    inner = {"nf4": NF4_BYTES, "int8": 1.0, None: number}[quantization] * (size.parameters - ends)
    if quantization is not None:
        _, outputs = _widths(size)
        matrices = 4 + _matrices(size)
        inner += size.layers * (NF4_TABLES * matrices if quantization == "nf4" else 2 * FLOAT * outputs)
    return embedding * table + number * (ends - table) + inner


def estimated_training(
    size: Size, lora: Lora | None, precision: str = "fp32", quantization: str | None = None
) -> Trained:
    """What is trained of a model of which only the size is known: all of it, or adapters of all linear layers.

    Parts that are frozen, and experts with adapters of their own, are not known.
    """
    if lora is None:
        return Trained(0, size.parameters, 0)
    inputs, outputs = _widths(size)
    adapters = size.layers * (lora.r * (inputs + outputs) + (outputs if lora.dora else 0))
    number = HALF if precision == "bf16" else FLOAT
    return Trained(adapters, adapters, held(size, precision, quantization, embedding=number))


def kept_in_a_layer(size: Size, precision: str, sharded: bool) -> float:
    """Bytes that one layer keeps for each token until its backward pass.

    Counted with torch's saved-tensor hooks: of the hidden size, 40 bytes in float32, 34 under autocast, whose residual
    stream is float32, and 24 on bfloat16 weights; of each feed-forward matrix but the last, two numbers.
    """
    per_hidden = 40 if precision == "fp32" else 24 if sharded else 34
    wide = 2 * (_matrices(size) - 1) * (FLOAT if precision == "fp32" else HALF)
    return per_hidden * size.hidden_size + wide * size.intermediate_size


def activations(
    size: Size, precision: str, sharded: bool, checkpointing: bool, tokens: float, lora: Lora | None = None
) -> float:
    """Peak bytes of the activations of a microbatch, reached in the backward pass of the last layer."""
    layer, h = kept_in_a_layer(size, precision, sharded), size.hidden_size
    layer += 0 if lora is None else kept_by_adapters(size, lora, precision)
    stream = HALF if precision == "bf16" and sharded else FLOAT
    ends = 10 * h  # the embeddings, the last norm, and the states before responses
    kept = stream * h if checkpointing else layer
    return tokens * (size.layers * kept + (LAYER - (not checkpointing)) * layer + ends)


def optimizer_bytes(stage: Stage) -> float:
    """Bytes that the stage's optimiser keeps for each parameter, counted after one step on a matrix."""
    import torch

    from halos.train.optimizer import make_optimizer

    matrix = torch.nn.Linear(512, 512, bias=False)
    optimizer = make_optimizer(matrix, stage)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    bytes_of_all = sum(value.numel() * value.element_size() for value in state if value.numel() > 1)
    return bytes_of_all / matrix.weight.numel()


def longest_example(view: View, max_length: int, group: float) -> int:
    """Tokens of the longest possible example; its prompt is shared and taken to be short."""
    return math.ceil(max_length * (max(1.0, group) if view.grouped else len(view.roles)))


def accumulates(stage: Stage, budget: int, longest: int, world: int) -> bool:
    """Whether a process may need several microbatches for its part of a global batch."""
    return math.ceil(stage.batch_size / world) * longest > budget


def training_memory(
    size: Size,
    stage: Stage,
    precision: str,
    resources: Resources,
    longest: int,
    counted: Trained | None = None,
    quantization: str | None = None,
) -> Memory:
    """Peak memory of one device while a stage trains.

    Args:
        longest: tokens of the longest example.
        counted: what is trained of the model, where that is known, else it is estimated.
        quantization: how linear layers below LoRA are held: `nf4`, `int8` or None.
    """
    world = max(1, resources.gpus) * resources.nodes
    loss = stage.make_loss()
    sharded = resources.shards
    budget = max(resources.tokens_per_microbatch, longest)
    several = accumulates(stage, resources.tokens_per_microbatch, longest, world)
    tokens = min(budget, math.ceil(stage.batch_size / world) * longest)
    counted = counted or estimated_training(size, stage.lora, precision, quantization)
    head = value_head_parameters(size, loss)
    added, trained = counted.added + head, counted.trained + head
    compute = HALF if precision == "bf16" else FLOAT
    reduced = stage.lora is not None and not sharded
    copies = 0.0 if sharded or precision == "fp32" else HALF * (trained if reduced else size.parameters)
    matrix = size.hidden_size * max(size.intermediate_size, size.hidden_size)
    if quantization is not None:  # one matrix at a time is dequantised
        copies += (FLOAT + compute) * matrix
    if stage.lora is not None and stage.lora.dora:  # or multiplied out, for its norm
        copies += 3 * FLOAT * matrix
    buffers = FLOAT * trained if world > 1 and not sharded else 0.0  # DDP's buckets
    if sharded:  # two layers, and the ends of the model, are whole at a time; so are the gradients of one unit
        layer, ends = layer_parameters(size), output_parameters(size)
        buffers = compute * (2 * layer + ends) + (0 if stage.lora else (compute + FLOAT) * max(layer, ends))
        buffers += FLOAT * trained if several else 0  # gradients that wait for the last microbatch are whole
    live = size.parameters if sharded else counted.trained  # what is not trained is shared with the policy
    shared_prompts = {*loss.prepass} - {*loss.view.roles} and not several
    keys = 2 * compute * (size.key_value_size or size.hidden_size) * size.layers * tokens if shared_prompts else 0
    fused = stage.optimizer in ("Adam", "AdamW", *EIGHT_BIT) or sharded
    whole = counted.frozen + FLOAT * trained if reduced else FLOAT * (size.parameters + added)
    share = math.inf if resources.offload else world if sharded else 1  # offloaded, all shards are in main memory
    return Memory(
        weights=whole / share,
        copies=copies,
        gradients=FLOAT * trained / share,
        buffers=buffers,
        optimizer=optimizer_bytes(stage) * trained / share,
        reference=FLOAT * live / share if stage.sync_every else 0,
        average=FLOAT * trained / share if stage.average else 0,
        activations=activations(size, precision, sharded, resources.gradient_checkpointing, tokens, stage.lora) + keys,
        logits=_logits(size, tokens),
        step=0 if fused or not resources.gpus else FLOAT * trained,
        several=several,
    )


def _logits(size: Size, tokens: float) -> float:
    """Bytes of the output layer: kept chunks, the current chunk with its gradient, and both in the compute type."""
    return min((KEPT + 4) * CHUNK, (FLOAT + 2 * HALF) * tokens * size.vocab_size)


def reference_memory(size: Size, precision: str, tokens: float, quantization: str | None = None) -> Memory:
    """Peak memory of a process of a reference pass that holds all weights (with precision bf16 all but the embedding
    are bfloat16, or quantised): with them half of the activations that a layer would keep, and one chunk of the output
    layer."""
    at_work = kept_in_a_layer(size, precision, sharded=False) / 2 + 6 * size.hidden_size
    chunk = min(2 * CHUNK, (FLOAT + HALF) * tokens * size.vocab_size)
    weights = held(size, precision, quantization, embedding=FLOAT)
    return Memory(weights, activations=tokens * at_work, logits=chunk)


def over_shards(memory: Memory, size: Size, precision: str, resources: Resources) -> Memory:
    """The memory of a reference pass whose weights are sharded over processes, or kept in main memory: two layers, and
    the ends of the model, are whole at a time."""
    number = HALF if precision == "bf16" else FLOAT
    whole = number * (2 * layer_parameters(size) + output_parameters(size))
    share = math.inf if resources.offload else resources.gpus * resources.nodes
    return replace(memory, weights=memory.weights / share, buffers=whole)


def uses_vllm(resources: Resources) -> bool:
    """Whether sampling runs on vLLM."""
    return resources.sampler == "vllm" or (resources.sampler == "auto" and resources.gpus > 0)


def sampling_memory(size: Size, precision: str, resources: Resources, length: int) -> Memory:
    """Peak memory of one GPU while a model samples: weights, keys and values. vLLM runs as many responses at a time as
    fit, so that one has to; transformers holds a whole batch.

    Args:
        length: tokens of a prompt and its response.
    """
    number = HALF if precision == "bf16" and resources.gpus else FLOAT
    keys = 2 * number * size.layers * (size.key_value_size or size.hidden_size) * length
    batch, gpus = (1, resources.tensor_parallel) if uses_vllm(resources) else (resources.generate_batch, 1)
    at_work = number * length * (2 * size.intermediate_size + 4 * size.hidden_size) + FLOAT * batch * size.vocab_size
    return Memory(number * size.parameters / gpus, activations=batch * keys / gpus + at_work)


def offloaded(size: Size, stage: Stage, counted: Trained | None) -> float:
    """Bytes of all weights, their average, gradients and optimiser states of a stage, which `offload` keeps in main
    memory."""
    counted = counted or estimated_training(size, stage.lora)
    head = value_head_parameters(size, stage.make_loss())
    live = size.parameters if stage.sync_every else 0
    weights = size.parameters + counted.added + head + live
    of_trained = FLOAT + optimizer_bytes(stage) + (FLOAT if stage.average else 0)
    return FLOAT * weights + of_trained * (counted.trained + head)


def main_memory(size: Size, resources: Resources, device: Memory, adapted: bool = False, shards: float = 0) -> float:
    """Bytes of main memory on one node: each process reads all float32 weights before it moves them; sharded ones are
    read, and at the end gathered and loaded again, by the first process alone. Without GPUs, it holds everything else,
    too.

    Args:
        size: the model's size.
        resources: those of the job.
        device: memory of one device.
        adapted: whether adapters are trained, whose first process merges them into a fresh float32 model.
        shards: bytes of all shards that are kept in main memory, on all nodes.
    """
    processes = max(1, resources.gpus)
    copies = max(1 if resources.shards else processes, 1 + adapted)
    ends = 2 * FLOAT * size.parameters + (device.weights if adapted else 0)
    held = copies * FLOAT * size.parameters if resources.gpus else max(device.total, ends)
    return processes * PROCESS + held + shards / resources.nodes
