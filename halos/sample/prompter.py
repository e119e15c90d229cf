"""Prompts as a model reads them, in token ids, and the responses that are wanted to each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos.data.feedback import Feedback
from halos.models.generation import read_generation_config
from halos.models.load import check_ids
from halos.pretrained import read_tokenizer
from halos.sample.backends import Request
from halos.sample.settings import PromptsSlice
from halos.sample.stops import Stops
from halos.seeds import derive
from halos.tokens.positions import Positions
from halos.tokens.template import TOO_LONG, Template


@dataclass(frozen=True)
class Job:
    """One response to generate: its record, its index among the record's samples, and the request."""

    record: int
    sample: int
    request: Request


@dataclass(frozen=True)
class PromptSet:
    """A prompt set in token ids. Jobs are sorted by the length of their prompt, longest first.

    Attributes:
        ids: prompt of each record in token ids; None where it is too long.
    """

    settings: PromptsSlice
    records: list[Feedback]
    ids: list[list[int] | None]
    jobs: list[Job]

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its response together."""
        return max((len(job.request.ids) + job.request.limit for job in self.jobs), default=1)


class Prompter:
    """A model's tokenizer and chat template, and how it reads prompts.

    Args:
        model: model folder.
        seed: the seed from which that of each response is derived.
        max_prompt_length: most tokens of a prompt, a control token not counted.
        split_special_tokens: whether a special token that a text spells stays text.
        by_hand: whether the folder is of any origin; it is then checked.

    Raises:
        HalosError: the folder has no tokenizer with a chat template, or, by hand, its ids are not those of the model.
    """

    def __init__(
        self, model: Path, seed: int, max_prompt_length: int, split_special_tokens: bool, by_hand: bool = False
    ) -> None:
        self.seed, self.positions = seed, Positions.read(model)
        self.tokenizer: Any = read_tokenizer(model, padding_side="left")
        if by_hand:
            self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
            check_ids(model, self.tokenizer, read_generation_config(model))
        self.template = Template(self.tokenizer, split_special_tokens)
        self.limit = self.positions.prompt_limit(max_prompt_length, self.template.control)

    def prepare(self, settings: PromptsSlice, records: list[Feedback]) -> PromptSet:
        """Template and tokenise the prompts of a set, and plan the responses."""
        templated = self.template.prompts([r.prompt for r in records], self.limit, [r.tools for r in records])
        prompts = [p.ids for p in templated]
        for problem, number in Counter(p.problem for p in templated if p.problem is not None).items():
            tokens = f" ({self.limit} tokens)" if problem == TOO_LONG else ""
            print(f"{number} prompts are left out: {problem}{tokens}")
        wanted, positions = settings.max_new_tokens, self.positions.limit
        room = [wanted if positions is None or ids is None else min(wanted, positions - len(ids)) for ids in prompts]
        if short := sum(tokens < wanted for tokens in room):
            print(f"after {short} prompts, the model's {positions} positions leave less than {wanted} tokens; "
                  "responses to them end there")  # fmt: skip
        stops = Stops(settings.stop, self.tokenizer) if settings.stop else None

        def seed_of(record: Feedback, index: int) -> int:
            return derive(self.seed, "response", record.prompt_id, index)

        jobs = [
            Job(record, index, Request(ids, room[record], seed_of(records[record], index), stops))
            for record, ids in enumerate(prompts)
            if ids is not None
            for index in range(settings.samples)
        ]
        jobs.sort(key=lambda job: -len(job.request.ids))
        return PromptSet(settings, records, prompts, jobs)
