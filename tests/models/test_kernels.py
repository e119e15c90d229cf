"""Attention that needs a GPU: its names, prebuilt kernels by their commit, and refusals where it cannot be had."""

from __future__ import annotations

import copy
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AttentionInterface

from halos.errors import HalosError
from halos.forward.attention import counterpart, drops, is_flash
from halos.forward.grouping import Grouping
from halos.forward.networks import ResponseLogps
from halos.forward.packable import Trial
from halos.models.attention import ON_CPU, check_attention, check_here
from halos.models.download import download
from halos.models.load import load
from halos.models.settings import ATTENTIONS, Model, ModelIdentity
from halos.study import catalogue as C
from halos.study.paths import Paths
from halos.study.slices import config_slice
from halos.study.study import Study
from halos.train.dropout import Dropout
from halos.workflow.inputs import Inputs
from tests.conftest import CATALOGUE, World
from tests.forward.test_attention import RANDOM, alone, in_a_row, make, variable_length_attention

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KERNEL = f"kernels-community/flash-attn2@{COMMIT}"


def importable(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A package that is installed, as far as imports can tell."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as torch says so."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flash", "there is no attention 'flash': take one of auto, sdpa, eager, flash_attention_2, "),
        ("kernels-community/flash-attn2", "kernels-community/flash-attn2 is code of the hub: name the commit"),
        ("kernels-community/flash-attn2@main", "in full .40 digits."),
        (f"{KERNEL}:flash_attn_func", "is code of the hub: name the commit"),
    ],
)
def test_other_names_are_refused_by_those_that_there_are(name: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Model(hub="a/b", attention=name)


@pytest.mark.parametrize("name", [*ATTENTIONS, KERNEL])
def test_the_names_of_transformers_and_pinned_kernels_are_settings(name: str) -> None:
    assert Model(hub="a/b", attention=name).attention == name


def test_settings_that_are_off_are_not_in_the_config_of_a_cell() -> None:
    def of(**model: Any) -> dict[str, Any]:
        content = copy.deepcopy(CATALOGUE)
        content["models"]["m"] |= model
        return config_slice(C.load(content), "runs/d/m/sft/seed1")

    assert of() == of(liger=False, compile=False)
    assert of(liger=True) == {**of(), "liger": True}
    assert of(compile=True) == {**of(), "compile": True}


def test_a_class_has_flash_attention_and_kernels_of_it_or_neither(world: World, tmp_path: Path) -> None:
    for name in ("flash_attention_3", "flex_attention", KERNEL):
        check_attention(world.base / "model", name)
    make("bloom", n_embd=32, n_layer=2, n_head=4).save_pretrained(tmp_path)
    for name in ("flash_attention_3", "flex_attention", KERNEL):
        with pytest.raises(HalosError, match=f"attention {name}: BloomForCausalLM has eager; set `attention: auto`"):
            check_attention(tmp_path, name)


# ---- what is not here --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(name for name in ATTENTIONS if name not in ON_CPU), KERNEL])
def test_what_needs_a_gpu_is_refused_without_one(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(HalosError, match=f"^attention {name} needs a GPU, and there is none here: set `attention: a"):
        load(world.base / "model", name)


@pytest.mark.usefixtures("gpu")
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("flash_attn", "flash_attn_interface", "kernels"):
        monkeypatch.delitem(sys.modules, package, raising=False)
        monkeypatch.setattr(sys, "path", [])
    for name, package in (("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3")):
        with pytest.raises(HalosError, match=f"{name} is not installed here: install {package}, name a prebuilt kern"):
            check_here(name)
    with pytest.raises(HalosError, match="loaded by the package kernels, which is not installed here: install it"):
        check_here(KERNEL)


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_cannot_be_loaded_is_refused_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(repository: str, revision: str) -> Any:
        raise FileNotFoundError(f"Cannot find a local snapshot\nfor {repository} (revision: {revision}).")

    importable(monkeypatch, "kernels", get_kernel=missing)
    with pytest.raises(HalosError, match=f"{KERNEL} cannot be loaded .Cannot find a local snapshot for kernels-commu"):
        check_here(KERNEL)
    importable(monkeypatch, "kernels", get_kernel=lambda repository, revision: SimpleNamespace())
    with pytest.raises(HalosError, match="is no kernel of flash attention"):
        check_here(KERNEL)


# ---- kernels -----------------------------------------------------------------------------------------------------


def test_a_kernel_computes_packed_rows_as_flash_attention_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for its function, in the half precision that it is called in."""
    asked: list[tuple[str, str]] = []

    def get_kernel(repository: str, revision: str) -> Any:
        asked.append((repository, revision))
        return SimpleNamespace(flash_attn_varlen_func=variable_length_attention)

    importable(monkeypatch, "kernels", get_kernel=get_kernel)
    name = counterpart(KERNEL)
    assert asked == [("kernels-community/flash-attn2", COMMIT)]
    assert name is not None
    assert name in AttentionInterface().valid_keys()
    assert is_flash(name)
    assert is_flash(KERNEL)
    assert not any(map(is_flash, ("sdpa", "packed_sdpa", "eager", "flex_attention")))
    model = make("llama")
    with torch.no_grad():
        expected = torch.cat(alone(model, RANDOM["random 0"]))
        model.set_attn_implementation(name)
        found = torch.cat(in_a_row(model, RANDOM["random 0"]))
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.05  # of bfloat16, which nothing else here would make


@pytest.mark.parametrize("attention", ["flash_attention_2", KERNEL])
def test_processes_that_build_a_network_without_weights_take_the_same_counterpart(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the process that has tried it out with them."""
    monkeypatch.setattr("halos.forward.attention.varlen", lambda _: variable_length_attention)
    network = ResponseLogps(make("llama"))
    network.model.config._attn_implementation_internal = attention  # which is not installed here
    Trial(unpacked_because=None, grouping=Grouping(), head_is_plain=True).apply(network)
    assert network.model.config._attn_implementation == counterpart(attention)


def dropping(*tensors: Any, dropout_p: float = 0.0) -> Any:
    """What flash-attn 2 has and 3 has not: dropout."""


@pytest.mark.parametrize(
    ("kind", "fields"), [("llama", {"attention_dropout": 0.2}), ("gpt2", {"attn_pdrop": 0.2, "n_positions": 128})]
)
def test_dropout_that_an_attention_does_not_have_is_refused(
    kind: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    importable(monkeypatch, "flash_attn", flash_attn_varlen_func=dropping)
    importable(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=variable_length_attention)
    assert [drops(name) for name in ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")] == [
        True, True, True, False, False
    ]  # fmt: skip
    network = make(kind, **fields)
    dropout = Dropout(network, None)
    for name in ("flash_attention_3", "flex_attention"):
        with pytest.raises(HalosError, match=f"attention {name} has no dropout, and the model's attention has 0.2"):
            dropout.check_attention(name)
    for name in ("sdpa", "flash_attention_2"):
        dropout.check_attention(name)
    Dropout(network, 0.0).check_attention("flex_attention")


def test_a_kernel_is_fetched_with_its_model_and_its_commit_written_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    importable(monkeypatch, "kernels", install_kernel=lambda repository, **how: asked.append({"of": repository, **how}))
    fetched = download("m", ModelIdentity(path=str(world.base / "model"), attention=KERNEL))
    assert [(one["of"], one["revision"]) for one in asked] == [("kernels-community/flash-attn2", COMMIT)]
    assert fetched is not None
    assert fetched.model_dump(exclude_none=True) == {
        "kernel": {"hub": "kernels-community/flash-attn2", "revision": COMMIT, "commit": COMMIT}
    }

    def fails(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("Cannot find a build variant for this system")

    importable(monkeypatch, "kernels", install_kernel=fails)
    with pytest.raises(HalosError, match=r"models.m: cannot get the attention kernel .* a build variant for this sys"):
        download("m", ModelIdentity(path=str(world.base / "model"), attention=KERNEL))


def test_a_model_waits_for_the_fetch_of_its_kernel() -> None:
    wildcards = SimpleNamespace(model="m")

    def fetched(attention: str) -> list[str]:
        content = yaml.safe_load(yaml.safe_dump(CATALOGUE))
        content["models"]["m"]["attention"] = attention
        inputs = Inputs(Study(C.load(content), "g"), Paths(Path("r")))
        return [str(path) for path in inputs.fetched_model(wildcards)]

    assert fetched("flash_attention_2") == []
    assert fetched(KERNEL) == ["r/models/m/fetched.json"]
