"""A small model that brings code of its own: Llama's, with the hidden states turned round before the output layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIGURATION = """\
from transformers import LlamaConfig


class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODELING = """\
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_mine import MineConfig


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda module, inputs, output: -output)


class MineRewards(LlamaPreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.model.norm.register_forward_hook(lambda module, inputs, output: -output)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **options):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        places = torch.arange(input_ids.shape[1])
        last = ((input_ids != self.config.pad_token_id) * places).argmax(-1)
        return SequenceClassifierOutput(logits=self.score(hidden[torch.arange(len(hidden)), last]))
"""
AUTO_MAP = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
            "AutoModelForSequenceClassification": "modeling_mine.MineRewards"}  # fmt: skip


def with_code(base: Path, folder: Path, **auto_map: str | None) -> Path:
    """A copy of a Llama's folder that is of a type of its own, with code for it."""
    shutil.copytree(base, folder)
    (folder / "configuration_mine.py").write_text(CONFIGURATION)
    (folder / "modeling_mine.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    classes = {name: value for name, value in {**AUTO_MAP, **auto_map}.items() if value is not None}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
