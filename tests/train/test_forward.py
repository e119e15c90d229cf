"""Trainings of models whose forward pass is unlike Llama's, by the trainer itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from halos.errors import HalosError
from halos.forward.networks import ResponseLogps, states_size
from halos.forward.packable import enable_packing
from halos.reference.cache import Reference, expected_hashes
from halos.reference.compute import reference
from halos.tokens.store import Store
from halos.train.routers import Routers
from tests.conftest import World
from tests.forward.test_grouping import LONGROPE, batch_of, make, texts_of
from tests.train.runs import PLAIN, base_of, log, references, weights

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "word_embed_proj_dim": 16, "do_layer_norm_before": False, "max_position_embeddings": 256}  # fmt: skip
LLAMA4 = {**SIZES, "model_type": "llama4_text", "head_dim": 16, "intermediate_size_mlp": 32, "num_local_experts": 2,
          "num_experts_per_tok": 1, "max_position_embeddings": 256}  # fmt: skip
MODERNBERT = {**SIZES, "model_type": "modernbert-decoder", "max_position_embeddings": 256}
del MODERNBERT["num_key_value_heads"]
JETMOE = {**SIZES, "model_type": "jetmoe", "num_local_experts": 2, "kv_channels": 16, "max_position_embeddings": 256}
LONG = 40
"""Tokens above which positions are scaled otherwise: some of the sequences are longer."""


def scaled(**fields: Any) -> dict[str, Any]:
    rope = {**LONGROPE["rope_parameters"], "original_max_position_embeddings": LONG}
    return {**SIZES, "model_type": "phi3", "max_position_embeddings": 256, "original_max_position_embeddings": LONG,
            "rope_parameters": rope, **fields}  # fmt: skip


DYNAMIC = {**SIZES, "model_type": "llama", "max_position_embeddings": LONG,
           "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}  # fmt: skip


@pytest.mark.parametrize("architecture", [scaled(), DYNAMIC], ids=["longrope", "dynamic"])
def test_policy_and_reference_of_scaled_positions_are_those_of_plain_transformers(
    architecture: dict[str, Any], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, store = base_of(world, tmp_path / "base", architecture), Store(world.store)
    lengths = store.lengths.sum(-1)
    assert (lengths > LONG).any()
    assert (lengths <= LONG).any()
    config = world.slice("runs/d/m/dpo/seed1", examples=8)
    files = references(world, base, config)
    assert "scales rotary positions by the longest sequence of a batch above 40 tokens" in capsys.readouterr().err
    cached = Reference(files, expected_hashes(base, store))
    order = np.argsort(-lengths[: store.n_responses], kind="stable")
    for row in (order[0], order[-1], order[1], order[len(order) // 2]):
        model = AutoModelForCausalLM.from_pretrained(base / "model").eval()  # it has seen no other sequence
        prompt, response = store.sequence(row)
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.no_grad():
            logps = model(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logps.gather(1, ids[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(cached[row].copy()), expected, rtol=1e-4, atol=1e-4)
    runs = []
    for budget in (150, 10**5):
        run = world.train(tmp_path / str(budget), "dpo", parent=base, reference=files,
                          changes={**PLAIN, "examples": 16}, tokens_per_microbatch=budget)  # fmt: skip
        first = next(line for line in log(run) if line["split"] == "train")
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        runs.append(weights(run))
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("architecture", "plain"), [(OPT, True), (LLAMA4, False), (MODERNBERT, False)], ids=["opt", "llama4", "modernbert"]
)
def test_ppo_takes_the_states_that_the_output_layer_reads(
    architecture: dict[str, Any], plain: bool, world: World, tmp_path: Path
) -> None:
    """OPT 350M's are projected to its embeddings' width; Llama 4's and ModernBERT's `get_decoder` is no decoder."""
    base = base_of(world, tmp_path / "base", architecture)
    model = AutoModelForCausalLM.from_pretrained(base / "model")
    assert ResponseLogps(model).head_is_plain == plain
    assert states_size(model) == (16 if architecture is OPT else 32)
    files = references(world, base, world.slice("runs/d/m/ppo/seed1"))
    run = world.train(tmp_path / "run", "ppo", parent=base, reference=files, changes={"examples": 16})
    first = next(line for line in log(run) if line["split"] == "train")
    assert abs(first["kl"]) < 1e-5
    before, after = load_file(base / "model/model.safetensors"), weights(run)
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_gradient_checkpointing_that_a_class_lacks_is_said_and_training_goes_on(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of(world, tmp_path / "base", JETMOE)
    run = world.train(tmp_path / "run", "sft", parent=base, changes={"examples": 16}, gradient_checkpointing=True)
    assert "gradient_checkpointing is off: JetMoeForCausalLM has none" in capsys.readouterr().err
    assert (run / "manifest.json").exists()


REFORMER = {"model_type": "reformer", "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16,
            "feed_forward_size": 32, "axial_pos_embds": False, "is_decoder": True, "max_position_embeddings": 256,
            "attn_layers": ["local", "local"]}  # fmt: skip
PROPHETNET = {"model_type": "prophetnet", "hidden_size": 32, "decoder_ffn_dim": 32, "num_decoder_layers": 2,
              "num_decoder_attention_heads": 2, "max_position_embeddings": 256, "is_decoder": True,
              "is_encoder_decoder": False}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "stage", "why"),
    [
        (REFORMER, "sft", "ReformerModelWithLMHead cannot be run on token ids alone: If training, sequence length"),
        (PROPHETNET, "ppo", "the output layer of ProphetNetForCausalLM reads several states for each token"),
    ],
    ids=["reformer", "prophetnet"],
)
def test_a_model_that_cannot_be_trained_is_refused_before_training(
    architecture: dict[str, Any], stage: str, why: str, world: World, tmp_path: Path
) -> None:
    base = base_of(world, tmp_path / "base", architecture)
    files = references(world, base, world.slice(f"runs/d/m/{stage}/seed1"))
    with pytest.raises(HalosError, match=why) as error:
        world.train(tmp_path / "run", stage, parent=base, reference=files)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("*.json*"))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_base_of_weights_that_are_not_finite_has_no_reference(broken: float, world: World, tmp_path: Path) -> None:
    """Also in a single row of the embeddings, which no trial of the model needs to meet."""
    base = base_of(world, tmp_path / "base", {**SIZES, "model_type": "llama", "max_position_embeddings": 256})
    file, store = base / "model/model.safetensors", Store(world.store)
    tensors = load_file(file)
    prompt, _ = store.sequence(0)
    tensors["model.embed_tokens.weight"][int(max(prompt))] = broken
    save_file(tensors, file, metadata={"format": "pt"})
    output = tmp_path / "responses.safetensors"
    with pytest.raises(HalosError, match=r"weights are not finite \(model.embed_tokens.weight\); take others"):
        reference(world.slice("runs/d/m/sft/seed1"), base, world.store, "responses", output)
    assert not output.exists()


def test_the_load_of_experts_is_that_of_all_groups_together() -> None:
    """The router's own loss, over sequences that are run apart."""
    model, texts = make("longrope of experts"), texts_of()
    network = ResponseLogps(model).eval()
    assert enable_packing(network, max(map(len, texts))) is not None
    routers = Routers(network)
    batch = batch_of(texts)
    assert len(network.grouping.parts(batch.layout)) == 2
    _, load = routers.run(network, batch)
    assert load is not None
    chosen, probability = torch.zeros_like(load.chosen), torch.zeros_like(load.probability)
    for text in texts:
        _, alone = routers.run(network, batch_of([text]))
        assert alone is not None
        chosen, probability = chosen + alone.chosen, probability + alone.probability
    torch.testing.assert_close(load.chosen, chosen)
    torch.testing.assert_close(load.probability, probability)
    assert float(load.tokens) == 2 * sum(map(len, texts))
