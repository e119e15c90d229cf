"""Made-up data and models: lengths as those of known datasets, words of one token each, weights drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from halos.data.feedback import Feedback

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ bos_token }} <user> {{ message.content }}"
    "{% else %} <assistant> {{ message.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)
AROUND_PROMPT, AROUND_RESPONSE = 3, 1
"""Tokens that the template adds: <s> <user> ... <assistant>, and </s>."""


@dataclass(frozen=True)
class Profile:
    """How long sequences are, in tokens, the template's included. Prompts and responses are log-normal.

    Attributes:
        total: median of prompt and response together.
        ratio: median prompt over median response.
        prompt_spread, response_spread: standard deviations of the logarithms.
        correlation: of the logarithms of the two responses to a prompt.
        batch: examples of a global batch, fewer where steps take long.
        max_prompt, max_total: no prompt, and no sequence, is longer.
    """

    name: str
    total: int
    ratio: float
    prompt_spread: float
    response_spread: float
    correlation: float
    batch: int
    max_prompt: int = 512
    max_total: int = 1024


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("hh", 186, 2.15, 0.9, 0.9, 0.3, batch=8),
        Profile("ultrafeedback", 409, 0.42, 1.0, 0.7, 0.5, batch=4),
        Profile("tldr", 416, 11.1, 0.45, 0.4, 0.3, batch=4),
    )
}


@dataclass(frozen=True)
class Model:
    """A transformers config, and how it is trained.

    Attributes:
        batch: examples of a global batch.
        lr: high enough for the losses of the first steps to move, and so to tell unequal work.
    """

    name: str
    config: dict[str, Any]
    batch: int
    lr: float = 1e-4


MODELS = {
    model.name: model
    for model in (
        Model(
            "llama",
            {"model_type": "llama", "vocab_size": 32_000, "hidden_size": 384, "intermediate_size": 1024,
             "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
             "max_position_embeddings": 2048, "tie_word_embeddings": True},
            batch=8,
        ),
        Model(  # the shape of SmolLM2-135M
            "smollm2",
            {"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
             "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "max_position_embeddings": 8192, "tie_word_embeddings": True,
             "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
            batch=2,
        ),
    )
}  # fmt: skip


def lengths(profile: Profile, prompts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prompts, (n,), and of two responses to each, (n, 2).

    Quantiles are drawn evenly and then shuffled, so that few prompts, too, have the profile's medians; a factor on all
    lengths puts the median of prompt and response together where the profile wants it (the sum of two medians is not
    the median of sums).
    """
    rng = np.random.default_rng([seed, profile.total])
    even = np.array([NormalDist().inv_cdf((i + 0.5) / prompts) for i in range(prompts)])
    z = np.stack([rng.permutation(even) for _ in range(4)])
    shared = np.sqrt(profile.correlation) * z[1]
    each = shared[:, None] + np.sqrt(1 - profile.correlation) * z[2:].T
    response = profile.total / (1 + profile.ratio)
    wanted = profile.ratio * response * np.exp(profile.prompt_spread * z[0])
    answers = response * np.exp(profile.response_spread * each)

    def scaled(factor: float) -> tuple[np.ndarray, np.ndarray]:
        p = np.clip(np.rint(factor * wanted), AROUND_PROMPT + 1, profile.max_prompt).astype(int)
        r = np.clip(np.rint(factor * answers), AROUND_RESPONSE + 1, (profile.max_total - p)[:, None]).astype(int)
        return p, r

    low, high = 0.2, 5.0
    for _ in range(40):
        factor = (low + high) / 2
        p, r = scaled(factor)
        low, high = (factor, high) if np.median(p[:, None] + r) < profile.total else (low, factor)
    return scaled(factor)


def records(profile: Profile, loss: str, count: int, vocabulary: int, seed: int) -> Iterator[Feedback]:
    """`count` prompts with a target (sft), with a pair (dpo), or with a desirable and an undesirable response (kto)."""
    prompts, responses = lengths(profile, count, seed)
    rng = np.random.default_rng([seed, 1])

    def text(tokens: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, vocabulary - len(SPECIAL), tokens))

    for prompt, (chosen, rejected) in zip(prompts, responses, strict=True):
        turns = [{"role": "user", "content": text(prompt - AROUND_PROMPT)}]
        texts = [text(chosen - AROUND_RESPONSE), text(rejected - AROUND_RESPONSE)]
        if loss == "sft":
            yield Feedback(turns, texts[:1], "made_up", target=0)
        elif loss == "kto":
            yield Feedback(turns, texts, "made_up", desirable=[True, False])
        else:
            yield Feedback(turns, texts, "made_up", pairs=[(0, 1)])


def make_model(model: Model, folder: Path, seed: int = 0) -> None:
    """Write random weights, and a tokenizer to which each word of `records` is one token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(model.config["vocab_size"] - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    settings = dict(model.config)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, **ids)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
