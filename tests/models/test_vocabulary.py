"""Tokens that a base model does not come with: added ones, and the tokenizer of another model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from halos.errors import HalosError
from halos.files import hash_each
from halos.models.base import make
from halos.models.settings import Model
from halos.settings import identity
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.tokens.chat import read_template
from halos.tokens.template import Template
from tests.conftest import CATALOGUE, World
from tests.models.test_models import made, slice_of
from tests.scoring.rewards import classifier

CHATML = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = read_template("chatml")


def origin_of(world: World, folder: Path, rows: int, tied: bool = True, **more: Any) -> Path:
    """A local GPT-2 of so many rows, in bfloat16, with the tokenizer of the world's model."""
    shutil.copytree(world.base / "model", folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=rows, n_positions=64, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied, **more
    )
    network = GPT2LMHeadModel(config).to(torch.bfloat16)
    network.generation_config = GenerationConfig.from_pretrained(folder)
    network.save_pretrained(folder)
    return folder


def ends(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert network.dtype == torch.bfloat16
    assert network.config.vocab_size == network.get_input_embeddings().weight.shape[0]
    return network.get_input_embeddings().weight.detach(), network.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("spare", [0, 1, 50])
def test_added_tokens_begin_as_the_mean_of_the_others(spare: int, tied: bool, world: World, tmp_path: Path) -> None:
    """Whether they need new rows, some, or none, as the embeddings are padded."""
    tokens = len(AutoTokenizer.from_pretrained(world.base / "model"))
    origin = origin_of(world, tmp_path / "origin", tokens + spare, tied)
    untouched = hash_each(origin)
    entry = {"path": str(origin), "add_tokens": CHATML, "template": "chatml"}
    model = made(tmp_path, [], **entry) / "model"
    assert hash_each(origin) == untouched
    assert not any(path.is_symlink() for path in model.iterdir())
    tokenizer = AutoTokenizer.from_pretrained(model)
    new = tokenizer.convert_tokens_to_ids(CHATML)
    assert new == [tokens, tokens + 1]
    assert tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"] == [tokens]
    for before, after in zip(ends(origin), ends(model), strict=True):
        assert after.shape[0] == max(tokens + 2, tokens + spare)
        assert torch.equal(after[:tokens], before[:tokens])
        assert torch.equal(after[tokens + 2 :], before[tokens + 2 :])
        mean = before[:tokens].float().mean(dim=0).to(torch.bfloat16)
        assert torch.equal(after[new], torch.stack([mean, mean]))
    saved = set(load_file(model / "model.safetensors"))
    assert ("lm_head.weight" in saved) != tied
    template = Template(tokenizer)
    assert tokenizer.convert_ids_to_tokens(template.end) == "<|im_end|>"
    assert template.end in GenerationConfig.from_pretrained(model).eos_token_id


def test_a_token_that_is_there_already_changes_nothing_and_the_log_says_so(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = made(tmp_path, [], path=str(world.base / "model")) / "model"
    before = hash_each(plain)
    again = made(tmp_path, [], path=str(world.base / "model"), add_tokens=["<|user|>", "<|end|>"]) / "model"
    assert hash_each(again) == before
    assert (again / "model.safetensors").is_symlink()
    assert "add_tokens: the tokenizer has <|user|>, <|end|> already" in capsys.readouterr().err


@pytest.mark.parametrize(("template", "said"), [("chatml", True), ("turns", False), ("archangel", False)])
def test_the_log_says_where_the_end_that_a_template_writes_is_no_token(
    template: str, said: bool, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, [], path=str(world.base / "model"), template=template)
    line = "ends a response with '<|im_end|>', which is no token of the tokenizer, so '<|end|>' ends it"
    assert (line in capsys.readouterr().err) == said
    made(tmp_path, [], path=str(world.base / "model"), template=template, add_tokens=CHATML)
    assert "no token of the tokenizer" not in capsys.readouterr().err


def test_a_model_from_a_config_has_room_for_added_tokens(world: World, tmp_path: Path) -> None:
    entry = {**CATALOGUE["models"]["m"], "add_tokens": CHATML, "template": "chatml"}
    model = made(tmp_path, [world.results / "data/d/train.parquet"], **entry) / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.convert_tokens_to_ids(CHATML) == [512, 513]
    network: Any = AutoModelForCausalLM.from_pretrained(model)
    assert network.get_input_embeddings().weight.shape[0] == 514


# ---- the tokenizer of another model --------------------------------------------------------------------------------


def test_a_model_can_have_the_tokenizer_of_another_with_tokens_of_its_own(world: World, tmp_path: Path) -> None:
    """Its template comes along; ids beyond the embeddings get rows."""
    tokens = len(AutoTokenizer.from_pretrained(world.base / "model"))
    origin = origin_of(world, tmp_path / "origin", tokens)
    other = shutil.copytree(world.base / "model", tmp_path / "other")
    tokenizer: Any = AutoTokenizer.from_pretrained(other)
    tokenizer.add_special_tokens({"extra_special_tokens": CHATML})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(other)
    model = made(tmp_path, [], path=str(origin), tokenizer={"from": str(other)}) / "model"
    found = AutoTokenizer.from_pretrained(model)
    assert found.get_vocab() == tokenizer.get_vocab()
    assert found.chat_template == TEMPLATE
    before, after = ends(origin)[0], ends(model)[0]
    assert after.shape[0] == tokens + 2
    assert torch.equal(after[:tokens], before)
    assert torch.equal(after[-1], before.float().mean(dim=0).to(torch.bfloat16))
    for path in [*origin.glob("tokenizer*"), *origin.glob("*.jinja")]:  # a model without one of its own
        path.unlink()
    model = made(tmp_path, [], path=str(origin), tokenizer={"from": str(other)}) / "model"
    assert AutoTokenizer.from_pretrained(model).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_whose_ids_mean_other_texts_is_refused(world: World, tmp_path: Path) -> None:
    other = shutil.copytree(world.base / "model", tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    a, b = (f'"{letter}": {AutoTokenizer.from_pretrained(other).get_vocab()[letter]}' for letter in "ab")
    swapped = [f'"{letter}": {line.split(": ")[1]}' for letter, line in (("a", b), ("b", a))]
    (other / "tokenizer.json").write_text(text.replace(a, swapped[0]).replace(b, swapped[1]))
    origin = str(world.base / "model")
    model = made(tmp_path, [], path=origin, tokenizer={"from": str(other)}) / "model"  # two of five hundred
    assert (
        AutoTokenizer.from_pretrained(model).get_vocab()["a"] != AutoTokenizer.from_pretrained(origin).get_vocab()["a"]
    )
    from tokenizers import models, pre_tokenizers

    fast = AutoTokenizer.from_pretrained(other)
    vocabulary = {token: id for id, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), 5)}
    fast.backend_tokenizer.model = models.BPE(
        {**{t: i for t, i in fast.get_vocab().items() if i < 5}, **vocabulary}, []
    )
    fast.save_pretrained(other)
    with pytest.raises(
        HalosError, match=r"^models\.x: tokenizer: it gives \d+ of \d+ ids another meaning .* same family"
    ):
        made(tmp_path, [], path=origin, tokenizer={"from": str(other)})


def test_a_folder_without_a_tokenizer_is_one_sentence(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        HalosError, match=r"^models\.x\.tokenizer: there is no tokenizer in .*; name a model that has one"
    ):
        made(tmp_path, [], path=str(world.base / "model"), tokenizer={"from": str(tmp_path / "empty")})


def test_a_reward_model_keeps_its_tokens_and_its_score(world: World, tmp_path: Path) -> None:
    """Loaded as a language model, it would lose the score."""
    origin = classifier(world.base / "model", tmp_path / "origin", labels=1)
    with pytest.raises(HalosError, match=r"^models\.x: a reward model cannot be given more tokens"):
        made(tmp_path, [], path=str(origin), add_tokens=["<|new|>"])


@pytest.mark.parametrize("raises", [True, False])
def test_a_class_that_does_not_resize_is_one_sentence(
    raises: bool, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises whatever it likes, or leaves its rows as they are."""

    def resize(*_: Any, **__: Any) -> None:
        if raises:
            raise AssertionError("no\nroom")

    monkeypatch.setattr(GPT2LMHeadModel, "resize_token_embeddings", resize)
    rows = len(AutoTokenizer.from_pretrained(world.base / "model"))
    origin = origin_of(world, tmp_path / "origin", rows)
    why = "no room" if raises else f"a layer of it keeps {rows} rows"
    with pytest.raises(HalosError, match=rf"^models\.x: GPT2LMHeadModel cannot be given more tokens \({why}\)"):
        made(tmp_path, [], path=str(origin), add_tokens=["<|new|>"], template="chatml")


def test_a_model_from_a_config_can_have_the_tokenizer_of_a_model_of_the_catalogue(world: World, tmp_path: Path) -> None:
    entry = {"architecture": CATALOGUE["models"]["m"]["architecture"], "tokenizer": {"from": "m"}}
    make(slice_of(tmp_path, **entry), tmp_path / "x", tokenizer_of=[world.base / "model"])
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "x/model", world.base / "model"))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template


def test_what_the_entries_may_say(world: World, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"path": "x", "tokenizer": {"from": "nobody"}}, r"models\.x\.tokenizer\.from: there is no 'nobody' in models"),
        ({"path": "x", "tokenizer": {"from": "x"}}, "x from x goes round in a circle"),
        ({"path": "x", "tokenizer": {}}, r"give it train_on .* or from"),
        ({"path": "x", "tokenizer": {"from": "m", "vocab_size": 3}}, "take it out beside from"),
        ({"path": "x", "tokenizer": {"train_on": "d"}}, r"another model's is `tokenizer: \{from: MODEL\}`"),
        ({"path": "x", "add_tokens": ["<|a|>", "<|a|>"]}, "names a token twice"),
        ({"path": "x", "add_tokens": [" "]}, "should match pattern"),
    ):
        with pytest.raises(HalosError, match=sentence):
            slice_of(tmp_path, **settings)
    assert not {"add_tokens", "tokenizer.from"} & set(identity(Model(path="x")))
    models = {**CATALOGUE["models"], "x": {"path": "x", "tokenizer": {"from": str(world.base / "model")}}}
    content = config_slice(C.load({**CATALOGUE, "models": models}), "models/x")
    assert str(world.base / "model") in content["local"]
