"""Published chat templates: what is learned is what they write, token for token, or it is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from halos.errors import HalosError
from halos.tokens.template import Template
from tests.tokens.families import (
    ANSWER,
    CALL,
    FILES,
    PAGE,
    SEVERAL,
    SYSTEM,
    THOUGHT,
    USER,
    family_of,
    tokenizer_of,
    turn,
    written,
)

CONTINUED = {"deepseek_r1_distill", "deepseekv3", "deepseekv3_training"}
"""Templates that leave the reasoning out of a conversation that is over, though their prompts begin it."""
JOINED = {"gemma", "gemma_training", "gemma-it", "mistral"}
"""Those that know no system turn."""
APART = {"qwen3_5_think", "qwen3_6", "qwen3_8"}
"""Those that write a plain response as an end of the reasoning that their prompts begin."""


@pytest.mark.parametrize("name", FILES)
def test_a_conversation_has_the_tokens_of_the_templates_own_rendering(name: str) -> None:
    found = family_of(name).outcomes
    expected = "continued" if name in CONTINUED else "apart" if name.removesuffix("_training") in APART else "yes"
    assert (found["one"], found["several"]) == (expected, expected)
    joined = "joined" if name in JOINED else expected
    assert (found["system"], found["system and several"]) == (joined, joined)
    for outcome in found.values():
        assert outcome in ("yes", "apart", "joined", "continued") or outcome.startswith("refused: "), outcome
        assert len(outcome) < 300
        assert "\n" not in outcome


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("archangel", "<s>\n<|user|>\nQ\n<|assistant|>\nA</s>\n<|user|>\nR\n<|assistant|>\n"),
        ("chatml", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n"
                   "<|im_start|>assistant\n"),
        ("qwen-2", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
                   "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"),
        ("llama-2", "<s>[INST] Q [/INST] A </s><s>[INST] R [/INST]"),
        ("llama-3", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
                    "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral", "<s>[INST] Q [/INST] A</s>[INST] R [/INST]"),
        ("zephyr", "<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nR</s>\n<|assistant|>\n"),
        ("gemma-it", "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
                     "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n"),
    ],
)  # fmt: skip
def test_a_named_template_writes_what_its_family_of_models_was_trained_on(name: str, text: str) -> None:
    turns = [turn("user", "Q"), turn("assistant", "A"), turn("user", "R")]
    assert family_of(name).template.render(turns) == text


def test_a_system_turn_of_llama_2_is_within_the_first_question() -> None:
    text = family_of("llama-2").template.render([turn("system", "S"), turn("user", "Q")])
    assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST]"


@pytest.mark.parametrize(("name", "published"), [("llama-3", "llama3"), ("gemma-it", "gemma")])
def test_a_named_template_writes_the_same_as_the_published_one(name: str, published: str) -> None:
    assert {path.parent.name for path in (FILES[name], FILES[published])} == {"templates", "chat_templates"}
    for turns in ([USER], SEVERAL, [SYSTEM, *SEVERAL]):
        assert family_of(name).template.render(turns) == family_of(published).template.render(turns)


def test_the_page_of_templates_says_what_happens() -> None:
    """`python -m tests.tokens.families` writes it anew."""
    assert PAGE.read_text() == written()


# ---- the end of a turn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "end"),
    [("gemma3", "<end_of_turn>"), ("llama3", "<|eot_id|>"), ("phi3", "<|end|>"), ("gptoss", "<|return|>"),
     ("gemma4_v5", "<turn|>"), ("smolvlm", "<end_of_utterance>")],
)  # fmt: skip
def test_the_end_of_a_turn_is_what_the_template_writes_and_not_eos(name: str, end: str) -> None:
    tokenizer = tokenizer_of(name, eos_token="</s>")
    [response] = Template(tokenizer).responses([ANSWER])
    assert tokenizer.decode((response.ids or [])[-1:]) == end
    assert tokenizer.decode(response.ids).endswith(ANSWER + end)


def test_a_tokenizer_without_eos_ends_a_turn_with_what_the_template_writes() -> None:
    tokenizer = tokenizer_of("gemma3")
    tokenizer.eos_token = None
    assert tokenizer.convert_ids_to_tokens(Template(tokenizer).end) == "<end_of_turn>"


def test_a_token_that_is_added_but_not_special_ends_a_turn_where_no_other_does() -> None:
    text = "{% for m in messages %}{{ m.content }}</tool_call>{% endfor %}"
    tokenizer = tokenizer_of("turns", text)
    assert tokenizer.convert_ids_to_tokens(Template(tokenizer).end) == "</tool_call>"


def test_a_turn_that_nothing_ends_is_one_sentence() -> None:
    tokenizer = tokenizer_of("turns", "{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(HalosError, match=r"^nothing ends a response: .*; name another `template:`"):
        Template(tokenizer)


# ---- reasoning -------------------------------------------------------------------------------------------------


def ids_of(template: Template, text: str, **options: Any) -> tuple[str, str | None]:
    """The text of a response's ids, or why there are none."""
    [response] = template.responses([text], **options)
    return template.tokenizer.decode(response.ids or []), response.problem


def test_reasoning_is_written_once() -> None:
    template = family_of("qwen3").template
    assert ids_of(template, "<think>\nadd 0\n</think>\n\n0")[0] == "<think>\nadd 0\n</think>\n\n0<|im_end|>"
    assert ids_of(template, "0")[0] == "<think>\n\n</think>\n\n0<|im_end|>"
    assert (
        ids_of(template, "0", fields=[{"reasoning_content": "add 0"}])[0]
        == ids_of(template, "<think>\nadd 0\n</think>\n\n0")[0]
    )


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano", "qwen3_5_think", "qwen3_8"])
@pytest.mark.parametrize("said", [THOUGHT, THOUGHT.removeprefix("<think>\n")])
def test_a_response_continues_the_reasoning_that_its_prompt_opens(name: str, said: str) -> None:
    """Whether its text has the beginning, as data has, or lacks it, as what a model has written."""
    template = family_of(name).template
    [prompt] = template.prompts([[USER]], 1000)
    text, problem = ids_of(template, said)
    assert problem is None
    end = template.tokenizer.decode([template.end])
    assert (template.tokenizer.decode(prompt.ids) + text).endswith(
        "<think>\n" + THOUGHT.removeprefix("<think>\n") + end
    )
    assert text.count("think>") == 1


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_ultra"])
def test_a_response_without_the_reasoning_that_its_prompt_opens_is_refused(name: str) -> None:
    assert ids_of(family_of(name).template, ANSWER) == (
        "", "the response does not begin with <think>, as prompts end with it"
    )  # fmt: skip


def test_reasoning_after_a_prompt_that_ends_it_is_refused() -> None:
    assert "otherwise than its prompts end" in str(ids_of(family_of("qwen3_5_nothink").template, THOUGHT)[1])


def test_a_response_that_was_cut_within_its_reasoning_is_learned_as_it_is() -> None:
    assert ids_of(family_of("qwen3").template, "<think>\nadd", cut=[True])[0] == "<think>\nadd"


def test_a_response_is_trimmed_where_the_template_trims_it() -> None:
    assert ids_of(family_of("llama3_1").template, " 4 \n")[0] == "4<|eot_id|>"
    assert ids_of(family_of("qwen2_5").template, " 4 \n")[0] == " 4 \n<|im_end|>"


def test_what_a_template_would_leave_out_of_a_response_is_refused() -> None:
    template = family_of("qwen3").template
    assert "text as it is" in str(ids_of(template, "Well, <think>a</think> b")[1])
    calls = [{"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}]
    assert "calls of tools" in str(ids_of(family_of("lfm2").template, "", fields=calls)[1])
    assert "calls of tools" in str(ids_of(family_of("deepseek_r1_distill").template, THOUGHT, fields=calls)[1])
    assert "reasoning" in str(ids_of(family_of("llama3").template, "4", fields=[{"reasoning_content": "so"}])[1])


# ---- what a template loses -------------------------------------------------------------------------------------

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSISTS = "{% if messages[0].role != 'system' %}{{ raise_exception('Begin with a system turn!') }}{% endif %}"
ORDERED = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def prompt_of(template: Template, turns: list[Any], **options: Any) -> Any:
    [prompt] = template.prompts([turns], 1000, **options)
    return prompt


@pytest.mark.parametrize("text", [NO_SYSTEM, ORDERED])
@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["Be brief.", "s"])
def test_a_guiding_turn_that_a_template_loses_or_refuses_is_joined_to_the_next(
    text: str, role: str, content: str
) -> None:
    template = Template(tokenizer_of("turns", text))
    prompt = prompt_of(template, [turn(role, content), *SEVERAL])
    assert (prompt.joined, prompt.lost) == (True, False)
    assert f"{content}\n\n{USER['content']}" in template.tokenizer.decode(prompt.ids)


def test_a_developers_turn_is_the_systems_where_the_template_knows_only_that() -> None:
    template = family_of("qwen3").template
    asked, other = (prompt_of(template, [turn(role, "Be brief."), USER]) for role in ("developer", "system"))
    assert asked.ids == other.ids
    assert asked.joined
    assert not prompt_of(family_of("gptoss").template, [turn("developer", "Be brief."), USER]).joined


def test_a_first_turn_of_the_assistant_that_is_lost_is_counted() -> None:
    template = Template(tokenizer_of("turns", ORDERED))
    for first in ("Hi", "a"):  # also where its text is part of another's
        assert prompt_of(template, [turn("assistant", first), USER]).lost
        assert prompt_of(template, [SYSTEM, turn("assistant", first), USER]).lost
    assert not prompt_of(template, SEVERAL).lost
    assert not prompt_of(family_of("qwen2_5").template, [turn("assistant", "Hi"), USER]).lost


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gemma4_v5"])
def test_reasoning_that_is_left_out_of_earlier_turns_is_counted(name: str) -> None:
    earlier = turn("assistant", THOUGHT) if name != "gemma4_v5" else turn("assistant", ANSWER, reasoning_content="So")
    assert prompt_of(family_of(name).template, [USER, earlier, USER]).lost


def test_a_template_that_insists_on_a_system_turn_says_so_for_prompts_without() -> None:
    template = Template(tokenizer_of("turns", INSISTS + FILES["turns"].read_text()))
    assert prompt_of(template, [SYSTEM, USER]).ids
    assert prompt_of(template, [USER]).problem == (
        "the chat template refuses the conversation: Begin with a system turn!"
    )


@pytest.mark.parametrize("text", ["{{ raise_exception('never') }}", "{{ messages[0].content + 1 }}", "{{ x.y.z }}"])
def test_a_template_that_shows_nothing_is_one_sentence(text: str) -> None:
    with pytest.raises(
        HalosError, match=r"^the chat template does not show an assistant turn's text once \(.+\); name"
    ):
        Template(tokenizer_of("turns", text))


def test_a_template_that_begins_responses_otherwise_than_prompts_end_is_refused() -> None:
    text = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    text += "{% if add_generation_prompt %}Bot:{% endif %}"
    with pytest.raises(HalosError, match=r"^the chat template's prompts do not end as its assistant turns begin"):
        Template(tokenizer_of("turns", text))


def test_the_last_turn_is_never_lost() -> None:
    text = "{% for m in messages if m.content != 'secret' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    template = Template(tokenizer_of("turns", text + "{% if add_generation_prompt %}<|assistant|>{% endif %}"))
    assert prompt_of(template, [USER]).ids
    assert prompt_of(template, [turn("user", "secret")]).problem == "the chat template does not show the last turn"


@pytest.mark.parametrize("name", ["llama3_2", "qwen3", "gemma4_v5", "gptoss", "muse_glimmer"])
def test_arguments_of_a_call_may_be_text_of_json(name: str) -> None:
    """As servers give them: a template would write the text of a text."""
    template = family_of(name).template
    asked = {**CALL, "function": {"name": "add", "arguments": '{"a":2}'}}
    one, other = (template.responses([""], fields=[{"tool_calls": [call]}])[0] for call in (CALL, asked))
    assert one.ids
    assert one == other


# ---- several templates -----------------------------------------------------------------------------------------


def test_of_named_templates_the_default_is_used_and_the_one_for_tools_with_tools(tmp_path: Path) -> None:
    default, tools = FILES["turns"].read_text(), FILES["qwen2_5"].read_text()
    tokenizer = tokenizer_of("qwen2_5", default + tools)
    tokenizer.chat_template = {"default": default, "tool_use": tools, "rag": "x"}
    tokenizer.save_pretrained(tmp_path)
    template = Template(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    decode = template.tokenizer.decode
    assert decode(prompt_of(template, [USER]).ids) == f"<|user|>{USER['content']}<|end|><|assistant|>"
    document = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}
    with_tools = prompt_of(template, [USER], tools=[[document]])
    assert with_tools.problem is not None or '"name": "add"' in decode(with_tools.ids)
    alone = tokenizer_of("qwen2_5", default + tools)
    alone.chat_template = {"default": default}
    assert Template(alone).hash != template.hash


def test_named_templates_without_a_default_are_one_sentence() -> None:
    tokenizer = tokenizer_of("turns")
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(
        HalosError, match=r"^none of the tokenizer's chat templates \(rag, tool_use\) is named default; "
    ):
        Template(tokenizer)
