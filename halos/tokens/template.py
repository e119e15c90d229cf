"""Chat templates: from turns to token ids, alike in training, sampling, judging and tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.tokens.answer import AssistantTurn, Written, reasoning_apart
from halos.tokens.chat import Chat
from halos.tokens.drafts import Draft, Drafter, Tools
from halos.tokens.spelled import Tokens
from halos.tokens.turns import shorter

TOO_LONG = "the last user turn alone is longer than max_prompt_length"


@dataclass(frozen=True)
class Prompt:
    """A templated prompt.

    Attributes:
        ids: its token ids, up to the beginning of the response; None where it cannot be used.
        problem: why it cannot be used, in the same words for all such prompts; None where it can.
        dropped_turns: number of its oldest turns that were left out to fit.
        joined: whether turns were joined or renamed, for a template that refuses or loses them otherwise.
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
    """A tokenizer's chat template, split into the text before a response, the response, and the token that ends it.

    Prompt and response are tokenised apart, as in sampling, where the model continues from the prompt's ids. So all
    responses to a prompt share its ids exactly.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        split_special_tokens: whether a special token that a text spells is text; if not, it is that token.

    Attributes:
        control: number of tokens at the end of prompts alone, which no length limit counts: 0 or 1.
        lead: text that the template writes before a plain response.
        thought: the beginning of reasoning with which its prompts end, so that a response continues it; or empty.
        end: id of the token that ends a response.
        unknown: what the template ends a response with, where the tokenizer has no token of it; or empty.

    Raises:
        HalosError: it has no template, or the template does not show the response's text exactly once.
    """

    def __init__(self, tokenizer: Any, split_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self._chat = Chat(tokenizer)
        self._tokens = Tokens(tokenizer, split_special_tokens)
        self._assistant = AssistantTurn(self._chat, self._tokens)
        self._drafter = Drafter(self._chat, self._tokens, self._assistant)
        self.lead, self.thought, self.end = self._assistant.lead, self._assistant.thought, self._assistant.end
        self.control, self.unknown = int(self._assistant.control != ""), self._assistant.unknown

    @property
    def hash(self) -> str:
        """sha256 of the template and of the tokenizer's vocabulary."""
        text = self._chat.text + repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def render(self, turns: list[Turn], tools: Tools = ()) -> str:
        """The prompt's text as the model sees it, up to the beginning of the response.

        For a template that refuses a system turn or two turns of one role in a row, such turns are joined.

        Raises:
            HalosError: the template cannot show it.
        """
        [draft] = self._drafter.drafts([turns], [tools], mark=False)
        if draft.text is None:
            raise HalosError(f"{draft.problem}; name another `template:`, or take such prompts out")
        return draft.text

    def prompts(self, conversations: list[list[Turn]], max_length: int, tools: Sequence[Tools] = ()) -> list[Prompt]:
        """Token ids of prompts of at most `max_length` tokens, a control token not counted.

        A longer prompt loses its oldest turns first (a system turn stays); the last user turn is never cut.

        Args:
            conversations: the turns of each prompt.
            max_length: most tokens of one.
            tools: the documents of the functions that the model may call after each, if any has some.
        """
        max_length += self.control
        kept = list(conversations)
        documents = list(tools) or [()] * len(kept)
        drafts = self._drafter.drafts(kept, documents)
        ids = self._tokens.ids([draft.text or "" for draft in drafts])
        # all that are too long lose a turn together: the tokenizer's threads work on lists of texts
        while cut := [i for i in range(len(kept)) if len(ids[i]) > max_length and shorter(kept[i]) is not kept[i]]:
            for i in cut:
                kept[i] = shorter(kept[i])
            fewer = self._drafter.drafts([kept[i] for i in cut], [documents[i] for i in cut])
            for i, draft, tokens in zip(cut, fewer, self._tokens.ids([d.text or "" for d in fewer]), strict=True):
                drafts[i], ids[i] = draft, tokens
        return [
            self._prompt(draft, tokens, max_length, len(turns) - len(rest))
            for draft, tokens, turns, rest in zip(drafts, ids, conversations, kept, strict=True)
        ]

    @staticmethod
    def _prompt(draft: Draft, ids: list[int], max_length: int, dropped: int) -> Prompt:
        problem = TOO_LONG if draft.problem is None and len(ids) > max_length else draft.problem
        flags = (draft.joined, draft.lost, draft.spelled)
        return Prompt(None, problem, 0, *flags) if problem else Prompt(ids, None, dropped, *flags)

    def responses(
        self, texts: list[str], cut: Sequence[bool] = (), fields: Sequence[dict[str, Any]] = ()
    ) -> list[Response]:
        """Token ids of responses, as the template writes an assistant turn of them.

        Args:
            texts: their texts.
            cut: whether each was cut before its end, so that it has no end-of-turn token.
            fields: other fields of each response's turn, such as tool_calls or reasoning_content.
        """
        written, spelled = self._written(texts, cut, fields)
        ids = self._tokens.ids([answer.text for answer in written])
        return [
            Response(None if answer.problem else [*tokens, *answer.end], answer.problem, spells)
            for answer, tokens, spells in zip(written, ids, spelled, strict=True)
        ]

    def texts(self, conversations: list[list[Turn]], responses: list[str]) -> tuple[list[str | None], list[str | None]]:
        """Prompts and responses as texts, for `encode`; None for each that the template cannot show.

        A response has no end of turn. Special tokens that a text spells are marked in it.
        """
        prompts = [draft.text for draft in self._drafter.drafts(conversations, [()] * len(conversations))]
        written, _ = self._written(responses, [True] * len(responses), ())
        return prompts, [None if answer.problem else answer.text for answer in written]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that `texts` has given: those of `prompts` and `responses`."""
        return self._tokens.ids(texts)

    def _written(
        self, texts: list[str], cut: Sequence[bool], fields: Sequence[dict[str, Any]]
    ) -> tuple[list[Written], list[bool]]:
        """The text of each response as the template writes it, and whether it spells a special token."""
        others = fields or [{}] * len(texts)
        turns = [{"role": "assistant", **other, "content": text} for text, other in zip(texts, others, strict=True)]
        spelled = [self._tokens.spells(turn) for turn in turns]
        marked = [self._tokens.mark(turn) if spells else turn for turn, spells in zip(turns, spelled, strict=True)]
        asked = self._assistant.asked
        wholes = self._chat.render_all([[*asked, turn] for turn in marked], generation=False)
        for i, turn in enumerate(marked):
            if self._assistant.repeats(turn, wholes[i]):
                wholes[i] = self._chat.or_refused([*asked, reasoning_apart(turn)], generation=False)
        written = [
            self._assistant.written(turn, whole, bool(cut and cut[i]))
            for i, (turn, whole) in enumerate(zip(marked, wholes, strict=True))
        ]
        return written, spelled
