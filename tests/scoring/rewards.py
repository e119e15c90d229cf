"""Small reward models of the kinds that others publish, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

OBJECTIVES, WIDTH, TEMPERATURE = 5, 16, 3.0


def classifier(base: Path, folder: Path, labels: int, seed: int = 0) -> Path:
    """A classifier with random weights, and the tokenizer and chat template of a base model."""
    torch.manual_seed(seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
    nn.init.normal_(model.score.weight)
    shutil.copytree(base, folder, symlinks=False)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def armorm(base: Path, folder: Path, seed: int = 0) -> Path:
    """ArmoRM made small: the names, shapes and fields of the published RLHFlow/ArmoRM-Llama3-8B-v0.1."""
    classifier(base, folder, 1, seed)
    weights = load_file(folder / "model.safetensors")
    hidden = weights.pop("score.weight").shape[1]
    draw = torch.Generator().manual_seed(seed)
    sizes = [hidden, WIDTH, WIDTH, OBJECTIVES]
    weights |= {
        "regression_layer.weight": torch.randn(OBJECTIVES, hidden, generator=draw),
        "reward_transform_matrix": torch.eye(OBJECTIVES) - 0.1 * torch.rand(OBJECTIVES, OBJECTIVES, generator=draw),
        "gating.logit_scale": torch.tensor([1.7]),
        **{f"gating.layers.{n}.weight": torch.randn(sizes[n + 1], sizes[n], generator=draw) for n in range(3)},
        **{f"gating.layers.{n}.bias": torch.randn(sizes[n + 1], generator=draw) for n in range(3)},
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "num_objectives": OBJECTIVES,
        "max_position_embeddings": 1024,
        "gating_temperature": TEMPERATURE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_custom.py").write_text("raise RuntimeError('code that comes with a model was run')\n")
    return folder


def states(folder: Path, ids: list[int]) -> Tensor:
    """(T, H) last hidden states of one sequence."""
    from transformers import AutoConfig, LlamaModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    decoder = LlamaModel(config)
    weights = load_file(folder / "model.safetensors")
    decoder.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    with torch.no_grad():
        hidden: Tensor = decoder.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden
