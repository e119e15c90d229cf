from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from halos.errors import HalosError
from halos.tokens.answer import SENTINEL
from halos.tokens.chat import read_template
from halos.tokens.template import Template
from tests.conftest import World

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ m.role }}|> {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


MISTRAL = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}\n"
)
THINKING = CHATML.replace("%}<|assistant|>\n{% endif", "%}<|assistant|>\n<think>\n\n</think>\n\n{% endif")
SHAPES = {"turns": None, "alternating": ALTERNATING, "mistral": MISTRAL, "chatml": CHATML, "thinking": THINKING}


@pytest.fixture
def tokenizer(world: World) -> Any:
    return AutoTokenizer.from_pretrained(world.base / "model")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_prompt_and_a_response_make_up_the_whole_templated_conversation(tokenizer: Any) -> None:
    template = Template(tokenizer)
    user, reply = turn("user", "Hello there."), "Good day."
    [prompt], [response] = template.prompts([[user]], 100), template.responses([reply])
    whole = tokenizer.apply_chat_template([user, turn("assistant", reply)], tokenize=False)
    assert tokenizer.decode([*(prompt.ids or []), *(response.ids or ())]) == whole


def test_indentation_of_a_response_is_kept(tokenizer: Any) -> None:
    text = "def f():\n    return 1\n\tend  "
    [response] = Template(tokenizer).responses([text])
    assert tokenizer.decode((response.ids or [])[:-1]) == text


def test_a_long_prompt_loses_its_oldest_turns_and_keeps_system_and_last_user_turn(tokenizer: Any) -> None:
    template = Template(tokenizer)
    turns = [
        turn("system", "Be brief."),
        turn("user", "one " * 20),
        turn("assistant", "two " * 20),
        turn("user", "three?"),
    ]
    [full], [short] = template.prompts([turns], 1000), template.prompts([turns], 30)
    assert full.dropped_turns == 0
    assert short.dropped_turns == 2
    text = tokenizer.decode(short.ids)
    assert "Be brief." in text
    assert "three?" in text
    assert "one" not in text
    assert len(short.ids or []) <= 30


@pytest.mark.parametrize("shape", ["turns", "alternating"])
def test_a_prompt_does_not_depend_on_those_beside_it(shape: str, tokenizer: Any) -> None:
    tokenizer.chat_template = SHAPES[shape] or tokenizer.chat_template
    template = Template(tokenizer)
    roles, conversations = ("user", "assistant"), []
    for n in range(1, 8):
        turns = [turn(roles[k % 2], f"word {k} " * (k + n)) for k in range(n)]
        turns.append(turn("user", "last?"))  # every other time after another user turn
        conversations += [turns, [turn("system", "Be brief."), *turns]]
    together = template.prompts(conversations, 60)
    assert together == [template.prompts([turns], 60)[0] for turns in conversations]
    assert len({prompt.dropped_turns for prompt in together}) > 3


def test_a_last_turn_that_cannot_fit_is_refused_and_not_cut(tokenizer: Any) -> None:
    [prompt] = Template(tokenizer).prompts([[turn("user", "word " * 50)]], 10)
    assert prompt.ids is None


def test_a_template_that_insists_on_alternation_gets_joined_turns(tokenizer: Any) -> None:
    tokenizer.chat_template = ALTERNATING
    template = Template(tokenizer)
    text = template.render([turn("system", "Be kind."), turn("user", "a"), turn("user", "b")])
    assert text == "<|user|> Be kind.\n\na\n\nb<|end|>\n<|assistant|>"


def test_a_space_that_the_template_puts_before_a_response_belongs_to_the_response(tokenizer: Any) -> None:
    tokenizer.chat_template = ALTERNATING
    template = Template(tokenizer)
    assert template.lead == " "
    assert tokenizer.decode(template.responses(["Yes."])[0].ids) == " Yes.<|end|>"


def test_the_end_of_turn_is_the_special_token_after_a_response(tokenizer: Any) -> None:
    assert Template(tokenizer).end == tokenizer.convert_tokens_to_ids("<|end|>")


def test_eos_ends_a_response_where_the_template_writes_nothing_after_it(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert Template(tokenizer).end == tokenizer.eos_token_id


@pytest.mark.parametrize("shape", SHAPES)
def test_a_special_token_that_ends_prompts_alone_changes_nothing_about_responses(shape: str, tokenizer: Any) -> None:
    if SHAPES[shape] is not None:
        tokenizer.chat_template = SHAPES[shape]
    plain = Template(tokenizer)
    before = plain.responses(["Yes.", " no\n"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|good|>"]})
    tokenizer.chat_template = (
        tokenizer.chat_template.removesuffix("\n") + "{% if add_generation_prompt %}<|good|>{% endif %}"
    )
    template = Template(tokenizer)
    assert (template.lead, template.end) == (plain.lead, plain.end)
    assert template.lead == (" " if shape in ("alternating", "mistral") else "")
    assert template.responses(["Yes.", " no\n"]) == before


@pytest.mark.parametrize("shape", SHAPES)
def test_a_control_token_takes_no_room_from_a_prompt(shape: str, tokenizer: Any) -> None:
    """Else a prompt that was trained on would be too long to be sampled for."""
    if SHAPES[shape] is not None:
        tokenizer.chat_template = SHAPES[shape]
    turns = [turn("user", "one two three"), turn("assistant", "four"), turn("user", "five?")]
    [whole] = Template(tokenizer).prompts([turns], 1000)
    assert whole.ids is not None
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|good|>"]})
    ending = "{% if add_generation_prompt %}<|good|>{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.removesuffix("\n") + ending
    for limit, dropped in ((len(whole.ids), 0), (len(whole.ids) - 1, 2)):
        [prompt] = Template(tokenizer).prompts([turns], limit)
        assert prompt.dropped_turns == dropped
    [single] = Template(tokenizer).prompts([turns[-1:]], 1000)
    assert Template(tokenizer).prompts([turns[-1:]], len(single.ids or ()) - 1) == [single]


def test_words_that_end_prompts_alone_are_not_taken_for_a_control_token(tokenizer: Any) -> None:
    """What stands before a response is then not what prompts end with: nothing leads a response."""
    tokenizer.chat_template = ALTERNATING.replace("<|assistant|>{% endif", "<|assistant|> good:{% endif")
    template = Template(tokenizer)
    assert template.lead == ""
    assert template.render([turn("user", "a")]).endswith("<|assistant|> good:")


@pytest.mark.parametrize("text", [None, "{{ messages[0].content }}"])
def test_a_missing_template_or_one_without_an_assistant_turn_is_refused(tokenizer: Any, text: str | None) -> None:
    tokenizer.chat_template = text
    with pytest.raises(HalosError, match="template"):
        Template(tokenizer)


def test_an_unknown_template_name_lists_the_known_ones() -> None:
    with pytest.raises(HalosError, match="turns"):
        read_template("nonesuch")


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(SENTINEL)
    assert read_template(str(file)) == SENTINEL


def test_the_hash_changes_with_the_template(tokenizer: Any) -> None:
    before = Template(tokenizer).hash
    tokenizer.chat_template = ALTERNATING
    assert Template(tokenizer).hash != before
