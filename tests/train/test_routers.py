"""The loss that balances the load of routers: transformers' own, over the global batch, however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from halos.errors import HalosError
from halos.forward import layout as layouts
from halos.forward.layout import Text
from halos.forward.microbatch import Microbatch
from halos.forward.networks import ResponseLogps
from halos.train.inputs import Inputs
from halos.train.routers import Routers, check_weight, token_counts
from halos.train.trainer import Trainer
from tests.conftest import World
from tests.train.runs import PLAIN, base_of, log, references

MIXTRAL = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "initializer_range": 0.5,
           "max_position_embeddings": 256}  # fmt: skip
ASKED = {"output_router_logits": True, "router_aux_loss_coef": 0.25}
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64,
         "num_key_value_heads": 2, "num_experts_per_tok": 2, "initializer_range": 0.5}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "olmoe": {"num_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 16},  # its attention has experts, too
    "jamba": {"num_experts": 4, "expert_layer_offset": 0, "attn_layer_offset": 0, "use_mamba_kernels": False},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
}


# ---- one batch -------------------------------------------------------------------------------------------------

IDS = np.arange(3, 60)
TEXTS = [Text(0, IDS[:6], IDS[10:14]), Text(1, IDS[20:23], IDS[30:39]), Text(0, IDS[:6], IDS[40:46])]


def batch(layout: layouts.Layout) -> Microbatch:
    count = len(layout.lengths)
    mask = torch.zeros(count * layout.width, dtype=torch.bool)
    mask[layout.slots] = True
    made = Microbatch(("response",), layout, mask.view(count, -1), None, torch.ones(count), int(layout.lengths.sum()))
    return made.to(torch.device("cpu"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_of_a_batch_is_the_classs_own_without_padding(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **FAMILIES[kind]})
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    network = ResponseLogps(model)
    padded = batch(layouts.padded(TEXTS))
    routers = Routers(network)
    _, load = routers.run(network, padded)
    assert load is not None
    columns = torch.arange(padded.layout.input_ids.shape[1])
    mask = (columns < torch.from_numpy(padded.layout.lengths)[:, None]).long()
    own = model(
        input_ids=padded.layout.input_ids, attention_mask=mask, output_router_logits=True, use_cache=False
    ).aux_loss
    assert float(load.loss()) == pytest.approx(float(own), rel=1e-5)
    assert load.metrics()["router/load_max"] > 1 > load.metrics()["router/load_min"]
    assert routers.weight == 0


def test_a_token_of_a_shared_prompt_counts_for_each_of_its_sequences() -> None:
    padded, packed = token_counts(layouts.padded(TEXTS)), token_counts(layouts.packed(TEXTS))
    assert padded.sum() == packed.sum() == sum(map(len, TEXTS))
    assert padded.tolist() == [*[1] * 10, *[0] * 2, *[1] * 12, *[1] * 12]
    assert packed.tolist() == [*[2] * 6, *[1] * 4, *[1] * 6, *[1] * 12]  # the shared prompt, its branches, the other


def test_a_filler_counts_nothing() -> None:
    torch.manual_seed(0)
    network = ResponseLogps(AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SIZES)))
    _, load = Routers(network).run(network, batch(layouts.padded(TEXTS)).emptied())
    assert load is not None
    assert float(load.tokens) == float(load.chosen.sum()) == float(load.probability.sum()) == 0


LLAMA = {**SIZES, "head_dim": 16}
DEEPSEEK = {**SIZES, "n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1,
            "moe_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        ("llama", LLAMA, "the model has no routers"),
        ("deepseek_v3", DEEPSEEK, "DeepseekV3ForCausalLM has no loss for its routers"),
        ("doge", {**SIZES, "num_experts": 16, "is_moe": True}, "a loss of its own form for its routers"),
    ],
)
def test_a_weight_for_a_model_without_such_a_loss_is_refused(kind: str, sizes: dict[str, Any], reason: str) -> None:
    network = ResponseLogps(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)))
    routers = Routers(network)
    assert check_weight(None, routers) == check_weight(0.0, routers) == 0
    with pytest.raises(HalosError, match=rf"^router_weight: .*{reason}.*; take it out$"):
        check_weight(0.01, routers)
    assert routers.run(network, batch(layouts.padded(TEXTS)))[1] is None


# ---- a global batch --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixtral(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of(world, tmp_path_factory.mktemp("mixtral"), {**MIXTRAL, **ASKED})


def setup(world: World, base: Path, output: Path, stage: str, **changes: Any) -> Trainer:
    config = world.slice(f"runs/d/m/{stage}/seed1", **changes)
    reference = references(world, base, config)
    return Trainer(Inputs.open(config, base, world.store, reference), output, 2048)


def sequences(trainer: Trainer) -> list[Tensor]:
    """All sequences that the first global batch trains on, one by one."""
    examples = trainer.examples
    responses = examples.responses(trainer.batches[0])
    rows = [row for role in trainer.loss.view.roles for row in examples.rows[role][responses]]
    return [torch.from_numpy(np.concatenate(examples.store.sequence(row)).astype(np.int64)) for row in rows]


def gradient(trainer: Trainer, weight: float) -> tuple[dict[str, float], dict[str, Tensor]]:
    object.__setattr__(trainer.objective, "router_weight", weight)
    trainer.policy.train().zero_grad()
    metrics, _ = trainer.objective(trainer._prepare(trainer.examples, trainer.batches[0]), backward=True)
    return metrics, {n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "exo", "bradley_terry", "lora"])
def test_the_gradient_is_that_of_the_classs_own_loss_over_the_global_batch(
    stage: str, world: World, mixtral: Path, tmp_path: Path
) -> None:
    changes = {"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}} if stage == "lora" else {}
    trainer = setup(world, mixtral, tmp_path / "run", stage, **changes)
    assert trainer.objective.router_weight == 0.25  # what the config asks for
    assert trainer.examples.packed
    _, alone = gradient(trainer, 0.0)
    found = {}
    for budget in (1, 250, 10**6):
        trainer.budget = budget
        found[True, budget] = gradient(trainer, 0.25)
    model = trainer.policy.model
    (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation("sdpa")
    trainer.examples.packed = False
    for budget in (1, 250):
        trainer.budget = budget
        found[False, budget] = gradient(trainer, 0.25)
    if stage == "bradley_terry":  # transformers' classifiers have no loss of routers
        language = AutoModelForCausalLM.from_pretrained(mixtral / "model")
        language.model = model.model
        model = language
    ids = sequences(trainer)
    mask = pad_sequence([torch.ones_like(x) for x in ids], True)
    trainer.policy.zero_grad()
    own = model(
        input_ids=pad_sequence(ids, True), attention_mask=mask, output_router_logits=True, use_cache=False
    ).aux_loss
    (0.25 * own).backward()
    parameters = dict(trainer.policy.named_parameters())
    expected = {n: g + (0 if parameters[n].grad is None else parameters[n].grad) for n, g in alone.items()}
    assert any(float((expected[n] - alone[n]).abs().max()) > 1e-4 for n in alone)
    for metrics, actual in found.values():
        assert metrics["router/loss"] == pytest.approx(float(own), rel=1e-5)
        assert metrics["router/load_max"] > 1 > metrics["router/load_min"]
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            largest = float(value.abs().max())
            torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=2e-5 * largest + 1e-8, msg=name)


def test_training_balances_the_load_and_the_log_shows_it(
    world: World, mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without gradient checkpointing, which runs each layer a second time, in the backward pass."""
    changes = {**PLAIN, "lr": 0.1, "examples": 48, "router_weight": 10.0}
    run = world.train(tmp_path / "run", "sft", parent=mixtral, changes=changes)
    assert "the loss that balances the experts' load has the weight 10" in capsys.readouterr().err
    again = world.train(tmp_path / "again", "sft", parent=mixtral, changes=changes, gradient_checkpointing=True)
    lines = log(run)
    losses = [line["router/loss"] for line in lines if line["split"] == "eval"]
    assert losses[-1] < losses[0]
    for one, other in zip(lines, log(again), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
