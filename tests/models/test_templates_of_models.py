"""The chat template and the token ids of a base model: arguments, several templates, ids beyond the embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from halos.errors import HalosError
from halos.models.rewards import check_reward_model
from halos.settings import read_slice
from halos.tokens.template import Template
from tests.conftest import World
from tests.models.test_models import made, slice_of

USER = [{"role": "user", "content": "q"}]
DATED = "{{ strftime_now('%d %b %Y') }}"
THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture
def origin(world: World, tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    shutil.copytree(world.base / "model", folder)
    return folder


def with_template(folder: Path, template: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_arguments_are_saved_in_the_template_for_whatever_renders_it(origin: Path, tmp_path: Path) -> None:
    with_template(origin, DATED + THINKS)
    made(tmp_path, [], path=str(origin), template_args={"enable_thinking": False, "date": "2023-05-04"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x/model")
    text = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert text == "04 May 2023<|user|>q<|end|><|assistant|><think></think>"
    [prompt] = Template(tokenizer).prompts([USER], 100)
    assert tokenizer.decode(prompt.ids) == text


def test_a_model_without_arguments_shows_the_same_date_every_day(origin: Path, tmp_path: Path) -> None:
    with_template(origin, DATED + THINKS)
    made(tmp_path, [], path=str(origin))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x/model")
    assert tokenizer.apply_chat_template(USER, tokenize=False).startswith("26 Jul 2024<|user|>")


def test_arguments_are_part_of_what_makes_a_model(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"path": "somewhere", "template_args": {"date": "2024-07-01"}}
    before = read_slice(slice_of(tmp_path, **entry))
    entry["template_args"] = {"date": "2024-07-02"}
    assert before != read_slice(slice_of(tmp_path, **entry))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"messages": []}, "messages is set by the conversation or the tokenizer"),
        ({"add_generation_prompt": True}, "add_generation_prompt is set by"),
        ({"eos_token": "x"}, "eos_token is set by"),
        ({"date": "tomorrow"}, "date 'tomorrow' is no day: write it as 2024-07-26"),
        ({"a b": 1}, "'a b' cannot be the name of a template's variable"),
        ({"tools": "add"}, "tools is a list of JSON documents"),
    ],
)
def test_arguments_that_cannot_be_are_refused_when_the_config_is_read(
    arguments: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match=sentence) as caught:
        slice_of(tmp_path, path="somewhere", template_args=arguments)
    assert "models.x.template_args" in str(caught.value)


def test_an_argument_that_the_template_does_not_read_is_refused_with_the_models_name(
    origin: Path, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match=r"^models\.x: template_args\.thinking: the chat template has no such"):
        made(tmp_path, [], path=str(origin), template_args={"thinking": True})


def test_of_several_templates_a_model_keeps_the_default_and_the_one_for_tools(origin: Path, tmp_path: Path) -> None:
    tools = "{{ tools[0].function.name }}" + THINKS
    with_template(origin, {"default": THINKS, "tool_use": tools, "rag": "no"})
    (origin / "chat_template.jinja").touch()
    model = made(tmp_path, [], path=str(origin)) / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert isinstance(tokenizer.chat_template, str)
    document = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
    assert tokenizer.apply_chat_template(USER, tokenize=False) == "<|user|>q<|end|>"
    assert tokenizer.apply_chat_template(USER, tokenize=False, tools=[document]) == "add<|user|>q<|end|>"


def test_several_templates_without_a_default_are_one_sentence(origin: Path, tmp_path: Path) -> None:
    with_template(origin, {"default": THINKS, "rag": "x"})
    (origin / "chat_template.jinja").unlink()
    with pytest.raises(HalosError, match=r"^models\.x: none of the tokenizer's chat templates \(rag\) is named"):
        made(tmp_path, [], path=str(origin))


# ---- ids beyond the embeddings ---------------------------------------------------------------------------------


def pad_beyond(folder: Path, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})


def token_beyond(folder: Path, tokenizer: Any) -> None:
    tokenizer.add_tokens(["<|new word|>"])


def eos_beyond(folder: Path, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"eos_token": "<|new eos|>"})


def end_beyond(folder: Path, tokenizer: Any) -> None:
    GenerationConfig(eos_token_id=[1, 700]).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (pad_beyond, r"the padding token '<\|new pad\|>' has the id \d+"),
        (eos_beyond, r"the eos token '<\|new eos\|>' has the id \d+"),
        (token_beyond, r"the last token of the tokenizer '<\|new word\|>' has the id \d+"),
        (end_beyond, r"an end token of generation_config\.json has the id 700"),
    ],
)
def test_an_id_beyond_the_embeddings_is_refused_before_anything_is_trained(
    change: Any, named: str, origin: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(origin)
    change(origin, tokenizer)
    tokenizer.save_pretrained(origin)
    with pytest.raises(HalosError, match=rf"^models\.x: {named}, and the embeddings have \d+ rows .*: set another"):
        made(tmp_path, [], path=str(origin))


def test_a_tokenizer_without_padding_and_eos_is_one_sentence(origin: Path, tmp_path: Path) -> None:
    settings = json.loads((origin / "tokenizer_config.json").read_text())
    settings |= {"pad_token": None, "eos_token": None}
    (origin / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(HalosError, match=r"^models\.x: the tokenizer has neither a padding nor an eos token; set"):
        made(tmp_path, [], path=str(origin))


# ---- reward models ---------------------------------------------------------------------------------------------


def reward_model(folder: Path) -> Path:
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}})
    )
    return folder


@pytest.mark.parametrize("named", [{"default": "x"}, {"default": "x", "tool_use": "y"}])
def test_a_reward_model_may_name_its_templates(named: dict[str, str], origin: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(origin)
    tokenizer.chat_template = named
    tokenizer.save_pretrained(origin)
    check_reward_model(reward_model(origin))
    (origin / "chat_template.jinja").unlink()
    shutil.rmtree(origin / "additional_chat_templates", ignore_errors=True)
    tokenizer.save_pretrained(origin, save_jinja_files=False)  # as older versions of transformers do
    check_reward_model(reward_model(origin))


@pytest.mark.parametrize("files", [True, False])
def test_a_reward_model_whose_templates_have_no_default_is_one_sentence(files: bool, origin: Path) -> None:
    (origin / "chat_template.jinja").unlink()
    if files:
        (origin / "additional_chat_templates").mkdir()
        (origin / "additional_chat_templates/rag.jinja").write_text("x")
    else:
        tokenizer = AutoTokenizer.from_pretrained(origin)
        tokenizer.chat_template = {"rag": "x"}
        tokenizer.save_pretrained(origin, save_jinja_files=False)
    with pytest.raises(HalosError, match=r"has no chat template named default \(it has rag\); put one there as"):
        check_reward_model(reward_model(origin))
