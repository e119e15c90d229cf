"""Tally: what became of the records of one split while they were tokenized, and what that says about the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from textwrap import shorten

from halos.data.feedback import Feedback
from halos.errors import HalosError
from halos.tokens.report import SplitTokens
from halos.tokens.settings import StoreSlice
from halos.tokens.template import TOO_LONG, Prompt, Response, Template

CANDIDATES = 64
"""Prompts that did not fit, of which the shortest is looked for."""


@dataclass
class Tally:
    """Counts of one split, as its records are tokenized.

    Attributes:
        numbers: {field of SplitTokens: count}.
        unusable: prompts that cannot be used.
        dropped: records left out, by reason.
        dropped_responses: responses left out, by reason.
        spelling: records with a text that spells a special token.
        spelled: one such text.
        too_long: the records with the shortest of the last turns that did not fit.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    unusable: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_responses: Counter[str] = field(default_factory=Counter)
    spelling: int = 0
    spelled: str = ""
    too_long: list[Feedback] = field(default_factory=list)

    def prompts(self, records: Sequence[Feedback], prompts: Sequence[Prompt]) -> None:
        """Count what became of the prompts of some records."""
        for prompt in prompts:
            if prompt.ids is None:
                self.unusable += 1
                self.dropped[str(prompt.problem)] += 1
            else:
                self.numbers["prompts_with_dropped_turns"] += prompt.dropped_turns > 0
                self.numbers["prompts_joined"] += prompt.joined
                self.numbers["prompts_with_lost_text"] += prompt.lost
            self.numbers["prompts_spelling_special_tokens"] += prompt.spelled
        too_long = [r for r, p in zip(records, prompts, strict=True) if p.problem == TOO_LONG]
        if too_long:
            candidates = [*self.too_long, *too_long]
            self.too_long = nsmallest(CANDIDATES, candidates, key=lambda record: len(record.prompt[-1]["content"]))

    def responses(self, record: Feedback, prompt: Prompt, responses: Sequence[Response]) -> None:
        """Count what became of the responses of a record."""
        for response in responses:
            if response.problem is not None:
                self.dropped_responses[response.problem] += 1
        spelled = [text for text, r in zip(record.responses, responses, strict=True) if r.spelled]
        self.numbers["responses_spelling_special_tokens"] += len(spelled)
        if prompt.spelled or spelled:
            self.spelling += 1
            self.spelled = self.spelled or (record.prompt[-1]["content"] if prompt.spelled else spelled[0])

    def check(self, split: str, settings: StoreSlice, template: Template, limit: int) -> None:
        """Refuse a split without a prompt that can be used, or most of which is text that has been templated already.
        (Without responses, its prompts can still be sampled from.)

        Args:
            limit: most tokens of a prompt.
        """
        records, where = self.numbers["records"], f"the {split} split of dataset {settings.dataset}"
        if records and records == self.unusable:
            if self.dropped[TOO_LONG] == records:
                raise HalosError(
                    f"no prompt of {where} fits {limit} tokens, and the last turn of the shortest alone has "
                    f"{self._shortest(template)}: raise datasets.{settings.dataset}.max_prompt_length (now "
                    f"{settings.max_prompt_length}), and max_length with it, as far as the model's positions allow"
                )
            reasons = "; ".join(f"{number} dropped ({reason})" for reason, number in self.dropped.most_common(3))
            raise HalosError(f"no prompt of {where} can be used with the model {settings.model}: {reasons}; correct "
                             "the data, or give the model another `template:`")  # fmt: skip
        if settings.split_special_tokens and 2 * self.spelling > records:
            raise HalosError(
                f"{self.spelling} of {records} records of {where} spell special tokens of the model {settings.model}, "
                f"such as {shorten(self.spelled, 120)!r}: if a chat template was applied to this text, give plain "
                f"turns, as the model's own is applied here; if the tokens are meant, set "
                f"datasets.{settings.dataset}.split_special_tokens: false"
            )

    def _shortest(self, template: Template) -> int:
        """Tokens of the shortest prompt that did not fit, a control token not counted: the least limit that it fits."""
        conversations, tools = [r.prompt for r in self.too_long], [r.tools for r in self.too_long]
        low, high = 0, 1
        while not any(p.ids for p in template.prompts(conversations, high, tools)):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = any(p.ids for p in template.prompts(conversations, middle, tools))
            low, high = (low, middle) if fits else (middle, high)
        return high

    def counts(self, **more: object) -> SplitTokens:
        """The counts for the report, with those that are known of the whole split."""
        content = {**self.numbers, "dropped": dict(self.dropped), "dropped_responses": dict(self.dropped_responses)}
        return SplitTokens.model_validate({**content, **more})
