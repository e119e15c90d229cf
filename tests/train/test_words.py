"""Words of TRL and transformers: a stage that uses one is refused with what to write instead."""

from __future__ import annotations

import dataclasses
import re

import pytest
from pydantic import ValidationError
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from halos.data.settings import Dataset
from halos.losses.mixture import has_chosen
from halos.models.settings import Model, Resources
from halos.registry import LOSSES
from halos.train.settings import Lora
from halos.train.stage import Stage
from halos.train.words import LORA, MEANINGS, SYNONYMS, meaning

HYPERPARAMETERS = {field.name for loss in LOSSES for field in dataclasses.fields(LOSSES[loss])}
SETTINGS = set(Stage.model_fields) - {"label"}


def refusal(loss: str, word: str) -> str:
    with pytest.raises(ValidationError) as caught:
        Stage(loss=loss, **{word: 1})
    [error] = caught.value.errors()
    return str(error["msg"])


@pytest.mark.parametrize("word", MEANINGS)
def test_each_word_is_refused_with_what_it_means(word: str) -> None:
    assert word not in SETTINGS
    others = {word, *SYNONYMS.get(word, ())}
    loss = next(loss for loss in LOSSES if not others & {field.name for field in dataclasses.fields(LOSSES[loss])}
                and not ("sft_weight" in others and has_chosen(LOSSES[loss])))  # fmt: skip
    assert MEANINGS[word] in refusal(loss, word)


@pytest.mark.parametrize(
    ("loss", "word", "meant"),
    [
        ("ipo", "beta", "`tau`"),
        ("ppo", "beta", "`kl_weight`"),
        ("dpo", "tau", "`beta`"),
        ("robust", "label_smoothing", "`epsilon`"),
        ("ppo", "cliprange", "`clip`"),
        ("simpo", "gamma", "`gamma_beta_ratio`"),
        ("slic", "rpo_alpha", "`sft_weight`"),
        ("dpo", "rpo_alpha", "`sft_weight`"),
        ("rdpo", "ld_alpha", "`alpha`"),
    ],
)
def test_a_hyperparameter_is_named_as_its_loss_has_it(loss: str, word: str, meant: str) -> None:
    assert f"this loss calls it {meant}" in refusal(loss, word)


def test_words_of_adapters_are_settings_of_lora() -> None:
    assert set(LORA.values()) <= set(Lora.model_fields)
    assert not LORA.keys() & Lora.model_fields.keys()


def test_the_answers_name_settings_that_exist() -> None:
    known = SETTINGS | HYPERPARAMETERS | {f"lora.{name}" for name in Lora.model_fields} | {"label"}
    known |= set(Dataset.model_fields) | set(Model.model_fields) | set(Resources.model_fields) | {"every_turn", "grids"}
    for word, sentence in MEANINGS.items():
        for name in re.findall(r"`(\w+)", sentence):
            assert name in known or name in ("python", "a", "b"), (word, name)
    assert {name for names in SYNONYMS.values() for name in names} <= HYPERPARAMETERS
    assert meaning("no such word", known) is None


def test_most_words_are_settings_of_trl_or_transformers() -> None:
    theirs = {field.name for config in (DPOConfig, KTOConfig, RewardConfig, SFTConfig)
              for field in dataclasses.fields(config)}  # fmt: skip
    assert len(theirs & set(MEANINGS)) > 40


def test_a_word_that_is_nearly_one_of_ours_is_still_suggested() -> None:
    assert "did you mean 'batch_size'?" in refusal("dpo", "batchsize")
