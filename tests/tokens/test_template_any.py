"""Whatever the turns are: ids or a reason, never an error, and the same alone as beside others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokens.families import CALL, TOOL, family_of

TEXTS = st.lists(
    st.sampled_from(
        ["a", "Hi there", " ", "\n", "<think>", "</think>", "<|im_end|>", "<|eot_id|>", "</s>", "[INST]", "{{ x }}",
         "{% if %}", "ü🙂", "<|", "|>", '"', "<tool_call>", "\ufdd0", "\\ufdd0", "<|channel|>final<|message|>"]
    ),
    max_size=6,
).map("".join)  # fmt: skip
CALLS: list[Any] = [[CALL], [], None, [{}], "x", [{"function": {"name": "f", "arguments": "{}"}}], [{"name": "f"}]]
FIELDS = st.sampled_from([{}, {"name": "bob"}, {"thinking": None}, {"weight": 0}]) | st.one_of(
    st.sampled_from(CALLS).map(lambda calls: {"tool_calls": calls}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
)
TURNS = st.builds(
    lambda role, content, fields: {"role": role, "content": content, **fields},
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    TEXTS,
    FIELDS,
)
PROMPTS = st.builds(
    lambda turns, role, text: [*turns, {"role": role, "content": "q" + text}],
    st.lists(TURNS, max_size=4),
    st.sampled_from(["user", "user", "tool"]),
    TEXTS,
)
TOOLS = st.sampled_from([[], [], [TOOL], [{}], [{"name": "x"}], [{"type": "function", "function": {"name": "g"}}]])


@pytest.mark.parametrize("name", ["qwen3", "llama3_2", "gemma", "gptoss", "deepseek_r1_distill", "qwen3_8", "smolvlm"])
@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.tuples(PROMPTS, TOOLS), min_size=1, max_size=4),
    responses=st.lists(st.tuples(TEXTS, st.booleans(), FIELDS), min_size=1, max_size=4),
)
@example(  # no turn of a user: nothing would be left of the turns that alternate
    prompts=[([{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "q"}], [])],
    responses=[("", False, {})],
)
def test_any_turns_have_ids_or_a_reason_and_the_same_ones_alone(name: str, prompts: Any, responses: Any) -> None:
    template = family_of(name).template
    asked = template.prompts([turns for turns, _ in prompts], 200, [tools for _, tools in prompts])
    assert asked == [template.prompts([turns], 200, [tools])[0] for turns, tools in prompts]
    texts, cut, fields = (list(column) for column in zip(*responses, strict=True))
    answered = template.responses(texts, cut, fields)
    assert answered == [template.responses([text], [flag], [other])[0] for text, flag, other in responses]
    for one in [*asked, *answered]:
        assert (one.ids is None) == (one.problem is not None)
    for text, answer in zip(texts, answered, strict=True):
        if answer.ids is not None:  # nothing that a response says is lost, white space aside
            said = "".join((template.thought + template.tokenizer.decode(answer.ids)).split())
            assert "".join(text.split()) in said
