"""Reward models that others publish score as their own code does: two labels, and ArmoRM's gate over objectives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from halos.data import feedback as F
from halos.errors import HalosError
from halos.models.rewards import check_reward_model
from halos.scoring.reward_model import RewardModel
from tests.conftest import World
from tests.models.test_models import made
from tests.scoring.rewards import TEMPERATURE, armorm, classifier, states

CLOSE: dict[str, Any] = {"rel": 0, "abs": 1e-5}


def conversation(*texts: str) -> list[F.Turn]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


PROMPTS = [conversation("Add 2 and 2."), conversation("Hello", "Hi.", "Name the ocean."), conversation("x " * 12)]
RESPONSES = ["It is 4.", "The Pacific, of course.", "no"]


@pytest.fixture(scope="module")
def base(world: World) -> Path:
    return world.base / "model"


def tokens(folder: Path, prompt: list[F.Turn], response: str) -> list[int]:
    """The ids of a whole conversation by the model's own template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [*prompt, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_an_encoder_scores_with_the_attention_that_its_entry_names(base: Path, tmp_path: Path) -> None:
    """It has no causal language model, whose class would tell what attention there is."""
    origin = tmp_path / "origin"
    shutil.copytree(base, origin, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    rows = len(AutoTokenizer.from_pretrained(base))
    config = DebertaV2Config(vocab_size=rows, num_labels=1, pad_token_id=0, max_position_embeddings=64, **size)
    DebertaV2ForSequenceClassification(config).save_pretrained(origin)
    folder = made(tmp_path, [], path=str(origin), attention="eager") / "model"
    [short, long] = RewardModel(folder, attention="eager").rewards(PROMPTS[:2], RESPONSES[:2])
    assert short != long


def test_of_two_labels_the_reward_is_the_second_logit_as_in_halos_or_the_difference(base: Path, tmp_path: Path) -> None:
    """HALOs, train/label.py, process_batch_with_reward_model: `reward_scores = outputs.logits[:, 1]`."""
    folder = classifier(base, tmp_path / "two", labels=2)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [
            network(input_ids=torch.tensor([tokens(folder, prompt, response)])).logits
            for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        ]
    halos = [of_one[:, 1].item() for of_one in logits]
    assert RewardModel(folder).rewards(PROMPTS, RESPONSES) == pytest.approx(halos, **CLOSE)
    differences = [float(of_one[0, 1] - of_one[0, 0]) for of_one in logits]
    assert RewardModel(folder, logit="difference").rewards(PROMPTS, RESPONSES) == pytest.approx(differences, **CLOSE)
    assert max(abs(a - b) for a, b in zip(halos, differences, strict=True)) > 0.1


def published_score(folder: Path, prompt: list[F.Turn], response: str) -> float:
    """ArmoRM's score of one sequence (RLHFlow/ArmoRM-Llama3-8B-v0.1, modeling_custom.py; HALOs reads its `score`).

    The rewards of the objectives are regression_layer(state of the last token) @ reward_transform_matrix. The state
    that the gate reads is that of the first token of the last `<|eot_id|><|start_header_id|>assistant<|end_header_id|>`
    of Llama 3, which is `<|end|><|assistant|>` here. Their sum is weighed by softmax(MLP(state) / temperature) * scale.
    """
    w = load_file(folder / "model.safetensors")
    ids = tokens(folder, prompt, response)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pattern = tokenizer.convert_tokens_to_ids(["<|end|>", "<|assistant|>"])
    start = max(j for j in range(len(ids)) if ids[j : j + 2] == pattern)
    hidden = states(folder, ids)
    gates = hidden[start]
    for n in range(3):
        gates = w[f"gating.layers.{n}.weight"] @ gates + w[f"gating.layers.{n}.bias"]
        gates = gates.relu() if n < 2 else gates
    gates = (gates / TEMPERATURE).softmax(0) * w["gating.logit_scale"]
    rewards = (w["regression_layer.weight"] @ hidden[-1]) @ w["reward_transform_matrix"]
    return float((gates * rewards).sum())


def test_armorm_weighs_its_objectives_by_the_prompt_and_its_own_code_is_not_run(base: Path, tmp_path: Path) -> None:
    folder = armorm(base, tmp_path / "armorm")
    expected = [published_score(folder, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    model = RewardModel(folder, tokens_per_microbatch=512)
    assert model.rewards(PROMPTS, RESPONSES) == pytest.approx(expected, **CLOSE)
    assert model.rewards(PROMPTS[:1], RESPONSES[:1]) == pytest.approx(expected[:1], **CLOSE)
    w = load_file(folder / "model.safetensors")
    save_file({**w, "gating.layers.2.bias": w["gating.layers.2.bias"].flip(0)}, folder / "model.safetensors")
    assert model.rewards(PROMPTS, RESPONSES) != pytest.approx(RewardModel(folder).rewards(PROMPTS, RESPONSES), **CLOSE)


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("gating.logit_scale", "its head is not that of ArmoRM .*gating.logit_scale"),
        ("model.layers.1.mlp.up_proj.weight", "are not all there: 1 are missing, such as layers.1.mlp.up_proj.weight"),
    ],
)
def test_weights_of_armorm_that_are_missing_are_named(left_out: str, says: str, base: Path, tmp_path: Path) -> None:
    folder = armorm(base, tmp_path / "armorm")
    weights = load_file(folder / "model.safetensors")
    del weights[left_out]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalosError, match=says):
        RewardModel(folder)


def test_a_head_of_another_kind_is_no_armorm(base: Path, tmp_path: Path) -> None:
    """QRM's, say, which has a normalisation between the layers of its gate."""
    folder = armorm(base, tmp_path / "armorm")
    weights = load_file(folder / "model.safetensors") | {"gating.layers.2.running_mean": torch.zeros(5)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalosError, match="its head is not that of ArmoRM"):
        RewardModel(folder)


def test_labels_of_no_known_meaning_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="is a classifier with 5 labels, of which none is known to be the reward"):
        check_reward_model(classifier(base, tmp_path / "five", labels=5))


def test_a_classifier_without_its_score_layer_is_refused(base: Path, tmp_path: Path) -> None:
    folder = classifier(base, tmp_path / "rm", labels=1)
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalosError, match=r"such as score\.weight, are missing"):
        RewardModel(folder)


def test_the_template_has_to_end_a_users_turn_where_armorm_reads_the_prompt(base: Path, tmp_path: Path) -> None:
    folder = armorm(base, tmp_path / "armorm")
    text = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:{% else %}"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(HalosError, match="does not end a user's turn with the token that ends a response"):
        RewardModel(folder)


def test_a_reward_model_of_armorms_kind_is_not_trained_further(base: Path, world: World, tmp_path: Path) -> None:
    from halos.models.load import load

    folder = armorm(base, tmp_path / "armorm")
    with pytest.raises(HalosError, match="of ArmoRM's kind, which scores but is not trained here"):
        load(folder, "auto", score=True)
    assert json.loads((folder / "config.json").read_text())["auto_map"]
