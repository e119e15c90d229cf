"""Tokens that a base model does not come with: special ones that are added, or those of another model's tokenizer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.models.architectures import language_class
from halos.models.rewards import is_reward_model
from halos.pretrained import read_config, trusts

SAME = 0.99
"""Least share of the tokens of a model's own tokenizer that another tokenizer for it gives the same ids."""


def equip(folder: Path, own: Any, other: Any, tokens: Sequence[str]) -> Any:
    """Give a model folder the tokens of another tokenizer, if there is one, and new ones.

    Args:
        folder: the model folder, changed in place where tokens have no rows in its embeddings.
        own: the tokenizer that the model comes with, if it has one.
        other: the one that it is to have; None for its own.
        tokens: special tokens to add.

    Returns:
        The tokenizer that the model has then.

    Raises:
        HalosError: the other tokenizer's ids mean other texts, or the embeddings cannot be resized.
    """
    tokenizer = own if other is None else other
    if own is not None and other is not None:
        check_fits(own, other)
    known = (tokenizer if own is None else own).get_vocab().values()
    new = set(add_tokens(tokenizer, tokens))
    if new or other is not None:
        rows = read_config(folder).get_text_config().vocab_size
        new |= {id for id in tokenizer.get_vocab().values() if id >= rows}
    if new:
        make_room(folder, sorted(new), sorted(known))
    return tokenizer


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add special tokens to a tokenizer, changed in place; those that it knows stay as they are, which the log says.

    Returns:
        The ids of those that are new.
    """
    vocabulary = tokenizer.get_vocab()
    known = [token for token in tokens if token in vocabulary]
    if known:
        print(f"add_tokens: the tokenizer has {', '.join(known)} already", file=sys.stderr)
    new = [token for token in tokens if token not in vocabulary]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in new]


def check_fits(own: Any, other: Any) -> None:
    """Check that another tokenizer's ids mean the same to a model as those of its own, special tokens apart.

    Args:
        own: the tokenizer that the model comes with.
        other: the one that it is to have.

    Raises:
        HalosError: they mean other texts.
    """
    added = {*own.added_tokens_decoder, *other.added_tokens_decoder}
    theirs = {id: token for token, id in other.get_vocab().items()}
    before = {id: token for token, id in own.get_vocab().items() if id not in added}
    other_ids = [id for id, token in before.items() if theirs.get(id) != token]
    if len(other_ids) > (1 - SAME) * len(before):
        id = min(other_ids)
        raise HalosError(
            f"tokenizer: it gives {len(other_ids)} of {len(before)} ids another meaning than the model's own ({id} is "
            f"{theirs.get(id)!r}, and was {before[id]!r}), so the model would have to learn them anew: name the "
            "tokenizer of a model of the same family"
        )


def make_room(folder: Path, new: Sequence[int], known: Sequence[int]) -> None:
    """Give new tokens rows in the embeddings and the output layer of a model folder, which is changed in place.

    A new row, and one that padding left unused, begins as the mean of the rows of the known tokens, so that the model's
    other probabilities hardly change (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    Weights keep their types; the embeddings are as tied as before.

    Args:
        folder: the model folder. Weights that are links are replaced, and what they link to is left alone.
        new: ids of the new tokens.
        known: ids of the tokens that the model has learned.

    Raises:
        HalosError: the embeddings of such a model cannot be resized.
    """
    import torch
    from transformers import GenerationConfig

    if is_reward_model(folder):  # loaded as a language model, it would lose its score
        raise HalosError("a reward model cannot be given more tokens than it was trained with: take them out")
    config = read_config(folder)
    network: Any = language_class(config).from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=trusts(folder)
    )
    cannot = f"{type(network).__name__} cannot be given more tokens"
    try:
        rows = network.get_input_embeddings().weight.shape[0]
        if max(new) >= rows:
            network.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    except Exception as error:  # each class resizes in its own way, or in none: what it raises is its own, too
        raise HalosError(f"{cannot} ({' '.join(str(error).split())}): take them out") from error
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    named = [getattr(end, name, None) for end in ends for name in ("weight", "bias")]
    weights = list({id(weight): weight for weight in named if weight is not None}.values())
    if (least := min(map(len, weights))) <= max(new):
        raise HalosError(f"{cannot} (a layer of it keeps {least} rows): take them out")
    with torch.no_grad():
        for weight in weights:
            learned = weight[[id for id in known if id < rows]].float()
            weight[list(new)] = learned.mean(dim=0).to(weight.dtype)
    grown = folder / ".grown"
    network.generation_config = GenerationConfig()  # the folder's own stays
    network.save_pretrained(grown)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()
    (grown / "generation_config.json").unlink(missing_ok=True)
    for path in grown.iterdir():
        path.replace(folder / path.name)
    shutil.rmtree(grown)
    print(f"{len(new)} new tokens; the embeddings have {max(rows, max(new) + 1)} rows, and had {rows}", file=sys.stderr)
