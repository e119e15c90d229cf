"""The assistant's turn in a chat template: what prompts end with, what a response is, and what ends it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.tokens.chat import Chat, Refused
from halos.tokens.spelled import Tokens
from halos.tokens.turns import called, thoughts

SENTINEL = "HALOSRESPONSE"
_THOUGHT = re.compile(r"[<\[]\|?(?:start_)?think(?:ing)?\|?[>\]]\s*$", re.IGNORECASE)
"""The beginning of reasoning, at the end of a prompt."""
_BEGINS = re.compile(r"\s*[<\[]\|?(?:start_)?think(?:ing)?\|?[>\]]", re.IGNORECASE)
_CLOSES = re.compile(r"[<\[]\|?(?:/|end_)think(?:ing)?\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """The text of a response before it is tokenised, and the ids after it."""

    text: str = ""
    end: tuple[int, ...] = ()
    problem: str | None = None


class AssistantTurn:
    """What a chat template writes before, within and after an assistant's turn, found with a response of SENTINEL.

    Args:
        chat: the template; whether it wants texts as parts is found out here.
        tokens: of the tokenizer.

    Attributes:
        asked: a conversation that the template shows, before its response.
        control: a special token at the end of prompts alone; or empty.
        lead: text that the template writes before a plain response.
        thought: the beginning of reasoning with which prompts end, so that a response continues it; or empty.
        generation: what asks for a response: the end of a prompt that it has not without a response to come.
        end: id of the token that ends a response.
        unknown: what the template ends a response with, where the tokenizer has no token of it; or empty.

    Raises:
        HalosError: the template does not show the response's text exactly once, begins it otherwise than prompts end,
            or nothing ends it.
    """

    def __init__(self, chat: Chat, tokens: Tokens) -> None:
        self._special = tokens.special
        self.asked, before, whole = _probe(chat)
        start, self._suffix = whole.split(SENTINEL)
        ending = next((token for token in self._special.values() if before.endswith(token)), "")
        self.control = "" if start.startswith(before) or _THOUGHT.search(before) else ending
        before = before.removesuffix(self.control)
        found = _THOUGHT.search(before)
        self.thought = found[0] if found else ""
        self._opening = before  # how a prompt ends, the control token apart
        self.lead = start.removeprefix(before) if start.startswith(before) else ""
        if before.startswith(start):
            self._header = start  # what the template writes before a response; prompts go on after it
        elif start.startswith(before) or self.thought:
            self._header = before.removesuffix(self.thought)
        else:
            raise HalosError(
                "the chat template's prompts do not end as its assistant turns begin "
                f"({before[-40:]!r}, {start[-40:]!r}); name another `template:`"
            )
        plain = chat.or_refused(self.asked, generation=False)
        known = before if isinstance(plain, Refused) else plain
        self.generation = before[len(os.path.commonprefix([known, before])) :]  # noqa: RUF071 - of characters
        self._closing, self.end = self._end_of_turn(self._suffix, tokens.tokenizer)
        self.unknown = "" if str(tokens.tokenizer.convert_ids_to_tokens(self.end)) in whole else self._suffix.strip()

    def repeats(self, turn: Turn, whole: str | Refused) -> bool:
        """Whether a template writes reasoning of its own before a response that has some in its text."""
        reasons = _CLOSES.search(turn["content"]) and _CLOSES.search(self.lead)
        return bool(reasons) and not isinstance(whole, Refused) and whole.startswith(self._opening + self.lead)

    def follows(self, prompt: str, whole: str | Refused) -> bool:
        """Whether a response is written after a prompt as after any other, though nothing asks for it.

        Args:
            prompt: text of the prompt.
            whole: the same conversation with a response of SENTINEL.
        """
        return not self.thought and not self.control and whole == prompt + self.lead + SENTINEL + self._suffix

    def _end_of_turn(self, suffix: str, tokenizer: Any) -> tuple[str, int]:
        """The text between a response and its end, and the id of its end.

        It is the first special token that the template writes, else the first token that was added to the vocabulary,
        else eos.
        """
        added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        for tokens in (self._special, added):
            places = [(suffix.find(token), -len(token), i) for i, token in tokens.items() if token.strip()]
            if found := [place for place in places if place[0] >= 0]:
                at, _, end = min(found)
                return suffix[:at], end
        if tokenizer.eos_token_id is None:
            raise HalosError(
                "nothing ends a response: the chat template writes no token after it that the tokenizer keeps whole, "
                "and there is no eos token; name another `template:` or give the tokenizer an eos token"
            )
        return "", int(tokenizer.eos_token_id)

    def written(self, turn: Turn, whole: str | Refused, cut: bool) -> Written:
        """What the model has to write after a prompt for its turn to be as the template writes it.

        Args:
            turn: the assistant's.
            whole: a conversation that ends in it.
            cut: whether it was cut before its end.
        """
        text = turn["content"]
        if isinstance(whole, Refused):
            return Written(problem=f"the chat template refuses the response: {whole}")
        begins, closes = _BEGINS.match(text), _CLOSES.search(text)
        if self.thought and (begins or closes) and not (whole.startswith(self._opening) and closes):
            written = _continuing(text, self.thought)
        elif begins and not closes and not self.thought:
            written = text  # cut within its reasoning, which templates do not know
        elif whole.startswith(self._opening):
            return self._cut_at_end(turn, whole.removeprefix(self._opening), cut)
        elif self.thought:
            return Written(problem=f"the response does not begin with {self.thought.strip()}, as prompts end with it")
        elif whole.startswith(self._header) and not begins:
            return self._cut_at_end(turn, whole.removeprefix(self._header), cut)
        else:
            return Written(problem="the chat template begins the response otherwise than its prompts end")
        if unsaid := _unsaid(turn, text):
            return _unshown(unsaid)
        return Written(written) if cut else Written(written + self._closing, (self.end,))

    def _cut_at_end(self, turn: Turn, body: str, cut: bool) -> Written:
        """The text of an assistant's turn up to its end, and the token that ends it.

        Args:
            turn: the assistant's.
            body: what the template writes of it after a prompt, and whatever follows.
            cut: whether it was cut before its end.
        """
        if unsaid := _unsaid(turn, self.thought + body):
            return _unshown(unsaid)
        if body.endswith(self._suffix):
            body = body.removesuffix(self._suffix)
            return Written(body) if cut else Written(body + self._closing, (self.end,))
        body = body.rstrip()  # another end, such as that of a call
        end, token = max(((i, t) for i, t in self._special.items() if t and body.endswith(t)),
                         key=lambda item: len(item[1]), default=(self.end, ""))  # fmt: skip
        return Written(body.removesuffix(token), () if cut else (end,))


def _probe(chat: Chat) -> tuple[list[Turn], str, str]:
    """A conversation that the template shows, its prompt, and the same with a response of SENTINEL.

    Raises:
        HalosError: it shows none.
    """
    user = [{"role": "user", "content": "x"}]
    reason = None
    for chat.parts in (False, True):
        for turns in (user, [{"role": "system", "content": "s"}, *user]):
            try:
                whole = chat.render([*turns, {"role": "assistant", "content": SENTINEL}], generation=False)
                before = chat.render(turns, generation=True)
            except Refused as refused:
                reason = reason or str(refused)
                continue
            if whole.count(SENTINEL) == 1:
                return turns, before, whole
    why = f" ({reason})" if reason else ""
    raise HalosError(f"the chat template does not show an assistant turn's text once{why}; name another `template:`")


def reasoning_apart(turn: Turn) -> Turn:
    """A turn with the reasoning of its text in a field of its own, as some templates want it."""
    reasoning, content = _CLOSES.split(turn["content"], maxsplit=1)
    begin = _BEGINS.match(reasoning)
    reasoning = reasoning[begin.end() :] if begin else reasoning
    return {**turn, "reasoning_content": reasoning.strip("\n"), "content": content.lstrip("\n")}


def _continuing(text: str, thought: str) -> str:
    """The rest of a response after the beginning of its reasoning, if it has it: prompts end with that."""
    begin = thought.strip()
    if not text.lstrip().startswith(begin):
        return text
    return text.lstrip().removeprefix(begin).removeprefix(thought.removeprefix(begin))


def _unshown(what: str) -> Written:
    return Written(problem=f"the chat template does not show the response's {what}")


def _unsaid(turn: Turn, body: str) -> str | None:
    """What a turn says and a text does not hold, white space aside; None if it holds everything."""
    content = turn["content"].strip()
    if content not in body and "".join(content.split()) not in "".join(body.split()):
        return "text as it is"
    if any(thought not in body for thought in thoughts(turn)):
        return "reasoning, which is in a field of its own"
    return "calls of tools" if any(name not in body for name in called(turn)) else None
