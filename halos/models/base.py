"""Base models: random weights of an architecture with its own tokenizer, or linked weights of a hub or local model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.data.feedback import ROLES, read
from halos.errors import HalosError
from halos.files import hash_each, weights_of, write_json
from halos.hub import read_fetched
from halos.models.download import ADAPTERS, base_on_hub, snapshot, weight_files
from halos.models.load import is_model
from halos.settings import read_slice
from halos.tokens.template import Template, read_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PAD, END = "<|pad|>", "<|end|>"


def make(config: Path, output: Path, feedback: Sequence[Path] = (), fetched: Sequence[Path] = ()) -> None:
    """The verb: make the folder of a base model, with its tokenizer, chat template and generation config.

    An `architecture` gets random weights from its seed and a tokenizer trained on `feedback`; the weights of a hub or
    local model are linked, not copied; a local folder of LoRA adapters is merged with the model it belongs to.

    Args:
        config: slice of the model's entry.
        feedback: splits to train a tokenizer on, for an `architecture`; else empty.
        output: results/models/{model}; `model/` and `manifest.json` are written there.
        fetched: what `fetch` wrote, if it did: its commits are taken, and not what the revision means today.
    """
    from transformers import AutoTokenizer, GenerationConfig

    settings = read_slice(config)
    folder = output / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if settings["architecture"] is not None:
        if not feedback:
            raise HalosError(f"model {settings['model']} trains its tokenizer on a dataset: give --feedback")
        tokenizer = _train_tokenizer(feedback, settings["tokenizer"]["vocab_size"])
        _initialise(settings, len(tokenizer), tokenizer).save_pretrained(folder)
        revision = None
    else:
        found = read_fetched(fetched)
        origin, revision = _find(settings, found)
        if (origin / ADAPTERS).is_file():
            _merge(origin, _base(settings, origin, found.get("base", {})), folder)
        else:
            _link(origin, folder)
        tokenizer = AutoTokenizer.from_pretrained(origin)
    if settings["template"] is not None:
        tokenizer.chat_template = read_template(settings["template"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
    generation = generation or GenerationConfig()
    known = generation.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, Template(tokenizer).end}
    generation.eos_token_id = sorted(i for i in ends if i is not None)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.do_sample = generation.temperature = generation.top_p = generation.top_k = None  # the prompt set says
    generation.save_pretrained(folder)
    files = hash_each(folder)
    hashes = {"weights": weights_of(files), "files": files}
    write_json(output / "manifest.json", {**settings, "revision": revision, **hashes, "parents": []})


def _train_tokenizer(feedback: Sequence[Path], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the feedback's text, with tokens for roles, padding and the end of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for record in chain.from_iterable(map(read, feedback)):
            yield from (turn["content"] for turn in record.prompt)
            yield from record.responses

    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _initialise(settings: dict[str, Any], vocab_size: int, tokenizer: Any) -> PreTrainedModel:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(settings["architecture"])
    model_type = fields.pop("model_type")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **ids, **fields)
        torch.manual_seed(settings["seed"])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise HalosError(f"models.{settings['model']}.architecture: {message}") from error
    return model


def _find(settings: dict[str, Any], found: dict[str, Any]) -> tuple[Path, str | None]:
    """The folder of a hub or local model, and the hub commit."""
    name = settings["model"]
    if settings["path"] is not None:
        path = Path(settings["path"])
        if not is_model(path):
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
        return path, None
    path = snapshot(name, settings["hub"], found.get("commit", settings["revision"]))
    return path, path.name


def _base(settings: dict[str, Any], adapters: Path, found: dict[str, str]) -> Path:
    """The folder of the model to which LoRA adapters belong."""
    base = base_on_hub(adapters)
    if base is None:
        return Path(json.loads((adapters / ADAPTERS).read_text())["base_model_name_or_path"])
    return snapshot(settings["model"], base["hub"], found.get("commit", base["revision"]))


def _merge(adapters: Path, base: Path, folder: Path) -> None:
    """Write the model that LoRA adapters and their base model are together."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    tokens = len(AutoTokenizer.from_pretrained(adapters))
    if tokens > model.get_input_embeddings().num_embeddings:  # adapters may bring tokens of their own
        model.resize_token_embeddings(tokens)
    merged: Any = PeftModel.from_pretrained(model, adapters)
    merged.merge_and_unload().save_pretrained(folder)


def _link(origin: Path, folder: Path) -> None:
    """Link the weights, copy the configs."""
    for path in weight_files(origin):
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
