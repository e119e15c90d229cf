"""Checks of a model's config before anything is computed: known fields, a causal architecture, plain weights."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_fields(model_type: str, fields: dict[str, Any], kind: Any = None, where: str = "") -> None:
    """Check that a class of configs knows some fields: transformers keeps those that it does not, and ignores them.

    Args:
        model_type: of the config.
        fields: its other fields, as a user wrote them.
        kind: class of the config; None for that of the model_type.
        where: dotted names of the fields that hold these.

    Raises:
        HalosError: there is no such type, or a field is neither of the class nor read by the code of its models.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind is None:
        if model_type not in CONFIG_MAPPING:
            raise HalosError(f"unknown model_type {model_type!r}{suggest(model_type, CONFIG_MAPPING.keys())}")
        kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    known |= {name for name, _ in inspect.getmembers(kind, lambda member: isinstance(member, property))}
    for name, value in fields.items():
        if name not in known and name != "model_type" and not re.search(rf"\b{re.escape(name)}\b", _source(kind)):
            raise HalosError(f"{where}{name} is no field of {kind.__name__}{suggest(name, known)}")
        part = kind.sub_configs.get(name)
        if part is not None and isinstance(value, dict):
            nested = value.get("model_type", getattr(part, "model_type", ""))
            check_fields(nested, value, None if nested in CONFIG_MAPPING else part, f"{where}{name}.")


@cache
def _source(kind: Any) -> str:
    """The code of a class of configs, of what it inherits and of its models: some read fields that it does not list."""
    bases = (base for base in kind.__mro__ if base.__module__.startswith("transformers"))
    texts = [inspect.getsource(sys.modules[base.__module__]) for base in bases]
    package, _, module = kind.__module__.rpartition(".")
    spec = find_spec(f"{package}.{module.replace('configuration_', 'modeling_', 1)}")
    if spec is not None and spec.origin is not None:
        texts.append(Path(spec.origin).read_text())
    return "\n".join(texts)


def check_type(model_type: str) -> None:
    """Check that transformers has a causal language model of a type.

    Raises:
        HalosError: it has none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise HalosError(f"transformers has no causal language model of the type {model_type}; choose another")


def check_causal(config: PreTrainedConfig) -> None:
    """Check that a config is one of a causal language model.

    Raises:
        HalosError: it is an encoder, an encoder with a decoder, or of a type without a causal language model.
    """
    check_type(config.model_type)
    wanted = "choose a causal language model"
    if config.is_encoder_decoder:
        raise HalosError(f"{config.model_type} is an encoder with a decoder, and no causal language model; {wanted}")
    if getattr(config, "is_decoder", None) is False:
        raise HalosError(
            f"{config.model_type} without is_decoder: true attends to tokens that follow, as encoders do; {wanted}"
        )


def check_attends_to_the_past(network: PreTrainedModel) -> None:
    """Check, on a few tokens, that a model's predictions do not depend on the tokens that follow.

    Raises:
        HalosError: they do.
    """
    import torch

    vocabulary = int(network.config.get_text_config().vocab_size)
    ids = torch.arange(3, 11)[None] % vocabulary
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 5) % vocabulary
    training = network.training
    network.eval()
    with torch.no_grad():
        first, second = (network(input_ids=x, use_cache=False).logits[0, :-1] for x in (ids, changed))
    network.train(training)
    if (first - second).abs().max() > 1e-3 * first.std():
        raise HalosError(
            f"{type(network).__name__} predicts tokens from those that follow; choose a causal language model"
        )


def check_weights(folder: Path) -> None:
    """Check that a model folder's weights are not quantised. Only its config.json is read.

    Raises:
        HalosError: they are, so that they cannot be trained.
    """
    config = json.loads((folder / "config.json").read_text())
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "some method") if isinstance(quantised, dict) else "some method"
        raise HalosError(
            f"the weights in {folder} are quantised ({method}), and cannot be trained: give the model that they were "
            "made from, or a copy with its weights in 16 or 32 bits"
        )


def check_classifier(config: PreTrainedConfig) -> None:
    """Check that transformers has a sequence classifier of a model's type, which a reward model is.

    Raises:
        HalosError: it has none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    if config.model_type not in CLASSIFIERS:
        raise HalosError(
            f"transformers has no sequence classifier of the type {config.model_type}, so that no reward model can be "
            "made of it; choose another model for the reward model"
        )
