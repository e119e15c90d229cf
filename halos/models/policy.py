"""The model that a training starts from (with control tokens, LoRA or a reward model's head), and how it is saved."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.files import read_json, whole
from halos.losses.base import Loss
from halos.models.architectures import RESCALING, check_causal
from halos.models.load import load
from halos.models.lora import with_lora
from halos.models.settings import Precision
from halos.pretrained import read_tokenizer
from halos.registry import suggest
from halos.tokens.chat import dated, one_template
from halos.tokens.template import Template

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


REFUSED = "refused"
"""Name of the folder, beside that of the model, in which a model is left that is not published."""


def begin(
    parent: Path,
    attention: str,
    loss: Loss,
    lora: dict[str, Any] | None,
    freeze: Sequence[str] = (),
    weights: bool = True,
    quantization: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase | None, dict[str, int]]:
    """The policy or reward model that a training starts from.

    Args:
        parent: the parent's model folder.
        attention: attention implementation.
        loss: its traits say whether the model scores sequences, and which control tokens precede responses.
        lora: settings of LoRA, or None to train all weights.
        freeze: patterns of the names of parameters that are not trained.
        weights: whether weights are read; if not, the model is on the meta device.
        quantization: how the linear layers below LoRA are held: `nf4`, `int8` or None.

    Returns:
        The model; its tokenizer, or None if it is the parent's unchanged; role -> id of the control token that
        precedes the role's responses.

    Raises:
        HalosError: the folder holds no such model or adapters, a reward model would have no padding token, or there is
            no layer of a name that `lora` or `freeze` gives.
    """
    if quantization is not None and lora is None:
        raise HalosError(f"a model with `quantization: {quantization}` is trained by adapters alone: give the stage "
                         "`lora: {}`, or take `quantization` out of the model's entry")  # fmt: skip
    model: Any = load(parent, attention, score=loss.head == "score", weights=weights, quantization=quantization)
    check_causal(model.config)
    if hasattr(model.config, RESCALING):
        setattr(model.config, RESCALING, 0)
    tokenizer = read_tokenizer(parent)
    if loss.head == "score":
        _pad_apart(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
    control = {role: _add_token(tokenizer, token) for role, token in loss.control.items()}
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=weights)
    if control:  # sampling asks for responses of the first role
        token = next(iter(loss.control.values()))
        ending = "{% if add_generation_prompt %}{{ " + json.dumps(token) + " }}{% endif %}"
        tokenizer.chat_template = dated(one_template(tokenizer.chat_template)).removesuffix("\n") + ending
    if lora is not None:
        model = with_lora(model, lora, scores=loss.head == "score", tokens=sorted(control.values()))
    freeze_parameters(model, freeze)
    if control and not (lora or model.get_input_embeddings().weight.requires_grad):
        raise HalosError("freeze: the loss adds tokens, whose embeddings have to be trained: take out their pattern")
    return model, tokenizer if control or loss.head == "score" else None, control


def freeze_parameters(model: Any, patterns: Sequence[str]) -> None:
    """Freeze the parameters of a model whose names match one of the patterns.

    Raises:
        HalosError: a pattern matches none, or nothing is left to train.
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matches = [parameter for name, parameter in parameters if fnmatch(name, pattern)]
        if not matches:
            raise HalosError(f"freeze: {pattern!r} matches no parameter{suggest(pattern, (n for n, _ in parameters))}")
        for parameter in matches:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise HalosError("freeze: the patterns leave nothing to train: take one out")


def _add_token(tokenizer: Any, token: str) -> int:
    """The id of a special token, which is added if the tokenizer lacks it."""
    if token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(token))


def _pad_apart(tokenizer: Any) -> None:
    """Give a tokenizer a padding token that differs from its end-of-turn token.

    A reward model's score is read at the last token that is not padding. If the two tokens were the same, some programs
    would read it one token early, and others would not.

    Raises:
        HalosError: the tokenizer has no other special token.
    """
    end = Template(tokenizer).end
    if tokenizer.pad_token_id not in (None, end):
        return
    special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and i != end}
    named = sorted(special, key=lambda i: ("pad" not in special[i].lower(), special[i] != tokenizer.unk_token, i))
    if not named:
        raise HalosError("a reward model needs a padding token that does not end a turn: add one to the tokenizer")
    tokenizer.pad_token = special[named[0]]


def save(
    model: Any,
    state: dict[str, torch.Tensor],
    parent: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = True,
    precision: Precision = "fp32",
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a trained model's folder, whole or not at all: weights, config, tokenizer, template, generation config.

    Args:
        model: the unwrapped model.
        state: its full state dict, which is empty afterwards.
        parent: the parent's model folder, from which all files but weights and config are copied.
        folder: the folder to write.
        tokenizer: the model's tokenizer, if it is not the parent's.
        merge: whether LoRA adapters are merged into the weights; if not, only the adapters are saved, in float32.
        precision: type of the saved weights.
        check: called with the finished folder before it appears; where it fails the folder is left as `REFUSED`.
    """
    refused = folder.with_name(REFUSED)
    shutil.rmtree(refused, ignore_errors=True)
    if merge and hasattr(model, "merge_and_unload"):
        model.load_state_dict(state, assign=any(parameter.is_meta for parameter in model.parameters()))
        model = model.merge_and_unload()
        state = model.state_dict()
    is_whole = not hasattr(model, "merge_and_unload")
    if is_whole and precision == "bf16":
        halve(model, state)
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # gathered shards are tensors of their own
    for name in [name for name in state if tied.get(name) in state]:
        del state[name]
    if hasattr(model.config, RESCALING):
        setattr(model.config, RESCALING, read_json(parent / "config.json").get(RESCALING, 0))
    with whole(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
        if is_whole and precision == "bf16":
            _name_type(temporary / "config.json", "bfloat16")
        state.clear()  # the check reads what is written
        written = {"config.json", "README.md"}
        for path in parent.iterdir():
            if path.name not in written and not path.name.startswith(".") and "safetensors" not in path.name:
                shutil.copyfile(path, temporary / path.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if check is not None:
            try:
                check(temporary)
            except HalosError:
                temporary.rename(refused)
                raise
    if hasattr(model.config, RESCALING):
        setattr(model.config, RESCALING, 0)


def halve(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Round the weights of a model's state to bfloat16, in place, tensor by tensor.

    Buffers, and what the model's class keeps in float32 when it is loaded in bfloat16, stay as they are.
    """
    import torch

    kept = [re.escape(name) for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    keeps = re.compile(rf"(^|\.)({'|'.join(kept)})($|\.)") if kept else None
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rounded: dict[tuple[int, torch.Size], torch.Tensor] = {}  # one for all names of a tensor
    for name, tensor in state.items():
        if name in weights and tensor.is_floating_point() and not (keeps and keeps.search(name)):
            key = (tensor.data_ptr(), tensor.shape)
            if key not in rounded:
                rounded[key] = tensor.detach().to("cpu", torch.bfloat16)
            state[name] = rounded[key]


def _name_type(config: Path, dtype: str) -> None:
    """Name the type of the saved weights in a config.json, and in the parts of it that name one."""
    content = read_json(config)
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
