"""Base models: random weights of an architecture with its own tokenizer, or linked weights of a hub or local model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.data.feedback import read
from halos.errors import HalosError
from halos.files import hash_each, weights_of
from halos.hub import read_fetched
from halos.manifest import Manifest, state_of
from halos.models.adapters import check_origin, merge
from halos.models.architectures import (
    check_attends_to_the_past,
    check_causal,
    check_fields,
    check_known,
    language_class,
)
from halos.models.attention import check_attention
from halos.models.download import (
    ADAPTERS,
    FetchedModel,
    base_on_hub,
    local_base,
    snapshot,
    tokenizer_on_hub,
    weight_files,
)
from halos.models.generation import SAMPLING, read_generation_config
from halos.models.load import check_ids, is_model
from halos.models.overrides import override
from halos.models.rewards import is_reward_model
from halos.models.settings import ModelSlice
from halos.models.vocabulary import add_tokens, equip
from halos.pretrained import check_code, keep_code, read_config, read_tokenizer
from halos.seeds import derive
from halos.tokens.chat import one_template, with_arguments
from halos.tokens.template import Template

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

PAD, END = "<|pad|>", "<|end|>"
TOKENIZER = "tokenizer_config.json"
SPEAKERS = ("system", "user", "assistant")
"""Roles that have a token of their own in a tokenizer that is trained here."""


def make(
    config: Path,
    output: Path,
    feedback: Sequence[Path] = (),
    fetched: Sequence[Path] = (),
    tokenizer_of: Sequence[Path] = (),
) -> None:
    """Make the folder of a base or reward model: weights, tokenizer, chat template and generation config.

    An `architecture` gets random weights from its seed and a tokenizer trained on `feedback`; the weights of a hub or
    local model are linked, not copied; a local folder of LoRA adapters is merged with the model it belongs to.

    Args:
        config: config.yaml of the model; `python -m halos config FOLDER` writes one.
        output: folder to write model/ and manifest.json to.
        feedback: feedback records to train a tokenizer on, parquet; for an `architecture` only.
        fetched: what `fetch` wrote for the same config, if something is on the hub; its commits are used.
        tokenizer_of: folder of the model in `models:` whose tokenizer this one has, if the config names one.

    Raises:
        HalosError: an input is missing, transformers cannot make such a model, or its tokenizer does not fit it.
    """
    model = ModelSlice.read(config)
    folder = output / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    revision = None
    commits = FetchedModel.model_validate(read_fetched(fetched))
    other = _tokenizer_of(model, tokenizer_of, commits)
    if model.architecture is not None and model.tokenizer is not None:
        if not feedback and other is None:
            raise HalosError(f"model {model.model} trains its tokenizer on a dataset: give --feedback")
        tokenizer = _train_tokenizer(feedback, model.tokenizer.vocab_size) if other is None else other
        add_tokens(tokenizer, model.add_tokens)
        tokenizer = _initialise(model, model.architecture, tokenizer, folder)
    else:
        origin, revision = _find(model, commits)
        _check_origin(model, origin)
        trusted = model.trust_remote_code
        try:
            if (origin / ADAPTERS).is_file():
                base = _base(model, origin, commits)
                tokenizer = read_tokenizer(origin if (origin / TOKENIZER).is_file() else base, trusted=False)
                merge(origin, base, folder, tokenizer)
            else:
                base = origin
                has_none = other is not None and not (origin / TOKENIZER).is_file()
                tokenizer = None if has_none else read_tokenizer(origin, trusted)
                _link(origin, folder)
            if trusted:
                keep_code(origin, folder)
            _copy_processor(base, folder)
            if model.config:
                override(folder, model.config)
            tokenizer = equip(folder, tokenizer, other, model.add_tokens)
        except HalosError as error:
            raise HalosError(f"models.{model.model}: {error}") from None
    try:
        check_attention(folder, model.attention, score=is_reward_model(folder))
        text = one_template(model.chat_template or tokenizer.chat_template)
        tokenizer.chat_template = with_arguments(text, model.template_args)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        generation = _generation_config(folder, tokenizer)
        check_ids(folder, tokenizer, generation)
    except HalosError as error:
        raise HalosError(f"models.{model.model}: {error}") from None
    tokenizer.save_pretrained(folder)
    generation.save_pretrained(folder)
    files = hash_each(folder)
    content = model.model_dump(mode="json", exclude_unset=True)
    links = {path.name: state_of(path) for path in folder.iterdir() if path.is_symlink()}
    manifest = Manifest(config=content, weights=weights_of(files), files=files, links=links, revision=revision)
    manifest.write(output / "manifest.json")


def _tokenizer_of(model: ModelSlice, folders: Sequence[Path], commits: FetchedModel) -> Any:
    """The tokenizer of another model that a model is to have; None if its entry names none."""
    name = None if model.tokenizer is None else model.tokenizer.of_model
    if name is None:
        return None
    if (hub := tokenizer_on_hub(model)) is not None and not folders:
        folder = snapshot(model.model, hub, commits.tokenizer.commit if commits.tokenizer else "main", weights=False)
    else:
        folder = next(iter(folders), Path(name))
    try:
        return read_tokenizer(folder, None if folders else False)
    except HalosError as error:
        raise HalosError(f"models.{model.model}.tokenizer: {error}; name a model that has one") from None


def _train_tokenizer(feedback: Sequence[Path], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the feedback's text, with tokens for roles, padding and the end of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for record in chain.from_iterable(map(read, feedback)):
            yield from (turn["content"] for turn in record.prompt)
            yield from record.responses

    special = [PAD, END, *(f"<|{role}|>" for role in SPEAKERS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _initialise(model: ModelSlice, architecture: dict[str, Any], tokenizer: Any, folder: Path) -> Any:
    """Write a language model of an architecture, with random weights drawn from its seed, to a folder.

    Returns:
        The tokenizer as transformers reads it beside this config: some types have tokens of their own, which are added.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = dict(architecture)
    model_type = fields.pop("model_type")
    where = f"models.{model.model}.architecture"
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    for name in ("vocab_size", *ids):
        if name in fields:
            raise HalosError(f"{where}: {name} comes from the tokenizer: take it out")
    try:
        check_fields(model_type, fields)
        kind = CONFIG_MAPPING[model_type]

        def configure() -> PreTrainedConfig:
            parts: dict[str, Any] = {"vocab_size": len(tokenizer)}
            if "text_config" in kind.sub_configs:
                text = fields.get("text_config", {})
                parts = {"text_config": {**text, "vocab_size": max(len(tokenizer), text.get("vocab_size", 0)), **ids}}
            return AutoConfig.for_model(model_type, **{**fields, **parts, **ids})

        try:
            configure()
        except StrictDataclassError as error:
            if "bos_token_id" not in str(error):
                raise
            ids["bos_token_id"] = tokenizer.eos_token_id  # the class insists on one
        configure().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer = read_tokenizer(folder)
        config = configure()
        torch.manual_seed(derive(model.seed, "weights"))
        network: PreTrainedModel = language_class(config).from_config(config, dtype=torch.float32)
        check_causal(network.config)
        check_attends_to_the_past(network)
    except HalosError as error:
        raise HalosError(f"{where}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, TypeError | KeyError | AttributeError):  # from within its class
            why = f"{type(error).__name__}: {message}"
            message = f"transformers cannot make the type {model_type} of these fields ({why}); its class needs others"
        raise HalosError(f"{where}: {message}") from error
    network.save_pretrained(folder)
    return tokenizer


def _check_origin(model: ModelSlice, origin: Path) -> None:
    """Refuse a hub or local model that cannot be trained as a causal language model, before its weights are read."""
    trusted = model.trust_remote_code
    try:
        check_origin(origin)
        if trusted:
            check_code(origin)
        if (origin / ADAPTERS).is_file():
            return
        check_known(origin, trusted)
        if not is_reward_model(origin):  # one that is trained further is checked in `begin`
            check_causal(read_config(origin, trusted))
    except HalosError as error:
        raise HalosError(f"models.{model.model}: {error}") from None


def _find(model: ModelSlice, commits: FetchedModel) -> tuple[Path, str | None]:
    """The folder of a hub or local model, and the hub commit."""
    if model.hub is not None:
        folder = snapshot(model.model, model.hub, commits.commit or model.revision, model.trust_remote_code)
        return folder, folder.name
    assert model.path is not None
    if not is_model(Path(model.path)):
        raise HalosError(f"models.{model.model}: there is no model in {model.path} (no config.json); put one there")
    return Path(model.path), None


def _base(model: ModelSlice, adapters: Path, commits: FetchedModel) -> Path:
    """The folder of the model to which LoRA adapters belong."""
    if (folder := local_base(adapters)) is not None:
        return folder
    base = base_on_hub(adapters)
    assert base is not None
    return snapshot(model.model, base["hub"], commits.base.commit if commits.base else base["revision"])


def _link(origin: Path, folder: Path) -> None:
    """Link the weights of a model folder into another, and copy its configs."""
    for path in weight_files(origin):
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def _copy_processor(origin: Path, folder: Path) -> None:
    """Copy the settings by which pictures and sound become inputs, for whoever loads what is trained from a model."""
    from transformers import utils

    names = (utils.FEATURE_EXTRACTOR_NAME, utils.PROCESSOR_NAME, utils.VIDEO_PROCESSOR_NAME, utils.AUDIO_TOKENIZER_NAME)
    for name in names:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def _generation_config(folder: Path, tokenizer: Any) -> GenerationConfig:
    """A generation config that ends a response at the model's own end tokens or at the end of a turn.

    The model's own sampling parameters stay in it, for its users; here, those of the prompt set or the task are used.
    """
    generation, template = read_generation_config(folder), Template(tokenizer)
    if template.unknown:
        end, unknown = tokenizer.eos_token, template.unknown
        print(f"the chat template ends a response with {unknown!r}, which is no token of the tokenizer, so {end!r} "
              "ends it; `add_tokens` in the model's entry adds tokens", file=sys.stderr)  # fmt: skip
    ends = generation.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, template.end}
    generation.eos_token_id = sorted(token for token in ends if token is not None)
    generation.pad_token_id = tokenizer.pad_token_id
    if not generation.do_sample:  # without it they mean nothing, and transformers refuses to save them
        for name in SAMPLING:
            setattr(generation, name, None)
    return generation
