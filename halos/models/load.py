"""Loading of a model folder as a language model or a reward model, and what its small files say of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.models.architectures import (
    check_attends_to_the_past,
    check_classifier,
    check_reads_to_the_end,
    check_weights,
    language_class,
)
from halos.models.attention import AUTO, ON_CPU, check_attention, check_here
from halos.models.download import ADAPTERS, check_not_pickled
from halos.models.rewards import CLASSIFIER, is_gated, is_reward_model
from halos.pretrained import read_config, remote_classes, trusts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or LoRA adapters that name their base model."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTERS))


def freeze(network: PreTrainedModel, precision: str) -> None:
    """Reduce the memory of a model that is not trained: no gradients and, with bf16, linear weights in bfloat16.

    Autocast rounds the inputs of matrix products in the same way, so outputs do not change. It would keep its bfloat16
    copies beside the float32 weights as long as those require gradients.

    Args:
        network: the model, changed in place.
        precision: `bf16` or `fp32`.
    """
    network.requires_grad_(False)
    if precision == "bf16":
        _round_linear(network)


def hold_in_compute_type(model: Any, precision: str) -> None:
    """Hold the frozen matrices of a model with adapters once, in the compute type.

    Norms and all that is trained stay float32.
    Linear layers give what they gave, see `freeze`. The embeddings are rounded to bfloat16, which changes those of a
    model whose weights were not bfloat16, and are float32 again behind their layer: the states between layers are as
    precise as they were.

    Args:
        model: the model within its adapters, changed in place.
        precision: `bf16` or `fp32`, with which nothing changes.
    """
    import torch
    from torch import nn

    if precision != "bf16":
        return
    embeddings = model.get_input_embeddings()
    if type(embeddings) is nn.Embedding and not embeddings.weight.requires_grad:  # of no class that scales, or adapted
        embeddings.to(torch.bfloat16)
        embeddings.register_forward_hook(_to_float32)
    _round_linear(model)


def _to_float32(module: Any, inputs: Any, output: Any) -> Any:
    return output.float()


def _round_linear(network: Any) -> None:
    """Round the weights of linear layers to bfloat16, but those that are trained, or embeddings in float32 as well."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    for module in network.modules():
        is_trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if type(module) in (nn.Linear, Conv1D) and id(module.weight) not in embeddings and not is_trained:
            module.to(torch.bfloat16)


def load(
    folder: Path,
    attention: str,
    score: bool = False,
    dtype: str = "float32",
    own_labels: bool = False,
    weights: bool = True,
    quantization: str | None = None,
) -> PreTrainedModel:
    """A language model or reward model, from safetensors only.

    Args:
        folder: the model's folder.
        attention: attention implementation; `auto` takes the best of the model's class, see `halos.models.attention`.
        score: load a sequence classifier with one label, a reward model; a language model gets a new score layer
            instead of its output layer.
        dtype: torch's name of the weights' type.
        own_labels: with `score`, keep the labels and the score layer of a finished reward model as they are.
        weights: whether its weights are read; if not, the model is on the meta device, and is not tried out.
        quantization: `nf4` or `int8`: linear layers are quantised once they are read, by `halos.models.quantised`.

    Raises:
        HalosError: the folder holds no such model, its weights are quantised or not all there, transformers has no
            classifier of its type, its class lacks the attention implementation or that cannot be computed here, it
            sees the tokens that follow, or it cannot be quantised.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no model in {folder} (no config.json); put one there or name another folder")
    if is_reward_model(folder) and not score:
        raise HalosError(f"the model in {folder} is a reward model, which has no log-probabilities")
    if score and is_gated(folder):
        raise HalosError(f"the reward model in {folder} is of ArmoRM's kind, which scores but is not trained here")
    check_weights(folder)
    config = read_config(folder)
    if score and not is_reward_model(folder) and CLASSIFIER not in remote_classes(config):
        check_classifier(config.model_type)
    check_attention(folder, attention, score)
    check_here(attention)
    check_not_pickled(folder)
    if not weights:
        return built(config, score, None if attention == AUTO else attention)
    options: dict[str, Any] = {}
    if score and config.num_labels != 1 and not own_labels:  # other labels: a new score layer, too
        options = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": None,
                   "ignore_mismatched_sizes": True}  # fmt: skip
    model: PreTrainedModel
    trusted = trusts(folder)
    try:
        model, report = (AutoModelForSequenceClassification if score else language_class(config)).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=None if attention == AUTO else attention,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trusted,
            **options,
        )
    except Exception as error:
        if not trusted and not isinstance(error, ImportError | RuntimeError | OSError | SafetensorError):
            raise  # code that comes with a model raises whatever it likes
        why = " ".join(str(error).split())
        kind = "reward model" if is_reward_model(folder) else "model"
        raise HalosError(f"cannot load the {kind} in {folder} ({why})") from error
    prefix = f"{model.base_model_prefix}."
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing := [key for key in missing if not score or own_labels or key.startswith(prefix)]:
        name, some = type(model).__name__, f"{len(missing)} weights, such as {missing[0]}"
        if score and not is_reward_model(folder):
            raise HalosError(f"{name} needs {some}, that no language model has; choose another for the reward model")
        raise HalosError(f"the weights in {folder} are not all those of {name}: {some}, are missing; give all of them")
    if attention in ON_CPU and dtype == "float32":  # the others need a GPU, and the model is not there yet
        if not score:
            check_attends_to_the_past(model)
        elif not is_reward_model(folder):
            check_reads_to_the_end(model)
    if quantization is not None:
        if find_spec("bitsandbytes") is None:
            raise HalosError(f"`quantization: {quantization}` needs bitsandbytes: pip install bitsandbytes")
        from halos.models.quantised import quantise

        quantise(model, quantization)
    return model


def built(config: Any, score: bool = False, attention: str | None = None) -> PreTrainedModel:
    """The float32 model of a transformers config, without memory for its weights: it is on the meta device.

    Args:
        config: the config.
        score: make a reward model of it, a sequence classifier with one label.
        attention: attention implementation; None for the best of the model's class.

    Raises:
        HalosError: transformers has no such model of its type.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    own = remote_classes(config)
    auto = AutoModelForSequenceClassification if score else language_class(config)
    if score:
        if CLASSIFIER not in own:
            check_classifier(config.model_type)
        config.num_labels = 1
    options = {"dtype": torch.float32, "attn_implementation": attention, "trust_remote_code": bool(own)}
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, **options).eval()
    return model


def check_ids(folder: Path, tokenizer: Any, generation: GenerationConfig) -> None:
    """Check that every token id that can come up has a row of embeddings, before anything is trained or sampled.

    Args:
        folder: the model's, for its config.
        tokenizer: its tokenizer, with a padding token if it has any.
        generation: what generation ends and pads with.

    Raises:
        HalosError: an id is beyond the embeddings, or there is no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise HalosError("the tokenizer has neither a padding nor an eos token; set pad_token in its files")
    rows = read_config(folder).get_text_config().vocab_size
    ends = generation.eos_token_id
    ids = {
        "the padding token": tokenizer.pad_token_id,
        "the eos token": tokenizer.eos_token_id,
        "the last token of the tokenizer": max(tokenizer.get_vocab().values()),
        "an end token of generation_config.json": max(ends if isinstance(ends, list) else [ends or 0]),
    }
    for name, id in ids.items():
        if id is not None and id >= rows:
            token = tokenizer.convert_ids_to_tokens(id) if id < len(tokenizer) else None
            shown = f" {token!r}" if token else ""
            raise HalosError(
                f"{name}{shown} has the id {id}, and the embeddings have {rows} rows (ids up to {rows - 1}): set "
                "another in the tokenizer's files, or resize the embeddings to the tokenizer"
            )
