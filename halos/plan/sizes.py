"""Sizes of models and datasets: as measured, as published, or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from halos.data.report import DataReport
from halos.data.settings import Source
from halos.errors import HalosError
from halos.models.load import built, hold_in_compute_type
from halos.models.lora import quantisable, with_lora
from halos.models.policy import freeze_parameters
from halos.models.settings import Model, Size
from halos.plan.devices import FLOAT
from halos.pretrained import check_code, read_config
from halos.study.catalogue import Config
from halos.study.paths import Paths
from halos.study.sampled import SOURCE as SAMPLED
from halos.study.sampled import Sampling
from halos.tokens.report import TokensReport
from halos.train.stage import Stage


@dataclass(frozen=True)
class Published:
    """Published size of a source's train split.

    Attributes:
        prompt, response: mean tokens.
        origin: where the figures come from.
        responses: those of all prompts; None for two of each pair.
    """

    pairs: float
    prompts: float
    prompt: float
    response: float
    origin: str
    responses: float | None = None

    @property
    def answers(self) -> float:
        """The number of responses."""
        return 2 * self.pairs if self.responses is None else self.responses


PUBLISHED = {
    "toy": Published(3530, 2000, 16, 14, "counts of the generated rows"),
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


def _sampled(config: Config, source: Source) -> Published:
    """Size of what is sampled for a source, before it is."""
    name = Sampling.of(source.options).of_split("train")
    prompts = config.prompts[name]
    n, longest = prompts.limit or UNKNOWN.prompts, min(UNKNOWN.response, prompts.max_new_tokens)
    origin = f"the prompt set {name}, a pair of each prompt" + ("" if prompts.limit else f", for {n:g} of its prompts")
    return Published(n, n, UNKNOWN.prompt, longest, origin, n * prompts.samples)


@dataclass(frozen=True)
class Amount:
    """Size of a dataset's train split, as a model reads it.

    Attributes:
        examples: view -> number of examples.
        prompts: number of prompts.
        responses: number of distinct responses.
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
        """Mean number of responses to a prompt."""
        return self.responses / max(self.prompts, 1)


def config_of(name: str, model: Model, results: Path) -> Any | None:
    """The transformers config of a model, if it is on disk or in the entry; None before it is downloaded."""
    folders = [Paths(results).model(name).model, *([Path(model.path)] if model.path else [])]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder is None and model.architecture is None:
        return None
    if folder is not None:
        if model.trust_remote_code:
            check_code(folder)
        return read_config(folder, model.trust_remote_code)
    from transformers import AutoConfig

    assert model.architecture is not None
    assert model.tokenizer is not None
    fields = dict(model.architecture)
    kind = fields.pop("model_type")
    vocabulary = {} if model.tokenizer.train_on is None else {"vocab_size": model.tokenizer.vocab_size}
    return AutoConfig.for_model(kind, **{**vocabulary, **fields})


def size_of(name: str, model: Model, results: Path) -> Size:
    """Size of a model: from its transformers config if that is on disk or in the entry, else from the entry's `size:`.

    Raises:
        HalosError: none of them is given.
    """
    config = config_of(name, model, results)
    if config is not None:
        return measured_size(config)
    if model.size is None:
        raise HalosError(f"models.{name}: its size is unknown before it is downloaded: give it a `size:`")
    return model.size


def measured_size(config: Any) -> Size:
    """Size of the model that a transformers config describes, built without memory for its weights."""

    model = built(config)
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


class Trained(NamedTuple):
    """What a stage trains of a model.

    Attributes:
        added: number of weights that it adds to the model (adapters, whole copies of layers).
        trained: number of weights that it trains.
        frozen: bytes of the weights that it does not train, on a device that holds them all.
    """

    added: float
    trained: float
    frozen: float


NF4_BYTES = 1 / 2 + 1 / 64 + FLOAT / (64 * 256)
"""Bytes of a weight in nf4: 4 bits, for each block of 64 a scale of 8 bits, and for 256 of these one of 32."""

NF4_TABLES = FLOAT * (16 + 256 + 1)
"""Bytes of the tables of a matrix in nf4: its values, those of its scales, and the scales' mean."""


def quantised_bytes(quantization: str, rows: int, columns: int) -> float:
    """Bytes of a quantised matrix of so many outputs and inputs, with its scales and tables."""
    return NF4_BYTES * rows * columns + NF4_TABLES if quantization == "nf4" else rows * columns + 2 * FLOAT * rows


def counted_training(config: Any, stage: Stage, precision: str = "fp32", quantization: str | None = None) -> Trained:
    """What a stage trains of the model that a transformers config describes, built without memory for its weights.

    Args:
        config: the config.
        stage: the stage.
        precision: compute type, in which weights below LoRA are held.
        quantization: how linear layers below LoRA are held: `nf4`, `int8` or None.

    Raises:
        HalosError: the model has no layer or weight of a name in `lora` or `freeze`, or cannot be a reward model.
    """
    import torch

    scores = stage.make_loss().head == "score"
    packed: dict[int, float] = {}
    with torch.device("meta"):
        model = built(config, scores)
        before = sum(p.numel() for p in model.parameters())
        if quantization is not None:
            layers: list[Any] = [model.get_submodule(name) for name in quantisable(model)]
            packed = {id(layer.weight): quantised_bytes(quantization, *layer.weight.shape) for layer in layers}
        if stage.lora is not None:
            model = with_lora(model, {**stage.lora.model_dump(), "path": None}, scores)
            hold_in_compute_type(model, precision)
        freeze_parameters(model, stage.freeze)
    weights = list(model.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(packed.get(id(p), p.numel() * p.element_size()) for p in weights if not p.requires_grad)
    return Trained(sum(p.numel() for p in weights) - before, trained, frozen)


def amount_of(config: Config, dataset: str, model: str, results: Path) -> Amount:
    """Size of a dataset: from the report of its store, else of its records, else as published for its sources."""
    tokens, data = Paths(results).store(dataset, model).report, Paths(results).data(dataset).report
    if tokens.is_file():
        report = TokensReport.read(tokens)
        lengths, split = report.train.length_quantiles, report.train
        prompt, response = _mean(lengths.prompt), _mean(lengths.response)
        return Amount(report.views["train"], split.records, split.sequences, prompt, response, str(tokens))
    sources = config.datasets[dataset].sources
    known = [
        _sampled(config, source) if source.name == SAMPLED else PUBLISHED.get(source.name, UNKNOWN)
        for source in sources
    ]
    limits = [source.options.get("limit") for source in sources]
    shares = [min(1.0, limit / k.prompts) if limit else 1.0 for k, limit in zip(known, limits, strict=True)]
    pairs, prompts, answers = ([share * getattr(k, what) for k, share in zip(known, shares, strict=True)]
                               for what in ("pairs", "prompts", "answers"))  # fmt: skip
    weights = [n / sum(pairs) for n in pairs]
    prompt, response = (sum(w * getattr(k, what) for k, w in zip(known, weights, strict=True))
                        for what in ("prompt", "response"))  # fmt: skip
    origin = "; ".join(f"{source.name}: {k.origin}" for source, k in zip(sources, known, strict=True))
    if data.is_file():
        train = DataReport.read(data).train
        views = {"sft": train.targets, "paired": train.pairs, "scored": train.responses,
                 "unpaired": train.desirable + train.undesirable, "grouped": train.rows_out}  # fmt: skip
        return Amount(views, train.rows_out, train.responses, prompt, response, f"{data}; lengths: {origin}")
    n, m, responses = sum(pairs), sum(prompts), sum(answers)
    views = {"sft": m, "paired": n, "unpaired": 2 * n, "scored": responses, "grouped": m}
    return Amount(views, m, responses, prompt, response, origin)


def _mean(quantiles: Mapping[str, float]) -> float:
    """Mean of a quantity that is uniform between its quantiles."""
    points = sorted((float(share), value) for share, value in quantiles.items())
    return sum((high - low) * (a + b) / 2 for (low, a), (high, b) in pairwise(points))
