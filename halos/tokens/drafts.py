"""Prompts as text: the form of a conversation in which a chat template loses the least, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from halos.data.feedback import Turn
from halos.tokens.answer import SENTINEL, AssistantTurn
from halos.tokens.chat import Chat, Refused
from halos.tokens.spelled import Tokens
from halos.tokens.turns import called, hidden, left_out, variants

Tools = Sequence[dict[str, Any]]
"""JSON documents of the functions that a model may call."""


@dataclass(frozen=True)
class Draft:
    """The text of a prompt before it is tokenised; None where it cannot be used. Its flags are those of Prompt."""

    text: str | None
    problem: str | None = None
    joined: bool = False
    lost: bool = False
    spelled: bool = False


class Drafter:
    """Writes prompts with a chat template.

    Args:
        chat: the template.
        tokens: of the tokenizer, to mark special tokens that are spelled.
        assistant: what asks for a response.
    """

    def __init__(self, chat: Chat, tokens: Tokens, assistant: AssistantTurn) -> None:
        self._chat, self._tokens, self._assistant = chat, tokens, assistant
        self._hidden_by_roles: dict[tuple[str, ...], tuple[int, ...]] = {}

    def drafts(self, conversations: list[list[Turn]], tools: Sequence[Tools], mark: bool = True) -> list[Draft]:
        """The text of each prompt, or why there is none.

        Args:
            conversations: their turns.
            tools: the functions that may be called after each.
            mark: whether special tokens that they spell are marked, for Tokens.ids.
        """
        spelled = [self._tokens.spells(pair) for pair in zip(conversations, tools, strict=True)]
        if mark:
            pairs = [
                self._tokens.mark(pair) if spells else pair
                for spells, pair in zip(spelled, zip(conversations, tools, strict=True), strict=True)
            ]
            conversations, tools = [turns for turns, _ in pairs], [documents for _, documents in pairs]
        plain = [i for i, documents in enumerate(tools) if not documents]
        texts = dict(zip(plain, self._chat.render_all([conversations[i] for i in plain], True), strict=True))
        return [
            replace(self._draft(turns, documents, texts.get(i)), spelled=spells)
            for i, (turns, documents, spells) in enumerate(zip(conversations, tools, spelled, strict=True))
        ]

    def _draft(self, turns: list[Turn], tools: Tools, text: str | Refused | None) -> Draft:
        """The prompt's text, of the first form of its turns in which the template loses nothing, else the least.

        Args:
            text: what the template makes of the turns as they are, where that is known.
        """
        if tools and not self._shows_tools:
            return Draft(None, "the chat template does not show the tools that the model may call")
        best: tuple[list[int], str, list[Turn]] | None = None
        refusal = ""
        for joined, form in enumerate([turns, *variants(turns)]):
            if joined or text is None:
                text = self._chat.or_refused(form, True, tools)
            if isinstance(text, Refused):
                refusal = refusal or str(text)
                continue
            by_roles = self._hidden(form) if len(form) == len(turns) else left_out(turns, form)
            lost = sorted({*hidden(text, turns), *by_roles})
            if best is None or len(lost) < len(best[0]):
                best = (lost, text, form)
            if not lost:
                break
        if best is None:
            return Draft(None, f"the chat template refuses the conversation: {refusal}")
        lost, text, form = best
        problem = self._problem(turns, lost) or self._unasked(form, tools, text)
        return Draft(None if problem else text, problem, joined=form is not turns, lost=bool(lost))

    @staticmethod
    def _problem(turns: list[Turn], lost: list[int]) -> str | None:
        """Why a prompt that loses some of its turns cannot be used."""
        if any(turns[i]["role"] == "tool" for i in lost):
            return "the chat template does not show a tool's turn"
        if any(called(turns[i]) for i in lost):
            return "the chat template does not show a turn that calls tools"
        return "the chat template does not show the last turn" if len(turns) - 1 in lost else None

    def _unasked(self, turns: list[Turn], tools: Tools, text: str) -> str | None:
        """Why no response can follow a prompt: it ends otherwise than prompts do."""
        if text.endswith(self._assistant.generation + self._assistant.control):
            return None
        whole = self._chat.or_refused([*turns, {"role": "assistant", "content": SENTINEL}], False, tools)
        if self._assistant.follows(text, whole):
            return None
        return "the chat template asks for a response in another way after this conversation than after a question"

    def _hidden(self, turns: list[Turn]) -> tuple[int, ...]:
        """Indices of the turns that the template leaves out for their roles and places, whatever their text is."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._hidden_by_roles:
            known = [{"role": role, "content": f"{SENTINEL}{i}."} for i, role in enumerate(roles)]
            text = self._chat.or_refused(known, generation=True)
            lost = [i for i, turn in enumerate(known) if not isinstance(text, Refused) and turn["content"] not in text]
            # without calls of tools, some templates leave out what tools return
            self._hidden_by_roles[roles] = tuple(lost) if "tool" not in roles else ()
        return self._hidden_by_roles[roles]

    @cached_property
    def _shows_tools(self) -> bool:
        function = {"name": SENTINEL, "description": "d", "parameters": {"type": "object", "properties": {}}}
        text = self._chat.or_refused(
            self._assistant.asked, generation=True, tools=[{"type": "function", "function": function}]
        )
        return not isinstance(text, Refused) and SENTINEL in text
