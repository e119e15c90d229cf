"""How large a model and a dataset are: as measured, as published in config.yaml, or unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.models.settings import Model, Size
from halos.study.catalogue import Config


@dataclass(frozen=True)
class Published:
    """A source's train split before it was read: pairs, prompts, and mean tokens.

    Attributes:
        origin: where the figures come from.
    """

    pairs: float
    prompts: float
    prompt: float
    response: float
    origin: str


PUBLISHED = {
    "toy": Published(3755, 2000, 16, 14, "what the source makes"),
    "shp": Published(81_000, 32_000, 250, 150, "SteamSHP's card: 125K train examples with ratio >= 2 and at most 5 "
                     "pairs a post, less HH's 43,835 helpful ones; posts and lengths are assumed"),
    "hh": Published(160_800, 160_800, 150, 70, "rows on the hub; lengths from its bytes, at 4.4 a token"),
    "hh_helpful": Published(43_835, 43_835, 150, 70, "rows on the hub; lengths as of hh"),
    "hh_harmless": Published(42_537, 42_537, 150, 70, "rows on the hub; lengths as of hh"),
    "oasst": Published(16_000, 8_000, 300, 250, "17,966 ranked prompts in all languages, 45 % of messages English, two "
                       "pairs of each assumed, and the lengths"),
    "ultrabin": Published(61_135, 61_135, 180, 230, "rows on the hub; lengths from the median of 409 tokens"),
}  # fmt: skip
UNKNOWN = Published(1000, 1000, 200, 200, "unknown: the plan is for 1000 examples")


@dataclass(frozen=True)
class Amount:
    """A dataset as a model reads it.

    Attributes:
        examples: view -> examples of train.
        prompts: of train.
        responses: distinct ones.
        prompt, response: mean tokens.
        origin: where the figures come from.
    """

    examples: Mapping[str, float]
    prompts: float
    responses: float
    prompt: float
    response: float
    origin: str

    @property
    def group(self) -> float:
        """Responses to a prompt."""
        return self.responses / max(self.prompts, 1)


def size_of(name: str, model: Model, results: Path) -> Size:
    """How large a model is: by its config where that is here or is the entry's own, else by its `size:`.

    Raises:
        HalosError: neither is there.
    """
    folders = [results / "models" / name / "model", *([Path(model.path)] if model.path else [])]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if found is None and model.architecture is None:
        if model.size is None:
            raise HalosError(f"models.{name}: there is nothing yet that says how large it is: give it a `size:`")
        return model.size
    from transformers import AutoConfig

    if found is not None:
        return measured_size(AutoConfig.from_pretrained(found))
    assert model.architecture is not None
    assert model.tokenizer is not None
    fields = dict(model.architecture)
    kind = fields.pop("model_type")
    return measured_size(AutoConfig.for_model(kind, **{"vocab_size": model.tokenizer.vocab_size, **fields}))


def measured_size(config: Any) -> Size:
    """The size of the model that a transformers config makes, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        key_value_size=text.hidden_size * (getattr(text, "num_key_value_heads", None) or heads) // heads,
        tied=bool(text.tie_word_embeddings),
    )


def amount_of(config: Config, dataset: str, model: str, results: Path) -> Amount:
    """How much there is to train on: by the reports of tokenize and prepare where they are, else as published."""
    tokens, data = results / "tokens" / dataset / model / "report.json", results / "data" / dataset / "report.json"
    if tokens.is_file():
        report = json.loads(tokens.read_text())
        prompt, response = (_mean(report["train"]["length_quantiles"][part]) for part in ("prompt", "response"))
        train = report["train"]
        return Amount(report["views"]["train"], train["records"], train["sequences"], prompt, response, str(tokens))
    sources = config.datasets[dataset].sources
    known = [PUBLISHED.get(source.name, UNKNOWN) for source in sources]
    limits = [source.options.get("limit") for source in sources]
    shares = [min(1.0, limit / k.prompts) if limit else 1.0 for k, limit in zip(known, limits, strict=True)]
    pairs, prompts = ([share * getattr(k, what) for k, share in zip(known, shares, strict=True)]
                      for what in ("pairs", "prompts"))  # fmt: skip
    weights = [n / sum(pairs) for n in pairs]
    prompt, response = (sum(w * getattr(k, what) for k, w in zip(known, weights, strict=True))
                        for what in ("prompt", "response"))  # fmt: skip
    origin = "; ".join(f"{source.name}: {k.origin}" for source, k in zip(sources, known, strict=True))
    if data.is_file():
        train = json.loads(data.read_text())["train"]
        views = {"sft": train["targets"], "paired": train["pairs"], "scored": train["responses"],
                 "unpaired": train["desirable"] + train["undesirable"], "grouped": train["rows_out"]}  # fmt: skip
        where = f"{data}; lengths: {origin}"
        return Amount(views, train["rows_out"], train["responses"], prompt, response, where)
    n, m = sum(pairs), sum(prompts)
    views = {"sft": m, "paired": n, "unpaired": 2 * n, "scored": 2 * n, "grouped": m}
    return Amount(views, m, 2 * n, prompt, response, origin)


def _mean(quantiles: Mapping[str, float]) -> float:
    """The mean of a quantity that is evenly spread between its quantiles."""
    points = sorted((float(share), value) for share, value in quantiles.items())
    return sum((high - low) * (a + b) / 2 for (low, a), (high, b) in pairwise(points))
