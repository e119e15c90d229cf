"""A prompt and one response or two, however a row has them: apart, in whole conversations, or both."""

from __future__ import annotations

import re
from collections.abc import Sequence

from halos.data.feedback import Feedback, Turn
from halos.data.layouts.turns import Invalid

NO_PROMPT = "there is no prompt, and chosen and rejected do not begin with the same words"


class LeftOut(Exception):
    """The response of a row has weight 0."""


def spoken(text: str) -> list[Turn]:
    return [{"role": "assistant", "content": text}]


def _bare(turn: Turn) -> Turn:
    return {name: value for name, value in turn.items() if name != "weight"} if "weight" in turn else turn


def same(one: Feedback, other: Feedback) -> bool:
    return (one.prompt, one.responses) == (other.prompt, other.responses)


def _is_system(turn: Turn) -> bool:
    return turn["role"] in ("system", "developer")


def with_system(text: str, prompt: list[Turn]) -> list[Turn]:
    """The prompt with a system message, which it may have already.

    Raises:
        Invalid: it has another one.
    """
    if not any(map(_is_system, prompt)):
        return [{"role": "system", "content": text}, *prompt]
    if prompt[0]["content"].strip() != text.strip():
        raise Invalid("the field system and the system turn differ")
    return prompt


def holds(conversation: Sequence[Turn], prompt: Sequence[Turn]) -> bool:
    """Whether a conversation begins with a prompt, or one of its turns is the prompt's text."""

    def words(turns: Sequence[Turn]) -> list[tuple[str, str]]:
        return [(turn["role"], turn["content"].strip()) for turn in turns]

    wanted, found = words(prompt), words(conversation)
    return found[: len(wanted)] == wanted or (len(wanted) == 1 and wanted[0] in found)


def _whole(prompt: list[Turn], completion: list[Turn]) -> list[Turn]:
    """The conversation of a prompt and a completion that may hold all of it again.

    Raises:
        Invalid: the completion holds another prompt.
    """
    if not prompt or completion[0]["role"] == "assistant":
        return [*prompt, *completion]
    systems = [turn for turn in prompt if _is_system(turn)]
    if not any(map(_is_system, completion)) and holds(completion, [turn for turn in prompt if not _is_system(turn)]):
        return [*systems, *completion]
    if not systems and _is_system(completion[0]) and holds(completion[1:], prompt):
        return completion
    if not holds(completion, prompt):
        raise Invalid("the prompt and the conversation beside it differ")
    return completion


def single(prompt: list[Turn], completion: list[Turn], score: float | None = None) -> Feedback:
    """The record of one response. A completion that does not begin with the assistant's turn holds the prompt, too.

    Raises:
        Invalid: there is no response at the end, or the completion holds another prompt.
        LeftOut: the response has weight 0.
    """
    if completion[-1]["role"] != "assistant":
        raise Invalid("the conversation does not end in an assistant turn")
    *before, last = _whole(prompt, completion)
    if last.get("weight") == 0:
        raise LeftOut
    fields = {name: value for name, value in last.items() if name not in ("role", "content")} if len(last) > 2 else {}
    return Feedback(
        list(map(_bare, before)),
        [last["content"]],
        "local",
        [] if score is None else [score],
        target=0,
        response_fields=[fields] if fields else [],
    )


def pair(winner: Feedback, loser: Feedback, margin: float | None = None) -> Feedback:
    """The record of two responses to one prompt, the first preferred, by a margin if there is one.

    Raises:
        Invalid: their prompts differ, or one of them has no score.
    """
    if winner.prompt != loser.prompt:
        raise Invalid("the two responses follow different prompts")
    scores = winner.scores + loser.scores
    if len(scores) == 1:
        raise Invalid("only one of the two responses has a reward")
    fields = [(record.response_fields or [{}])[0] for record in (winner, loser)]
    return Feedback(
        winner.prompt,
        winner.responses + loser.responses,
        winner.source,
        scores,
        [(0, 1)],
        target=0,
        response_fields=fields if any(fields) else [],
        margins=[] if margin is None else [margin],
    )


def shared_text(chosen: str, rejected: str) -> str:
    """The words that both texts begin with: the prompt of a preference without one.

    Raises:
        Invalid: there are none.
    """
    if chosen.lstrip().startswith("Human:"):
        raise Invalid("this is the layout of Anthropic's HH, which the source hh reads")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    equal = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    shared = re.match(r".*\S(?=\s)", chosen[:equal], re.DOTALL)  # up to the last word that is whole
    if shared is None:
        raise Invalid(NO_PROMPT, f"{NO_PROMPT}; name its column by `columns: {{prompt: COLUMN}}`")
    return shared[0]
