"""Memory that a job needs: of each GPU, by its largest step, and of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from halos.forward.logprobs import CHUNK, KEPT
from halos.losses.base import Loss
from halos.models.settings import Resources, Size
from halos.plan.devices import FLOAT, HALF, PROCESS
from halos.train.settings import Lora, Stage
from halos.views import View

LAYER = 1.5
"""What the layer that is computed backwards takes, by what it keeps: the gradients of its parts come on top."""


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

    from halos.train.optimizer import make_optimizer

    matrix = torch.nn.Linear(512, 512, bias=False)
    optimizer = make_optimizer(matrix, stage)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in state if value.numel() > 1) / matrix.weight.numel()


def longest_example(view: View, max_length: int, group: float) -> int:
    """Tokens of the longest example there may be, its prompt counted once: next to nothing."""
    return math.ceil(max_length * (max(1.0, group) if view.grouped else len(view.roles)))


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
    shared_prompts = {*loss.prepass} - {*loss.view.roles} and not several
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
