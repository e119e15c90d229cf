"""Examples of a dataset as one model sees them: token by token, what is learned marked."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader

from halos.data.feedback import Feedback, Turn, read
from halos.data.report import DataReport
from halos.errors import HalosError
from halos.report.dataset.pieces import Piece, pieces
from halos.report.dataset.split import Split
from halos.tokens.report import TokensReport
from halos.tokens.store import Store
from halos.tokens.template import Template

TRIES = 256
"""Conversations searched for one that lost turns: those with the longest history."""


@dataclass(frozen=True)
class Shown:
    """A response of an example: its role, its pieces, all of which are learned, and facts about it."""

    name: str
    pieces: list[Piece]
    facts: list[str]


@dataclass(frozen=True)
class Example:
    """A prompt, whose tokens are not learned, with the responses that one row of a view holds."""

    split: str
    kind: str
    facts: list[str]
    prompt: list[Piece]
    responses: list[Shown]


@dataclass
class Chooser:
    """Picks examples by a hash of the store and of the kind of example: the same on every machine.

    Attributes:
        feedback: the parquet file of each split.
        shown: prompts that have an example.
        dropped_turns: prompt -> number of its turns that were left out, of the prompts that were searched.
    """

    store: Store
    template: Template
    splits: dict[str, Split]
    data: DataReport
    tokens: TokensReport
    feedback: dict[str, Path]
    shown: set[int] = field(default_factory=set)
    dropped_turns: dict[int, int] = field(default_factory=dict)

    def examples(self) -> list[Example]:
        """About a dozen examples: up to four views of each split, then rare and extreme ones."""
        cut = np.concatenate([split.truncated for split in self.splits.values()])
        # chosen before a view takes their prompts
        rare = [self._first("truncated response", self._walk(cut, "truncated")),
                self._first("prompt that lost turns", self._shortened())]  # fmt: skip
        views: list[Example | None] = []
        for split in self.splits.values():
            roles = [role for role in ("target", "chosen", "desirable", "undesirable") if len(split.roles[role])]
            views += [self._of_role(split, role) for role in roles]
            views += [] if len(roles) == 4 else [self._group(split)]
        rows = np.concatenate([split.rows for split in self.splits.values()])
        response, total = self.store.lengths[rows, 1], self.store.lengths[rows].sum(axis=1)
        several: list[int] | Iterator[int] = []
        if self.data.train.multi_turn or self.data.validation.multi_turn:
            several = filter(self._is_multi_turn, self._walk(rows, "several turns"))
        longest, shortest = rows[total == total.max()], rows[response == response.min()]
        extremes = [self._first("several turns", several),
                    self._first("longest sequence", self._walk(longest, "longest")),
                    self._first("shortest response", self._walk(shortest, "shortest"))]  # fmt: skip
        return [example for example in (*views, *rare, *extremes) if example is not None]

    def _walk(self, rows: np.ndarray, kind: str) -> Iterator[int]:
        """All of `rows`, from one that a hash of the kind picks."""
        if len(rows):
            digest = hashlib.sha256(f"{self.store.hash} {kind}".encode()).digest()
            start = int.from_bytes(digest[:8], "little") % len(rows)
            yield from (int(rows[(start + i) % len(rows)]) for i in range(len(rows)))

    def _first(self, kind: str, rows: Iterable[int]) -> Example | None:
        """An example of the first of `rows` whose prompt is not shown yet."""
        row = next((row for row in rows if self._prompt(row) not in self.shown), None)
        return None if row is None else self._example(kind, [row])

    def _of_role(self, split: Split, role: str) -> Example | None:
        rows = split.roles[role]
        for at in self._walk(np.arange(len(rows)), f"{split.name} {role}"):
            if self._prompt(rows[at]) in self.shown:
                continue
            if role == "chosen":
                return self._example("pair", [int(rows[at]), int(split.roles["rejected"][at])])
            return self._example("SFT target" if role == "target" else role, [int(rows[at])])
        return None

    def _group(self, split: Split) -> Example | None:
        if not split.views["grouped"]:
            return None
        groups = self.store.view(split.name, "grouped")["sequences"]
        for at in self._walk(np.arange(len(groups)), f"{split.name} group"):
            rows = groups[at].as_py()
            if self._prompt(rows[0]) not in self.shown:
                return self._example("group", rows)
        return None

    def _prompt(self, row: int) -> int:
        return int(self.store.prompt_of(np.array([row]))[0])

    @cached_property
    def _answer_begins(self) -> tuple[str, int]:
        """The template's text between a user's turn and its answer, and its occurrences in a prompt of one turn."""
        question, answer = "FIRSTQUESTION", "FIRSTANSWER"
        first, second = {"role": "user", "content": question}, {"role": "user", "content": "x"}
        text = self.template.render([first, {"role": "assistant", "content": answer}, second])
        between = text.partition(question)[2].partition(answer)[0].strip()
        return between, self.template.render([first]).count(between)

    def _is_multi_turn(self, row: int) -> bool:
        between, once = self._answer_begins
        text = self.template.tokenizer.decode(self.store.sequence(row)[0], skip_special_tokens=False)
        return bool(between) and text.count(between) > once

    def _example(self, kind: str, rows: list[int]) -> Example:
        tokenizer, end = self.template.tokenizer, self.template.end
        split = next(split for split in self.splits.values() if rows[0] in split.rows)
        prompt = self._prompt(rows[0])
        self.shown.add(prompt)
        decoded = [list(pieces(tokenizer, self.store.sequence(row), end)) for row in rows]
        facts = [_tokens(self.store.lengths[rows[0], 0])]
        if self._is_multi_turn(rows[0]):
            facts.append("several turns")
        if dropped := self.dropped_turns.get(prompt):
            facts.append(f"the {dropped} oldest turns left out" if dropped > 1 else "the oldest turn left out")
        names = ("chosen", "rejected") if kind == "pair" else ("response",) * len(rows)
        responses = [Shown(name, made, self._facts(split, row))
                     for name, row, (_, made) in zip(names, rows, decoded, strict=True)]  # fmt: skip
        return Example(split.name, kind, facts, decoded[0][0], responses)

    def _facts(self, split: Split, row: int) -> list[str]:
        """Facts about a response: its roles, its score, its length, and whether it is whole."""
        facts = []
        for role, rows in split.roles.items():
            if times := int((rows == row).sum()):
                facts.append(f"{role} in {times} pairs" if role in ("chosen", "rejected") and times > 1 else role)
        if split.views["scored"]:
            scored = self.store.view(split.name, "scored")
            scores = scored["score"].to_numpy()[scored["sequence"].to_numpy() == row]
            facts += [f"score {score:.4g}" for score in scores]
        facts.append(_tokens(self.store.lengths[row, 1]))
        return facts if split.whole(row) else [*facts, "truncated: no end of turn"]

    def _shortened(self) -> list[int]:
        """A sequence whose prompt lost turns, if one of the conversations with the longest history did."""
        limit = self.tokens.max_prompt_length
        for name, split in self.splits.items():
            if not split.tokens.prompts_with_dropped_turns:
                continue
            longest = heapq.nlargest(TRIES, _conversations(self.feedback[name]), key=lambda r: _history(r.prompt))
            for record in longest:
                [prompt] = self.template.prompts([record.prompt], limit, [record.tools])
                rows = self._with_prompt(split, prompt.ids) if prompt.ids and prompt.dropped_turns else []
                if rows:
                    self.dropped_turns[self._prompt(rows[0])] = prompt.dropped_turns
                    return rows
        return []

    def _with_prompt(self, split: Split, ids: list[int]) -> list[int]:
        """One sequence whose prompt has these ids, if there is one."""
        alike = split.prompts[self.store.lengths[split.prompts, 0] == len(ids)]
        return [int(row) for row in alike if np.array_equal(self.store.sequence(int(row))[0], ids)][:1]


def _conversations(path: Path) -> Iterator[Feedback]:
    if not path.is_file():
        raise HalosError(f"there is no feedback file {path} beside the report of prepare; run `prepare` again")
    return (record for record in read(path) if len(record.prompt) > 1)


def _history(turns: list[Turn]) -> int:
    """Characters before the last turn, which truncation can take away."""
    return sum(len(turn["content"]) for turn in turns[:-1])


def _tokens(count: int) -> str:
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def page(tokens: TokensReport, examples: list[Example]) -> str:
    """The HTML of examples: self-contained, without script, everything that comes from data escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("examples.html.jinja")
    return template.render(dataset=tokens.dataset, model=tokens.model, limits=tokens, examples=examples) + "\n"
