"""Checks of a model's config before anything is computed: known fields, a causal architecture, plain weights."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.files import read_json
from halos.pretrained import read_config, remote_classes
from halos.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


RESCALING = "rescale_every"
"""Field of a config by which a class (RWKV) divides weights in evaluation mode, for the range of float16. Training
leaves it out, so that weights are the same whenever they are saved or copied; the published config has it again."""
ROPE_FIELDS = ("rope_parameters", "rope_scaling")


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
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind is None:
        if model_type not in CONFIG_MAPPING:
            place = f"{where[:-1]}: " if where else ""
            raise HalosError(f"{place}unknown model_type {model_type!r}{suggest(model_type, CONFIG_MAPPING.keys())}")
        kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    known |= {name for name, _ in inspect.getmembers(kind, lambda member: isinstance(member, property))}
    for name, value in fields.items():
        is_known = name in known or name == "model_type" or _is_read(kind, name)
        if not is_known and _is_only_kept(kind, name, fields):
            public = {name for name in known if not name.startswith("_")}
            raise HalosError(f"{where}{name} is no field of {kind.__name__}{suggest(name, public)}")
        if name in ROPE_FIELDS and isinstance(value, dict):
            _check_rope(kind, value, f"{where}{name}.")
        part = kind.sub_configs.get(name)
        if part is not None and isinstance(value, dict):
            if "model_type" in value:
                nested, part = value["model_type"], None
            elif part is AutoConfig:  # of the type that the class takes by itself
                nested, part = "", type(getattr(kind(), name))
            else:
                nested = ""
            if part is None or dataclasses.is_dataclass(part):  # else the class has no such part by itself
                check_fields(nested, value, part, f"{where}{name}.")


def _is_read(kind: Any, name: str) -> bool:
    """Whether the code of a class of configs or of its models reads a field that the class does not list."""
    configs, models = _source(kind)
    word = re.escape(name)
    argument = rf"\w[(\[](?:[\w.]+,\s*)?[\"']{word}[\"']|[\"']{word}[\"'] in kwargs"  # of pop, getattr or [...]
    return bool(
        re.search(rf"{argument}|\bself\.{word}\b", configs) or re.search(rf"{argument}|config\.{word}\b", models)
    )


def _is_only_kept(kind: Any, name: str, fields: dict[str, Any]) -> bool:
    """Whether a class of configs does nothing with a field but keep it; some take fields by names that they compose.

    A field whose value the class refuses is one that it takes.
    """
    try:
        return name in vars(kind(**fields))
    except Exception:  # a class raises whatever it likes for values that it cannot take
        try:
            kind(**{other: value for other, value in fields.items() if other != name})
        except Exception:  # whether it is for this field cannot be told
            return True
        return False


def _check_rope(kind: Any, fields: dict[str, Any], where: str) -> None:
    """Refuse parameters of rotary positions that neither transformers' types of them nor the model's class read."""
    from transformers import modeling_rope_utils

    source = inspect.getsource(modeling_rope_utils) + "".join(_source(kind))
    words = set(re.findall(r"[\"'](\w+)[\"']", source))
    known = set(re.findall(r"[\"'](\w+)[\"']", inspect.getsource(modeling_rope_utils)))
    for name, value in fields.items():
        if name not in words:
            raise HalosError(f"{where}{name} is no field of rotary positions{suggest(name, known)}")
        if isinstance(value, dict):  # by the kind of layer
            _check_rope(kind, value, f"{where}{name}.")
        elif name in ("rope_type", "type") and str(value) not in words:
            kinds = modeling_rope_utils.ROPE_INIT_FUNCTIONS
            raise HalosError(f"{where}{name} {value!r} is no type of rotary positions{suggest(str(value), kinds)}")


@cache
def _source(kind: Any) -> tuple[str, str]:
    """The code of a class of configs and of what it inherits, and that of its models."""
    bases = (base for base in kind.__mro__ if base.__module__.startswith("transformers"))
    configs = "\n".join(inspect.getsource(sys.modules[base.__module__]) for base in bases)
    package, _, module = kind.__module__.rpartition(".")
    spec = find_spec(f"{package}.{module.replace('configuration_', 'modeling_', 1)}")
    return configs, Path(spec.origin).read_text() if spec is not None and spec.origin is not None else ""


def check_known(folder: Path, trusted: bool = False) -> None:
    """Check that transformers itself has the type of a folder's model, or that code for it comes with the model.

    Args:
        folder: the model's folder.
        trusted: whether code that comes with a model is run.

    Raises:
        HalosError: it has not.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if trusted:
        read_config(folder, trusted)
        return
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    if code := config.get("auto_map"):
        raise HalosError(
            f"the model in {folder} is of a type that transformers does not know ({model_type}) and brings code of "
            f"its own ({', '.join(sorted(map(str, code.values())))}), which is not run: set `trust_remote_code: true` "
            "in the model's entry if you have read and trust it, or choose a model of a type that transformers knows"
        )
    raise HalosError(
        f"the model in {folder} is of a type that transformers does not know ({model_type}); a newer transformers may"
    )


def language_class(config: PreTrainedConfig) -> Any:
    """The auto class of transformers that makes the whole language model of a config.

    For some types with a tower for pictures or sound, `AutoModelForCausalLM` makes nothing, or the text part alone.

    Raises:
        HalosError: there is none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    autos: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    own = remote_classes(config)
    for auto in autos:
        if auto.__name__ in own:
            return auto
        if type(config) in auto._model_mapping:
            kinds = auto._model_mapping[type(config)]
            kind = kinds[0] if isinstance(kinds, tuple) else kinds
            if kind.config_class is not config.sub_configs.get("text_config"):
                return auto
    raise HalosError(f"transformers has no causal language model of the type {config.model_type}; choose another")


def check_causal(config: PreTrainedConfig) -> None:
    """Check that a config is one of a causal language model.

    Raises:
        HalosError: it is an encoder, an encoder with a decoder, or of a type without a causal language model.
    """
    language_class(config)
    wanted = "choose a causal language model"
    if config.is_encoder_decoder:
        raise HalosError(f"{config.model_type} is an encoder with a decoder, and no causal language model; {wanted}")
    for name in ("is_decoder", "causal"):
        if getattr(config, name, None) is False:
            raise HalosError(
                f"{config.model_type} without {name}: true attends to tokens that follow, as encoders do; {wanted}"
            )


def check_attends_to_the_past(network: PreTrainedModel) -> None:
    """Check, on a few tokens, that a model's predictions do not depend on the tokens that follow.

    Raises:
        HalosError: they do, or the model does not read text alone.
    """
    import torch

    vocabulary = int(network.config.get_text_config().vocab_size)
    ids = torch.arange(3, 11)[None] % vocabulary
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 5) % vocabulary
    training, rescaling = network.training, getattr(network.config, RESCALING, None)
    if rescaling is not None:
        setattr(network.config, RESCALING, 0)
    network.eval()
    try:
        with torch.no_grad():
            first, second = (network(input_ids=x, use_cache=False).logits[0, :-1].float() for x in (ids, changed))
    except Exception as error:  # a class raises whatever it likes where it gets no picture
        why = " ".join(str(error).split())
        raise HalosError(f"{type(network).__name__} cannot read a few tokens of text alone ({why})") from error
    finally:
        network.train(training)
        if rescaling is not None:
            setattr(network.config, RESCALING, rescaling)
    if (first - second).abs().max() > 1e-3 * first.std():
        raise HalosError(
            f"{type(network).__name__} predicts tokens from those that follow; choose a causal language model"
        )


def check_reads_to_the_end(network: PreTrainedModel) -> None:
    """Check, on a few tokens, that a reward model's score depends on the last of them.

    Some classifiers read the first token, which sees no other in a causal model.

    Raises:
        HalosError: it does not, or the model does not score text alone.
    """
    import torch

    config = network.config.get_text_config()
    usable = [i for i in range(3, int(config.vocab_size)) if i != config.pad_token_id][:9]
    try:
        with torch.no_grad():
            first, second = (
                network(input_ids=torch.tensor([ids])).logits for ids in (usable[:8], usable[:7] + usable[8:])
            )
    except Exception as error:  # a class raises whatever it likes where it gets no picture
        why = " ".join(str(error).split())
        raise HalosError(f"{type(network).__name__} cannot score a few tokens of text ({why})") from error
    if torch.equal(first, second):
        raise HalosError(
            f"the score of {type(network).__name__} does not depend on the last token; choose another model for the "
            "reward model"
        )


def check_weights(folder: Path) -> None:
    """Check that a model folder's weights are not quantised. Only its config.json is read.

    Raises:
        HalosError: they are, so that they cannot be trained.
    """
    config = read_json(folder / "config.json")
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "some method") if isinstance(quantised, dict) else "some method"
        raise HalosError(
            f"the weights in {folder} are quantised ({method}), and cannot be trained: give the model that they were "
            "made from, or a copy with its weights in 16 or 32 bits"
        )


@cache
def classified_types() -> set[str]:
    """The types of models of which transformers has a sequence classifier, read from its source: importing it brings
    torch, which takes seconds."""
    [package] = find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
    source = Path(package, "models/auto/modeling_auto.py").read_text()
    table = re.search(r"^MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = (.*?)^\)", source, re.MULTILINE | re.DOTALL)
    assert table is not None, "transformers has its table of sequence classifiers elsewhere"
    return set(re.findall(r"^ *\(\"([^\"]+)\",", table[1], re.MULTILINE))


def check_classifier(model_type: str) -> None:
    """Check that transformers has a sequence classifier of a model's type, which a reward model is.

    Raises:
        HalosError: it has none.
    """
    if model_type not in classified_types():
        raise HalosError(
            f"transformers has no sequence classifier of the type {model_type}, so that no reward model can be made of "
            "it; choose another model for the reward model"
        )
