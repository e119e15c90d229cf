"""Chat templates: from turns to token ids, the same for training, sampling, judging and tasks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from halos.data.feedback import Turn
from halos.errors import HalosError

TEMPLATES = Path(__file__).parent.parent / "templates"
SENTINEL = "HALOSRESPONSE"


def read_template(name: str) -> str:
    """The text of a chat template: a name in halos/templates, or the path of a .jinja file.

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
        ids: its token ids, up to where the response begins; None when even its last turn is too long.
        dropped_turns: how many of the oldest turns were left out to fit.
    """

    ids: list[int] | None
    dropped_turns: int


class Template:
    """A tokenizer's chat template, taken apart once: what comes before a response, and what ends it.

    Prompt and response are tokenised apart, because that is what sampling does: the model is given the prompt's ids and
    goes on from there. So all responses to a prompt share its ids exactly.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        HalosError: it has no template, or the template loses the response's text.
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
        self.control = 0  # tokens at the end of prompts only: the store's limit does not count them
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
        """The id that ends a response: the first special token that the template writes after it, else eos."""
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
        """The prompt's text as the model sees it, up to where its response begins.

        A template that insists on user and assistant taking turns gets neighbours of one role joined, and a system
        turn joined to the first user turn.
        """
        try:
            return self._render(turns, generation=True)
        except TemplateError:
            return self._render(_alternating(turns), generation=True)

    def prompts(self, conversations: list[list[Turn]], max_length: int) -> list[Prompt]:
        """Token ids of prompts of at most `max_length` tokens, a control token not counted.

        A longer one loses its oldest turns first (a system turn stays); the last user turn is always whole.
        """
        out: list[Prompt] = []
        max_length += self.control
        for turns, ids in zip(conversations, self._tokenize([self.render(t) for t in conversations]), strict=True):
            dropped = 0
            system = turns[:1] if turns[0]["role"] == "system" else []
            rest = turns[len(system) :]
            while len(ids) > max_length and len(rest) > 1:
                rest = rest[1:]
                while len(rest) > 1 and rest[0]["role"] == "assistant":
                    rest = rest[1:]
                dropped = len(turns) - len(system) - len(rest)
                ids = self._tokenize([self.render(system + rest)])[0]
            out.append(Prompt(ids if len(ids) <= max_length else None, dropped))
        return out

    def responses(self, texts: list[str]) -> list[list[int]]:
        """Token ids of responses, end-of-turn token included."""
        return [[*ids, self.end] for ids in self._tokenize([self.lead + text for text in texts])]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def _alternating(turns: list[Turn]) -> list[Turn]:
    """The same text with user and assistant taking turns, the user first."""
    merged: list[Turn] = []
    for turn in turns:
        role = "user" if turn["role"] == "system" else turn["role"]
        if merged and merged[-1]["role"] == role:
            merged[-1] = {"role": role, "content": merged[-1]["content"] + "\n\n" + turn["content"]}
        elif merged or role == "user":
            merged.append({"role": role, "content": turn["content"]})
    return merged
