"""Chat templates: from turns to token ids, alike in training, sampling, judging and tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from halos.data.feedback import Turn
from halos.errors import HalosError

TEMPLATES = Path(__file__).parent / "templates"
SENTINEL = "HALOSRESPONSE"
TOO_LONG = "the last user turn alone is longer than max_prompt_length"


def read_template(name: str) -> str:
    """The text of a chat template: a name in halos/tokens/templates, or the path of a .jinja file.

    Raises:
        HalosError: there is no such template.
    """
    for path in (TEMPLATES / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text()
    known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
    raise HalosError(f"there is no chat template {name!r}; name one of {known}, or the path of a .jinja file")


@dataclass(frozen=True)
class Prompt:
    """A templated prompt.

    Attributes:
        ids: its token ids, up to the beginning of the response; None where it cannot be used.
        problem: why it cannot be used, in the same words for all such prompts; None where it can.
        dropped_turns: number of its oldest turns that were left out to fit.
        joined: whether turns were joined, for a template that refuses or loses them otherwise.
        lost: whether text of a turn does not appear.
        spelled: whether the text of a turn spells a special token of the tokenizer.
    """

    ids: list[int] | None
    problem: str | None = None
    dropped_turns: int = 0
    joined: bool = False
    lost: bool = False
    spelled: bool = False


@dataclass(frozen=True)
class Response:
    """A templated response.

    Attributes:
        ids: its token ids, with the end-of-turn token unless it was cut before its end; None where it cannot be used.
        problem: why it cannot be used, in the same words for all such responses; None where it can.
        spelled: whether its text spells a special token of the tokenizer.
    """

    ids: list[int] | None
    problem: str | None = None
    spelled: bool = False


class Template:
    """A tokenizer's chat template, split into the text before a response and the token that ends it.

    Prompt and response are tokenized apart, as in sampling, where the model continues from the prompt's ids. So all
    responses to a prompt share its ids exactly.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Attributes:
        control: number of tokens at the end of prompts alone, which no length limit counts: 0 or 1.
        lead: text that the template writes before every response.
        end: id of the token that ends a response.

    Raises:
        HalosError: it has no template, or the template does not show the response's text exactly once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise HalosError("the tokenizer has no chat template; name one as `template:` in the model's entry")
        turn = [{"role": "user", "content": "x"}]
        before = self.render(turn)
        whole = self._render([*turn, {"role": "assistant", "content": SENTINEL}], generation=False)
        if whole.count(SENTINEL) != 1:
            raise HalosError("the chat template does not show an assistant turn's text once; name another `template:`")
        start, suffix = whole.split(SENTINEL)
        self.control = 0
        ending = next((token for token in tokenizer.all_special_tokens if before.endswith(token)), None)
        if ending is not None and not start.startswith(before):
            before, self.control = before.removesuffix(ending), 1
        self.lead = start[len(before) :] if start.startswith(before) else ""
        self.end = self._end_of_turn(suffix)

    @property
    def hash(self) -> str:
        """sha256 of the template and of the tokenizer's vocabulary."""
        text = self.tokenizer.chat_template + repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def _end_of_turn(self, suffix: str) -> int:
        """The id of the first special token that the template writes after a response, else of eos."""
        special = set(self.tokenizer.all_special_ids)
        for token in self.tokenizer(suffix, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
        if self.tokenizer.eos_token_id is None:
            raise HalosError("nothing ends a response: the tokenizer has no eos token and the template writes none")
        return int(self.tokenizer.eos_token_id)

    def _render(self, turns: list[Turn], generation: bool) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))

    def render(self, turns: list[Turn]) -> str:
        """The prompt's text as the model sees it, up to the beginning of the response.

        For a template that refuses a system turn or two turns of one role in a row, such turns are joined.
        """
        try:
            return self._render(turns, generation=True)
        except TemplateError:
            return self._render(_alternating(turns), generation=True)

    def prompts(self, conversations: list[list[Turn]], max_length: int) -> list[Prompt]:
        """Token ids of prompts of at most `max_length` tokens, a control token not counted.

        A longer prompt loses its oldest turns first (a system turn stays); the last user turn is never cut.
        """
        max_length += self.control
        kept = list(conversations)
        ids = self._tokenize(list(map(self.render, kept)))
        # all that are too long lose a turn together: the tokenizer's threads work on lists of texts
        while cut := [
            i for i in range(len(kept)) if len(ids[i]) > max_length and len(_shorter(kept[i])) < len(kept[i])
        ]:
            for i in cut:
                kept[i] = _shorter(kept[i])
            for i, shorter in zip(cut, self._tokenize([self.render(kept[i]) for i in cut]), strict=True):
                ids[i] = shorter
        return [
            Prompt(prompt, dropped_turns=len(turns) - len(rest))
            if len(prompt) <= max_length
            else Prompt(None, TOO_LONG)
            for turns, rest, prompt in zip(conversations, kept, ids, strict=True)
        ]

    def responses(self, texts: list[str], cut: Sequence[bool] = ()) -> list[Response]:
        """Token ids of responses, with the end-of-turn token unless the response was `cut` before its end."""
        complete = [not flag for flag in cut] or [True] * len(texts)
        responses = self._tokenize([self.lead + text for text in texts])
        return [Response([*ids, self.end] if ends else ids) for ids, ends in zip(responses, complete, strict=True)]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return ids


def _shorter(turns: list[Turn]) -> list[Turn]:
    """The turns without the oldest exchange; all of them where only the last turn is left. A system turn stays."""
    system = turns[:1] if turns[0]["role"] == "system" else []
    rest = turns[len(system) + 1 :]
    while len(rest) > 1 and rest[0]["role"] == "assistant":
        rest = rest[1:]
    return system + rest if rest else turns


def _alternating(turns: list[Turn]) -> list[Turn]:
    """The turns with user and assistant alternating, the user first; text of neighboring turns is joined."""
    merged: list[Turn] = []
    for turn in turns:
        role = "user" if turn["role"] == "system" else turn["role"]
        if merged and merged[-1]["role"] == role:
            merged[-1] = {"role": role, "content": merged[-1]["content"] + "\n\n" + turn["content"]}
        elif merged or role == "user":
            merged.append({"role": role, "content": turn["content"]})
    return merged
