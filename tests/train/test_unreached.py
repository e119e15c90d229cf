"""Parameters that no text reaches: found, frozen beside the language model, and looked for by DDP within it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from halos.forward.networks import ResponseLogps
from halos.models.policy import with_lora
from halos.train.unreached import settle_unreached, unreached
from tests.conftest import World
from tests.train.architectures import ARCHITECTURES, SIZES
from tests.train.runs import base_of, weights

LORA = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
LLAMA = {**SIZES, "intermediate_size": 32}


def network(kind: str, lora: bool = False) -> ResponseLogps:
    config = AutoConfig.for_model(kind, **(ARCHITECTURES | {"llama": LLAMA})[kind])
    model: Any = AutoModelForCausalLM.from_config(config)
    return ResponseLogps(with_lora(model, LORA) if lora else model)


def unlabelled(names: list[str] | None) -> set[str]:
    """The modules of parameters, by the last two parts of their names."""
    assert names is not None
    parts = [name.split(".") for name in names]
    return {".".join(p[-5:-3] if "lora_" in p[-3] else p[-2:]) for p in parts}


@pytest.mark.parametrize(
    ("kind", "lora", "names"),
    [
        ("llama", False, set()),
        ("llama", True, set()),
        ("mixtral", False, set()),
        ("jamba", False, set()),
        ("jamba", True, {"mamba.dt_proj"}),  # its weight is read past the adapter
        ("gemma3n_text", True, {"altup.correction_coefs"}),  # likewise, in training alone
    ],
)
def test_what_no_output_depends_on_is_found(kind: str, lora: bool, names: set[str]) -> None:
    made = network(kind, lora).eval()
    model: Any = made.model.get_base_model() if lora else made.model
    attention = model.config._attn_implementation
    assert unlabelled(unreached(made, model)) == names
    assert not made.training
    assert model.config._attn_implementation == attention
    assert all(parameter.grad is None for parameter in made.parameters())


def test_it_is_what_gets_no_gradient() -> None:
    made = network("gemma3")
    left = unreached(made, made.model)
    assert left
    ids = torch.arange(3, 43)[None]
    made.model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert left == [name for name, parameter in made.named_parameters() if parameter.grad is None]


def processes(number: int) -> Any:
    return SimpleNamespace(num_processes=number, is_fsdp2=False, ddp_handler=None)


@pytest.mark.parametrize(
    ("kind", "lora", "drops_layers", "looks"),
    [
        ("llama", False, False, False),
        ("llama", False, True, True),
        ("gemma3", False, False, False),  # what is not reached is frozen
        ("gemma3", True, False, False),
        ("jamba", True, False, True),
    ],
)
def test_processes_look_for_what_is_not_reached_where_they_must(
    kind: str, lora: bool, drops_layers: bool, looks: bool
) -> None:
    two, one = processes(2), processes(1)
    settle_unreached(network(kind, lora), two, drops_layers)
    settle_unreached(network(kind, lora), one, drops_layers)
    assert one.ddp_handler is None
    assert (two.ddp_handler is not None and two.ddp_handler.find_unused_parameters) == looks


def test_a_model_that_cannot_be_tried_is_trained_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels that need a GPU are, on the CPU: then processes look for what is not reached."""
    made, two = network("llama"), processes(2)

    def forward(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA kernel")

    monkeypatch.setattr(made.model.get_decoder(), "forward", forward)
    assert settle_unreached(made, two) is None
    assert two.ddp_handler.find_unused_parameters
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_text_alone_trains_the_language_model_of_a_multimodal_one(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of(world, tmp_path / "base", {"model_type": "gemma3", **ARCHITECTURES["gemma3"]})
    run = world.train(tmp_path / "run", "sft", parent=base, changes={"examples": 16})
    before, after = load_file(base / "model/model.safetensors"), weights(run)
    tower = sum(value.numel() for name, value in before.items() if not name.startswith("language_model"))
    assert f"text reaches all but {tower:,} of " in capsys.readouterr().err
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"language_model"}
