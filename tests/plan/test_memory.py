"""The planned memory of adapters and optimisers beside what torch, peft and bitsandbytes really take."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, AutoModelForCausalLM

from halos.forward.logprobs import token_logps
from halos.models.load import freeze, hold_in_compute_type
from halos.models.lora import with_lora
from halos.models.quantised import memory_of, quantise
from halos.models.settings import Resources
from halos.plan.memory import offloaded, optimizer_bytes, over_shards, reference_memory, training_memory
from halos.plan.problems import _changes
from halos.plan.sizes import counted_training, measured_size
from halos.train.average import Ema
from halos.train.averaged import Averaged
from halos.train.checkpoints import trained
from halos.train.optimizer import make_optimizer
from halos.train.settings import UNSHARDED, Lora
from halos.train.stage import Stage
from tests.plan.test_plan import SIZE, with_llama

TOKENS = 256
SMOLLM2: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 3,
    "num_key_value_heads": 1, "vocab_size": 1024, "tie_word_embeddings": True,
}  # fmt: skip
"""SmolLM2-135M at a sixth of its width: a fifth of its weights are embeddings, which are also the output layer."""

WIDE = {"hidden_size": 288, "intermediate_size": 768, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 3072}  # fmt: skip
"""Three times as wide, for what has a constant part."""


def smollm2(**changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **{**SMOLLM2, **changes}), dtype=torch.float32
    )


def adapted(model: Any, lora: Lora, precision: str, kind: str | None) -> Any:
    """The model as it is trained."""
    if kind is not None:
        quantise(model, kind)
    made = with_lora(model, lora.model_dump())
    hold_in_compute_type(made, precision)
    return made


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those that were there before, too.

    torch's own MemTracker hooks the inputs of modules, which fails for those without a gradient.
    """

    def __init__(self, before: int) -> None:
        super().__init__()
        self.now = self.most = before
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        for tensor in inputs:
            self.known.setdefault(tensor.untyped_storage(), True)  # weights and views of what is counted
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def peak(model: Any, precision: str, training: bool) -> int:
    """Bytes of tensors at the peak of a forward pass over TOKENS tokens, in training of its backward pass as well."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    with Peak(memory_of(model)) as found, torch.set_grad_enabled(training):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            logps = token_logps(hidden.flatten(0, 1), model.get_output_embeddings(), ids.flatten())
        if training:
            logps.sum().backward()
    return found.most


CASES: dict[str, tuple[Lora, str, str | None]] = {
    "lora": (Lora(r=2), "bf16", None),
    "lora in float32": (Lora(r=2), "fp32", None),
    "dora": (Lora(r=2, dora=True), "bf16", None),
    "nf4": (Lora(r=2), "bf16", "nf4"),
    "nf4 in float32": (Lora(r=2), "fp32", "nf4"),
    "int8": (Lora(r=2), "bf16", "int8"),
    "dora on nf4": (Lora(r=2, dora=True), "bf16", "nf4"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_adapters_and_what_is_below_them_are_as_large_as_planned(case: str) -> None:
    lora, precision, kind = CASES[case]
    model = smollm2()
    config = copy.deepcopy(model.config)
    made = adapted(model, lora, precision, kind)
    stage = Stage(loss="dpo", lora=lora)
    counted = counted_training(config, stage, precision, kind)
    known, estimated = (
        training_memory(measured_size(config), stage, precision, Resources(gpus=1), TOKENS, c, kind).weights
        for c in (counted, None)
    )
    assert known == pytest.approx(memory_of(made), rel=0.01)
    assert estimated == pytest.approx(memory_of(made), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_step_of_adapters_is_at_most_what_is_planned_and_not_far_from_it(
    case: str, checkpointing: bool
) -> None:
    lora, precision, kind = CASES[case]
    model = smollm2()
    config = copy.deepcopy(model.config)
    made = adapted(model, lora, precision, kind)
    if checkpointing:
        made.activation_checkpointing_enable({"use_reentrant": False})
    stage = Stage(loss="sft", optimizer="SGD", batch_size=1, lora=lora)
    found = peak(made.train(), precision, training=True)
    resources = Resources(gpus=1, tokens_per_microbatch=TOKENS, gradient_checkpointing=checkpointing)
    counted = counted_training(config, stage, precision, kind)
    planned = training_memory(measured_size(config), stage, precision, resources, TOKENS, counted, kind)
    assert 1.0 <= planned.total / found <= 1.7


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
def test_a_reference_pass_takes_at_most_what_is_planned(kind: str | None, precision: str) -> None:
    model = smollm2()
    size = measured_size(copy.deepcopy(model.config))
    if kind is not None:
        quantise(model, kind)
    freeze(model, precision)
    found = peak(model.eval(), precision, training=False)
    planned = reference_memory(size, precision, TOKENS, kind).total
    assert 1.0 <= planned / found <= 1.8


def test_lora_on_smollm2s_shape_holds_its_base_once_and_qlora_under_half_of_it() -> None:
    """Of the base in the compute type, 2 bytes a weight; adapters and norms, in float32, included."""
    model = smollm2(**WIDE)
    base = 2 * sum(p.numel() for p in model.parameters())
    held = [memory_of(adapted(copy.deepcopy(model), Lora(r=2), "bf16", kind)) for kind in (None, "nf4", "int8")]
    assert base < held[0] <= 1.15 * base
    assert held[1] <= 0.45 * base
    assert held[2] <= 0.7 * base


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_the_states_of_adamw_in_8_bits_are_a_quarter(name: str) -> None:
    made = []
    model = smollm2(**WIDE, num_hidden_layers=1)
    for optimizer in ("AdamW", name):
        net = copy.deepcopy(model)
        kind = make_optimizer(net, Stage(loss="sft", optimizer=optimizer))  # type: ignore[arg-type]
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind.step()
        state = [v for kept in kind.state.values() for v in kept.values() if isinstance(v, torch.Tensor)]
        made.append(sum(v.numel() * v.element_size() for v in {v.data_ptr(): v for v in state}.values()))
        weights = sum(p.numel() for p in net.parameters())
        assert made[-1] == pytest.approx(optimizer_bytes(Stage(loss="sft", optimizer=optimizer)) * weights, rel=0.01)  # type: ignore[arg-type]
    assert made[1] / made[0] == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("case", [None, "lora", "dora on nf4"])
def test_an_average_is_as_large_as_planned_and_its_updates_take_no_more(case: str | None) -> None:
    lora, precision, kind = CASES[case] if case else (None, "bf16", None)
    model = smollm2()
    config = copy.deepcopy(model.config)
    made = model if lora is None else adapted(model, lora, precision, kind)
    stage = Stage(loss="dpo", lora=lora, average=Ema(kind="ema"))
    with Peak(0) as found:
        averaged = Averaged(Ema(kind="ema"), partial(trained, made), steps=4)
        averaged.update(1)
        averaged.update(2)
    counted = counted_training(config, stage, precision, kind)
    size, resources = measured_size(config), Resources(gpus=1)
    for known in (counted, None):
        planned = training_memory(size, stage, precision, resources, TOKENS, known, kind)
        assert planned.average == pytest.approx(found.most, rel=0.01)
        without = training_memory(
            size, stage.model_copy(update={"average": None}), precision, resources, TOKENS, known, kind
        )
        assert planned.total - without.total == planned.average
    halves = training_memory(size, stage, precision, Resources(gpus=2, parallel="fsdp"), TOKENS, counted, kind)
    assert halves.average == pytest.approx(found.most / 2, rel=0.01)
    kept = offloaded(size, stage, counted) - offloaded(size, stage.model_copy(update={"average": None}), counted)
    assert kept == pytest.approx(found.most, rel=0.01)


def test_what_would_make_a_training_fit_is_named_with_what_it_takes() -> None:
    """Of a model of 30 billion weights on one GPU: in 8 bits, with adapters, on a base in 4 bits, or in main memory."""
    plan = with_llama(gpus=1)
    [job] = plan.trainings()
    resources = plan.config.models["llama-30b"].resources
    stage = plan.study.stage(job.cell).model_copy(update={"optimizer": "AdamW", "optimizer_args": {}})
    totals = {
        name: plan.training(job.cell, other, changed, kind).memory.total
        for name, other, changed, kind in _changes(resources, stage, plan.longest(job.cell, stage))
    }
    names = ["gradient_checkpointing", "optimizer: AdamW8bit", "lora in the stage",
             "quantization: nf4 in the model and lora in the stage"]  # fmt: skip
    wanted = [totals[name] for name in names]
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[2] / wanted[3] > 1.5
    [offloaded] = [total for name, total in totals.items() if "offload: true" in name]
    assert offloaded < wanted[1]
    sharded = [name for name, *_ in _changes(Resources(gpus=2, parallel="fsdp"), stage, 128)]
    assert not [name for name in sharded if "nf4" in name]
    assert "optimizer: AdamW8bit" in sharded


@pytest.mark.parametrize(
    ("changes", "quantization"),
    [({"lora": Lora()}, "nf4"), ({"optimizer": "Adafactor"}, None), ({"freeze": ("*norm*",)}, None)],
)
def test_nothing_is_named_that_is_refused_beside_the_settings_that_there_are(
    changes: dict[str, Any], quantization: str | None
) -> None:
    resources = Resources(gpus=1)
    stage = Stage(loss="sft", **changes)
    for _, other, changed, kind in _changes(resources, stage, 128, quantization):
        assert not (other.shards and (quantization or changed.optimizer in UNSHARDED))
        assert kind is None or (quantization is None and changed.lora is not None)
        Stage(**changed.model_dump())


def test_a_reference_pass_that_is_offloaded_has_no_weights_on_its_gpu() -> None:
    whole = reference_memory(SIZE, "bf16", 64)
    one, two = (
        over_shards(whole, SIZE, "bf16", Resources(gpus=gpus, parallel="fsdp", offload=offload))
        for gpus, offload in ((1, True), (2, False))
    )
    assert one == replace(two, weights=0)
    assert two.weights == whole.weights / 2
