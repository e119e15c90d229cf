"""The model that a training starts from (with control tokens, LoRA or a reward model's head), and how it is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.errors import HalosError
from halos.files import whole
from halos.losses.base import Loss
from halos.models.load import load
from halos.tokens.chat import dated, one_template
from halos.tokens.template import Template

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def begin(
    parent: Path, attention: str, loss: Loss, lora: dict[str, Any] | None
) -> tuple[Any, PreTrainedTokenizerBase | None, dict[str, int]]:
    """The policy or reward model that a training starts from.

    Args:
        parent: the parent's model folder.
        attention: attention implementation.
        loss: its traits say whether the model scores sequences, and which control tokens precede responses.
        lora: settings of LoRA, or None to train all weights.

    Returns:
        The model; its tokenizer, or None if it is the parent's unchanged; role -> id of the control token that
        precedes the role's responses.

    Raises:
        HalosError: the folder holds no such model or adapters, or a reward model would have no padding token.
    """
    from transformers import AutoTokenizer

    model: Any = load(parent, attention, score=loss.head == "score")
    tokenizer = AutoTokenizer.from_pretrained(parent)
    if loss.head == "score":
        _pad_apart(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
    control = {role: _add_token(tokenizer, token) for role, token in loss.control.items()}
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if control:  # sampling asks for responses of the first role
        token = next(iter(loss.control.values()))
        ending = "{% if add_generation_prompt %}{{ " + json.dumps(token) + " }}{% endif %}"
        tokenizer.chat_template = dated(one_template(tokenizer.chat_template)).removesuffix("\n") + ending
    if lora is not None:
        model = with_lora(model, lora, scores=loss.head == "score", tokens=sorted(control.values()))
    return model, tokenizer if control or loss.head == "score" else None, control


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


def with_lora(model: Any, settings: dict[str, Any], scores: bool = False, tokens: Sequence[int] = ()) -> Any:
    """A model with LoRA adapters (peft) and frozen weights.

    Args:
        model: the model.
        settings: `lora` of the stage; with a `path`, training continues from the adapters saved there.
        scores: whether it is a reward model, whose new score layer is trained in full.
        tokens: ids of new tokens, whose embeddings are trained in full.

    Raises:
        HalosError: there are no adapters in `path`, or they belong to another kind of loss.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

    if settings.get("path") is not None:
        path = Path(settings["path"])
        if not (path / "adapter_model.safetensors").is_file():
            raise HalosError(f"lora.path: there are no adapters in {path} (no adapter_model.safetensors)")
        saved = PeftConfig.from_pretrained(str(path))
        saved_tokens = sorted(saved.trainable_token_indices or ())
        if (saved.task_type == "SEQ_CLS") != scores or saved_tokens != sorted(tokens):
            raise HalosError(f"lora.path: the adapters in {path} are of another kind of loss; leave out `path`")
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    targets = settings["target_modules"]
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        trainable_token_indices=list(tokens) or None,
    )
    return get_peft_model(model, config)


def save(
    model: Any,
    state: dict[str, torch.Tensor],
    parent: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = True,
) -> None:
    """Write a trained model's folder, whole or not at all: weights, config, tokenizer, template, generation config.

    Args:
        model: the unwrapped model.
        state: its full state dict.
        parent: the parent's model folder, from which all files but weights and config are copied.
        folder: the folder to write.
        tokenizer: the model's tokenizer, if it is not the parent's.
        merge: whether LoRA adapters are merged into the weights; if not, only the adapters are saved.
    """
    if merge and hasattr(model, "merge_and_unload"):
        model.load_state_dict(state)
        model = model.merge_and_unload()
        state = model.state_dict()
    with whole(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
        written = {"config.json", "README.md"}
        for path in parent.iterdir():
            if path.name not in written and not path.name.startswith(".") and "safetensors" not in path.name:
                shutil.copyfile(path, temporary / path.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
