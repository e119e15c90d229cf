"""LoRA: what is adapted by default, by name, and beside the adapters; tied weights; frozen parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.models.lora import coverage, with_lora
from halos.models.policy import begin, freeze_parameters, save
from halos.registry import LOSSES
from tests.conftest import World
from tests.models.test_models import CSFT, DPO, LORA, moved, tied

IDS = torch.arange(20)[None]
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
FEW = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "moe_intermediate_size": 24, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": FEW,
    "qwen2_moe": {**FEW, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**FEW, "mlp_only_layers": [0]},
    "olmoe": FEW,
    "phimoe": FEW,
    "gpt_oss": {**FEW, "head_dim": 8},
    "granitemoe": FEW,
    "deepseek_v3": DEEPSEEK,
    "glm4_moe": {**DEEPSEEK, "head_dim": 8},
}


def made(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields})).eval()


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_adapted_with_dense_layers_and_shared_experts_beside_them(kind: str) -> None:
    """Whatever peft makes of their names; and merged they give what they gave."""
    model = made(kind, **MIXTURES[kind])
    adapted = with_lora(model, {**LORA, "dropout": 0.05})
    covered = coverage(adapted)
    left = [name for name in covered.others if not any(part in name for part in ("norm", "embed", "lm_head", "bias"))]
    assert [name for name in left if not any(part in name for part in ("router", "gate.weight", "sinks"))] == []
    assert covered.trained == sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    moved(adapted).train()(IDS).logits.sum().backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if p.requires_grad and "expert" not in n)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(IDS).logits
        torch.testing.assert_close(adapted.merge_and_unload()(IDS).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "left"), [("mamba", "out_proj"), ("falcon_mamba", "out_proj")])
def test_layers_that_peft_refuses_are_left_out_and_named(kind: str, left: str) -> None:
    adapted = with_lora(made(kind), LORA)
    assert any(left in name for name in coverage(adapted).others)
    assert f"{left}.weight" in coverage(adapted).text


ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
         "use_mamba_kernels": False, "mamba_d_state": 4, "n_mamba_heads": 2, "attention_head_dim": 16}  # fmt: skip


def test_layers_that_share_a_weight_are_left_out_or_refused(tmp_path: Path) -> None:
    """Adapters of each layer that repeats Zamba's block would all be merged into the one block."""
    adapted = with_lora(made("zamba", **ZAMBA), LORA)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("mamba.in_proj" in name for name in names)
    assert not any("shared_transf" in name for name in names)
    assert "model.layers.*.shared_transf.self_attn.q_proj.weight" in coverage(adapted).text
    moved(adapted).eval()
    with torch.no_grad():
        expected = adapted(IDS).logits
        adapted.merge_and_unload().save_pretrained(tmp_path)
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for settings in ({"target_modules": ("q_proj",)}, {"modules_to_save": ("o_proj",)}):
        with pytest.raises(HalosError, match=r"^lora: model\.layers\.1\..*_proj has its weight in common with another"):
            with_lora(made("zamba", **ZAMBA), {**LORA, **settings})


def test_a_name_needs_no_list(world: World) -> None:
    from halos.train.settings import Lora

    assert Lora(target_modules="q_proj").target_modules == ("q_proj",)  # type: ignore[arg-type]
    one, other = (with_lora(begin(world.base / "model", "sdpa", DPO, None)[0], {**LORA, "target_modules": names})
                  for names in (("q_proj",), ("self_attn.q_proj",)))  # fmt: skip
    names = {n.split(".lora_")[0].rpartition(".")[2] for n, p in one.named_parameters() if p.requires_grad}
    assert names == {"q_proj"}
    assert coverage(one) == coverage(other)


def test_no_layer_to_adapt_is_refused() -> None:
    from pydantic import ValidationError

    from halos.train.settings import Lora
    from halos.train.stage import Stage

    with pytest.raises(ValidationError, match="target_modules is empty: name the layers"):
        Lora(target_modules=())
    with pytest.raises(ValidationError, match="take out freeze"):
        Stage(loss="sft", lora=Lora(), freeze=("model.*",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ("q_porj",)}, r"lora\.target_modules: the model has no 'q_porj'; did you mean 'q_proj'\?"),
        ({"target_modules": ("q_proj", "zz")}, r"lora\.target_modules: the model has no 'zz'; there are .*o_proj"),
        ({"modules_to_save": ("embed_token",)}, r"modules_to_save: .*; did you mean 'embed_tokens'"),
        ({"target_parameters": ("experts.gate_up",)}, r"lora\.target_parameters: the model has no 'experts"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(settings: dict[str, Any], message: str, world: World) -> None:
    with pytest.raises(HalosError, match=message):
        begin(world.base / "model", "sdpa", DPO, {**LORA, **settings})


TIED: dict[str, dict[str, Any]] = {
    "adapted head": {"target_modules": ("lm_head",)},
    "adapted embeddings": {"target_modules": ("embed_tokens", "q_proj")},
    "saved embeddings": {"modules_to_save": ("embed_tokens",)},
    "saved head": {"modules_to_save": ("lm_head",)},
    "saved both": {"modules_to_save": ("embed_tokens", "lm_head")},
}


@pytest.mark.parametrize("case", TIED)
def test_tied_layers_that_are_adapted_are_published_apart(case: str, world: World, tmp_path: Path) -> None:
    base = tied(world, tmp_path / "tied")
    settings = {**LORA, **TIED[case]}
    model = moved(begin(base, "sdpa", DPO, settings)[0])
    with torch.no_grad():
        expected = model(IDS).logits
        save(model, model.state_dict(), base, tmp_path / "kept", merge=False)
        again = begin(base, "sdpa", DPO, {**settings, "path": str(tmp_path / "kept")})[0].eval()
        assert torch.equal(again(IDS).logits, expected)
        save(model, model.state_dict(), base, tmp_path / "model")
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not json.loads((tmp_path / "model/config.json").read_text())["tie_word_embeddings"]


def test_tied_layers_that_are_not_adapted_stay_tied(world: World, tmp_path: Path) -> None:
    model = begin(tied(world, tmp_path / "tied"), "sdpa", DPO, LORA)[0]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_new_tokens_cannot_be_in_an_adapted_layer(world: World) -> None:
    with pytest.raises(HalosError, match=r"^lora: the loss trains new tokens in model\.embed_tokens: take it out"):
        begin(world.base / "model", "sdpa", CSFT, {**LORA, "modules_to_save": ("embed_tokens",)})


# ---- frozen parts ----------------------------------------------------------------------------------------------


def test_frozen_parts_keep_their_weights(world: World) -> None:
    model = begin(world.base / "model", "sdpa", DPO, None, ["*.embed_tokens.*", "model.layers.0.*"])[0]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "embed_tokens" in n or n.startswith("model.layers.0.")}
    covered = coverage(model)
    assert covered.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "model.embed_tokens.weight" in covered.others
    assert {"model.layers.0.mlp.up_proj.weight"} == {name for name in covered.others if "up_proj" in name}
    every = begin(world.base / "model", "sdpa", DPO, None, ["model.layers.*"])[0]
    assert "model.layers.*.mlp.up_proj.weight" in coverage(every).others


def test_frozen_layers_that_follow_each_other_are_one_name() -> None:
    model = made("llama", num_hidden_layers=6)
    freeze_parameters(model, ["model.layers.[0124].*", "lm_head.*"])
    names = {name for name in coverage(model).others if "q_proj" in name or "head" in name}
    assert names == {"model.layers.0-2.self_attn.q_proj.weight", "model.layers.4.self_attn.q_proj.weight",
                     "lm_head.weight"}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "patterns", "message"),
    [
        (DPO, ["model.layer.*"], r"^freeze: 'model\.layer\.\*' matches no parameter; "),
        (DPO, ["*.layers.0.*", "embed_tokens"], r"^freeze: 'embed_tokens' matches no parameter; "),
        (DPO, ["*"], "^freeze: the patterns leave nothing to train"),
        (CSFT, ["*embed_tokens*"], "^freeze: the loss adds tokens, whose embeddings have to be trained"),
        (LOSSES["bradley_terry"](), ["*.embed_tokens", "score*"], "^freeze: '"),
    ],
)
def test_patterns_that_freeze_nothing_or_too_much_are_refused(
    loss: Any, patterns: list[str], message: str, world: World
) -> None:
    with pytest.raises(HalosError, match=message):
        begin(world.base / "model", "sdpa", loss, None, patterns)
